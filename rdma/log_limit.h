// Logs that strangers and broken peers can cause at will, held to one line per reason and interval; all are counted.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/mutex.h"

namespace hk {

// One kind of line. Not thread-safe.
class LogLimit {
 public:
  // Rare enough that nobody fills a disk by it, often enough to be seen while it happens.
  static constexpr std::chrono::seconds kInterval{10};

  // A value: print the line; it stands for so many more that were not printed since the last.
  std::optional<uint64_t> Take(Monotonic now) {
    if (!Allows(now)) {
      ++silent_;
      return std::nullopt;
    }
    last_ = now;
    const uint64_t silent = silent_;
    silent_ = 0;
    return silent;
  }
  // Take would say so; counts nothing.
  bool Allows(Monotonic now) const { return !last_ || now - *last_ >= kInterval || HK_MUTANT(log_unlimited); }

 private:
  std::optional<Monotonic> last_;
  uint64_t silent_ = 0;
};

// Why a connection was closed before it was a peer's.
enum class StrangerEnd : uint8_t {
  kRefused,    // its hello was read and rejected
  kMalformed,  // what it said is no hello
  kSilent,     // it did not finish the handshake in time
  kCrowded,    // closed for a newer one: more than `strangers` at once
  kGone,       // it closed the connection before the handshake's end
  kTls,        // no certificate that we accept
  kNoFiles,    // we are out of file descriptors or memory
};
inline constexpr size_t kStrangerReasons = 7;

// Counts strangers, and logs each reason once per interval. Thread-safe.
class StrangerLog {
 public:
  // `who`: the address it came from. Neither it nor `detail` is kept: what strangers say names no counter.
  void Count(StrangerEnd reason, const std::string& who, const std::string& detail, Monotonic now);
  uint64_t count(StrangerEnd reason) const {
    return counts_[static_cast<size_t>(reason)].load(std::memory_order_relaxed);
  }

 private:
  std::array<std::atomic<uint64_t>, kStrangerReasons> counts_{};
  Mutex mutex_;
  std::array<LogLimit, kStrangerReasons> limits_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hk
