// One life of one node of a SimCluster: the user of its transport, who asks, serves, forwards and answers as the page
// protocol will, and by seed as it must not. Single-threaded, as the Simulation.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "rdma/epoch_floors.h"
#include "rdma/sim_transport.h"
#include "rdma/slots.h"
#include "tests/transport/sim_cluster.h"

namespace hk {

// Answers that should not be: each has a type of its own from here on.
inline constexpr uint16_t kFirstSuperfluous = 100;

// See above.
class SimActor final : public TransportHandler {
 public:
  SimActor(SimCluster* cluster, NodeId id, const TransportSettings& settings)
      : cluster_(cluster), id_(id), transport_(&cluster->checker_, settings, this) {
    auto made = MakeSimTransport(&cluster->network_, settings, &transport_);
    if (!made.ok()) std::abort();
    transport_.Use(*std::move(made));
  }

  CheckedTransport& transport() { return transport_; }
  void Begin() {
    After(cluster_->Pick(0, 2), [this] { Act(); });
  }

  // TransportHandler.
  void OnMessage(NodeId from, const Message& message, std::span<const std::byte> /*payload*/, bool late) override {
    cluster_->late_ += late ? 1 : 0;
    if (message.answer) {
      After(cluster_->Pick(0, 5), [this, slot = message.slot] { transport_.ReleaseSlot(slot); });
    } else if (message.type == kRequest) {
      if (cluster_->Has(SimFault::kFence) && simulation().Chance(1000)) cluster_->Fence(id_, from);
      Message duty = message;
      duty.body = {};
      // Now and then not before its deadline.
      const Simulation::Duration wait = Chance(10) ? cluster_->Pick(0, 150) : cluster_->Pick(0, 2);
      After(wait, [this, duty] { Serve(duty, kMostTries); });
    }
  }
  void OnPeerUp(NodeId peer) override {
    const uint64_t burst = Chance(20) ? simulation().Below(60) : 0;
    for (uint64_t i = 0; i < burst && cluster_->storm_; ++i) SendPlain(peer, MessageClass::kFault);
  }
  void OnPeerFailed(NodeId /*peer*/, PeerFailure why, const std::string& /*detail*/) override {
    ++cluster_->failures_[static_cast<size_t>(why)];
  }
  void OnWritable(NodeId peer, MessageClass message_class) override {
    for (int i = 0; i < 4; ++i) SendPlain(peer, message_class);
  }
  void OnSlotsFree(MessageClass message_class, SlotUse use) override {
    if (use == SlotUse::kReceive) SendRequest(message_class);
  }
  void OnRequestExpired(NodeId, MessageClass, uint64_t, SlotId, RequestFailure) override { ++cluster_->expired_; }

 private:
  static constexpr uint16_t kPlain = kFirstUserType, kRequest = kFirstUserType + 1, kAnswer = kFirstUserType + 2;
  // How often a message that does not fit is offered again.
  static constexpr int kMostTries = 20;

