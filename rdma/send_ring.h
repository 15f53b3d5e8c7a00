// Which sends of a queue pair are under way, when most of them make no completion. Pure.
#pragma once

#include <cstdint>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"

namespace hk {

// Counts sends and chooses which are signalled. A completion says that all sends before are done as well (they end in
// order). Not thread-safe.
//
// Invariant: at least one of any kSignalEvery sends in a row is signalled, so a full ring waits for one.
class SendRing {
 public:
  // Sends between two signalled ones: completions become rare, and what is held back by it stays small.
  static constexpr uint32_t kSignalEvery = 16;

  // REQUIRES: depth >= 2 * kSignalEvery: with less the queue would stand still until its one signalled send is done.
  explicit SendRing(uint32_t depth) : depth_(depth) { HK_CHECK(depth >= 2 * kSignalEvery); }

  bool IsFull() const { return posted_ - completed_ >= depth_; }
  bool IsEmpty() const { return posted_ == completed_; }
  // Half full: it is time to look for completions.
  bool IsCrowded() const { return posted_ - completed_ >= depth_ / 2; }
  // The place of the next send: no send that is under way has it. REQUIRES: not full.
  uint32_t Next() const { return static_cast<uint32_t>(posted_ % depth_); }
  // What one send is to have.
  struct Send {
    uint64_t number;  // from 1
    bool signalled;
  };
  // Counts the next send. `must_signal`: its completion is waited for. REQUIRES: not full.
  Send Add(bool must_signal) {
    HK_CHECK(!IsFull());
    const bool due = ++unsignalled_ == kSignalEvery && !HK_MUTANT(sends_never_signalled);
    if (must_signal || due) unsignalled_ = 0;
    return {.number = ++posted_, .signalled = must_signal || due};
  }
  // The completion of this send came, also one with an error. Numbers that were completed before change nothing.
  void Completed(uint64_t number) {
    HK_CHECK(number <= posted_);
    if (number > completed_) completed_ = number;
  }

 private:
  const uint32_t depth_;
  uint64_t posted_ = 0, completed_ = 0;
  uint32_t unsignalled_ = 0;
};

}  // namespace hk
