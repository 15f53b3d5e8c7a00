#include "tests/host/space_litmus.h"

#include <algorithm>
#include <array>
#include <barrier>
#include <cstring>
#include <numeric>
#include <random>
#include <thread>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/memory/space_engine.h"

namespace hk {
namespace {

using Kind = Litmus::Op::Kind;
using Outcome = Litmus::Outcome;

constexpr size_t kInstances = 64;          // of one round
constexpr size_t kPages = 8, kPairs = 16;  // that they are on
constexpr uint64_t kExtents = 4;           // of x; as many of y
constexpr uint64_t kValues = 4;            // of a round: old, 1, 2
constexpr size_t kLineBytes = 64;
// About what a page needs to move: so pages move at any point of an instance.
constexpr uint64_t kOpsPerPause = 32, kLongestPauseUs = 60;
constexpr size_t kRegisters = 4;
constexpr uint64_t kExtentOfY = 5;  // of variables that cross pages: another home than x's

// An instance's variables, in bytes from the view's start.
struct Place {
  uint64_t x = 0, y = 0;
};

Place PlaceOf(Placement placement, size_t instance) {
  // Few instances on a page: what is of interest happens when a page moves.
  const size_t groups = placement == Placement::kPages ? kPairs : kPages;
  const size_t group = instance % groups;
  const uint64_t line = instance / groups * kLineBytes;
  // Spread over extents, and so homes.
  const auto page = [](uint64_t extent, uint64_t index) { return (extent * kExtentPages + index) * kPageSize; };
  const uint64_t x = page(group % kExtents, group / kExtents);
  switch (placement) {
    case Placement::kLine:
      return {x + line, x + line + kLineBytes / 2};
    case Placement::kPage:
      return {x + line, x + kPageSize / 2 + line};
    case Placement::kPages:
      return {x + line, page(kExtents + (group + 1) % kExtents, group / kExtents) + line};
    case Placement::kStraddle: {
      // Some of them across two extents.
      const uint64_t first = kExtentPages - kInstances + 2 * instance + 1;
      return {page(0, first) - 4, page(kExtentOfY, first) - 4};
    }
  }
  HK_CHECK(false);
}

void Store(std::byte* at, uint64_t value, Access access) {
  auto* const word = reinterpret_cast<volatile uint64_t*>(at);
  if (access == Access::kLocked) {
    asm volatile("xchgq %1, %0" : "+m"(*word), "+r"(value) : : "memory");
  } else {
    asm volatile("movq %1, %0" : "=m"(*word) : "r"(value) : "memory");
  }
}

uint64_t Load(const std::byte* at, Access access) {
  auto* const word = reinterpret_cast<volatile uint64_t*>(const_cast<std::byte*>(at));
  uint64_t value = 0;
  if (access == Access::kLocked) {
    asm volatile("lock xaddq %1, %0" : "+m"(*word), "+r"(value) : : "memory");
  } else {
    asm volatile("movq %1, %0" : "=r"(value) : "m"(*word) : "memory");
  }
  return value;
}

// A value of a round, in both halves.
uint64_t Both(uint64_t round, uint64_t value) {
  const uint64_t half = round * kValues + value;
  return half << 32 | half;
}

// One half of what was seen, as the outcome has it.
uint8_t Seen(uint64_t value, int half, uint64_t round) {
  const uint64_t part = half == 0 ? value & 0xffffffff : value >> 32;
  HK_CHECK(part < (round + 1) * kValues);
  return part < round * kValues ? 0 : static_cast<uint8_t>(part - round * kValues);
}

// What one round left, of one instance. Written by its threads, a register by one.
struct alignas(64) InstanceRun {
  std::array<uint64_t, kRegisters> registers{};
  uint64_t x = 0, y = 0;
};

// Runs one test. The threads meet at a barrier before and after each round.
class Runner {
 public:
  Runner(std::span<std::byte* const> views, const Litmus& litmus, Placement placement, Access access, uint64_t seed,
         const std::function<void(size_t)>& begin)
      : views_(views),
        begin_(begin),
        litmus_(litmus),
        access_(access),
        divided_(placement == Placement::kStraddle),
        seed_(seed),
        barrier_(static_cast<ptrdiff_t>(litmus.threads.size())) {
    for (size_t i = 0; i < kInstances; i++) places_[i] = PlaceOf(placement, i);
    for (const auto& thread : litmus.threads) {
      for (const Litmus::Op& op : thread) {
        if (op.kind == Kind::kLoad) register_is_x_[op.which] = op.x;
      }
    }
    // Values of earlier tests in the same places are old, and may be of two tests: of a half each.
    for (const Place& place : places_) {
      for (const uint64_t at : {place.x, place.y}) {
        const uint64_t value = Load(views[0] + at, Access::kPlain);
        first_round_ = std::max({first_round_, (value & 0xffffffff) / kValues + 1, (value >> 32) / kValues + 1});
      }
    }
    for (const Place& place : places_) {
      for (const uint64_t at : {place.x, place.y}) Store(views[0] + at, Both(first_round_ - 1, 0), Access::kPlain);
    }
  }

