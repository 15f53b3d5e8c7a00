// For unit tests of the fault engine: what it stands on, doing what the test says. No thread safety.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "fmt/format.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/page_frames.h"
#include "hyperkernel/memory/space_engine.h"

namespace hk {

// After this time a hold is over for certain: a part of it is by chance.
inline std::chrono::microseconds LongestOf(std::chrono::microseconds hold) {
  return hold * 5 / 4;
}

// What happened, in order.
using CallLog = std::vector<std::string>;

// A clock that stands still.
class FakeClock final : public Clock {
 public:
  Monotonic Now() const override { return now; }
  WallTime Wall() const override { return {}; }
  Monotonic now{std::chrono::seconds(1000)};
};

// Runs things when the clock is advanced past their time.
class FakeTimers final : public Timers {
 public:
  explicit FakeTimers(FakeClock* clock) : clock_(clock) {}
  void After(Monotonic::duration delay, std::function<void()> run) override {
    timers_.emplace(clock_->now + delay, std::move(run));
  }
  void Advance(Monotonic::duration by) {
    const Monotonic end = clock_->now + by;
    while (!timers_.empty() && timers_.begin()->first <= end) {
      clock_->now = std::max(clock_->now, timers_.begin()->first);
      const std::function<void()> run = std::move(timers_.begin()->second);
      timers_.erase(timers_.begin());
      run();
    }
    clock_->now = end;
  }
  void Clear() { timers_.clear(); }
  size_t DueWithin(Monotonic::duration time) const {
    return static_cast<size_t>(std::count_if(timers_.begin(), timers_.end(),
                                             [&](const auto& timer) { return timer.first <= clock_->now + time; }));
  }

 private:
  FakeClock* const clock_;
  std::multimap<Monotonic, std::function<void()>> timers_;
};

// Whole pages in ordinary memory; more than `most` is a failure of the test.
class FakeFrames final : public PageFrames {
 public:
  // By thread: the processor's time it has had.
  std::map<uint32_t, std::chrono::nanoseconds> run_times;
  std::set<uint32_t> waiting;  // threads, for pages
  bool Waits(uint32_t thread) const override { return waiting.contains(thread); }
  mutable std::map<uint32_t, ThreadGather> gathers;  // of threads that are known
  ThreadGather* GatherOf(uint32_t thread) const override {
    const auto found = gathers.find(thread);
    return found == gathers.end() ? nullptr : &found->second;
  }
  // By page: whom programs waited for, the last time; ~0: nobody had it.
  std::map<uint64_t, uint32_t> holders;
  void NoteHolder(Gfn first, size_t count, std::optional<NodeId> holder) override {
    for (size_t i = 0; i < count; ++i) holders[first.value() + i] = holder.has_value() ? holder->value() : ~uint32_t{0};
  }
  std::optional<std::chrono::nanoseconds> RunTime(uint32_t thread) const override {
    const auto found = run_times.find(thread);
    return found == run_times.end() ? std::nullopt : std::optional(found->second);
  }

  using Bytes = std::array<std::byte, kPageSize>;

  // `log`: where changes are noted; may be null.
  explicit FakeFrames(CallLog* log = nullptr) : log_(log) {}
  absl::Status Install(Gfn page, std::span<const std::byte> bytes, PageAccess access) override {
    if (!failure.ok()) return failure;
    if (pages.contains(page.value())) return absl::AlreadyExistsError("the page is here");
    auto& [right, to] = pages[page.value()];
    right = access;
    to = {};
    if (!bytes.empty()) std::memcpy(to.data(), bytes.data(), kPageSize);
    installed = First(page);
    EXPECT_LE(pages.size(), most);
    Note(fmt::format("install {} {}", page.value(), static_cast<int>(access)));
    return absl::OkStatus();
  }
  absl::Status SetAccess(Gfn page, PageAccess access) override {
    if (access == PageAccess::kRead && before_protection) before_protection(page.value());
    pages.at(page.value()).first = access;
    Note(fmt::format("access {} {}", page.value(), static_cast<int>(access)));
    return absl::OkStatus();
  }
  absl::Status Remove(Gfn page, std::span<std::byte> keep) override {
    if (!keep.empty()) std::memcpy(keep.data(), pages.at(page.value()).second.data(), kPageSize);
    pages.erase(page.value());
    Note(fmt::format("remove {}", page.value()));
    return absl::OkStatus();
  }
  absl::Status Read(Gfn page, size_t offset, std::span<std::byte> to) override {
    std::memcpy(to.data(), pages.at(page.value()).second.data() + offset, to.size());
    return absl::OkStatus();
  }
  absl::Status Write(Gfn page, size_t offset, std::span<const std::byte> from) override {
    ++writes;
    std::memcpy(pages.at(page.value()).second.data() + offset, from.data(), from.size());
    return absl::OkStatus();
  }
  void Wake(Gfn page) override {
    woken.push_back(page.value());
    Note(fmt::format("wake {}", page.value()));
  }
  void Fail(Gfn page) override { Note(fmt::format("fail {}", page.value())); }

  // The first byte of a page that is here.
  char& First(Gfn page) { return reinterpret_cast<char&>(pages.at(page.value()).second[0]); }

  std::map<uint64_t, std::pair<PageAccess, Bytes>> pages;
  absl::Status failure;  // of each Install
  char installed = '?';  // first byte of the last Install
  int writes = 0;
  std::vector<uint64_t> woken;
  size_t most = std::numeric_limits<size_t>::max();
  std::function<void(uint64_t)> before_protection;  // runs inside SetAccess(kRead)

 private:
  void Note(std::string what) {
    if (log_ != nullptr) log_->push_back(std::move(what));
  }

  CallLog* const log_;
};

// A wish, and where its end is put.
struct Wish {
  SpaceEngine::Granted End() {
    return [this](const absl::Status& end) {
      ++ends;
      status = end;
    };
  }
  int ends = 0;
  absl::Status status = absl::UnknownError("not yet");
};

}  // namespace hk
