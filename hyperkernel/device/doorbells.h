// Doorbells without an exit: the host may turn a guest's write to an address into a signal of an eventfd, so that the
// vCPU goes on at once and the device's worker is woken by the kernel (KVM_IOEVENTFD).
#pragma once

#include <cstdint>

#include "hyperkernel/base/types.h"
#include "hyperkernel/boot/address_map.h"

namespace hk {

// Where doorbells are: each BAR of a guest's devices has this size, and is aligned to it wherever the guest puts it
// (PCI 3.0, 6.2.5.1), and has its doorbells, one for each stride, at this offset. VirtioPci's layout is checked against
// it; a device whose BAR is another needs a rule of its own in MayBeDoorbell.
inline constexpr uint64_t kDoorbellBarBytes = 0x8000;
inline constexpr uint64_t kDoorbellsOffset = 0x3000;
inline constexpr uint64_t kDoorbellStride = 4;
inline constexpr uint64_t kDoorbellsBytes = 64 * kDoorbellStride;

// Whoever does not know where the BARs are can tell so much: at such an address there is a doorbell or nothing, now and
// after any move of a BAR. A doorbell elsewhere (a BAR that the guest puts outside the window for them) is not among
// them.
constexpr bool MayBeDoorbell(Gpa address) {
  const uint64_t offset = address.value() % kDoorbellBarBytes;
  return address.value() >= kPci32Start.value() && address.value() - kPci32Start.value() < kPci32Bytes &&
         offset >= kDoorbellsOffset && offset < kDoorbellsOffset + kDoorbellsBytes;
}

// A register of a BAR whose writes mean "look", whatever is written. Plain value.
struct Doorbell {
  uint64_t offset = 0;  // in the BAR
  int event = -1;       // eventfd, the device's
};

// Who can do that. Thread-safe; must not call back.
class DoorbellRegistrar {
 public:
  virtual ~DoorbellRegistrar() = default;
  // From now on a write of any width to `address` signals `event` instead of exiting. False if that cannot be: writes
  // then exit as before and find the BAR.
  virtual bool Add(Gpa address, int event) = 0;
  // Undoes an Add that succeeded.
  virtual void Remove(Gpa address, int event) = 0;
};

}  // namespace hk
