// Time, behind a seam: the simulator and the tests run the production code on a clock of their own.
#pragma once

#include <chrono>

namespace hk {

// Monotonic time, for deadlines.
using Monotonic = std::chrono::steady_clock::time_point;
// Wall-clock time, for people and files only.
using WallTime = std::chrono::system_clock::time_point;

// Source of time. Implementations are thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual Monotonic Now() const = 0;
  virtual WallTime Wall() const = 0;
};

// The host's clocks. The reference stays valid for the life of the program.
const Clock& RealClock();

}  // namespace hk
