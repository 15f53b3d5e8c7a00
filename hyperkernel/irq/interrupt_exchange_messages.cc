// What other nodes send, and how what is to be sent becomes messages.
#include <algorithm>
#include <bit>
#include <utility>

#include "absl/strings/str_cat.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/irq/interrupt_exchange.h"

namespace hk {

namespace {

using Kind = InterruptItem::Kind;

absl::Status Lie(NodeId from, const InterruptItem& item, const char* what) {
  return absl::InvalidArgumentError(absl::StrCat("interrupts: node ", from.value(), " sent kind ",
                                                 static_cast<uint32_t>(item.kind), " of vCPU ", item.vcpu.value(), ": ",
                                                 what));
}

}  // namespace

// What can be said without looking at what changes.
absl::Status InterruptExchange::Check(NodeId from, const Item& item) const {
  if (item.kind == Kind::kEoi) {
    return self_ == io_node_ ? absl::OkStatus() : Lie(from, item, "the I/O APIC is elsewhere");
  }
  if (item.vcpu.value() >= places_.size()) {
    return Lie(from, item, "there is no such vCPU");
  }
  if (item.version > kLastVersion) {
    return Lie(from, item, "no vCPU moves as often");
  }
  if (item.kind == Kind::kDeliver) {
    if (!Knows(item.origin)) {
      return Lie(from, item, "its origin has no part in the guest");
    }
    if (item.origin != io_node_ && (item.content.pins != 0 || item.content.level.Highest())) {
      return Lie(from, item, "a pin of a node without I/O APIC");
    }
  }
  return absl::OkStatus();
}

absl::Status InterruptExchange::OnMessage(NodeId from, std::span<const std::byte> bytes, ExchangeOutcome* outcome) {
  ++statistics_.received_messages;
  if (!Knows(from) || from == self_) {
    ++statistics_.refused;
    return absl::InvalidArgumentError(
        absl::StrCat("interrupts: a message of node ", from.value(), ", which has no part in the guest"));
  }
  Item item;
  absl::Status status;
  for (int round = 0; round < 2; ++round) {  // all of it is checked before any of it counts
    InterruptReader reader(bytes);
    while (true) {
      const absl::StatusOr<bool> next = reader.Next(&item);
      absl::Status good = next.status();
      if (next.ok() && !*next) {
        break;
      }
      if (round == 0 && good.ok()) {
        good = Check(from, item);
      }
      if (!good.ok()) {
        ++statistics_.refused;
        return good;
      }
      if (round == 1) {
        ++statistics_.received_items;
        if (auto taken = Take(from, item, outcome); !taken.ok()) {
          ++statistics_.refused;
          status.Update(taken);
        }
      }
    }
  }
  return status;
}

absl::Status InterruptExchange::Take(NodeId from, const Item& item, ExchangeOutcome* outcome) {
  switch (item.kind) {
    case Kind::kDeliver:
      return TakeDeliver(item, outcome);
    case Kind::kAnswer:
      return TakeAnswer(from, item, outcome);
    case Kind::kVcpu:
      return TakeVcpu(from, item, outcome);
    case Kind::kKnown: {
      const Stamp& stamp = stamps_[item.vcpu.value()];
      if (Here(item.vcpu) && stamp == Stamp{item.version, item.serial}) {
        PeerOf(from).unknown.Remove(item.vcpu);
        const bool unknown =
            std::ranges::any_of(peers_, [&](const Peer& peer) { return peer.unknown.Contains(item.vcpu); });
        if (!unknown && !Settled(item.vcpu)) {
          unsettled_.Remove(item.vcpu);
          outcome->wake.Add(item.vcpu);  // its thread waits for this
        }
      }
      return absl::OkStatus();
    }
    case Kind::kEoi:
      outcome->eoi_pins |= uint32_t{1} << item.eoi.pin;
      outcome->eoi_generations[item.eoi.pin] = item.eoi.generation;
      return absl::OkStatus();
  }
  return absl::OkStatus();
}

absl::Status InterruptExchange::TakeDeliver(const Item& item, ExchangeOutcome* outcome) {
  Peer& origin = PeerOf(item.origin);
  Held& held = origin.held_of[item.vcpu.value()];
  absl::Status status;
  if (origin.held.Contains(item.vcpu)) {
    status = Lie(item.origin, item, "a second before the answer to the first");
    held.content.Merge(item.content);
  } else {
    held.content = item.content;
    origin.held.Add(item.vcpu);
  }
  held.version = item.version;
  held.serial = item.serial;
  Settle(origin, item.vcpu, outcome);
  return status;
}

// Decides what becomes of a Deliver: to its APIC, on to where the vCPU has gone, or held until it comes.
void InterruptExchange::Settle(Peer& origin, VcpuId target, ExchangeOutcome* outcome) {
  Held& held = origin.held_of[target.value()];
  const VcpuPlace& place = PlaceOf(target);
  if (place.node == self_) {
    origin.held.Remove(target);
    origin.forwards.Remove(target);
    if (origin.id == self_) {
      Lane& lane = lanes_[target.value()];
      if (HK_MUTANT(irq_own_come_twice)) ApplyTo(target, held.content, outcome);
      if (lane.waiting && !unsent_.Contains(target) && lane.serial == held.serial) {
        ApplyTo(target, held.content, outcome);
        FinishLane(target, apics_->Hint(target) != kAcceptsNothing, outcome);
      }
      return;
    }
    ApplyTo(target, held.content, outcome);
    origin.answer_of[target.value()] = {.version = place.version, .serial = held.serial, .hint = apics_->Hint(target)};
    origin.answers.Add(target);
    Mark(origin.id);
  } else if (place.version >= held.version) {
    origin.forwards.Add(target);
    Mark(place.node);
  } else if (HK_MUTANT(irq_early_ones_dropped)) {
    origin.held.Remove(target);
  } else {
    origin.forwards.Remove(target);
    ++statistics_.held;
  }
}

absl::Status InterruptExchange::Claim(NodeId from, VcpuId vcpu, uint32_t version, ExchangeOutcome* outcome) {
  const VcpuPlace& place = PlaceOf(vcpu);
  if (version < place.version || (version == place.version && from == place.node)) {
    return absl::OkStatus();
  }
  if ((version == place.version || Here(vcpu)) && !HK_MUTANT(irq_any_claim_believed)) {
    return absl::InvalidArgumentError(absl::StrCat("interrupts: node ", from.value(), " claims vCPU ", vcpu.value(),
                                                   " as of ", version, ", which node ", place.node.value(),
                                                   " has as of ", place.version));
  }
  SetPlace(vcpu, {.node = from, .version = version}, outcome);
  return absl::OkStatus();
}

void InterruptExchange::NoteHint(VcpuId vcpu, uint16_t hint, ExchangeOutcome* outcome) {
  uint16_t& known = hints_[vcpu.value()];
  outcome->routing_changed |= known == kAcceptsNothing && hint != kAcceptsNothing;
  outcome->ceased |= known != kAcceptsNothing && hint == kAcceptsNothing;
  known = hint;
  apics_->SetHint(vcpu, hint);
}

absl::Status InterruptExchange::TakeAnswer(NodeId from, const Item& item, ExchangeOutcome* outcome) {
  Lane& lane = lanes_[item.vcpu.value()];
  if (!lane.waiting || unsent_.Contains(item.vcpu) || lane.serial != item.serial) {
    return Lie(from, item, "an answer to what was never sent");
  }
  absl::Status status = Claim(from, item.vcpu, item.version, outcome);
  if (PlaceOf(item.vcpu) == VcpuPlace{from, item.version}) {
    NoteHint(item.vcpu, item.hint, outcome);
  }
  FinishLane(item.vcpu, item.hint != kAcceptsNothing, outcome);
  return status;
}

absl::Status InterruptExchange::TakeVcpu(NodeId from, const Item& item, ExchangeOutcome* outcome) {
  if (auto status = Claim(from, item.vcpu, item.version, outcome); !status.ok()) {
    return status;
  }
  Peer& peer = PeerOf(from);
  const Stamp stamp{item.version, item.serial};
  Stamp& current = stamps_[item.vcpu.value()];
  if (PlaceOf(item.vcpu) == VcpuPlace{from, item.version} && current < stamp) {
    current = stamp;
    ApicAddressing& addressing = addressing_[item.vcpu.value()];
    outcome->routing_changed |= addressing != item.addressing;
    addressing = item.addressing;
    apics_->SetAddressing(item.vcpu, item.addressing);
    NoteHint(item.vcpu, item.hint, outcome);
  }
  peer.told[item.vcpu.value()] = stamp;
  peer.known.Add(item.vcpu);
  Mark(from);
  return absl::OkStatus();
}

void InterruptExchange::OnWritable(NodeId to) {
  if (Knows(to)) {
    PeerOf(to).writable = true;
    if (!HK_MUTANT(irq_full_link_forgotten)) Mark(to);
  }
}

// Packs items for one node into messages, as long as the link takes them.
class InterruptExchange::Composer {
 public:
  Composer(InterruptExchange* exchange, Peer* peer) : exchange_(exchange), peer_(peer) {}
  // False: not taken.
  bool Put(const Item& item) {
    if (!writer_.Put(item) && !(Send() && writer_.Put(item))) {
      return false;
    }
    ++exchange_->statistics_.sent_items;
    return true;
  }
  // False: the link takes no more.
  bool Send() {
    if (!writer_.empty()) {
      ++exchange_->statistics_.sent_messages;
      peer_->writable = exchange_->link_->Send(peer_->id, writer_.bytes());
      writer_.Clear();
    }
    return peer_->writable;
  }

