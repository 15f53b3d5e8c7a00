// The least that something took lately: what it costs where nothing is in its way. Pure; not thread-safe.
#pragma once

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "hyperkernel/base/clock.h"

namespace hk {

// The minimum over the last two windows of time in which anything was counted: what is old counts until something newer
// is known. A clock that goes back counts for the window that there is.
class LatencyFloor {
 public:
  static constexpr std::chrono::seconds kWindow{1};  // soon enough for a host or a link that becomes slow

  void Add(Monotonic now, Monotonic::duration took) {
    if (!least_.has_value()) {
      began_ = now;
    } else if (now - began_ >= kWindow) {
      before_ = std::exchange(least_, std::nullopt);
      began_ = now;
    }
    least_ = std::min(took, least_.value_or(took));
  }
  // Zero if nothing was counted yet.
  Monotonic::duration Get() const {
    if (!least_.has_value()) return {};
    return std::min(*least_, before_.value_or(*least_));
  }

 private:
  Monotonic began_;
  std::optional<Monotonic::duration> least_, before_;
};

}  // namespace hk
