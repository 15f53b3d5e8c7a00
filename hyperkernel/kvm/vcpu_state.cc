#include "hyperkernel/kvm/vcpu_state.h"

#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/kvm/cpu_model.h"

namespace hk {
namespace {

template <typename T>
absl::Status Call(const VcpuFd& vcpu, unsigned long request, T* argument, const char* name) {
  if (ioctl(vcpu.get(), request, argument) < 0) return ErrnoStatus(errno, name);
  return absl::OkStatus();
}

// struct kvm_msrs with room for `count` entries.
class MsrBuffer {
 public:
  explicit MsrBuffer(size_t count) : words_(1 + 2 * count) {
    static_assert(sizeof(kvm_msrs) == 8 && sizeof(kvm_msr_entry) == 16);
  }
  kvm_msrs* get() { return reinterpret_cast<kvm_msrs*>(words_.data()); }
  kvm_msr_entry* entries() { return reinterpret_cast<kvm_msr_entry*>(words_.data() + 1); }

 private:
  std::vector<uint64_t> words_;
};

// KVM_GET_MSRS and KVM_SET_MSRS stop at the first MSR that they refuse and say how many they did. `refused` is called
// with each of those; its status ends the walk unless OK.
template <typename Refused>
absl::Status ForMsrs(const VcpuFd& vcpu, unsigned long request, const char* name, std::vector<kvm_msr_entry>* msrs,
                     Refused refused) {
  for (size_t done = 0; done < msrs->size();) {
    const size_t count = std::min<size_t>(msrs->size() - done, 256);  // KVM's own bound: MAX_IO_MSRS
    MsrBuffer buffer(count);
    buffer.get()->nmsrs = static_cast<uint32_t>(count);
    std::copy_n(msrs->begin() + static_cast<ptrdiff_t>(done), count, buffer.entries());
    const int result = ioctl(vcpu.get(), request, buffer.get());
    if (result < 0) return ErrnoStatus(errno, name);
    HK_CHECK(static_cast<size_t>(result) <= count);
    std::copy_n(buffer.entries(), result, msrs->begin() + static_cast<ptrdiff_t>(done));
    done += static_cast<size_t>(result);
    if (static_cast<size_t>(result) == count) continue;
    HK_RETURN_IF_ERROR(refused((*msrs)[done]));
    ++done;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<kvm_msr_entry>> ReadMsrs(const VcpuFd& vcpu, const std::vector<uint32_t>& indices) {
  std::vector<kvm_msr_entry> msrs;
  msrs.reserve(indices.size());
  for (uint32_t index : indices) msrs.push_back({.index = index, .reserved = 0, .data = 0});
  // What cannot be read here (the CPU model has it not) is not part of the state.
  constexpr uint32_t kRefused = 1;
  HK_RETURN_IF_ERROR(ForMsrs(vcpu, KVM_GET_MSRS, "KVM_GET_MSRS", &msrs, [](kvm_msr_entry& msr) {
    msr.reserved = kRefused;
    return absl::OkStatus();
  }));
  std::erase_if(msrs, [](const kvm_msr_entry& msr) { return msr.reserved != 0; });
  return msrs;
}

// Some MSRs are listed and readable but not settable. That is a fault only if this vCPU does not already have the
// value.
absl::Status WriteMsrs(const VcpuFd& vcpu, std::vector<kvm_msr_entry> msrs) {
  return ForMsrs(vcpu, KVM_SET_MSRS, "KVM_SET_MSRS", &msrs, [&vcpu](const kvm_msr_entry& msr) -> absl::Status {
    MsrBuffer one(1);
    one.get()->nmsrs = 1;
    one.entries()[0].index = msr.index;
    const int read = ioctl(vcpu.get(), KVM_GET_MSRS, one.get());
    if (read == 1 && one.entries()[0].data == msr.data) return absl::OkStatus();
    return absl::FailedPreconditionError(
        fmt::format("MSR {:#x}: this host refuses {:#x}{}", uint32_t{msr.index}, uint64_t{msr.data},
                    read == 1 ? fmt::format(", it has {:#x}", uint64_t{one.entries()[0].data}) : ", it has none"));
  });
}

absl::StatusOr<std::vector<kvm_cpuid_entry2>> ReadCpuid(const VcpuFd& vcpu) {
  std::vector<uint64_t> buffer((sizeof(kvm_cpuid2) + kMostCpuidEntries * sizeof(kvm_cpuid_entry2)) / 8 + 1);
  auto* cpuid = reinterpret_cast<kvm_cpuid2*>(buffer.data());
  cpuid->nent = kMostCpuidEntries;
  HK_RETURN_IF_ERROR(Call(vcpu, KVM_GET_CPUID2, cpuid, "KVM_GET_CPUID2"));
  return std::vector<kvm_cpuid_entry2>(cpuid->entries, cpuid->entries + cpuid->nent);
}

// Bits that KVM itself keeps in step with the registers: OSXSAVE, APIC and MWAIT in leaf 1, OSPKE in leaf 7, sizes in
// 0xd.
kvm_cpuid_entry2 WithoutRuntimeBits(kvm_cpuid_entry2 entry) {
  if (entry.function == 1) {
    entry.ecx &= ~(1u << 27 | 1u << 3);
    entry.edx &= ~(1u << 9);
  }
  if (entry.function == 7 && entry.index == 0) entry.ecx &= ~(1u << 4);
  if (entry.function == 0xd && entry.index <= 1) entry.ebx = 0;
  return entry;
}

bool SameCpuid(std::span<const kvm_cpuid_entry2> a, std::span<const kvm_cpuid_entry2> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& left, const auto& right) {
    const kvm_cpuid_entry2 l = WithoutRuntimeBits(left), r = WithoutRuntimeBits(right);
    return l.function == r.function && l.index == r.index && l.flags == r.flags && l.eax == r.eax && l.ebx == r.ebx &&
           l.ecx == r.ecx && l.edx == r.edx;
  });
}

// A vCPU that has run takes no other CPUID, and Linux 6.1 not even the same one again.
absl::Status WriteCpuidOnce(const VcpuFd& vcpu, std::span<const kvm_cpuid_entry2> entries) {
  absl::StatusOr<std::vector<kvm_cpuid_entry2>> present = ReadCpuid(vcpu);
  if (!present.ok()) return present.status();
  return SameCpuid(*present, entries) ? absl::OkStatus() : WriteCpuid(vcpu, entries);
}

kvm_device_attr TscOffsetAttribute(uint64_t* value) {
  kvm_device_attr attribute = {};
  attribute.group = KVM_VCPU_TSC_CTRL;
  attribute.attr = KVM_VCPU_TSC_OFFSET;
  attribute.addr = reinterpret_cast<uint64_t>(value);
  return attribute;
}

}  // namespace

absl::Status WriteCpuid(const VcpuFd& vcpu, std::span<const kvm_cpuid_entry2> entries) {
  HK_CHECK(entries.size() <= kMostCpuidEntries);
  std::vector<uint64_t> buffer((sizeof(kvm_cpuid2) + entries.size() * sizeof(kvm_cpuid_entry2)) / 8 + 1);
  auto* cpuid = reinterpret_cast<kvm_cpuid2*>(buffer.data());
  cpuid->nent = static_cast<uint32_t>(entries.size());
  std::copy(entries.begin(), entries.end(), cpuid->entries);
  return Call(vcpu, KVM_SET_CPUID2, cpuid, "KVM_SET_CPUID2");
}

absl::StatusOr<uint64_t> ReadTscOffset(const VcpuFd& vcpu) {
  uint64_t offset = 0;
  kvm_device_attr attribute = TscOffsetAttribute(&offset);
  HK_RETURN_IF_ERROR(Call(vcpu, KVM_GET_DEVICE_ATTR, &attribute, "KVM_VCPU_TSC_OFFSET"));
  return offset;
}

absl::Status WriteTscOffset(const VcpuFd& vcpu, uint64_t offset) {
  kvm_device_attr attribute = TscOffsetAttribute(&offset);
  return Call(vcpu, KVM_SET_DEVICE_ATTR, &attribute, "KVM_VCPU_TSC_OFFSET");
}

absl::StatusOr<uint32_t> ReadTscKhz(const VcpuFd& vcpu) {
  const int khz = ioctl(vcpu.get(), KVM_GET_TSC_KHZ, 0);
  if (khz < 0) return ErrnoStatus(errno, "KVM_GET_TSC_KHZ");
  return static_cast<uint32_t>(khz);
}

absl::Status WriteTscKhz(const VcpuFd& vcpu, uint32_t khz) {
  if (khz == 0) return absl::OkStatus();
  absl::StatusOr<uint32_t> now = ReadTscKhz(vcpu);
  if (!now.ok()) return now.status();
  if (*now == khz) return absl::OkStatus();
  if (ioctl(vcpu.get(), KVM_SET_TSC_KHZ, static_cast<unsigned long>(khz)) < 0) {
    return absl::FailedPreconditionError(
        fmt::format("a TSC of {} kHz: {}", khz, MessageOf(ErrnoStatus(errno, "KVM_SET_TSC_KHZ"))));
  }
  return absl::OkStatus();
}

absl::Status ReadVcpuState(const VcpuFd& vcpu, const KvmFacts& facts, VcpuState* state) {
  HK_ASSIGN_OR_RETURN(state->cpuid, ReadCpuid(vcpu));
  HK_ASSIGN_OR_RETURN(state->tsc_khz, ReadTscKhz(vcpu));
  HK_ASSIGN_OR_RETURN(state->tsc_offset, ReadTscOffset(vcpu));
  if (facts.has_xcrs) HK_RETURN_IF_ERROR(Call(vcpu, KVM_GET_XCRS, &state->xcrs, "KVM_GET_XCRS"));
  state->xsave.assign(facts.xsave_bytes, std::byte{0});
  HK_RETURN_IF_ERROR(
      Call(vcpu, facts.has_xsave2 ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, state->xsave.data(), "KVM_GET_XSAVE2"));
  HK_RETURN_IF_ERROR(Call(vcpu, KVM_GET_SREGS, &state->sregs, "KVM_GET_SREGS"));
  HK_RETURN_IF_ERROR(Call(vcpu, KVM_GET_REGS, &state->regs, "KVM_GET_REGS"));
  HK_RETURN_IF_ERROR(Call(vcpu, KVM_GET_DEBUGREGS, &state->debugregs, "KVM_GET_DEBUGREGS"));
  HK_ASSIGN_OR_RETURN(state->msrs, ReadMsrs(vcpu, facts.msrs));
  return Call(vcpu, KVM_GET_VCPU_EVENTS, &state->events, "KVM_GET_VCPU_EVENTS");
}

absl::Status WriteVcpuState(const VcpuFd& vcpu, const KvmFacts& facts, const VcpuState& state) {
  if (state.xsave.size() > facts.xsave_bytes) {
    return absl::FailedPreconditionError(
        fmt::format("an XSAVE area of {} bytes: this host's has {}", state.xsave.size(), facts.xsave_bytes));
  }
  // KVM wants its own size; what the source's host did not have is in its initial configuration.
  std::vector<std::byte> xsave = state.xsave;
  xsave.resize(facts.xsave_bytes);
  // KVM's structures are const to it, but not in the ioctl's type.
  VcpuState copy;
  copy.xcrs = state.xcrs;
  copy.sregs = state.sregs;
  copy.regs = state.regs;
  copy.debugregs = state.debugregs;
  copy.events = state.events;

  HK_RETURN_IF_ERROR(WriteCpuidOnce(vcpu, state.cpuid));
  HK_RETURN_IF_ERROR(WriteTscKhz(vcpu, state.tsc_khz));
  if (facts.has_xcrs) HK_RETURN_IF_ERROR(Call(vcpu, KVM_SET_XCRS, &copy.xcrs, "KVM_SET_XCRS"));
  HK_RETURN_IF_ERROR(Call(vcpu, KVM_SET_XSAVE, xsave.data(), "KVM_SET_XSAVE"));
  HK_RETURN_IF_ERROR(Call(vcpu, KVM_SET_SREGS, &copy.sregs, "KVM_SET_SREGS"));
  HK_RETURN_IF_ERROR(Call(vcpu, KVM_SET_REGS, &copy.regs, "KVM_SET_REGS"));
  HK_RETURN_IF_ERROR(Call(vcpu, KVM_SET_DEBUGREGS, &copy.debugregs, "KVM_SET_DEBUGREGS"));
  HK_RETURN_IF_ERROR(WriteMsrs(vcpu, state.msrs));
  HK_RETURN_IF_ERROR(WriteTscOffset(vcpu, state.tsc_offset));
  return Call(vcpu, KVM_SET_VCPU_EVENTS, &copy.events, "KVM_SET_VCPU_EVENTS");
}

}  // namespace hk
