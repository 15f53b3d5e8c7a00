#include "rdma/simulation.h"

#include <algorithm>
#include <utility>

#include "hyperkernel/base/check.h"

namespace hk {

namespace {

// Time does not begin at 0: "no time" and "the first moment" are told apart, and times before it can be written.
constexpr Monotonic kBegin{std::chrono::hours(1)};

// What clocks on walls say then: some day, the same for every run.
constexpr WallTime kWallBegin = std::chrono::sys_days(std::chrono::year(2026) / 1 / 1);

// FNV-1a, 64 bits (draft-eastlake-fnv, section 5).
constexpr uint64_t kHashBasis = 0xcbf29ce484222325, kHashPrime = 0x100000001b3;

}  // namespace

Simulation::Simulation(uint64_t seed) : seed_(seed), random_(seed), now_(kBegin), trace_hash_(kHashBasis) {}

WallTime Simulation::Wall() const {
  return kWallBegin + std::chrono::duration_cast<WallTime::duration>(now_ - kBegin);
}

void Simulation::At(Monotonic when, std::function<void()> event) {
  events_.push({std::max(when, now_), next_order_++, std::move(event)});
}

std::optional<Monotonic> Simulation::NextAt() const {
  if (events_.empty()) return std::nullopt;
  return events_.top().at;
}

bool Simulation::Step() {
  if (events_.empty()) return false;
  // top() is const, and what it holds is thrown away by pop().
  Event event = std::move(const_cast<Event&>(events_.top()));
  events_.pop();
  now_ = event.at;
  event.run();
  return true;
}

void Simulation::RunUntil(Monotonic end) {
  while (!events_.empty() && events_.top().at <= end) Step();
  now_ = std::max(now_, end);
}

uint64_t Simulation::Below(uint64_t limit) {
  HK_CHECK(limit > 0);
  return static_cast<uint64_t>(static_cast<unsigned __int128>(Random()) * limit >> 64);
}

Simulation::Duration Simulation::Between(Duration least, Duration most) {
  return least + Duration(static_cast<Duration::rep>(Below(static_cast<uint64_t>((most - least).count()) + 1)));
}

std::string Simulation::Tail() const {
  std::string tail;
  for (const std::string& line : tail_) tail += line;
  return tail;
}

void Simulation::Trace(std::string_view line) {
  std::string text = std::to_string((now_ - kBegin).count()).append(" ").append(line.data(), line.size()).append("\n");
  for (const char c : text) trace_hash_ = (trace_hash_ ^ static_cast<unsigned char>(c)) * kHashPrime;
  if (keep_trace_) trace_ += text;
  tail_.push_back(std::move(text));
  if (tail_.size() > kTailLines) tail_.pop_front();
}

}  // namespace hk
