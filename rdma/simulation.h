// Virtual time and randomness of one deterministic run: the same seed and the same calls give the same run, to the
// byte. Whoever simulates a cluster (network, transports, the protocols above) runs on one Simulation in one thread.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <queue>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "hyperkernel/base/clock.h"

namespace hk {

// A clock, a queue of events, a source of random numbers and a trace. Not thread-safe: everything is one thread.
class Simulation final : public Clock {
 public:
  using Duration = Monotonic::duration;

  explicit Simulation(uint64_t seed);
  Simulation(const Simulation&) = delete;
  Simulation& operator=(const Simulation&) = delete;

  uint64_t seed() const { return seed_; }
  Monotonic Now() const override { return now_; }
  WallTime Wall() const override;

  // Runs `event` at that time, or now if that has passed. Events of one time run in the order of these calls.
  void At(Monotonic when, std::function<void()> event);
  void After(Duration delay, std::function<void()> event) { At(now_ + delay, std::move(event)); }
  // When the next event runs; nullopt: there is none.
  std::optional<Monotonic> NextAt() const;
  // Runs the next event. False: there is none.
  bool Step();
  // Runs all events up to and including that time, which is the time afterwards.
  void RunUntil(Monotonic end);

  // Random numbers. The sequence is the seed's: it is the same with every compiler and library.
  uint64_t Random() { return random_(); }
  uint64_t Below(uint64_t limit);  // 0 to limit - 1; REQUIRES: limit > 0
  Duration Between(Duration least, Duration most);
  bool Chance(uint32_t per_million) { return Below(1'000'000) < per_million; }

  // Adds a line, with the time before it, to the trace: two runs are the same if their traces are. Only its hash is
  // kept unless KeepTrace was called before.
  void Trace(std::string_view line);
  void KeepTrace() { keep_trace_ = true; }
  const std::string& trace() const { return trace_; }
  // The last lines, also without KeepTrace: for people who see a run fail.
  std::string Tail() const;
  uint64_t trace_hash() const { return trace_hash_; }

 private:
  // One thing to do.
  struct Event {
    Monotonic at;
    uint64_t order;
    std::function<void()> run;
    bool operator<(const Event& other) const { return other.at < at || (other.at == at && other.order < order); }
  };

  const uint64_t seed_;
  std::mt19937_64 random_;  // its sequence is fixed by the C++ standard; its distributions are not, so none is used
  Monotonic now_;
  uint64_t next_order_ = 0;
  std::priority_queue<Event> events_;
  static constexpr size_t kTailLines = 40;
  bool keep_trace_ = false;
  std::string trace_;
  std::deque<std::string> tail_;
  uint64_t trace_hash_;
};

}  // namespace hk
