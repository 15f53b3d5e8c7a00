#include "hyperkernel/kvm/kvm_probe.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <vector>

#include "fmt/format.h"
#include "fmt/ranges.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/probe_group.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/kvm/kvm_api.h"
#include "hyperkernel/kvm/nested_paging.h"

namespace hk {
namespace {

constexpr std::string_view kNoGuests = "guests do not start on this node (it can still hold memory)";
constexpr std::string_view kNewerKernel = "boot a kernel that has it (Debian 12's 6.1 or later)";

constexpr ProbeQuestion kDevice = {
    .name = "/dev/kvm",
    .lost = kNoGuests,
    .fix =
        "enable VT-x or AMD-V in the firmware (in a virtual machine: nested virtualization in its host), modprobe "
        "kvm_intel or kvm_amd, and let the daemon's user open /dev/kvm (group kvm, or DeviceAllow= in the unit)"};
constexpr ProbeQuestion kApiVersion = {
    .name = "KVM API version 12", .lost = kNoGuests, .fix = "boot a stock Linux kernel, 6.1 or later"};
constexpr ProbeQuestion kStockKernel = {
    .name = "runs a stock kernel",
    .lost = kNoGuests,
    .fix =
        "needs hardware virtualization: enable VT-x or AMD-V in the firmware and load kvm_intel or kvm_amd; in a "
        "virtual machine enable nested virtualization in its host (kvm_intel or kvm_amd nested=1, CPU model host)"};
constexpr ProbeQuestion kModule = {
    .name = "hardware module with nested paging",
    .lost =
        "guests do not run at hardware speed, if they run at all; every page the protocol takes away costs a walk "
        "of shadow page tables",
    .fix =
        "modprobe kvm_intel ept=1 (or kvm_amd npt=1) and remove ept=0 or npt=0 from /etc/modprobe.d; in a virtual "
        "machine its host must offer EPT or NPT"};
constexpr ProbeQuestion kSeveralNodes = {
    .name = "guests over several nodes (nested paging)",
    .lost =
        "guests whose vCPUs are on several nodes are refused here: without nested paging KVM does not see what other "
        "nodes write to a guest's page tables",
    .fix =
        "stop the guests, then modprobe -r kvm_amd; modprobe kvm_amd npt=1 (Intel: modprobe -r kvm_intel; modprobe "
        "kvm_intel ept=1), and remove npt=0 or ept=0 from /etc/modprobe.d"};
// With accessed and dirty bits in EPT a processor's look at a guest's page table counts as a write to it (Intel SDM
// vol. 3, 28.3.5).
constexpr ProbeQuestion kWalks = {
    .name = "page walks that do not write (optional)",
    .lost = "several nodes cannot have a page of a guest's page tables at a time: guests over nodes are slower",
    .fix = "stop the guests, then modprobe -r kvm_intel; modprobe kvm_intel eptad=0"};
constexpr ProbeQuestion kMaxVcpus = {
    .name = "vCPUs per guest", .lost = kNoGuests, .fix = "boot a stock kernel; its KVM allows 1024"};
constexpr ProbeQuestion kTscOffset = {
    .name = "TSC offset (KVM_VCPU_TSC_CTRL)",
    .lost = "one guest TSC over several nodes; guests are told that their TSC is unstable",
    .fix = kNewerKernel};

struct Capability {
  int number;
  ProbeQuestion question;
};

// KVM API documentation, chapters 4, 7 and 8. The answers are asked of a VM, since some depend on it.
constexpr Capability kCapabilities[] = {
    {KVM_CAP_USER_MEMORY, {"KVM_CAP_USER_MEMORY", "guest memory: no guest starts", kNewerKernel}},
    {KVM_CAP_SYNC_MMU, {"KVM_CAP_SYNC_MMU", "taking a page away from a running guest: no guest starts", kNewerKernel}},
    {KVM_CAP_IMMEDIATE_EXIT,
     {"KVM_CAP_IMMEDIATE_EXIT", "stopping a vCPU without a race: no guest starts", kNewerKernel}},
    {KVM_CAP_X86_USER_SPACE_MSR,
     {"KVM_CAP_X86_USER_SPACE_MSR", "x2APIC outside the kernel: guests are limited to the slow xAPIC", kNewerKernel}},
    {KVM_CAP_X86_MSR_FILTER,
     {"KVM_CAP_X86_MSR_FILTER", "the guest clock that spans nodes: no guest over several nodes", kNewerKernel}},
    {KVM_CAP_READONLY_MEM,
     {"KVM_CAP_READONLY_MEM", "empty PCI slots answered without exits: device enumeration is slow", kNewerKernel}},
    {KVM_CAP_VCPU_EVENTS, {"KVM_CAP_VCPU_EVENTS", "moving a vCPU to or from this node", kNewerKernel}},
    {KVM_CAP_DEBUGREGS, {"KVM_CAP_DEBUGREGS", "moving a vCPU whose guest uses hardware breakpoints", kNewerKernel}},
    {KVM_CAP_XCRS,
     {"KVM_CAP_XCRS", "moving a vCPU that uses AVX; guests get no XSAVE here",
      "a CPU with XSAVE; in a virtual machine its host must offer xsave"}},
    {KVM_CAP_XSAVE2,
     {"KVM_CAP_XSAVE2 (optional)", "guests with AMX: its state does not fit into KVM_GET_XSAVE",
      "boot kernel 5.17 or later; needed for CPUs with AMX only"}},
    {KVM_CAP_TSC_CONTROL,
     {"KVM_CAP_TSC_CONTROL, TSC scaling (optional)",
      "guests over nodes whose TSC rates differ; machines of one model do without",
      "a CPU with TSC scaling (Intel since Skylake-SP, AMD since Bulldozer), or keep to nodes of one TSC rate"}},
    {KVM_CAP_IOEVENTFD,
     {"KVM_CAP_IOEVENTFD (optional)", "device doorbells without an exit to the daemon: devices are slower",
      "boot a kernel with CONFIG_EVENTFD"}},
};

void AnswerModules(const std::string& modules, ProbeGroup* group) {
  const NestedPaging paging = ReadNestedPaging(modules);
  if (paging.state == NestedPaging::State::kUnknown) {
    group->No(kModule, "neither kvm_intel nor kvm_amd is loaded, or it does not tell");
    return group->Yes(kSeveralNodes, "not known, and not refused: KVM is not the kernel's own, or does not tell");
  }
  const bool on = paging.state == NestedPaging::State::kOn;
  const std::string found = fmt::format("{}, {}={:d}", paging.module, paging.parameter, on);
  group->Answer(kModule, on, found);
  group->Answer(kSeveralNodes, on, found);
  if (paging.module == "kvm_intel") {
    group->Answer(kWalks, !paging.walks_write, fmt::format("kvm_intel, eptad={:d}", paging.walks_write));
  }
}

void AnswerTscOffset(int vm_fd, ProbeGroup* group) {
  OwnedFd vcpu(ioctl(vm_fd, KVM_CREATE_VCPU, 0));
  if (!vcpu.valid()) return group->No(kTscOffset, MessageOf(ErrnoStatus(errno, "KVM_CREATE_VCPU")));
  kvm_device_attr attribute = {};
  attribute.group = KVM_VCPU_TSC_CTRL;
  attribute.attr = KVM_VCPU_TSC_OFFSET;
  if (ioctl(vcpu.get(), KVM_HAS_DEVICE_ATTR, &attribute) < 0) {
    return group->No(kTscOffset, MessageOf(ErrnoStatus(errno, "KVM_HAS_DEVICE_ATTR")));
  }
  const int khz = ioctl(vcpu.get(), KVM_GET_TSC_KHZ, 0);
  group->Yes(kTscOffset, khz > 0 ? fmt::format("guest TSC {} kHz", khz) : "guest TSC rate unknown");
}

void AnswerCapabilities(int kvm_fd, ProbeGroup* group) {
  OwnedFd vm(ioctl(kvm_fd, KVM_CREATE_VM, 0));
  const int error = errno;
  for (const Capability& capability : kCapabilities) {
    if (!vm.valid()) {
      group->No(capability.question, MessageOf(ErrnoStatus(error, "KVM_CREATE_VM")));
      continue;
    }
    const int value = ioctl(vm.get(), KVM_CHECK_EXTENSION, capability.number);
    group->Answer(capability.question, value > 0, fmt::format("{}", value));
  }
  if (!vm.valid()) return;
  const int most = ioctl(vm.get(), KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS);
  const int advised = ioctl(vm.get(), KVM_CHECK_EXTENSION, KVM_CAP_NR_VCPUS);
  group->Answer(kMaxVcpus, most > 0, fmt::format("at most {}, advised {}", most, advised));
  AnswerTscOffset(vm.get(), group);
}

}  // namespace

ProbeItems ProbeKvm() {
  ProbeGroup group("kvm");
  OwnedFd kvm(open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (!kvm.valid()) {
    group.No(kDevice, MessageOf(ErrnoStatus(errno, "open /dev/kvm")));
    AnswerModules(kModulesDirectory, &group);
    group.No(kStockKernel, "no /dev/kvm to try it with");
    return group.Take();
  }
  group.Yes(kDevice, "can be opened");
  const int version = ioctl(kvm.get(), KVM_GET_API_VERSION, 0);
  group.Answer(kApiVersion, version == KVM_API_VERSION,
               version < 0 ? MessageOf(ErrnoStatus(errno, "KVM_GET_API_VERSION")) : fmt::format("{}", version));
  AnswerModules(kModulesDirectory, &group);
  const StockKernelVerdict verdict = RunsStockKernel(kvm.get());
  group.Answer(kStockKernel, verdict.runs, verdict.why);
  AnswerCapabilities(kvm.get(), &group);
  return group.Take();
}

ProbeItems ProbeKvmModules(const std::string& modules) {
  ProbeGroup group("kvm");
  AnswerModules(modules, &group);
  return group.Take();
}

}  // namespace hk
