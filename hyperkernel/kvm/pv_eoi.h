// Paravirtual end of interrupt (Linux, Documentation/virt/kvm/x86/msr.rst, MSR_KVM_EOI_EN): a bit in guest memory that
// the guest clears instead of writing its APIC's EOI register, which would be an exit for every interrupt.
//
// One vCPU's; of its thread alone, while it is out of the guest. The bit is set when an interrupt is given to the guest
// and the local APIC agrees (VcpuInterrupts::OfferEoi), and looked at after every KVM_RUN: never set while anyone but
// the guest could notice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "absl/status/statusor.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/irq/vcpu_interrupts.h"

namespace hk {

inline constexpr uint32_t kMsrKvmEoi = 0x4b564d04;

// The word of one vCPU and the offer in it.
class PvEoi {
 public:
  // A pointer to the 4 bytes of guest memory at an address, good as long as the guest's memory. Errors: not RAM.
  using WordAt = std::function<absl::StatusOr<std::byte*>(Gpa)>;

  // `word_at` may be null: the MSR faults.
  explicit PvEoi(WordAt word_at) : word_at_(std::move(word_at)) {}

  // False: the access faults (#GP): reserved bits, an address that is not RAM. REQUIRES: no offer.
  bool WriteMsr(uint64_t value);
  uint64_t msr() const { return msr_; }

  // Called after an interrupt was given to the guest.
  void Offer(VcpuInterrupts* interrupts);
  // Called after each KVM_RUN, and when one that would follow an offer does not take place. Costs nothing without one.
  void Settle(VcpuInterrupts* interrupts) {
    if (offered_) End(interrupts);
  }

 private:
  void End(VcpuInterrupts* interrupts);

  const WordAt word_at_;
  uint64_t msr_ = 0;
  uint32_t* word_ = nullptr;  // null: disabled
  bool offered_ = false;
};

}  // namespace hk
