#include "hyperkernel/node/membership.h"

#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/mutant.h"

namespace hk {
namespace {

// Why an answer cannot be worked with, numbers apart; empty if it can.
std::string Objection(std::string_view expected_name, const std::string& expected_cluster, uint32_t version,
                      const v1::NodeInfo& info) {
  if (version != kPeerProtocolVersion) {
    return fmt::format("speaks control protocol {}, this node {}: run the same release on both", version,
                       kPeerProtocolVersion);
  }
  if (info.cluster() != expected_cluster && !HK_MUTANT(membership_accepts_any_cluster)) {
    return fmt::format("belongs to cluster '{}', this node to '{}'", info.cluster(), expected_cluster);
  }
  if (info.name() != expected_name)
    return fmt::format("is node '{}', not '{}': check the peer's address", info.name(), expected_name);
  return "";
}

}  // namespace

google::protobuf::Timestamp ToTimestamp(WallTime time) {
  const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
  google::protobuf::Timestamp stamp;
  stamp.set_seconds(ns / 1'000'000'000);
  stamp.set_nanos(static_cast<int32_t>(ns % 1'000'000'000));
  return stamp;
}

MembershipTable::MembershipTable(const std::vector<Peer>& peers, std::string cluster, NodeId self,
                                 std::chrono::milliseconds unreachable_after, Monotonic started, WallTime started_wall)
    : cluster_(std::move(cluster)),
      self_(self),
      unreachable_after_(unreachable_after),
      started_(started),
      started_wall_(started_wall) {
  for (const Peer& peer : peers) {
    peers_[peer.name].admin_address = peer.admin_address;
    peers_[peer.name].number = peer.number;
  }
}

std::string MembershipTable::NumberObjection(std::string_view name, uint32_t its_own, uint32_t its_self, NodeId number,
                                             NodeId self) {
  if ((its_own == number.value() && its_self == self.value()) || HK_MUTANT(membership_accepts_any_number)) return "";
  return fmt::format(
      "node '{}' is number {} to itself and {} here, this node is number {} to it and {} here: give all nodes the same "
      "list of peers, or number all of them (number)",
      name, its_own, number.value(), its_self, self.value());
}

void MembershipTable::OnAnswer(std::string_view name, const Answer& answer, std::chrono::microseconds round_trip,
                               Monotonic now, WallTime wall) {
  const auto found = peers_.find(name);
  if (found == peers_.end()) return;
  State& state = found->second;
  state.heard = true;
  state.heard_at = now;
  state.heard_wall = wall;
  state.failure.clear();
  state.round_trip = round_trip;
  state.rejected = Objection(name, cluster_, answer.version, answer.info);
  if (state.rejected.empty())
    state.rejected = NumberObjection(name, answer.info.number(), answer.self_number, state.number, self_);
  // What a node that must not be worked with says of itself is not shown as this peer's facts.
  if (state.rejected.empty()) state.info = answer.info;
}

void MembershipTable::OnRefused(std::string_view name, std::string reason, Monotonic now, WallTime wall) {
  const auto found = peers_.find(name);
  if (found == peers_.end()) return;
  State& state = found->second;
  state.heard = true;
  state.heard_at = now;
  state.heard_wall = wall;
  state.failure.clear();
  state.rejected = std::move(reason);
}

void MembershipTable::OnFailure(std::string_view name, std::string reason) {
  const auto found = peers_.find(name);
  if (found != peers_.end()) found->second.failure = std::move(reason);
}

v1::Member MembershipTable::View(const std::string& name, const State& state, Monotonic now) const {
  v1::Member member;
  member.set_name(name);
  member.set_admin_address(state.admin_address);
  if (state.info.has_value()) *member.mutable_info() = *state.info;
  const Monotonic last = state.heard ? state.heard_at : started_;
  const bool silent = now - last > unreachable_after_ && !HK_MUTANT(membership_never_unreachable);
  if (silent) {
    member.set_state(v1::MEMBER_STATE_UNREACHABLE);
    *member.mutable_since() = ToTimestamp(state.heard ? state.heard_wall : started_wall_);
    const std::string never = state.heard ? "" : "never heard of: ";
    member.set_reason(never + (state.failure.empty() ? "no answer" : state.failure));
  } else if (!state.heard) {
    member.set_state(v1::MEMBER_STATE_CONNECTING);
    member.set_reason(state.failure);
  } else if (!state.rejected.empty()) {
    member.set_state(v1::MEMBER_STATE_REJECTED);
    member.set_reason(state.rejected);
  } else {
    member.set_state(v1::MEMBER_STATE_UP);
    member.set_round_trip_us(static_cast<uint64_t>(state.round_trip.count()));
  }
  return member;
}

std::vector<v1::Member> MembershipTable::Snapshot(Monotonic now) const {
  std::vector<v1::Member> members;
  members.reserve(peers_.size());
  for (const auto& [name, state] : peers_) members.push_back(View(name, state, now));
  return members;
}

std::optional<NodeId> MembershipTable::NumberOf(std::string_view name) const {
  const auto found = peers_.find(name);
  if (found == peers_.end()) return std::nullopt;
  return found->second.number;
}

}  // namespace hk