 private:
  InterruptExchange* const exchange_;
  Peer* const peer_;
  InterruptWriter writer_;
};

// Sends what is to be sent to the node. False: the link took only some of it.
bool InterruptExchange::Compose(Peer& peer) {
  Composer composer(this, &peer);
  bool all = true;
  // Puts an item for each member, and takes it out of the set.
  const auto put_each = [&](VcpuSet& set, auto item_of) {
    const VcpuSet members = set;
    members.ForEach([&](VcpuId vcpu) {
      const std::optional<Item> item = all ? item_of(vcpu) : std::nullopt;
      if (!item) {
        return;
      }
      if (composer.Put(*item)) {
        set.Remove(vcpu);
      } else {
        all = false;
      }
    });
  };
  put_each(peer.answers, [&](VcpuId vcpu) -> std::optional<Item> {
    const Answer& answer = peer.answer_of[vcpu.value()];
    return Item{
        .kind = Kind::kAnswer, .vcpu = vcpu, .version = answer.version, .serial = answer.serial, .hint = answer.hint};
  });
  for (; all && peer.id == io_node_ && eois_ != 0;) {
    const auto pin = static_cast<uint8_t>(std::countr_zero(eois_));
    all = composer.Put({.kind = Kind::kEoi, .eoi = {.pin = pin, .generation = eoi_generations_[pin]}});
    eois_ &= all ? eois_ - 1 : ~uint32_t{0};
  }
  put_each(unsent_, [&](VcpuId vcpu) -> std::optional<Item> {
    const VcpuPlace& place = PlaceOf(vcpu);
    const Lane& lane = lanes_[vcpu.value()];
    if (place.node != peer.id) {
      return std::nullopt;
    }
    return Item{.kind = Kind::kDeliver,
                .vcpu = vcpu,
                .version = place.version,
                .serial = lane.serial,
                .origin = self_,
                .content = lane.in_flight};
  });
  for (Peer& origin : peers_) {
    const VcpuSet before = origin.forwards;
    put_each(origin.forwards, [&](VcpuId vcpu) -> std::optional<Item> {
      const VcpuPlace& place = PlaceOf(vcpu);
      const Held& held = origin.held_of[vcpu.value()];
      if (place.node != peer.id) {
        return std::nullopt;
      }
      return Item{.kind = Kind::kDeliver,
                  .vcpu = vcpu,
                  .version = place.version,
                  .serial = held.serial,
                  .origin = origin.id,
                  .content = held.content};
    });
    before.ForEach([&](VcpuId vcpu) {
      if (!origin.forwards.Contains(vcpu)) {
        origin.held.Remove(vcpu);
        ++statistics_.forwarded;
      }
    });
  }
  put_each(peer.announce, [&](VcpuId vcpu) -> std::optional<Item> {
    const Stamp& stamp = stamps_[vcpu.value()];
    return Item{.kind = Kind::kVcpu,
                .vcpu = vcpu,
                .version = stamp.version,
                .serial = stamp.serial,
                .hint = apics_->Hint(vcpu),
                .addressing = addressing_[vcpu.value()]};
  });
  put_each(peer.known, [&](VcpuId vcpu) -> std::optional<Item> {
    const Stamp& stamp = peer.told[vcpu.value()];
    return Item{.kind = Kind::kKnown, .vcpu = vcpu, .version = stamp.version, .serial = stamp.serial};
  });
  return composer.Send() && all;
}

void InterruptExchange::Flush() {
  const NodeSet marked = std::exchange(marked_, NodeSet());
  for (uint64_t rest = marked.bits(); rest != 0; rest &= rest - 1) {
    const NodeId node(static_cast<uint16_t>(std::countr_zero(rest)));
    Peer& peer = PeerOf(node);
    if (!peer.writable || !Compose(peer)) {
      continue;  // OnWritable marks it again
    }
  }
}

}  // namespace hk
