#include "hyperkernel/node/clock_follower.h"

#include <array>
#include <cstdlib>
#include <random>
#include <string>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/node/machine_clocks.h"

namespace hk {
namespace {

using std::chrono::microseconds;
using std::chrono::nanoseconds;
using std::chrono::seconds;

constexpr uint32_t kKhz = 1'000'000;  // a tick is a nanosecond
constexpr uint64_t kSecond = 1'000'000'000;

TscOffset Measured(uint64_t at, int64_t offset, uint64_t error) {
  return {.offset = offset, .error = error, .at = at, .exchanges = 1};
}

bool Contains(const TscRange& range, int64_t offset) {
  return static_cast<uint64_t>(offset) - range.least <= range.width;
}

TEST(ClockFilter, KnowsLessAsTimeGoesBy) {
  ClockFilter filter(kKhz);
  filter.Add(Measured(0, -5'000, 100));
  EXPECT_EQ(filter.At(0).width, 203u);
  const TscRange later = filter.At(kSecond);
  EXPECT_TRUE(Contains(later, -5'100 - 250'000) && Contains(later, -4'900 + 250'000));
  EXPECT_FALSE(Contains(later, -5'200 - 250'000) || Contains(later, -4'800 + 250'000));
}

TEST(ClockFilter, AWorseMeasurementTakesNothingAway) {
  ClockFilter filter(kKhz);
  filter.Add(Measured(0, 1000, 10));
  filter.Add(Measured(1000, 900, 5000));
  EXPECT_LT(filter.At(1000).width, 30u);
  EXPECT_TRUE(Contains(filter.At(1000), 1000));
  EXPECT_EQ(filter.jumps(), 0u);
}

TEST(ClockFilter, LearnsTheDrift) {
  ClockFilter filter(kKhz);
  constexpr int64_t kPpb = -50'000;
  for (uint64_t second = 0; second <= 60; second++) {
    filter.Add(Measured(second * kSecond, 7 + static_cast<int64_t>(second) * kPpb, 20'000));
  }
  EXPECT_EQ(filter.jumps(), 0u);
  const TscRange later = filter.At(62 * kSecond);
  EXPECT_TRUE(Contains(later, 7 + 62 * kPpb));
  EXPECT_LT(later.width, 60'000u) << "250 ppm either way would leave more than a millisecond open";
}

TEST(ClockFilter, ACounterThatJumpsIsFollowedAnew) {
  ClockFilter filter(kKhz);
  filter.Add(Measured(0, 0, 10));
  filter.Add(Measured(kSecond, 300'000, 10));
  EXPECT_EQ(filter.jumps(), 1u);
  EXPECT_TRUE(Contains(filter.At(kSecond), 300'000));
  EXPECT_EQ(filter.At(kSecond).width, 23u);
}

TEST(TurnOf, StepsUpToWhatIsCertainAndNeverBack) {
  // Behind by 100 to 140.
  const TscRange ahead{.least = 1100, .width = 40};
  ClockTurn turn = TurnOf(ahead, 5, 1005, 50);
  EXPECT_EQ(turn.step, 100u);
  EXPECT_EQ(turn.lead, 0u);
  EXPECT_EQ(turn.bound, 40u);
  turn = TurnOf(ahead, 5, 1005, 101);
  EXPECT_EQ(turn.step, 0u);
  EXPECT_EQ(turn.bound, 140u);
  // Ahead by 60 to 100.
  turn = TurnOf(ahead, 5, 1205, 50);
  EXPECT_EQ(turn.step, 0u);
  EXPECT_EQ(turn.lead, 60u);
  EXPECT_EQ(turn.bound, 100u);
  // Perhaps this, perhaps that.
  turn = TurnOf(ahead, 5, 1125, 1);
  EXPECT_EQ(turn.step, 0u);
  EXPECT_EQ(turn.lead, 0u);
  EXPECT_EQ(turn.bound, 20u);
}

TEST(StepOfIoNode, UpToTheFastestThatCanBeBelieved) {
  EXPECT_EQ(StepOfIoNode({}, 10, 1000), 0u);
  EXPECT_EQ(StepOfIoNode({9, 0}, 10, 1000), 0u);
  EXPECT_EQ(StepOfIoNode({10, 70, 30}, 10, 1000), 70u);
  EXPECT_EQ(StepOfIoNode({10, 1001}, 10, 1000), 10u) << "drift does not make so much";
}

TEST(MachineClocks, ALeadCountsOnce) {
  MachineClocks clocks;
  clocks.Begin(100, kKhz);
  const Monotonic now{seconds(5)};
  clocks.Take(NodeId(1), {.lead = 30'000, .bound_ns = 40'000}, now);
  EXPECT_EQ(clocks.TakeStep(), 30'000u);
  EXPECT_EQ(clocks.TakeStep(), 0u) << "until it is said again";
  clocks.Stepped(30'000);
  EXPECT_EQ(clocks.offset(), 30'100u);
  EXPECT_EQ(clocks.Bound(NodeId(1), now + seconds(1)), 70'000u);
  EXPECT_EQ(clocks.Bound(NodeId(1), now + seconds(3)), 320'000u) << "overdue by a second";
  EXPECT_EQ(clocks.Bound(NodeId(2), now), std::nullopt);
  clocks.Take(NodeId(2), {.lead = 0, .bound_ns = 0}, now);
  EXPECT_EQ(clocks.Bound(NodeId(2), now + seconds(9)), 0u) << "one counter";
}

TEST(MachineClocks, WithoutARateNothingIsFollowed) {
  MachineClocks clocks;
  clocks.Begin(100, 0);
  clocks.Take(NodeId(1), {.lead = 30'000, .bound_ns = std::nullopt}, Monotonic());
  EXPECT_EQ(clocks.TakeStep(), 0u);
}

TEST(PartClock, OnOneHostItIsExact) {
  uint64_t stepped = 0;
  PartClock clock({.one_host = true,
                   .tsc_khz = kKhz,
                   .ticks = [] { return uint64_t{9}; },
                   .measure = nullptr,
                   .step =
                       [&](uint64_t ticks) {
                         stepped += ticks;
                         return absl::OkStatus();
                       },
                   .clock = &RealClock()});
  EXPECT_EQ(*clock.Begin(50), 50u);
  EXPECT_EQ(clock.Look(50).bound_ns, 0u);
  EXPECT_EQ(stepped, 0u);
  // The I/O node has stepped.
  EXPECT_EQ(clock.Look(53).bound_ns, 0u);
  EXPECT_EQ(stepped, 3u);
}

TEST(PartClock, AStepThatIsNotMadeIsMadeLater) {
  uint64_t now = 1000;
  absl::Status status = absl::DeadlineExceededError("a vCPU waits for a page");
  std::vector<uint64_t> steps;
  int64_t ahead = 0;
  absl::Status measured;
  PartClock clock({.one_host = false,
                   .tsc_khz = kKhz,
                   .ticks = [&] { return now; },
                   .measure = [&](uint32_t, Monotonic) -> absl::StatusOr<TscOffset> {
                     if (!measured.ok()) return measured;
                     return Measured(now, ahead, 100);
                   },
                   .step =
                       [&](uint64_t ticks) {
                         steps.push_back(ticks);
                         return status;
                       },
                   .clock = &RealClock()});
  ASSERT_TRUE(clock.Begin(0).ok());
  now += kSecond;
  ahead = 100'000;
  const ClockWord word = clock.Look(0);
  EXPECT_GT(word.bound_ns, 99'000u);
  status = absl::OkStatus();
  now += 1000;
  EXPECT_LT(clock.Look(0).bound_ns, 510'000u) << "what may drift in two seconds";
  EXPECT_THAT(steps, testing::SizeIs(2));
  // Nobody answers: it is less and less certain, and nothing is done.
  measured = absl::DeadlineExceededError("the I/O node does not tell its clock");
  now += 4 * kSecond;
  EXPECT_GT(clock.Look(0).bound_ns, 1'000'000u);
  EXPECT_THAT(steps, testing::SizeIs(2));
}

// Three hosts whose counters begin anywhere and drift by up to 50 ppm, messages of 20 to 200 us that are slower one
// way, and some that meet a queue: the machine's TSC goes back nowhere, and all that is said of it holds.
class Hosts {
 public:
  explicit Hosts(uint32_t seed) : random_(seed) {
    for (Host& host : hosts_) host.start = random_();
    for (size_t i = 1; i < hosts_.size(); i++) {
      hosts_[i].clock.emplace(
          PartClock::Host{.one_host = false,
                          .tsc_khz = kKhz,
                          .ticks = [this, i] { return Counter(i); },
                          .measure = [this, i](uint32_t exchanges, Monotonic) -> absl::StatusOr<TscOffset> {
                            return Measure(i, exchanges);
                          },
                          .step =
                              [this, i](uint64_t ticks) {
                                hosts_[i].offset += ticks;
                                hosts_[i].stepped += ticks;
                                return absl::OkStatus();
                              },
                          .clock = &RealClock()});
    }
  }
  void SetDrift(size_t host, int64_t ppb) {
    Host& changed = hosts_[host];
    changed.start = Counter(host);
    changed.since = now_;
    changed.ppb = ppb;
  }
  void Begin() {
    hosts_[0].offset = 0 - Counter(0);
    clocks_.Begin(hosts_[0].offset, kKhz);
    for (size_t i = 1; i < hosts_.size(); i++) hosts_[i].offset = *hosts_[i].clock->Begin(hosts_[0].offset);
  }
  // What the I/O node's thread does once a second.
  void Look() {
    for (size_t i = 1; i < hosts_.size(); i++) {
      const ClockWord word = hosts_[i].clock->Look(clocks_.offset());
      clocks_.Take(NodeId(static_cast<uint16_t>(i)), word, Now());
    }
    const uint64_t step = clocks_.TakeStep();
    if (step == 0) return;
    hosts_[0].offset += step;
    hosts_[0].stepped += step;
    clocks_.Stepped(step);
  }
  void Pass(uint64_t ns) { now_ += ns; }
  uint64_t Tsc(size_t host) const { return Counter(host) + hosts_[host].offset; }
  uint64_t Bound(size_t host) const { return *clocks_.Bound(NodeId(static_cast<uint16_t>(host)), Now()); }
  uint64_t stepped(size_t host) const { return hosts_[host].stepped; }
  uint64_t Random(uint64_t least, uint64_t most) {
    return std::uniform_int_distribution<uint64_t>(least, most)(random_);
  }
  size_t count() const { return hosts_.size(); }

 private:
  struct Host {
    uint64_t start = 0, since = 0;
    int64_t ppb = 0;
    uint64_t offset = 0, stepped = 0;
    std::optional<PartClock> clock;
  };
  uint64_t Counter(size_t host) const {
    const auto passed = static_cast<int64_t>(now_ - hosts_[host].since);
    const __int128 drift = static_cast<__int128>(passed) * hosts_[host].ppb / 1'000'000'000;
    return hosts_[host].start + static_cast<uint64_t>(passed + static_cast<int64_t>(drift));
  }
  Monotonic Now() const { return Monotonic(nanoseconds(now_)); }
  TscOffset Measure(size_t host, uint32_t exchanges) {
    TscEstimate estimate;
    for (uint32_t i = 0; i < exchanges; i++) {
      const uint64_t sent = Counter(host);
      now_ += Random(20'000, 40'000) + (Random(0, 3) == 0 ? Random(0, 5'000'000) : 0);
      const uint64_t remote = Counter(0);
      now_ += Random(20'000, 200'000);
      estimate.Add(sent, remote, Counter(host));
    }
    return estimate.best();
  }

  std::mt19937_64 random_;
  uint64_t now_ = kSecond;
  std::array<Host, 3> hosts_;
  MachineClocks clocks_;
};

uint32_t Seed() {
  const char* chosen = std::getenv("HK_SEED");
  return chosen != nullptr ? static_cast<uint32_t>(std::strtoul(chosen, nullptr, 10)) : std::random_device()();
}

TEST(PartClock, OverHostsThatDriftNoClockGoesBackAndBoundsHold) {
  const uint32_t seed = Seed();
  SCOPED_TRACE("HK_SEED=" + std::to_string(seed));
  for (const auto& [b, c] : {std::pair(50'000, -50'000), {-50'000, -20'000}, {50'000, 49'000}, {0, 0}}) {
    SCOPED_TRACE(std::to_string(b) + " and " + std::to_string(c) + " ppb");
    Hosts hosts(seed);
    hosts.SetDrift(1, b);
    hosts.SetDrift(2, c);
    hosts.Begin();
    hosts.Look();
    std::array<uint64_t, 3> before{};
    uint64_t widest = 0;
    for (int second = 0; second < 600; second++) {
      if (second == 300 && b != 0) hosts.SetDrift(1, b - (b > 0 ? 1000 : -1000));  // as the room gets warmer
      for (int i = 0; i < 4; i++) {
        hosts.Pass(hosts.Random(200'000'000, 260'000'000));
        for (size_t host = 0; host < hosts.count(); host++) {
          ASSERT_GE(hosts.Tsc(host), before[host]) << "second " << second;
          before[host] = hosts.Tsc(host);
          if (host == 0) continue;
          const auto apart = static_cast<int64_t>(hosts.Tsc(host) - hosts.Tsc(0));
          const uint64_t size = static_cast<uint64_t>(apart < 0 ? -apart : apart);
          ASSERT_LE(size, hosts.Bound(host) + 1) << "node " << host << ", second " << second;
          if (second > 60) widest = std::max(widest, size);
        }
      }
      hosts.Look();
    }
    // Two seconds' drift, until both have stepped, the threshold, and what a round trip leaves open.
    EXPECT_LT(widest, 300'000u);
    if (b > 0) {
      EXPECT_GT(hosts.stepped(0), 600u * 40'000) << "the I/O node follows the fastest";
    }
    if (b == 0) {
      EXPECT_EQ(hosts.stepped(0) + hosts.stepped(1) + hosts.stepped(2), 0u) << "who does not drift does not step";
    }
    RecordProperty("widest_ns", std::to_string(widest));
  }
}

}  // namespace
}  // namespace hk
