#include "rdma/epoch_floors.h"

#include <algorithm>

#include "hyperkernel/base/mutant.h"

namespace hk {

void EpochFloor::Raise(uint32_t other_generation, Epoch other_epoch) {
  generation = std::max(generation, other_generation);
  epoch = std::max(epoch, other_epoch);
}

absl::Status EpochFloors::Raise(GuestId guest, uint32_t generation, Epoch epoch, bool* raised) {
  *raised = false;
  if (guest == GuestId()) return absl::InvalidArgumentError("guest 0 is no guest and has no epoch");
  auto found = own_.find(guest);
  if (found == own_.end()) {
    if (own_.size() >= kMaxFloors) return absl::ResourceExhaustedError("too many guests have an epoch here");
    found = own_.emplace(guest, EpochFloor{}).first;
  }
  if (generation <= found->second.generation && epoch <= found->second.epoch) return absl::OkStatus();
  found->second.Raise(generation, epoch);
  *raised = true;
  return absl::OkStatus();
}

void EpochFloors::Forget(GuestId guest) {
  own_.erase(guest);
}

EpochFloor EpochFloors::Of(GuestId guest) const {
  const auto found = own_.find(guest);
  return found == own_.end() ? EpochFloor{} : found->second;
}

bool EpochFloors::IsOld(const Message& message) const {
  const auto found = own_.find(message.guest);
  if (found == own_.end() || HK_MUTANT(old_epochs_taken) || HK_MUTANT(epochs_unchecked)) return false;
  return found->second.IsAbove(message.generation, message.epoch);
}

std::vector<EpochFloors::Entry> EpochFloors::All() const {
  std::vector<Entry> all;
  for (const auto& [guest, floor] : own_) all.push_back({guest, floor});
  return all;
}

void EpochFloors::PeerRaised(NodeId peer, MessageClass message_class, GuestId guest, uint32_t generation, Epoch epoch) {
  Floors& floors = peers_[{peer, message_class}];
  const auto found = floors.find(guest);
  if (found != floors.end()) return found->second.Raise(generation, epoch);
  if (floors.size() >= kMaxFloors) {
    // Guests come and go, and a session lasts. One that has no floor here is asked for by nobody here.
    const auto gone =
        std::find_if(floors.begin(), floors.end(), [&](const auto& one) { return !own_.contains(one.first); });
    if (gone == floors.end()) return;
    floors.erase(gone);
  }
  floors.emplace(guest, EpochFloor{generation, epoch});
}

void EpochFloors::PeerReset(NodeId peer) {
  std::erase_if(peers_, [&](const auto& entry) { return entry.first.first == peer; });
}

NodeSet EpochFloors::WithoutPassed(NodeSet writers, const Message& request) const {
  for (const auto& [key, floors] : peers_) {
    if (key.second != request.message_class) continue;
    const auto found = floors.find(request.guest);
    if (found != floors.end() && found->second.IsAbove(request.generation, request.epoch)) writers.Remove(key.first);
  }
  return writers;
}

}  // namespace hk
