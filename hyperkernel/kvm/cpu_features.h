// Names of CPUID feature bits (Intel SDM vol. 2, CPUID; AMD APM vol. 3, appendix E), what each needs, and whether the
// `common` profile has it.
#pragma once

#include <cstdint>
#include <string_view>

namespace hk {

// Output register of CPUID.
enum class CpuidRegister : uint8_t { kEax, kEbx, kEcx, kEdx };

// One feature bit. Plain value.
struct CpuFeature {
  std::string_view name;  // as in /proc/cpuinfo
  uint32_t function;
  uint32_t index;
  CpuidRegister where;
  uint8_t bit;
  bool common;             // in the profile `common`, if the host has it
  std::string_view needs;  // feature without which this one is hidden too; "" for none
};

inline constexpr CpuFeature kCpuFeatures[] = {
    {"sse3", 1, 0, CpuidRegister::kEcx, 0, true, ""},
    {"pclmulqdq", 1, 0, CpuidRegister::kEcx, 1, true, ""},
    {"monitor", 1, 0, CpuidRegister::kEcx, 3, false, ""},
    {"vmx", 1, 0, CpuidRegister::kEcx, 5, false, ""},
    {"ssse3", 1, 0, CpuidRegister::kEcx, 9, true, ""},
    {"fma", 1, 0, CpuidRegister::kEcx, 12, false, "avx"},
    {"cx16", 1, 0, CpuidRegister::kEcx, 13, true, ""},
    {"pdcm", 1, 0, CpuidRegister::kEcx, 15, false, ""},
    {"pcid", 1, 0, CpuidRegister::kEcx, 17, false, ""},
    {"sse4_1", 1, 0, CpuidRegister::kEcx, 19, true, ""},
    {"sse4_2", 1, 0, CpuidRegister::kEcx, 20, true, ""},
    {"x2apic", 1, 0, CpuidRegister::kEcx, 21, true, ""},
    {"movbe", 1, 0, CpuidRegister::kEcx, 22, false, ""},
    {"popcnt", 1, 0, CpuidRegister::kEcx, 23, true, ""},
    {"tsc_deadline_timer", 1, 0, CpuidRegister::kEcx, 24, false, ""},
    {"aes", 1, 0, CpuidRegister::kEcx, 25, true, ""},
    {"xsave", 1, 0, CpuidRegister::kEcx, 26, false, ""},
    {"avx", 1, 0, CpuidRegister::kEcx, 28, false, "xsave"},
    {"f16c", 1, 0, CpuidRegister::kEcx, 29, false, "avx"},
    {"rdrand", 1, 0, CpuidRegister::kEcx, 30, false, ""},

    {"fsgsbase", 7, 0, CpuidRegister::kEbx, 0, true, ""},
    {"tsc_adjust", 7, 0, CpuidRegister::kEbx, 1, false, ""},
    {"sgx", 7, 0, CpuidRegister::kEbx, 2, false, ""},
    {"bmi1", 7, 0, CpuidRegister::kEbx, 3, false, ""},
    {"hle", 7, 0, CpuidRegister::kEbx, 4, false, ""},
    {"avx2", 7, 0, CpuidRegister::kEbx, 5, false, "avx"},
    {"smep", 7, 0, CpuidRegister::kEbx, 7, true, ""},
    {"bmi2", 7, 0, CpuidRegister::kEbx, 8, false, ""},
    {"erms", 7, 0, CpuidRegister::kEbx, 9, false, ""},
    {"invpcid", 7, 0, CpuidRegister::kEbx, 10, false, ""},
    {"rtm", 7, 0, CpuidRegister::kEbx, 11, false, ""},
    {"mpx", 7, 0, CpuidRegister::kEbx, 14, false, "xsave"},
    {"avx512f", 7, 0, CpuidRegister::kEbx, 16, false, "avx2"},
    {"avx512dq", 7, 0, CpuidRegister::kEbx, 17, false, "avx512f"},
    {"rdseed", 7, 0, CpuidRegister::kEbx, 18, false, ""},
    {"adx", 7, 0, CpuidRegister::kEbx, 19, false, ""},
    {"smap", 7, 0, CpuidRegister::kEbx, 20, true, ""},
    {"avx512ifma", 7, 0, CpuidRegister::kEbx, 21, false, "avx512f"},
    {"clflushopt", 7, 0, CpuidRegister::kEbx, 23, false, ""},
    {"clwb", 7, 0, CpuidRegister::kEbx, 24, false, ""},
    {"intel_pt", 7, 0, CpuidRegister::kEbx, 25, false, ""},
    {"avx512pf", 7, 0, CpuidRegister::kEbx, 26, false, "avx512f"},
    {"avx512er", 7, 0, CpuidRegister::kEbx, 27, false, "avx512f"},
    {"avx512cd", 7, 0, CpuidRegister::kEbx, 28, false, "avx512f"},
    {"sha_ni", 7, 0, CpuidRegister::kEbx, 29, false, ""},
    {"avx512bw", 7, 0, CpuidRegister::kEbx, 30, false, "avx512f"},
    {"avx512vl", 7, 0, CpuidRegister::kEbx, 31, false, "avx512f"},

    {"avx512vbmi", 7, 0, CpuidRegister::kEcx, 1, false, "avx512f"},
    {"umip", 7, 0, CpuidRegister::kEcx, 2, false, ""},
    {"pku", 7, 0, CpuidRegister::kEcx, 3, false, "xsave"},
    {"ospke", 7, 0, CpuidRegister::kEcx, 4, false, "pku"},
    {"waitpkg", 7, 0, CpuidRegister::kEcx, 5, false, ""},
    {"avx512_vbmi2", 7, 0, CpuidRegister::kEcx, 6, false, "avx512f"},
    {"shstk", 7, 0, CpuidRegister::kEcx, 7, false, "xsave"},
    {"gfni", 7, 0, CpuidRegister::kEcx, 8, false, ""},
    {"vaes", 7, 0, CpuidRegister::kEcx, 9, false, "avx"},
    {"vpclmulqdq", 7, 0, CpuidRegister::kEcx, 10, false, "avx"},
    {"avx512_vnni", 7, 0, CpuidRegister::kEcx, 11, false, "avx512f"},
    {"avx512_bitalg", 7, 0, CpuidRegister::kEcx, 12, false, "avx512f"},
    {"avx512_vpopcntdq", 7, 0, CpuidRegister::kEcx, 14, false, "avx512f"},
    {"la57", 7, 0, CpuidRegister::kEcx, 16, false, ""},
    {"rdpid", 7, 0, CpuidRegister::kEcx, 22, false, ""},
    {"bus_lock_detect", 7, 0, CpuidRegister::kEcx, 24, false, ""},
    {"cldemote", 7, 0, CpuidRegister::kEcx, 25, false, ""},
    {"movdiri", 7, 0, CpuidRegister::kEcx, 27, false, ""},
    {"movdir64b", 7, 0, CpuidRegister::kEcx, 28, false, ""},
    {"enqcmd", 7, 0, CpuidRegister::kEcx, 29, false, "xsave"},
    {"sgx_lc", 7, 0, CpuidRegister::kEcx, 30, false, "sgx"},

    {"fsrm", 7, 0, CpuidRegister::kEdx, 4, false, ""},
    {"avx512_vp2intersect", 7, 0, CpuidRegister::kEdx, 8, false, "avx512f"},
    {"md_clear", 7, 0, CpuidRegister::kEdx, 10, true, ""},
    {"serialize", 7, 0, CpuidRegister::kEdx, 14, false, ""},
    {"tsxldtrk", 7, 0, CpuidRegister::kEdx, 16, false, ""},
    {"ibt", 7, 0, CpuidRegister::kEdx, 20, false, "xsave"},
    {"amx_bf16", 7, 0, CpuidRegister::kEdx, 22, false, "amx_tile"},
    {"avx512_fp16", 7, 0, CpuidRegister::kEdx, 23, false, "avx512f"},
    {"amx_tile", 7, 0, CpuidRegister::kEdx, 24, false, "xsave"},
    {"amx_int8", 7, 0, CpuidRegister::kEdx, 25, false, "amx_tile"},
    // Speculation controls: the guest must know what it can do, also in `common`.
    {"spec_ctrl", 7, 0, CpuidRegister::kEdx, 26, true, ""},
    {"intel_stibp", 7, 0, CpuidRegister::kEdx, 27, true, ""},
    {"flush_l1d", 7, 0, CpuidRegister::kEdx, 28, false, ""},
    {"arch_capabilities", 7, 0, CpuidRegister::kEdx, 29, true, ""},
    {"ssbd", 7, 0, CpuidRegister::kEdx, 31, true, ""},

    {"avx_vnni", 7, 1, CpuidRegister::kEax, 4, false, "avx2"},
    {"avx512_bf16", 7, 1, CpuidRegister::kEax, 5, false, "avx512f"},
    {"amx_fp16", 7, 1, CpuidRegister::kEax, 21, false, "amx_tile"},
    {"avx_ifma", 7, 1, CpuidRegister::kEax, 23, false, "avx2"},
    {"avx_vnni_int8", 7, 1, CpuidRegister::kEdx, 4, false, "avx2"},
    {"avx_ne_convert", 7, 1, CpuidRegister::kEdx, 5, false, "avx2"},
    {"amx_complex", 7, 1, CpuidRegister::kEdx, 8, false, "amx_tile"},
    {"avx10", 7, 1, CpuidRegister::kEdx, 19, false, "avx512f"},

    {"xsaveopt", 0xd, 1, CpuidRegister::kEax, 0, false, "xsave"},
    {"xsavec", 0xd, 1, CpuidRegister::kEax, 1, false, "xsave"},
    {"xgetbv1", 0xd, 1, CpuidRegister::kEax, 2, false, "xsave"},
    {"xsaves", 0xd, 1, CpuidRegister::kEax, 3, false, "xsave"},
    {"xfd", 0xd, 1, CpuidRegister::kEax, 4, false, "amx_tile"},

    {"lahf_lm", 0x80000001, 0, CpuidRegister::kEcx, 0, true, ""},
    {"svm", 0x80000001, 0, CpuidRegister::kEcx, 2, false, ""},
    {"cr8_legacy", 0x80000001, 0, CpuidRegister::kEcx, 4, true, ""},
    {"abm", 0x80000001, 0, CpuidRegister::kEcx, 5, false, ""},
    {"sse4a", 0x80000001, 0, CpuidRegister::kEcx, 6, false, ""},
    {"misalignsse", 0x80000001, 0, CpuidRegister::kEcx, 7, false, ""},
    {"3dnowprefetch", 0x80000001, 0, CpuidRegister::kEcx, 8, false, ""},
    {"osvw", 0x80000001, 0, CpuidRegister::kEcx, 9, false, ""},
    {"xop", 0x80000001, 0, CpuidRegister::kEcx, 11, false, "avx"},
    {"lwp", 0x80000001, 0, CpuidRegister::kEcx, 15, false, "xsave"},
    {"fma4", 0x80000001, 0, CpuidRegister::kEcx, 16, false, "avx"},
    {"tbm", 0x80000001, 0, CpuidRegister::kEcx, 21, false, ""},
    {"topoext", 0x80000001, 0, CpuidRegister::kEcx, 22, true, ""},
    {"perfctr_core", 0x80000001, 0, CpuidRegister::kEcx, 23, false, ""},
    {"perfctr_nb", 0x80000001, 0, CpuidRegister::kEcx, 24, false, ""},
    {"perfctr_llc", 0x80000001, 0, CpuidRegister::kEcx, 28, false, ""},
    {"mwaitx", 0x80000001, 0, CpuidRegister::kEcx, 29, false, ""},
    {"nx", 0x80000001, 0, CpuidRegister::kEdx, 20, true, ""},
    {"mmxext", 0x80000001, 0, CpuidRegister::kEdx, 22, false, ""},
    {"fxsr_opt", 0x80000001, 0, CpuidRegister::kEdx, 25, false, ""},
    {"pdpe1gb", 0x80000001, 0, CpuidRegister::kEdx, 26, false, ""},
    {"rdtscp", 0x80000001, 0, CpuidRegister::kEdx, 27, true, ""},
};

}  // namespace hk
