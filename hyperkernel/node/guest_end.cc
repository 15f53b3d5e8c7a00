#include "hyperkernel/node/guest_end.h"

#include "fmt/format.h"
#include "hyperkernel/base/mutant.h"

namespace hk {

AfterEnd GuestEndRule::Decide(MachineEnd end, const std::string& reason, v1::OnCrash on_crash, Monotonic now) {
  switch (end) {
    case MachineEnd::kPowerOff:
      return {.state = v1::VM_STATE_STOPPED, .reason = "powered off by the guest", .restart = {}};
    case MachineEnd::kReset:
      if (reset_guard_.Allow(now)) {
        return {.state = v1::VM_STATE_STOPPED, .reason = "reset by the guest", .restart = "reset by the guest"};
      }
      return {.state = v1::VM_STATE_CRASHED,
              .reason = fmt::format("resets itself again and again: {} times within a minute", kMaxOwnResets),
              .restart = {}};
    case MachineEnd::kCrash:
      break;
  }
  crashes_++;
  if (on_crash != v1::ON_CRASH_RESET) return {.state = v1::VM_STATE_CRASHED, .reason = reason, .restart = {}};
  if (crash_guard_.Allow(now) || HK_MUTANT(crash_loop_unbounded)) {
    return {.state = v1::VM_STATE_CRASHED, .reason = reason, .restart = "reset after a crash: " + reason};
  }
  return {.state = v1::VM_STATE_CRASHED,
          .reason = fmt::format("{}; not reset any more: {} crashes within 5 minutes", reason, kMaxCrashes),
          .restart = {}};
}

void GuestEndRule::Forget() {
  crashes_ = 0;
  crash_guard_.Clear();
  reset_guard_.Clear();
}

}  // namespace hk
