#include "hyperkernel/kvm/guest_access_reader.h"

#include <sys/ioctl.h>

#include <array>

namespace hk {
namespace {

// SDM vol. 3, 2.5 and 4.1.1.
constexpr uint64_t kCr4La57 = 1 << 12;
constexpr uint64_t kEferLma = 1 << 10;
constexpr uint64_t kCr0Pe = 1;
constexpr unsigned kFourLevels = 48, kFiveLevels = 57;
constexpr uint8_t kUserLevel = 3;

}  // namespace

bool IsCanonical(uint64_t address, unsigned bits) {
  const auto above = static_cast<int64_t>(address) >> (bits - 1);
  return above == 0 || above == -1;
}

std::optional<GuestAccess> ReadGuestAccess(const VcpuFd& fd, VcpuId vcpu, Gfn page) {
  kvm_regs regs = {};
  kvm_sregs sregs = {};
  if (ioctl(fd.get(), KVM_GET_REGS, &regs) < 0 || ioctl(fd.get(), KVM_GET_SREGS, &sregs) < 0) return std::nullopt;
  // Segments have bases but in 64-bit mode, where none but FS and GS do.
  const bool flat = (sregs.efer & kEferLma) != 0 && sregs.cs.l != 0;
  GuestAccess access = {.page = page, .vcpu = vcpu, .code = regs.rip + (flat ? 0 : sregs.cs.base), .address = {}};
  // The privilege level is that of the stack segment (SDM vol. 3, 5.5).
  access.user = (sregs.cr0 & kCr0Pe) != 0 && sregs.ss.dpl == kUserLevel;
  const unsigned bits = (sregs.cr4 & kCr4La57) != 0 ? kFiveLevels : kFourLevels;
  const std::array<uint64_t, 17> pointers = {regs.rdi, regs.rsi, regs.rax, regs.rbx, regs.rcx,   regs.rdx,
                                             regs.r8,  regs.r9,  regs.r10, regs.r11, regs.r12,   regs.r13,
                                             regs.r14, regs.r15, regs.rbp, regs.rsp, access.code};
  for (const uint64_t pointer : pointers) {
    if (!IsCanonical(pointer, bits)) continue;
    kvm_translation translation = {};
    translation.linear_address = pointer;
    if (ioctl(fd.get(), KVM_TRANSLATE, &translation) < 0 || translation.valid == 0) continue;
    if (GfnOf(Gpa(translation.physical_address)) != page) continue;
    access.address = pointer / kPageSize * kPageSize;
    break;
  }
  return access;
}

}  // namespace hk