  LitmusResult Run(uint64_t runs) {
    const uint64_t rounds = (runs + kInstances - 1) / kInstances;
    std::vector<std::thread> threads;
    for (size_t t = 0; t < litmus_.threads.size(); t++) threads.emplace_back([this, t, rounds] { Thread(t, rounds); });
    for (std::thread& thread : threads) thread.join();
    result_.runs = rounds * kInstances;
    return result_;
  }

 private:
  void Thread(size_t t, uint64_t rounds) {
    begin_(t);
    std::mt19937_64 random(seed_ * 64 + t);
    std::byte* const view = views_[(t + seed_) % views_.size()];
    std::array<size_t, kInstances> order;
    std::iota(order.begin(), order.end(), 0);
    for (uint64_t round = first_round_; round < first_round_ + rounds; round++) {
      // Every other round all threads are at the same instance at nearly the same time.
      std::mt19937_64 common(seed_ ^ round);
      std::shuffle(order.begin(), order.end(), round % 2 == 0 ? random : common);
      barrier_.arrive_and_wait();
      for (const size_t i : order) Instance(view, t, i, round, &random);
      barrier_.arrive_and_wait();
      if (t == 0) Judge(view, round);
    }
  }
  void Instance(std::byte* view, size_t t, size_t i, uint64_t round, std::mt19937_64* random) {
    for (const Litmus::Op& op : litmus_.threads[t]) {
      // A thread that has its pages would be through before another's first fault is served.
      if ((*random)() % kOpsPerPause == 0) {
        std::this_thread::sleep_for(std::chrono::microseconds((*random)() % kLongestPauseUs));
      }
      std::byte* const at = view + (op.x ? places_[i].x : places_[i].y);
      if (op.kind == Kind::kStore) Store(at, Both(round, op.which), access_);
      if (op.kind == Kind::kLoad) runs_[i].registers[op.which] = Load(at, access_);
      if (op.kind == Kind::kFence) asm volatile("mfence" : : : "memory");
    }
  }
  void Judge(std::byte* view, uint64_t round) {
    for (size_t i = 0; i < kInstances; i++) {
      runs_[i].x = Load(view + places_[i].x, Access::kPlain);
      runs_[i].y = Load(view + places_[i].y, Access::kPlain);
      for (int x_half = 0; x_half < 2; x_half++) {
        for (int y_half = 0; y_half < 2; y_half++) JudgeOne(runs_[i], round, i, x_half, y_half);
      }
      const auto whole = [](uint64_t value) { return value >> 32 == (value & 0xffffffff); };
      bool all_whole = whole(runs_[i].x) && whole(runs_[i].y);
      for (const uint64_t value : runs_[i].registers) all_whole = all_whole && whole(value);
      if (!all_whole && !divided_) result_.torn++;
    }
  }
  void JudgeOne(const InstanceRun& run, uint64_t round, size_t instance, int x_half, int y_half);

