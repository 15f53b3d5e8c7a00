// What a guest wrote to its console: a bounded history that any number of readers follow. Thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "hyperkernel/base/mutex.h"

namespace hk {

// The last kHistoryBytes of a byte stream. A reader that falls behind loses the oldest bytes, never holds the guest up.
class ConsoleLog {
 public:
  static constexpr size_t kHistoryBytes = 256 << 10;  // a boot with all messages is about 60 KiB

  // Appends; wakes the readers.
  void Append(std::string_view bytes);
  // Ends the stream: readers get what is left and then `ended`.
  void End();

  // What a reader gets.
  struct Piece {
    std::string bytes;
    uint64_t next = 0;   // where to go on
    uint64_t lost = 0;   // bytes before `bytes` that are no longer kept
    bool ended = false;  // nothing more will come
  };
  // Bytes from position `from` on (0: the oldest that is kept), at most `limit`; waits for some until the deadline.
  Piece Read(uint64_t from, size_t limit, std::chrono::steady_clock::time_point deadline) const;
  // The position of the oldest byte that is kept; of the beginning of the last `lines` lines, or the oldest byte if
  // that is gone; and of the end: the bytes ever written.
  uint64_t oldest() const;
  uint64_t LastLines(uint64_t lines) const;
  uint64_t written() const;
  // All that is kept.
  std::string Kept() const;

 private:
  mutable Mutex mutex_;
  mutable CondVar grown_;
  std::string history_ ABSL_GUARDED_BY(mutex_);   // the newest bytes
  uint64_t written_ ABSL_GUARDED_BY(mutex_) = 0;  // bytes ever appended: the position of history_'s end
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace hk
