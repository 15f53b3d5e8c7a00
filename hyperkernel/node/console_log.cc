#include "hyperkernel/node/console_log.h"

#include <algorithm>

namespace hk {

void ConsoleLog::Append(std::string_view bytes) {
  {
    MutexLock lock(&mutex_);
    history_ += bytes;
    written_ += bytes.size();
    // Cut in large steps, so that a byte at a time does not move the history each time.
    if (history_.size() > 2 * kHistoryBytes) history_.erase(0, history_.size() - kHistoryBytes);
  }
  grown_.SignalAll();
}

void ConsoleLog::End() {
  {
    MutexLock lock(&mutex_);
    ended_ = true;
  }
  grown_.SignalAll();
}

ConsoleLog::Piece ConsoleLog::Read(uint64_t from, size_t limit, std::chrono::steady_clock::time_point deadline) const {
  MutexLock lock(&mutex_);
  while (from >= written_ && !ended_ && grown_.WaitUntil(&mutex_, deadline)) {
  }
  const uint64_t oldest = written_ - history_.size();
  const uint64_t start = std::clamp(from, oldest, written_);
  Piece piece;
  piece.bytes = history_.substr(start - oldest, limit);
  piece.next = start + piece.bytes.size();
  piece.ended = ended_ && piece.next == written_;
  return piece;
}

}  // namespace hk