  const std::span<std::byte* const> views_;
  const std::function<void(size_t)>& begin_;
  const Litmus& litmus_;
  const Access access_;
  const bool divided_;
  const uint64_t seed_;
  std::barrier<> barrier_;
  std::array<Place, kInstances> places_;
  std::array<bool, kRegisters> register_is_x_{};
  std::array<InstanceRun, kInstances> runs_;
  uint64_t first_round_ = 1;
  LitmusResult result_;
};

void Runner::JudgeOne(const InstanceRun& run, uint64_t round, size_t instance, int x_half, int y_half) {
  Outcome outcome;
  for (size_t r = 0; r < kRegisters; r++)
    outcome.registers[r] = Seen(run.registers[r], register_is_x_[r] ? x_half : y_half, round);
  outcome.x = Seen(run.x, x_half, round);
  outcome.y = Seen(run.y, y_half, round);
  std::string text;
  for (const uint8_t value : outcome.registers) text += static_cast<char>('0' + value);
  text += fmt::format(" x={} y={}", outcome.x, outcome.y);
  if (x_half == 0 && y_half == 0) result_.outcomes[text]++;
  if (!litmus_.forbidden(outcome)) return;
  result_.forbidden++;
  if (result_.first_forbidden.empty())
    result_.first_forbidden = fmt::format("{} (registers, end), round {}, instance {}", text, round, instance);
}

constexpr Litmus::Op StoreX(uint8_t value) {
  return {.kind = Kind::kStore, .x = true, .which = value};
}
constexpr Litmus::Op StoreY(uint8_t value) {
  return {.kind = Kind::kStore, .x = false, .which = value};
}
constexpr Litmus::Op LoadX(uint8_t to) {
  return {.kind = Kind::kLoad, .x = true, .which = to};
}
constexpr Litmus::Op LoadY(uint8_t to) {
  return {.kind = Kind::kLoad, .x = false, .which = to};
}
constexpr Litmus::Op kFence{};

}  // namespace

const std::vector<Litmus>& AllLitmus() {
  static const auto& all = *new std::vector<Litmus>{
      {"MP",
       {{StoreX(1), StoreY(1)}, {LoadY(0), LoadX(1)}},
       [](const Outcome& o) { return o.registers[0] == 1 && o.registers[1] == 0; }},
      {"LB",
       {{LoadX(0), StoreY(1)}, {LoadY(1), StoreX(1)}},
       [](const Outcome& o) { return o.registers[0] == 1 && o.registers[1] == 1; }},
      {"SB+mfence",
       {{StoreX(1), kFence, LoadY(0)}, {StoreY(1), kFence, LoadX(1)}},
       [](const Outcome& o) { return o.registers[0] == 0 && o.registers[1] == 0; }},
      {"IRIW",
       {{StoreX(1)}, {StoreY(1)}, {LoadX(0), LoadY(1)}, {LoadY(2), LoadX(3)}},
       [](const Outcome& o) {
         return o.registers[0] == 1 && o.registers[1] == 0 && o.registers[2] == 1 && o.registers[3] == 0;
       }},
      {"R+mfence",
       {{StoreX(1), StoreY(1)}, {StoreY(2), kFence, LoadX(0)}},
       [](const Outcome& o) { return o.y == 2 && o.registers[0] == 0; }},
      {"S",
       {{StoreX(2), StoreY(1)}, {LoadY(0), StoreX(1)}},
       [](const Outcome& o) { return o.registers[0] == 1 && o.x == 2; }},
      {"2+2W", {{StoreX(1), StoreY(2)}, {StoreY(1), StoreX(2)}}, [](const Outcome& o) { return o.x == 1 && o.y == 1; }},
  };
  return all;
}

LitmusResult RunLitmus(std::span<std::byte* const> views, const Litmus& litmus, Placement placement, Access access,
                       uint64_t runs, uint64_t seed, const std::function<void(size_t thread)>& begin) {
  return Runner(views, litmus, placement, access, seed, begin).Run(runs);
}

const char* Name(Placement placement) {
  static constexpr const char* kNames[] = {"one line", "one page", "two pages", "across pages"};
  return kNames[static_cast<size_t>(placement)];
}

const char* Name(Access access) {
  return access == Access::kPlain ? "plain" : "locked";
}

}  // namespace hk
