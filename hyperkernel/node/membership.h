// Who is there: the pure part. Facts go in (a hello was answered, a hello failed), states come out. No thread, socket
// or clock inside; the caller gives the time. Not thread-safe.
//
// Invariants:
//  1. UP means: a good answer was received within `unreachable_after` of the time asked about, and no bad one since.
//  2. Time alone makes a node UNREACHABLE: no tick is needed, so a stalled caller cannot show a dead node as UP.
//  3. A REJECTED node becomes UP again only by a good answer; silence makes it UNREACHABLE like any other.
//  4. CONNECTING is only ever a state of a node never heard of, and ends by itself `unreachable_after` from the start.
#pragma once

#include <chrono>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/types.h"
#include "proto/node.pb.h"

namespace hk {

// Version of the control protocol between nodes. Raised when a change would be misunderstood; nodes of other versions
// are rejected with both numbers.
inline constexpr uint32_t kPeerProtocolVersion = 2;

// Membership of one node's static list of peers.
class MembershipTable {
 public:
  struct Peer {
    std::string name;
    std::string admin_address;
    NodeId number{};
  };
  // What a peer says in its answer to a hello.
  struct Answer {
    uint32_t version = 0;      // protocol version it speaks
    uint32_t self_number = 0;  // this node's number, as it has it
    v1::NodeInfo info;
  };
  // `self` is this node's number; `started` and `started_wall` are now, on both clocks.
  MembershipTable(const std::vector<Peer>& peers, std::string cluster, NodeId self,
                  std::chrono::milliseconds unreachable_after, Monotonic started, WallTime started_wall);

  // Peer `name` answered. Judges the answer: another cluster, protocol, name or numbers make it REJECTED. Ignored for a
  // name that is not in the list.
  void OnAnswer(std::string_view name, const Answer& answer, std::chrono::microseconds round_trip, Monotonic now,
                WallTime wall);
  // Peer `name` answered that it will not work with us (wrong cluster, unknown caller, ...).
  void OnRefused(std::string_view name, std::string reason, Monotonic now, WallTime wall);
  // No answer. `reason` is one line.
  void OnFailure(std::string_view name, std::string reason);

  // All peers by name, as of `now`.
  std::vector<v1::Member> Snapshot(Monotonic now) const;
  // Number of a peer, if it is in the list.
  std::optional<NodeId> NumberOf(std::string_view name) const;
  // Why two nodes that number themselves so must not work with each other; empty if they agree. Given: what the other
  // says of itself and of this node, its name, and what this node has for both.
  static std::string NumberObjection(std::string_view name, uint32_t its_own, uint32_t its_self, NodeId number,
                                     NodeId self);

 private:
  struct State {
    std::string admin_address;
    NodeId number{};
    bool heard = false;
    Monotonic heard_at;
    WallTime heard_wall;
    std::string rejected;  // why, if the last answer was not acceptable
    std::string failure;   // the last failure since the last answer
    std::optional<v1::NodeInfo> info;
    std::chrono::microseconds round_trip{0};
  };

  v1::Member View(const std::string& name, const State& state, Monotonic now) const;

  const std::string cluster_;
  const NodeId self_;
  const std::chrono::milliseconds unreachable_after_;
  const Monotonic started_;
  const WallTime started_wall_;
  std::map<std::string, State, std::less<>> peers_;
};

// Wall time as protobuf has it.
google::protobuf::Timestamp ToTimestamp(WallTime time);

}  // namespace hk
