#include "hyperkernel/kvm/vm.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/kvm/cpu_model.h"

namespace hk {
namespace {

constexpr uint32_t kMostSlots = 512;
// The default of KVM's parameter tsc_tolerance_ppm: KVM_SET_TSC_KHZ within this of the host's
// rate does nothing.
constexpr uint64_t kTscTolerancePpm = 250;

// MSRs that KVM would act on by itself and must not: APIC_BASE is the local APIC's; the others make KVM read or write
// guest memory behind the page protocol (kvmclock, async page faults, steal time, PV EOI). x2APIC registers exit
// without a filter, as errors, since there is no in-kernel APIC.
struct MsrRange {
  uint32_t base;
  uint32_t count;
};
constexpr MsrRange kFilteredMsrs[] = {{0x11, 2}, {0x1b, 1}, {0x4b564d00, 0x100}};

bool IsFiltered(uint32_t msr) {
  return std::any_of(std::begin(kFilteredMsrs), std::end(kFilteredMsrs),
                     [msr](MsrRange range) { return msr - range.base < range.count; });
}

// MTRRs (SDM vol. 3, 12.11) are not in KVM's list; a guest that compares them over its CPUs would see a move.
constexpr MsrRange kMtrrs[] = {{0x2ff, 1}, {0x250, 1}, {0x258, 2}, {0x268, 8}, {0x200, 16}};
constexpr uint32_t kMsrTsc = 0x10;  // stale as soon as read; the offset is what counts
constexpr MsrRange kHyperV = {0x40000000, 0x200};

absl::StatusOr<std::vector<uint32_t>> ListMsrs(int kvm) {
  kvm_msr_list count = {};
  if (ioctl(kvm, KVM_GET_MSR_INDEX_LIST, &count) == 0) return absl::InternalError("KVM_GET_MSR_INDEX_LIST: no MSRs");
  if (errno != E2BIG) return ErrnoStatus(errno, "KVM_GET_MSR_INDEX_LIST");
  if (count.nmsrs > kMostMsrs) return absl::InternalError(fmt::format("KVM has {} MSRs", count.nmsrs));
  std::vector<uint32_t> buffer(1 + count.nmsrs);
  auto* list = reinterpret_cast<kvm_msr_list*>(buffer.data());
  list->nmsrs = count.nmsrs;
  if (ioctl(kvm, KVM_GET_MSR_INDEX_LIST, list) < 0) return ErrnoStatus(errno, "KVM_GET_MSR_INDEX_LIST");
  std::vector<uint32_t> msrs(list->indices, list->indices + list->nmsrs);
  std::erase_if(msrs,
                [](uint32_t msr) { return msr == kMsrTsc || IsFiltered(msr) || msr - kHyperV.base < kHyperV.count; });
  for (MsrRange range : kMtrrs) {
    for (uint32_t i = 0; i < range.count; ++i) {
      if (std::find(msrs.begin(), msrs.end(), range.base + i) == msrs.end()) msrs.push_back(range.base + i);
    }
  }
  return msrs;
}

absl::StatusOr<std::vector<kvm_cpuid_entry2>> SupportedCpuid(int kvm) {
  std::vector<uint64_t> buffer((sizeof(kvm_cpuid2) + kMostCpuidEntries * sizeof(kvm_cpuid_entry2)) / 8 + 1);
  auto* cpuid = reinterpret_cast<kvm_cpuid2*>(buffer.data());
  cpuid->nent = kMostCpuidEntries;
  if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid) < 0) return ErrnoStatus(errno, "KVM_GET_SUPPORTED_CPUID");
  return std::vector<kvm_cpuid_entry2>(cpuid->entries, cpuid->entries + cpuid->nent);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Vm>> Vm::Create(uint32_t vcpus) {
  HK_CHECK(vcpus > 0);
  std::unique_ptr<Vm> vm(new Vm());
  HK_RETURN_IF_ERROR(vm->SetUp(vcpus));
  return vm;
}

absl::StatusOr<std::unique_ptr<Vm>> Vm::CreateLike() const {
  HK_ASSIGN_OR_RETURN(std::unique_ptr<Vm> vm, Create(vcpus_));
  std::map<uint32_t, MemorySlot> slots;
  {
    MutexLock lock(&mutex_);
    slots = slots_;
  }
  MutexLock lock(&vm->mutex_);
  for (const auto& [number, slot] : slots) HK_RETURN_IF_ERROR(vm->SetSlot(number, slot));
  return vm;
}

Vm::~Vm() = default;

absl::Status Vm::SetUp(uint32_t vcpus) {
  vcpus_ = vcpus;
  kvm_ = OwnedFd(open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (!kvm_.valid()) return ErrnoStatus(errno, "/dev/kvm");
  if (int version = ioctl(kvm_.get(), KVM_GET_API_VERSION, 0); version != KVM_API_VERSION) {
    return absl::UnimplementedError(fmt::format("/dev/kvm: API version {}, expected {}", version, KVM_API_VERSION));
  }
  vm_ = OwnedFd(ioctl(kvm_.get(), KVM_CREATE_VM, 0));
  if (!vm_.valid()) return ErrnoStatus(errno, "KVM_CREATE_VM");
  HK_RETURN_IF_ERROR(ReadFacts());
  if (vcpus > facts_.max_vcpus) {
    return absl::InvalidArgumentError(fmt::format("{} vCPUs: KVM here allows {}", vcpus, facts_.max_vcpus));
  }
  return EnableMsrExits();
}

absl::Status Vm::ReadFacts() {
  auto capability = [this](int number) { return std::max(0, ioctl(vm_.get(), KVM_CHECK_EXTENSION, number)); };
  struct {
    int number;
    const char* name;
  } const needed[] = {
      {KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"}, {KVM_CAP_X86_USER_SPACE_MSR, "KVM_CAP_X86_USER_SPACE_MSR"},
      {KVM_CAP_X86_MSR_FILTER, "KVM_CAP_X86_MSR_FILTER"}, {KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS"},
      {KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS"},           {KVM_CAP_XSAVE, "KVM_CAP_XSAVE"}};
  for (const auto& need : needed) {
    if (capability(need.number) == 0) return absl::UnimplementedError(fmt::format("KVM here lacks {}", need.name));
  }
  int run_bytes = ioctl(kvm_.get(), KVM_GET_VCPU_MMAP_SIZE, 0);
  if (run_bytes < 0) return ErrnoStatus(errno, "KVM_GET_VCPU_MMAP_SIZE");
  if (static_cast<size_t>(run_bytes) < sizeof(kvm_run)) return absl::InternalError("KVM_GET_VCPU_MMAP_SIZE too small");
  facts_.run_bytes = static_cast<size_t>(run_bytes);
  const int xsave2 = capability(KVM_CAP_XSAVE2);
  facts_.has_xsave2 = xsave2 > 0;
  facts_.xsave_bytes = std::max(sizeof(kvm_xsave), static_cast<size_t>(xsave2));
  if (facts_.xsave_bytes > kMostXsaveBytes) return absl::InternalError(fmt::format("XSAVE of {} bytes", xsave2));
  facts_.has_xcrs = capability(KVM_CAP_XCRS) != 0;
  facts_.tsc_scaling = capability(KVM_CAP_TSC_CONTROL) != 0;
  const int khz = ioctl(vm_.get(), KVM_GET_TSC_KHZ, 0);  // of a VM: since Linux 5.19
  facts_.tsc_khz = khz > 0 ? static_cast<uint32_t>(khz) : 0;
  // 4 is what KVM promises where it does not say (api.rst 4.7).
  const int most = capability(KVM_CAP_MAX_VCPUS);
  facts_.max_vcpus = most > 0 ? static_cast<uint32_t>(most) : 4;
  HK_ASSIGN_OR_RETURN(facts_.msrs, ListMsrs(kvm_.get()));
  HK_ASSIGN_OR_RETURN(facts_.cpuid, SupportedCpuid(kvm_.get()));
  return absl::OkStatus();
}

absl::Status Vm::EnableMsrExits() {
  kvm_enable_cap enable = {};
  enable.cap = KVM_CAP_X86_USER_SPACE_MSR;
  enable.args[0] = KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER;
  if (ioctl(vm_.get(), KVM_ENABLE_CAP, &enable) < 0) return ErrnoStatus(errno, "KVM_CAP_X86_USER_SPACE_MSR");

  // A zero bit denies, which with the capability above means: exits.
  static uint8_t deny_all[0x100 / 8] = {};
  kvm_msr_filter filter = {};
  filter.flags = KVM_MSR_FILTER_DEFAULT_ALLOW;
  static_assert(std::size(kFilteredMsrs) <= KVM_MSR_FILTER_MAX_RANGES);
  for (size_t i = 0; i < std::size(kFilteredMsrs); ++i) {
    HK_CHECK(kFilteredMsrs[i].count <= 8 * sizeof(deny_all));
    filter.ranges[i].flags = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE;
    filter.ranges[i].base = kFilteredMsrs[i].base;
    filter.ranges[i].nmsrs = kFilteredMsrs[i].count;
    filter.ranges[i].bitmap = deny_all;
  }
  if (ioctl(vm_.get(), KVM_X86_SET_MSR_FILTER, &filter) < 0) return ErrnoStatus(errno, "KVM_X86_SET_MSR_FILTER");
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> Vm::AddMemory(const MemorySlot& slot) {
  const auto host = reinterpret_cast<uint64_t>(slot.host);
  if (slot.bytes == 0 || (slot.start.value() | slot.bytes | host) % kPageSize != 0) {
    return absl::InvalidArgumentError(
        fmt::format("memory slot at {:#x}, {:#x} bytes: not of whole pages", slot.start.value(), slot.bytes));
  }
  MutexLock lock(&mutex_);
  uint32_t number = 0;
  while (slots_.contains(number)) ++number;
  if (number >= kMostSlots) return absl::ResourceExhaustedError(fmt::format("more than {} memory slots", kMostSlots));
  HK_RETURN_IF_ERROR(SetSlot(number, slot));
  return number;
}

absl::Status Vm::SetSlot(uint32_t number, const MemorySlot& slot) {
  kvm_userspace_memory_region region = {};
  region.slot = number;
  region.flags = slot.readonly ? KVM_MEM_READONLY : 0;
  region.guest_phys_addr = slot.start.value();
  region.memory_size = slot.bytes;
  region.userspace_addr = reinterpret_cast<uint64_t>(slot.host);
  if (ioctl(vm_.get(), KVM_SET_USER_MEMORY_REGION, &region) < 0) {
    return ErrnoStatus(errno, fmt::format("memory slot at {:#x}, {:#x} bytes", slot.start.value(), slot.bytes));
  }
  slots_.emplace(number, slot);
  return absl::OkStatus();
}

absl::Status Vm::RemoveMemory(uint32_t slot) {
  MutexLock lock(&mutex_);
  if (!slots_.contains(slot)) return absl::NotFoundError(fmt::format("memory slot {}", slot));
  kvm_userspace_memory_region region = {};
  region.slot = slot;
  if (ioctl(vm_.get(), KVM_SET_USER_MEMORY_REGION, &region) < 0) {
    return ErrnoStatus(errno, fmt::format("removal of memory slot {}", slot));
  }
  slots_.erase(slot);
  return absl::OkStatus();
}

absl::StatusOr<VcpuFd> Vm::TakeVcpu(VcpuId vcpu) {
  uint32_t id = 0;
  {
    MutexLock lock(&mutex_);
    if (auto parked = parked_.find(vcpu); parked != parked_.end()) {
      VcpuFd fd = std::move(parked->second);
      parked_.erase(parked);
      return fd;
    }
    if (next_kvm_id_ >= facts_.max_vcpus) {
      return absl::ResourceExhaustedError(fmt::format("this VM has had {} vCPUs, KVM allows no more", next_kvm_id_));
    }
    id = next_kvm_id_++;
  }
  OwnedFd fd(ioctl(vm_.get(), KVM_CREATE_VCPU, static_cast<unsigned long>(id)));
  if (!fd.valid()) return ErrnoStatus(errno, fmt::format("KVM_CREATE_VCPU {}", id));
  absl::StatusOr<Mapping> run =
      Mapping::Create(facts_.run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), "vCPU run page");
  if (!run.ok()) return run.status();
  return VcpuFd(std::move(fd), *std::move(run));
}

bool Vm::HasParked(VcpuId vcpu) const {
  MutexLock lock(&mutex_);
  return parked_.contains(vcpu);
}

void Vm::ParkVcpu(VcpuId vcpu, VcpuFd fd) {
  MutexLock lock(&mutex_);
  parked_.emplace(vcpu, std::move(fd));
}

absl::Status Vm::CheckTscKhz(uint32_t guest_khz) const {
  if (guest_khz == 0 || facts_.tsc_scaling) return absl::OkStatus();
  const uint64_t host = facts_.tsc_khz;
  if (host == 0) return absl::FailedPreconditionError("this host's TSC rate is unknown");
  const uint64_t apart = host > guest_khz ? host - guest_khz : guest_khz - host;
  if (apart * 1'000'000 <= kTscTolerancePpm * host) return absl::OkStatus();
  return absl::FailedPreconditionError(fmt::format(
      "the guest's TSC runs at {} kHz, this host's at {} kHz, and its CPU cannot scale it", guest_khz, host));
}

}  // namespace hk
