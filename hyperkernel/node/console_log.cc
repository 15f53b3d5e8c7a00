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
  piece.lost = start > from ? start - from : 0;
  piece.next = start + piece.bytes.size();
  piece.ended = ended_ && piece.next == written_;
  return piece;
}

uint64_t ConsoleLog::oldest() const {
  MutexLock lock(&mutex_);
  return written_ - history_.size();
}

uint64_t ConsoleLog::LastLines(uint64_t lines) const {
  MutexLock lock(&mutex_);
  if (lines == 0) return written_;
  // A newline at the very end ends the last line and begins none.
  size_t end = history_.size();
  if (end > 0 && history_[end - 1] == '\n') end--;
  for (uint64_t found = 0; end > 0; end--) {
    if (history_[end - 1] == '\n' && ++found == lines) break;
  }
  return written_ - history_.size() + end;
}

std::string ConsoleLog::Kept() const {
  MutexLock lock(&mutex_);
  return history_;
}

uint64_t ConsoleLog::written() const {
  MutexLock lock(&mutex_);
  return written_;
}

}  // namespace hk
