// What this node sends, and moves; interrupt_exchange_messages.cc: what other nodes send.
#include "hyperkernel/irq/interrupt_exchange.h"

#include <algorithm>
#include <bit>

#include "absl/strings/str_cat.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"

namespace hk {

namespace {

bool Newer(uint32_t generation, uint32_t than) {
  return static_cast<int32_t>(generation - than) > 0;
}

}  // namespace

InterruptExchange::InterruptExchange(const InterruptNodes& nodes, LocalApics* apics)
    : self_(nodes.self),
      io_node_(nodes.io_node),
      link_(nodes.link),
      apics_(apics),
      stamps_(nodes.vcpus.size()),
      addressing_(nodes.vcpus.size()),
      hints_(nodes.vcpus.size(), kAcceptsNothing),
      lanes_(nodes.vcpus.size()) {
  for (NodeId node : nodes.nodes) {
    HK_CHECK(!nodes_.Contains(node));
    nodes_.Add(node);
    index_[node.value()] = static_cast<uint8_t>(peers_.size());
    Peer& peer = peers_.emplace_back();
    peer.id = node;
    peer.answer_of.resize(nodes.vcpus.size());
    peer.held_of.resize(nodes.vcpus.size());
    peer.told.resize(nodes.vcpus.size());
  }
  for (NodeId node : nodes.vcpus) {
    HK_CHECK(nodes_.Contains(node));
    places_.push_back({.node = node});
  }
  HK_CHECK(link_ != nullptr && nodes_.Contains(self_) && nodes_.Contains(io_node_) && places_.size() <= kMaxVcpus);
}

void InterruptExchange::ApplyTo(VcpuId vcpu, const PendingInterrupts& content, ExchangeOutcome* outcome) {
  if (apics_->Apply(vcpu, content)) {
    outcome->wake.Add(vcpu);
  }
}

void InterruptExchange::Post(const InterruptMessage& message, VcpuId source, VcpuId target, ExchangeOutcome* outcome) {
  HK_CHECK(target.value() < lanes_.size());
  Lane& lane = lanes_[target.value()];
  PendingInterrupts added;
  added.Add(message);
  if (added.empty()) {
    return;  // a mode that nobody accepts
  }
  if (message.level && message.pin < kIoApicPins) {
    PinDelivery& delivery = pins_[message.pin];
    delivery.awaited += delivery.valid && delivery.generation == message.generation;
  } else if (message.mode == DeliveryMode::kLowestPriority) {
    RememberEdge(message, source, target);
  }
  lane.pending.Add(message);
  lane.pending_sources.Add(source);
  statistics_.gathered += lane.waiting;
  if (!lane.waiting || HK_MUTANT(irq_overtakes_itself)) {
    StartNext(target, outcome);
  }
}

void InterruptExchange::StartNext(VcpuId target, ExchangeOutcome* outcome) {
  Lane& lane = lanes_[target.value()];
  lane.in_flight = lane.pending;
  lane.in_flight_sources = lane.pending_sources;
  lane.pending = PendingInterrupts();
  lane.pending_sources = VcpuSet();
  lane.waiting = true;
  ++lane.serial;
  if (edges_used_ != 0) {
    for (Edge& edge : edges_) {
      if (edge.state == Edge::State::kPending && edge.target == target) {
        edge.state = Edge::State::kInFlight;
      }
    }
  }
  if (Here(target)) {
    ApplyLane(target, outcome);
  } else {
    unsent_.Add(target);
    Mark(PlaceOf(target).node);
  }
}

// The vCPU of a lane whose in_flight was not sent is here.
void InterruptExchange::ApplyLane(VcpuId target, ExchangeOutcome* outcome) {
  ApplyTo(target, lanes_[target.value()].in_flight, outcome);
  FinishLane(target, apics_->Hint(target) != kAcceptsNothing, outcome);
}

void InterruptExchange::FinishLane(VcpuId target, bool accepts, ExchangeOutcome* outcome) {
  Lane& lane = lanes_[target.value()];
  for (uint32_t rest = lane.in_flight.pins; rest != 0; rest &= rest - 1) {
    const auto pin = static_cast<uint8_t>(std::countr_zero(rest));
    const PendingInterrupts::Pin& delivery = lane.in_flight.deliveries[pin];
    AnswerPin(pin, delivery.generation, accepts && delivery.vector >= kFirstLegalVector, outcome);
  }
  FinishEdges(target, accepts, outcome);
  lane.in_flight = PendingInterrupts();
  lane.in_flight_sources = VcpuSet();
  lane.waiting = false;
  if (!lane.pending.empty()) {
    StartNext(target, outcome);
  } else if (Here(target)) {
    apics_->Direct(target);
  }
}

void InterruptExchange::BeginPin(const InterruptMessage& message, uint64_t changes) {
  PinDelivery& delivery = pins_[message.pin];
  if (!delivery.valid || Newer(message.generation, delivery.generation)) {
    delivery = {.generation = message.generation, .awaited = 1, .changes = changes, .valid = true};
  }
}

bool InterruptExchange::EndPin(const InterruptMessage& message, bool accepted) {
  ExchangeOutcome outcome;
  AnswerPin(message.pin, message.generation, accepted, &outcome);
  return outcome.rejected_pins != 0;
}

void InterruptExchange::AnswerPin(uint8_t pin, uint32_t generation, bool accepted, ExchangeOutcome* outcome) {
  PinDelivery& delivery = pins_[pin];
  if (!delivery.valid || delivery.generation != generation || delivery.awaited == 0) {
    return;  // the pin has delivered again since: this one's fate is nobody's business
  }
  delivery.accepted |= accepted;
  --delivery.awaited;
  if (delivery.awaited == 0 && !delivery.accepted && !HK_MUTANT(irq_rejection_untold)) {
    outcome->rejected_pins |= uint32_t{1} << pin;
    outcome->rejected[pin] = {.generation = generation, .changes = delivery.changes};
  }
}

void InterruptExchange::RememberEdge(const InterruptMessage& message, VcpuId source, VcpuId target) {
  Edge* free = nullptr;
  for (Edge& edge : edges_) {
    if (edge.state == Edge::State::kFree) {
      free = &edge;
    } else if (edge.state == Edge::State::kPending && edge.target == target && edge.source == source &&
               edge.message == message) {
      return;  // one with it
    }
  }
  if (free != nullptr) {
    *free = {.state = Edge::State::kPending, .message = message, .source = source, .target = target};
    ++edges_used_;
  }
}

void InterruptExchange::FinishEdges(VcpuId target, bool accepts, ExchangeOutcome* outcome) {
  if (edges_used_ == 0) {
    return;
  }
  for (Edge& edge : edges_) {
    if (edge.state != Edge::State::kInFlight || edge.target != target) {
      continue;
    }
    // An illegal vector is accepted nowhere; its target has noted the error.
    if (accepts || edge.message.vector < kFirstLegalVector || HK_MUTANT(irq_first_choice_only)) {
      edge.state = Edge::State::kFree;
      --edges_used_;
    } else {
      edge.state = Edge::State::kRetry;
      outcome->retry = true;
    }
  }
}

std::optional<InterruptExchange::Retry> InterruptExchange::TakeRetry() {
  for (Edge& edge : edges_) {
    if (edge.state == Edge::State::kRetry) {
      edge.state = Edge::State::kFree;
      --edges_used_;
      ++statistics_.retried;
      return Retry{.message = edge.message, .source = edge.source};
    }
  }
  return std::nullopt;
}

void InterruptExchange::PostEoi(LevelEoi eoi) {
  HK_CHECK(eoi.pin < kIoApicPins);
  const uint32_t bit = uint32_t{1} << eoi.pin;
  // While an older one waits, only the newest can still end anything.
  if ((eois_ & bit) == 0 || Newer(eoi.generation, eoi_generations_[eoi.pin])) {
    eoi_generations_[eoi.pin] = eoi.generation;
  }
  eois_ |= bit;
  Mark(io_node_);
}

void InterruptExchange::Announce(VcpuId vcpu, const ApicAddressing& addressing) {
  HK_CHECK(Here(vcpu));
  addressing_[vcpu.value()] = addressing;
  Tell(vcpu, true);
}

void InterruptExchange::Tell(VcpuId vcpu, bool must_be_known) {
  ++stamps_[vcpu.value()].serial;
  for (Peer& peer : peers_) {
    if (peer.id == self_) {
      continue;
    }
    peer.announce.Add(vcpu);
    Mark(peer.id);
    if (must_be_known && !HK_MUTANT(irq_settled_at_once)) {
      peer.unknown.Add(vcpu);
      unsettled_.Add(vcpu);
    }
  }
}

bool InterruptExchange::Drained(VcpuId vcpu) const {
  if (!Settled(vcpu)) {
    return false;
  }
  if (HK_MUTANT(irq_leaves_undrained)) {
    return true;
  }
  const bool sending = std::ranges::any_of(lanes_, [vcpu](const Lane& lane) {
    return lane.pending_sources.Contains(vcpu) || lane.in_flight_sources.Contains(vcpu);
  });
  return !sending && std::ranges::none_of(edges_, [vcpu](const Edge& edge) {
    return edge.state != Edge::State::kFree && edge.source == vcpu;
  });
}

void InterruptExchange::SetPlace(VcpuId vcpu, VcpuPlace place, ExchangeOutcome* outcome) {
  places_[vcpu.value()] = place;
  for (Peer& peer : peers_) {
    if (peer.held.Contains(vcpu)) {
      Settle(peer, vcpu, outcome);
    }
  }
  if (unsent_.Contains(vcpu)) {
    if (Here(vcpu)) {
      unsent_.Remove(vcpu);
      ApplyLane(vcpu, outcome);
    } else {
      Mark(place.node);
    }
  }
}

absl::StatusOr<uint32_t> InterruptExchange::Leave(VcpuId vcpu, NodeId to, ExchangeOutcome* outcome) {
  if (vcpu.value() >= places_.size() || !Here(vcpu)) {
    return absl::FailedPreconditionError(absl::StrCat("vCPU ", vcpu.value(), " is not on this node"));
  }
  if (!Knows(to) || to == self_) {
    return absl::InvalidArgumentError(absl::StrCat("vCPU ", vcpu.value(), " cannot go to node ", to.value(),
                                                   ": it is this one, or has no part in the guest"));
  }
  if (!Drained(vcpu)) {
    return absl::FailedPreconditionError(absl::StrCat("vCPU ", vcpu.value(), ": what it has sent is still under way"));
  }
  const VcpuPlace place = PlaceOf(vcpu);
  if (place.version >= kLastVersion) {
    return absl::ResourceExhaustedError(absl::StrCat("vCPU ", vcpu.value(), " has moved too often"));
  }
  hints_[vcpu.value()] = apics_->Hint(vcpu);
  for (Peer& peer : peers_) {
    peer.announce.Remove(vcpu);  // news of who has it next are not ours to tell
  }
  SetPlace(vcpu, {.node = to, .version = place.version + 1}, outcome);
  return place.version + 1;
}

absl::Status InterruptExchange::CanArrive(VcpuId vcpu, uint32_t version) const {
  if (vcpu.value() >= places_.size()) {
    return absl::InvalidArgumentError(absl::StrCat("there is no vCPU ", vcpu.value()));
  }
  const VcpuPlace& place = PlaceOf(vcpu);
  if (Here(vcpu) || version <= place.version || version > kLastVersion) {
    return absl::FailedPreconditionError(absl::StrCat("vCPU ", vcpu.value(), " comes with version ", version,
                                                      ", and is on node ", place.node.value(), " as of ",
                                                      place.version));
  }
  return absl::OkStatus();
}

void InterruptExchange::Arrive(VcpuId vcpu, uint32_t version, const ApicAddressing& addressing,
                               ExchangeOutcome* outcome) {
  HK_CHECK(CanArrive(vcpu, version).ok());
  stamps_[vcpu.value()] = {.version = version, .serial = 0};
  SetPlace(vcpu, {.node = self_, .version = version}, outcome);
  if (!lanes_[vcpu.value()].waiting) {
    apics_->Direct(vcpu);
  }
  // That it is here, the others would find out; how it is addressed, they know from before.
  addressing_[vcpu.value()] = addressing;
  Tell(vcpu, false);
}

void InterruptExchange::Reset() {
  for (Peer& peer : peers_) {
    peer.answers = peer.held = peer.forwards = peer.announce = peer.unknown = peer.known = VcpuSet();
  }
  for (uint32_t i = 0; i < lanes_.size(); ++i) {
    lanes_[i] = {.serial = lanes_[i].serial};
    hints_[i] = kAcceptsNothing;
    addressing_[i] = ApicAddressing();
    if (Here(VcpuId(i))) {
      apics_->Direct(VcpuId(i));
    }
  }
  unsent_ = unsettled_ = VcpuSet();
  marked_ = NodeSet();
  ForgetPins();
  eois_ = 0;
  edges_.fill({});
  edges_used_ = 0;
}

}  // namespace hk
