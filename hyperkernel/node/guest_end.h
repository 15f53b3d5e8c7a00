// What follows when a guest ends by itself. Pure; not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "hyperkernel/base/clock.h"
#include "hyperkernel/node/machine.h"
#include "hyperkernel/node/restart_guard.h"
#include "proto/vm.pb.h"

namespace hk {

// The state a guest is in after its end, why, and whether it is to be started again.
struct AfterEnd {
  v1::VmState state = v1::VM_STATE_STOPPED;
  std::string reason;                  // one line
  std::optional<std::string> restart;  // the reason of the start
};

// Decides for one guest. A guest that crashes (on_crash: reset) or resets itself is started again only so often within
// a window; then it stays crashed, until an operator starts it.
class GuestEndRule {
 public:
  // A kernel that panics while it boots does so within half a minute: five times is a pattern.
  static constexpr size_t kMaxCrashes = 5;
  static constexpr std::chrono::minutes kCrashWindow{5};
  // No Linux boots in 2 s; what resets itself faster is not running, and each time costs the node a machine.
  static constexpr size_t kMaxOwnResets = 30;
  static constexpr std::chrono::minutes kOwnResetWindow{1};

  // `reason` is what the machine says of a crash. Counts the end.
  AfterEnd Decide(MachineEnd end, const std::string& reason, v1::OnCrash on_crash, Monotonic now);
  // An operator has looked at it and starts it.
  void Forget();
  // Since then.
  uint32_t crashes() const { return crashes_; }

 private:
  uint32_t crashes_ = 0;
  RestartGuard crash_guard_{kMaxCrashes, kCrashWindow};
  RestartGuard reset_guard_{kMaxOwnResets, kOwnResetWindow};
};

}  // namespace hk