  Simulation& simulation() { return cluster_->simulation_; }
  bool Chance(uint32_t percent) { return simulation().Chance(percent * 10'000); }
  // Unless the node died before.
  void After(Simulation::Duration delay, std::function<void()> event) {
    simulation().After(delay, [alive = std::weak_ptr<bool>(alive_), event = std::move(event)] {
      if (!alive.expired()) event();
    });
  }

  MessageClass PickClass() { return static_cast<MessageClass>(simulation().Below(kMessageClasses)); }

  // Something that users do, again and again.
  void Act() {
    if (!cluster_->storm_) return;
    const uint64_t burst = Chance(5) ? 1 + simulation().Below(60) : 1;
    const NodeId to = cluster_->PickOther(id_);
    const MessageClass message_class = PickClass();
    const bool request = Chance(60);
    for (uint64_t i = 0; i < burst; ++i) {
      if (request) {
        SendRequest(Chance(75) ? MessageClass::kFault : MessageClass::kBulk);
      } else {
        SendPlain(to, message_class);
      }
    }
    After(simulation().Between(std::chrono::microseconds(100), std::chrono::milliseconds(4)), [this] { Act(); });
  }

  // The guest and epoch of a new message: as this node knows it, which may be old elsewhere.
  void SetGuest(Message* message) {
    const uint64_t guest = simulation().Below(cluster_->guests_.size());
    message->guest = GuestId(guest);
    if (guest == 0) return;
    const auto& [generation, epoch] = Chance(90) ? known_[guest] : cluster_->guests_[guest];
    message->generation = generation;
    message->epoch = epoch;
  }

 public:
  void Learn(size_t guest, uint32_t generation, Epoch epoch) {
    known_[guest] = {std::max(known_[guest].first, generation), std::max(known_[guest].second, epoch)};
    (void)transport_.SetEpoch(GuestId(guest), generation, epoch);
  }

 private:
  void SendPlain(NodeId to, MessageClass message_class) {
    Message message;
    message.message_class = message_class;
    message.type = kPlain;
    message.flags = static_cast<uint8_t>(simulation().Below(256));
    message.transaction = cluster_->next_transaction_++;
    SetGuest(&message);
    std::array<std::byte, kMaxBodyBytes> body;
    const size_t bytes = Chance(50) ? 0 : simulation().Below(kMaxBodyBytes + 1);
    std::fill_n(body.begin(), bytes, static_cast<std::byte>(message.transaction));
    message.body = std::span(body).first(bytes);
    (void)transport_.Send(to, message, {});
  }

  void SendRequest(MessageClass message_class) {
    if (message_class == MessageClass::kInvalidate) return;
    const absl::StatusOr<SlotId> slot = transport_.AcquireSlot(message_class, SlotUse::kReceive);
    if (!slot.ok()) return;
    if (!Chance(10)) return SendRequestInto(*slot, message_class);
    // Not at once: sessions may begin meanwhile.
    After(cluster_->Pick(0, 30), [this, slot = *slot, message_class] { SendRequestInto(slot, message_class); });
  }

  void SendRequestInto(SlotId slot, MessageClass message_class) {
    Message message;
    message.message_class = message_class;
    message.type = kRequest;
    message.transaction = cluster_->next_transaction_++;
    message.slot = slot;
    message.slot_node = id_;
    SetGuest(&message);
    const NodeId home = cluster_->PickOther(id_);
    SendOptions options;
    options.writers.Add(home);
    for (uint16_t node = 0; node < cluster_->nodes_; ++node) {
      if (NodeId(node) != id_ && Chance(40)) options.writers.Add(NodeId(node));
    }
    // Who may answer goes with the request, so that it is forwarded to none but them.
    NodeSet others = options.writers;
    others.Remove(home);
    message.gfn = Gfn(others.bits());
    options.deadline = std::chrono::milliseconds(1 + simulation().Below(Chance(20) ? 5 : 200));
    if (!transport_.Send(home, message, options).ok()) {
      transport_.ReleaseSlot(slot);
    } else if (Chance(10)) {
      After(cluster_->Pick(0, 3), [this, slot] { (void)transport_.CancelRequest(slot); });
    }
  }

  // The duty to answer is here: it is done, given away, or (rarely) forgotten.
  void Serve(Message duty, int tries) {
    if (tries == 0 || Chance(2)) return;
    const NodeSet others(duty.gfn.value());
    const bool twice = tries == kMostTries && cluster_->Has(SimFault::kSecondAnswer) && Chance(30);
    if (!others.empty() && Chance(50)) {
      Forward(duty, tries);
      if (!twice) return;
      cluster_->Count(SimFault::kSecondAnswer);
      return Answer(duty, Superfluous(), 1);
    }
    if (twice) {
      After(cluster_->Pick(0, 3), [this, duty] { Answer(duty, Superfluous(), 1); });
      cluster_->Count(SimFault::kSecondAnswer);
    }
    if (tries == kMostTries && cluster_->Has(SimFault::kUnasked) && Chance(2)) {
      LetAnotherAnswer(duty);
      return After(cluster_->Pick(0, 3), [this, duty, tries] { Answer(duty, kAnswer, tries); });
    }
    Answer(duty, kAnswer, tries);
  }

  void Answer(const Message& duty, uint16_t type, int tries) {
    if (duty.slot_node == id_) return;
    Message answer = duty;
    answer.type = type;
    answer.answer = true;
    SendOptions options;
    if (Chance(80)) {
      const absl::StatusOr<SlotId> slot = transport_.AcquireSlot(duty.message_class, SlotUse::kSend);
      if (!slot.ok()) return Again(duty, tries);
      const std::span<std::byte> page = transport_.SlotBytes(*slot);
      options.payload = *slot;
      options.payload_bytes = static_cast<uint32_t>(1 + simulation().Below(Chance(5) ? page.size() : 4096));
      std::fill_n(page.begin(), options.payload_bytes, static_cast<std::byte>(duty.transaction * 7 + id_.value()));
      std::memcpy(page.data(), &duty.transaction, std::min<size_t>(8, options.payload_bytes));
    }
    const absl::Status sent = transport_.Send(duty.slot_node, answer, options);
    if (options.payload != SlotId()) {
      if (Chance(70)) {
        transport_.ReleaseSlot(options.payload);
      } else {
        After(cluster_->Pick(0, 5), [this, slot = options.payload] { transport_.ReleaseSlot(slot); });
      }
    }
    if (absl::IsResourceExhausted(sent)) Again(duty, tries);
  }

  uint16_t Superfluous() { return static_cast<uint16_t>(kFirstSuperfluous + cluster_->superfluous_++ % 60'000); }

  // Whoever is not among those that the duty may still be given to: mostly somebody who was not asked.
  void LetAnotherAnswer(const Message& duty) {
    const NodeSet others(duty.gfn.value());
    const auto other = cluster_->actors_.find(cluster_->PickNode());
    if (other == cluster_->actors_.end() || other->first == duty.slot_node || others.Contains(other->first)) return;
    cluster_->Count(SimFault::kUnasked);
    other->second->Answer(duty, Superfluous(), 1);
  }

  void Forward(const Message& duty, int tries) {
    NodeSet others(duty.gfn.value());
    std::vector<NodeId> candidates;
    for (uint16_t node = 0; node < kMaxNodes; ++node) {
      if (others.Contains(NodeId(node)) && NodeId(node) != id_) candidates.push_back(NodeId(node));
    }
    if (candidates.empty()) return;
    const NodeId next = candidates[simulation().Below(candidates.size())];
    others.Remove(next);
    Message forwarded = duty;
    forwarded.gfn = Gfn(others.bits());
    if (absl::IsResourceExhausted(transport_.Send(next, forwarded, {}))) Again(duty, tries);
  }

  void Again(const Message& duty, int tries) {
    After(cluster_->Pick(0, 4), [this, duty, tries] { Serve(duty, tries - 1); });
  }

  SimCluster* const cluster_;
  const NodeId id_;
  std::array<std::pair<uint32_t, Epoch>, 3> known_{};
  CheckedTransport transport_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace hk
