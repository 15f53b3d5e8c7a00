// Doorbells without an exit: the host may turn a guest's write to an address into a signal of an eventfd, so that the
// vCPU goes on at once and the device's worker is woken by the kernel (KVM_IOEVENTFD).
#pragma once

#include <cstdint>

#include "hyperkernel/base/types.h"

namespace hk {

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
