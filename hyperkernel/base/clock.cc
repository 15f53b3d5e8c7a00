#include "hyperkernel/base/clock.h"

namespace hk {
namespace {

class HostClock final : public Clock {
 public:
  Monotonic Now() const override { return std::chrono::steady_clock::now(); }
  WallTime Wall() const override { return std::chrono::system_clock::now(); }
};

}  // namespace

const Clock& RealClock() {
  static const HostClock clock;
  return clock;
}

}  // namespace hk
