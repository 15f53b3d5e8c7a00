#include "hyperkernel/kvm/io_event.h"

#include <sys/ioctl.h>

#include <cerrno>

#include "fmt/format.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/kvm/kvm_api.h"

namespace hk {
namespace {

absl::Status Ask(const Vm& vm, Gpa address, int event, uint32_t flags) {
  kvm_ioeventfd request = {};
  request.addr = address.value();
  request.len = 0;  // any width, and on Intel then without decoding the instruction (KVM API 4.59)
  request.fd = event;
  request.flags = flags;
  if (ioctl(vm.fd(), KVM_IOEVENTFD, &request) == 0) return absl::OkStatus();
  return ErrnoStatus(errno, fmt::format("KVM_IOEVENTFD at {:#x}", address.value()));
}

}  // namespace

absl::Status AddIoEvent(const Vm& vm, Gpa address, int event) {
  return Ask(vm, address, event, 0);
}

absl::Status RemoveIoEvent(const Vm& vm, Gpa address, int event) {
  return Ask(vm, address, event, KVM_IOEVENTFD_FLAG_DEASSIGN);
}

}  // namespace hk
