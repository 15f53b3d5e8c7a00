// Which epochs of which guests are over, here and at the peers. Pure, shared by all back ends.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "hyperkernel/base/node_set.h"
#include "hyperkernel/base/types.h"
#include "rdma/transport.h"

namespace hk {

// Most guests with a floor, of this node and of each peer: a bound of memory, far above what a node can run.
inline constexpr size_t kMaxFloors = 256;

// The oldest generation and epoch of a guest that are still valid. Plain value.
struct EpochFloor {
  uint32_t generation = 0;
  Epoch epoch;

  bool IsAbove(uint32_t other_generation, Epoch other_epoch) const {
    return other_generation < generation || other_epoch < epoch;
  }
  // The higher of both, each for itself.
  void Raise(uint32_t other_generation, Epoch other_epoch);
};

// The floors set by SetEpoch, and those that peers announced by Barriers. Not thread-safe.
class EpochFloors {
 public:
  // One guest's floor, as a Barrier carries it.
  struct Entry {
    GuestId guest;
    EpochFloor floor;
  };

  // True in `raised` if something changed. kInvalidArgument: guest 0. kResourceExhausted: kMaxFloors guests have one.
  absl::Status Raise(GuestId guest, uint32_t generation, Epoch epoch, bool* raised);
  void Forget(GuestId guest);
  // The message is of an epoch or generation that is over here: do not send it, do not deliver it.
  bool IsOld(const Message& message) const;
  // The guest's floor; 0 and 0 if it has none.
  EpochFloor Of(GuestId guest) const;
  // What a peer that comes up must be told before anything else.
  std::vector<Entry> All() const;

  // A Barrier came. Beyond kMaxFloors guests of a peer those without a floor here are forgotten, then this one: slots
  // then stay quarantined until the peer is reset, nothing worse.
  void PeerRaised(NodeId peer, MessageClass message_class, GuestId guest, uint32_t generation, Epoch epoch);
  // The peer's session is over; the next one begins with its Barriers.
  void PeerReset(NodeId peer);
  // `writers` without the peers that will not answer a request of this class, guest, generation and epoch, because they
  // announced that it is over: waiting for their Barrier would be for ever.
  NodeSet WithoutPassed(NodeSet writers, const Message& request) const;

 private:
  using Floors = std::map<GuestId, EpochFloor>;
  Floors own_;
  std::map<std::pair<NodeId, MessageClass>, Floors> peers_;
};

}  // namespace hk
