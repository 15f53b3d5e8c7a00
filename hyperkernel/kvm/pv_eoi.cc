#include "hyperkernel/kvm/pv_eoi.h"

#include <atomic>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"

namespace hk {
namespace {

constexpr uint64_t kEnabled = 1, kReserved = 2;
constexpr uint32_t kSkip = 1;  // the guest need not write the EOI register

}  // namespace

bool PvEoi::WriteMsr(uint64_t value) {
  HK_CHECK(!offered_);
  if (word_at_ == nullptr || (value & kReserved) != 0) return false;
  uint32_t* word = nullptr;
  if ((value & kEnabled) != 0) {
    const absl::StatusOr<std::byte*> at = word_at_(Gpa(value & ~(kEnabled | kReserved)));
    if (!at.ok()) return false;
    word = reinterpret_cast<uint32_t*>(*at);
  }
  word_ = word;
  msr_ = value;
  return true;
}

// Other bits of the word are the guest's. It runs on this thread only, so nothing is ordered here but the compiler.
void PvEoi::Offer(VcpuInterrupts* interrupts) {
  if (word_ == nullptr || offered_ || !interrupts->OfferEoi()) return;
  std::atomic_ref<uint32_t>(*word_).fetch_or(kSkip, std::memory_order_relaxed);
  offered_ = true;
}

void PvEoi::End(VcpuInterrupts* interrupts) {
  offered_ = false;
  const bool skipped = (std::atomic_ref<uint32_t>(*word_).fetch_and(~kSkip, std::memory_order_relaxed) & kSkip) == 0;
  interrupts->EndEoiOffer(skipped || HK_MUTANT(eoi_without_the_guest));
}

}  // namespace hk
