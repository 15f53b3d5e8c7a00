// The byte form of VcpuState. One function names the fields in their order; the writer and the reader both walk it.
#include "fmt/format.h"
#include "hyperkernel/base/byte_archive.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/kvm/cpu_model.h"
#include "hyperkernel/kvm/vcpu_state.h"

namespace hk {
namespace {

constexpr uint32_t kMagic = 0x43564b48;  // "HKVC"
constexpr uint16_t kVersion = 2;

template <typename Archive>
void Segment(Archive& a, Archived<Archive, kvm_segment>& s) {
  a.Numbers(s.base, s.limit, s.selector, s.type, s.present, s.dpl, s.db, s.s, s.l, s.g, s.avl, s.unusable);
}

template <typename Archive>
void Fields(Archive& a, Archived<Archive, kvm_sregs>& s) {
  for (auto* segment : {&s.cs, &s.ds, &s.es, &s.fs, &s.gs, &s.ss, &s.tr, &s.ldt}) Segment(a, *segment);
  for (auto* table : {&s.gdt, &s.idt}) a.Numbers(table->base, table->limit);
  a.Numbers(s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer, s.apic_base);
  for (auto& word : s.interrupt_bitmap) a.Number(word);
}

template <typename Archive>
void Fields(Archive& a, Archived<Archive, kvm_regs>& r) {
  a.Numbers(r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rsp, r.rbp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14,
            r.r15, r.rip, r.rflags);
}

template <typename Archive>
void Fields(Archive& a, Archived<Archive, kvm_vcpu_events>& e) {
  a.Numbers(e.exception.injected, e.exception.nr, e.exception.has_error_code, e.exception.pending,
            e.exception.error_code, e.interrupt.injected, e.interrupt.nr, e.interrupt.soft, e.interrupt.shadow,
            e.nmi.injected, e.nmi.pending, e.nmi.masked, e.sipi_vector, e.flags, e.smi.smm, e.smi.pending,
            e.smi.smm_inside_nmi, e.smi.latched_init, e.triple_fault.pending, e.exception_has_payload,
            e.exception_payload);
}

template <typename Archive>
void Fields(Archive& a, Archived<Archive, VcpuState>& state) {
  a.Choice(state.activity, VcpuActivity::kWaitForSipi, "unknown activity");
  a.Numbers(state.tsc_khz, state.tsc_offset, state.clock.system_time_msr, state.clock.version, state.pv_eoi_msr);
  a.Count(state.cpuid, kMostCpuidEntries);
  for (auto& e : state.cpuid) a.Numbers(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx);
  a.Numbers(state.xcrs.nr_xcrs, state.xcrs.flags);
  for (auto& xcr : state.xcrs.xcrs) a.Numbers(xcr.xcr, xcr.value);
  a.Bytes(state.xsave, kMostXsaveBytes);
  Fields(a, state.sregs);
  Fields(a, state.regs);
  for (auto& db : state.debugregs.db) a.Number(db);
  a.Numbers(state.debugregs.dr6, state.debugregs.dr7, state.debugregs.flags);
  a.Count(state.msrs, kMostMsrs);
  for (auto& msr : state.msrs) a.Numbers(msr.index, msr.data);
  Fields(a, state.events);
}

}  // namespace

std::vector<std::byte> EncodeVcpuState(const VcpuState& state) {
  ByteWriter writer;
  writer.Numbers(kMagic, kVersion);
  Fields(writer, state);
  std::vector<std::byte> bytes = writer.Take();
  HK_CHECK(bytes.size() <= kMostVcpuStateBytes);
  return bytes;
}

absl::StatusOr<VcpuState> DecodeVcpuState(std::span<const std::byte> bytes) {
  if (bytes.size() > kMostVcpuStateBytes) return absl::InvalidArgumentError("vCPU state: too long");
  ByteReader reader(bytes);
  uint32_t magic = 0;
  uint16_t version = 0;
  reader.Numbers(magic, version);
  if (magic != kMagic) return absl::InvalidArgumentError("vCPU state: it is something else");
  if (version != kVersion) {
    return absl::InvalidArgumentError(fmt::format("vCPU state: version {}, expected {}", version, kVersion));
  }
  VcpuState state;
  Fields(reader, state);
  if (reader.failure() == nullptr && state.xsave.size() < sizeof(kvm_xsave)) reader.Fail("the XSAVE area is too short");
  if (reader.failure() == nullptr && state.xcrs.nr_xcrs > KVM_MAX_XCRS) reader.Fail("too many XCRs");
  HK_RETURN_IF_ERROR(reader.Done("vCPU state"));
  return state;
}

}  // namespace hk
