// How long the queues of a connection are, and how long its device tries: arithmetic only. rdma/README.md, Verbs, has
// the proofs.
#pragma once

#include <algorithm>
#include <cstdint>

#include "hyperkernel/base/mutant.h"
#include "rdma/send_ring.h"

namespace hk {

// Entries of a queue pair's queues, and of the completion queues that serve them. Plain value.
struct QueueDepths {
  // Sends under way at most: far more than a round trip can keep busy.
  static constexpr uint32_t kMaxSend = 256;
  static constexpr uint32_t kMinSend = 4 * SendRing::kSignalEvery;
  static_assert(kMinSend >= 2 * SendRing::kSignalEvery && kMaxSend >= kMinSend);
  // Setup, Goodbye, Acks and Heartbeats that may come before they are looked at.
  static constexpr uint32_t kUnnumberedRoom = 32;

  uint32_t send = 0, receive = 0;

  // `window`: numbered messages that the peer may have under way.
  static QueueDepths For(uint32_t window) {
    const uint32_t unnumbered = HK_MUTANT(no_room_for_unnumbered) ? 0 : kUnnumberedRoom;
    return {.send = std::clamp(window + SendRing::kSignalEvery, kMinSend, kMaxSend), .receive = window + unnumbered};
  }
};

// The device repeats what is not acknowledged after 4.096 us * 2^n, so many times (InfiniBand Architecture
// Specification, 9.7.6.1.3). Not 7, which three bits would hold: rxe takes that for "without end".
inline constexpr uint8_t kRetries = 6;

// The n for a lease. All tries together take half of it at most, so that a connection that is lost without a word is
// known to be broken while there is time to resume it; not below 4 ms each, where a busy host would look like a dead
// one, and not above 0.27 s, so that a lost packet does not cost much of a long lease.
constexpr uint8_t AckTimeout(uint32_t lease_ms) {
  constexpr uint8_t kLeast = 10, kMost = 16;
  const uint64_t wanted_ns = uint64_t{lease_ms} * 1'000'000 / 2 / (kRetries + 1);
  uint8_t exponent = kLeast;
  while (exponent < kMost && (uint64_t{4096} << (exponent + 1)) <= wanted_ns) ++exponent;
  return exponent;
}

// How long a dial may take. rdma_cm repeats a request that was lost after 4.3 s only, so that a dial which falls into a
// cut of the network never ends well: it is given up in time for another within the lease. Not below what a busy host
// needs to answer.
constexpr uint32_t DialMs(uint32_t handshake_ms, uint32_t lease_ms) {
  constexpr uint32_t kLeastMs = 250;
  return std::min(handshake_ms, std::max(lease_ms / 4, kLeastMs));
}

}  // namespace hk
