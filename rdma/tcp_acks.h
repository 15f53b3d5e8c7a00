// Whether the host at the other end of a TCP connection still acknowledges. TCP_USER_TIMEOUT does not ask that: it also
// ends a connection whose reader is slow, though its host answers every question about its window (tcp(7)).
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

#include "hyperkernel/base/clock.h"

namespace hk {

// What the kernel knows of a connection. Plain value.
struct AckState {
  bool waits = false;        // bytes that the window has room for, or a question about a shut one, are not acknowledged
  uint64_t acked_bytes = 0;  // so far
};
// nullopt: `fd` is no TCP connection, or not any more.
std::optional<AckState> AckStateOf(int fd);

// Looks at one connection again and again. Not thread-safe.
class AckWatch {
 public:
  // True: something waited for an acknowledgement for `patience` and none came, as far as these looks saw.
  bool IsDead(const AckState& state, Monotonic now, std::chrono::milliseconds patience) {
    if (!state.waits || !last_.waits || state.acked_bytes != last_.acked_bytes) since_ = now;
    last_ = state;
    return state.waits && now - since_ >= patience;
  }

 private:
  AckState last_;
  Monotonic since_{};  // when the wait was first seen, or the last acknowledgement in it
};

}  // namespace hk
