// How far another node's time-stamp counter is ahead, from messages there and back. Pure.
#pragma once

#include <cstdint>

namespace hk {

// How many exchanges a measurement of clocks makes that nobody waits for: on a busy link some of them meet no queue at
// all.
inline constexpr uint32_t kClockExchanges = 64;

// What to add to this node's counter to have the other's, and how wrong that may be. Plain value.
struct TscOffset {
  int64_t offset = 0;
  uint64_t error = 0;      // ticks, either way
  uint64_t at = 0;         // this node's counter then
  uint32_t exchanges = 0;  // that it was taken from; 0: it is known by itself
};

// Takes exchanges; the one with the shortest round trip counts, since what is in it bounds the error whatever the ways
// there and back were like. Both counters run at one rate, as far as one exchange can tell; they may wrap. Not
// thread-safe.
class TscEstimate {
 public:
  // This node's counter when it sent and when it received, the other's in between. False: received before it was sent,
  // as a counter that steps back has it; the exchange does not count.
  bool Add(uint64_t sent, uint64_t remote, uint64_t received);
  uint32_t exchanges() const { return best_.exchanges; }
  // REQUIRES: exchanges() != 0.
  TscOffset best() const;

 private:
  TscOffset best_;
  uint64_t shortest_ = 0;
};

}  // namespace hk
