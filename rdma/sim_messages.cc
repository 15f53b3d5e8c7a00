// Messages of the simulated back end: queues, frames, what is done with each that arrives.

#include <algorithm>
#include <utility>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"
#include "rdma/send_rules.h"
#include "rdma/sim_node.h"

namespace hk {

namespace {

// An acknowledgement of its own is sent when nothing else carried it for so long (rdma/README.md, Sequence 4).
constexpr std::chrono::milliseconds kAckDelay(1);

}  // namespace

void SimNode::Done(const Entry& entry) {
  if (entry.payload == SlotId()) return;
  slots_.SendDone(entry.payload);
  TellSlotsFree();
}

void SimNode::PushBarrier(const PeerPointer& peer, const EpochFloors::Entry& floor) {
  for (size_t i = 0; i < kMessageClasses; ++i) {
    Entry entry;
    entry.message.message_class = static_cast<MessageClass>(i);
    entry.message.type = static_cast<uint16_t>(OwnType::kBarrier);
    entry.message.guest = floor.guest;
    entry.message.generation = floor.floor.generation;
    entry.message.epoch = floor.floor.epoch;
    if (!peer->classes[i].out.Push(std::move(entry), true)) {
      // Without it the peer would wait for answers that never come.
      Fail(peer, PeerFailure::kLocal, "too many epoch changes while it did not read", Parting::kGoodbye);
      return;
    }
    Transmit(peer, static_cast<MessageClass>(i));
  }
}

void SimNode::Transmit(const PeerPointer& peer, MessageClass message_class) {
  PeerClass& one = ClassOf(*peer, message_class);
  uint64_t sequence;
  while (one.channel != nullptr && one.channel->setup_received) {
    Entry* const entry = one.out.Next(&sequence);
    if (entry == nullptr) return;
    Header header;
    header.message = entry->message;
    header.sequence = sequence;
    header.payload_bytes = entry->payload_bytes;
    std::span<const std::byte> payload;
    if (entry->payload != SlotId()) payload = BytesOf(SlotName::Decode(entry->payload)).first(entry->payload_bytes);
    SendFrame(one, header, entry->body, payload);
    if (!entry->counted && entry->message.type >= kFirstUserType) {
      entry->counted = true;
      ++one.statistics.sent_messages;
      one.statistics.sent_bytes += kHeaderBytes + entry->body.size() + entry->payload_bytes;
    }
    one.out.Sent();
  }
}

void SimNode::SendOwn(PeerClass& one, MessageClass message_class, OwnType type, uint8_t flags,
                      std::span<const std::byte> body) {
  Header header;
  header.message.message_class = message_class;
  header.message.type = static_cast<uint16_t>(type);
  header.message.flags = flags;
  SendFrame(one, header, body, {});
}

void SimNode::SendFrame(PeerClass& one, Header header, std::span<const std::byte> body,
                        std::span<const std::byte> payload) {
  if (one.channel == nullptr) return;
  header.acknowledged = one.told = one.in.received();
  one.in.AckSent();
  header.body_bytes = static_cast<uint16_t>(body.size());
  header.payload_bytes = static_cast<uint32_t>(payload.size());
  const bool direct = network_->settings().direct_writes;
  if (!direct) SetPayloadCrc(body, payload, &header);
  const auto encoded = EncodeHeader(header);
  std::vector<std::byte> bytes(encoded.begin(), encoded.end());
  bytes.insert(bytes.end(), body.begin(), body.end());
  if (direct && !payload.empty()) {
    one.channel->socket->SendWrite(header.message.slot, payload, bytes);
    return;
  }
  bytes.insert(bytes.end(), payload.begin(), payload.end());
  one.channel->socket->Send(bytes);
}

void SimNode::SendSetup(const PeerPointer& peer, MessageClass message_class) {
  SetupBody setup;
  setup.window_messages = settings_.window_messages;
  setup.heartbeat_ms = settings_.heartbeat_ms;
  setup.first_slot_counter = slots_.FirstCounterFor(peer->id);
  if (message_class == MessageClass::kFault) setup.slot_count = settings_.fault_receive_slots;
  if (message_class == MessageClass::kBulk) setup.slot_count = settings_.bulk_receive_slots;
  SendOwn(ClassOf(*peer, message_class), message_class, OwnType::kSetup, 0, EncodeSetup(setup));
}

void SimNode::AckSoon(const PeerPointer& peer, MessageClass message_class) {
  PeerClass& one = ClassOf(*peer, message_class);
  if (one.in.unacknowledged() >= settings_.window_messages / 4) {
    SendOwn(one, message_class, OwnType::kAck);
  } else if (one.in.unacknowledged() > 0 && !one.ack_due) {
    one.ack_due = true;
    AfterInLife(peer, kAckDelay, [this, peer, message_class] {
      PeerClass& same = ClassOf(*peer, message_class);
      same.ack_due = false;
      if (same.in.unacknowledged() > 0) SendOwn(same, message_class, OwnType::kAck);
    });
  }
}

void SimNode::TakeAllMessages() {
  const auto peers = peers_;  // handlers may remove
  for (const auto& [id, peer] : peers) {
    for (size_t i = 0; i < kMessageClasses; ++i) TakeMessages(peer, static_cast<MessageClass>(i));
  }
}

void SimNode::TakeMessages(const PeerPointer& peer, MessageClass message_class) {
  const ChannelPointer channel = ClassOf(*peer, message_class).channel;
  const bool direct = network_->settings().direct_writes;
  while (channel != nullptr && channel->state == SimChannel::State::kJoined) {
    // What handlers are to be told of comes first: a message never overtakes its peer's OnPeerUp.
    if (busy_[static_cast<size_t>(message_class)] || !to_tell_.empty()) return;
    if (channel->received.size() < kHeaderBytes) return;
    Header header;
    if (const WireError error = DecodeHeader(channel->received, message_class, &header); error != WireError::kNone) {
      return Malformed(peer, std::string(WireErrorName(error)));
    }
    // The peer may be up at its end before the last class's Setup is here.
    if (header.message.type >= kFirstUserType && !peer->up) return;
    const size_t bytes = kHeaderBytes + header.body_bytes + (direct ? 0 : header.payload_bytes);
    if (channel->received.size() < bytes) return;
    const std::vector<std::byte> frame(channel->received.begin(),
                                       channel->received.begin() + static_cast<ptrdiff_t>(bytes));
    channel->received.erase(channel->received.begin(), channel->received.begin() + static_cast<ptrdiff_t>(bytes));
    const auto body = std::span(frame).subspan(kHeaderBytes, header.body_bytes);
    const auto payload = std::span(frame).subspan(kHeaderBytes + header.body_bytes);
    if (!direct) {
      if (const WireError error = CheckPayload(header, body, payload); error != WireError::kNone) {
        return Malformed(peer, std::string(WireErrorName(error)));
      }
    }
    if (!Take(peer, channel.get(), header, body, payload)) return;
  }
}

bool SimNode::Take(const PeerPointer& peer, SimChannel* channel, const Header& header, std::span<const std::byte> body,
                   std::span<const std::byte> payload) {
  const MessageClass message_class = channel->message_class;
  PeerClass& one = ClassOf(*peer, message_class);
  const auto type = static_cast<OwnType>(header.message.type);
  if ((type == OwnType::kSetup) == channel->setup_received) {
    Malformed(peer, "a connection begins with one Setup");
    return false;
  }
  if (!one.out.Acknowledge(header.acknowledged, [&](const Entry& entry) { Done(entry); })) {
    Malformed(peer, "it acknowledged what was never sent");
    return false;
  }
  if (one.out.TakeWritable()) {
    Tell([this, id = peer->id, message_class] { handler_->OnWritable(id, message_class); });
  }
  if (type == OwnType::kSetup) return TakeSetup(peer, channel, body);
  if (type == OwnType::kGoodbye) {
    const bool left = header.message.flags == static_cast<uint8_t>(PeerFailure::kLeft);
    Fail(peer, left ? PeerFailure::kLeft : PeerFailure::kRejected,
         left ? "it said goodbye" : "it ended the session, reason " + std::to_string(header.message.flags),
         Parting::kAbort);
    return false;
  }
  bool going_on = true;
  if (header.sequence != 0) {
    const Arrival arrival = one.in.Receive(header.sequence);
    if (arrival == Arrival::kGap) {
      Malformed(peer, "a message is missing");
      return false;
    }
    if (arrival == Arrival::kDuplicate) {
      ++one.statistics.dropped[static_cast<size_t>(DropReason::kDuplicate)];
    } else if (type == OwnType::kBarrier) {
      floors_.PeerRaised(peer->id, message_class, header.message.guest, header.message.generation,
                         header.message.epoch);
      TellExpired(slots_.PeerPassed(peer->id, message_class, header.message.guest, header.message.generation,
                                    header.message.epoch));
      TellSlotsFree();
    } else {
      Message message = header.message;
      message.body = body;
      going_on = Deliver(peer, message, payload, header.payload_bytes);
    }
  }
  if (!going_on || channel->state != SimChannel::State::kJoined) return false;
  AckSoon(peer, message_class);
  Transmit(peer, message_class);
  return true;
}

bool SimNode::TakeSetup(const PeerPointer& peer, SimChannel* channel, std::span<const std::byte> body) {
  SetupBody setup;
  const WireError error = DecodeSetup(body, &setup);
  if (error != WireError::kNone || (peer->first_counter != 0 && peer->first_counter != setup.first_slot_counter)) {
    Malformed(peer, "Setup: " + std::string(WireErrorName(error == WireError::kNone ? WireError::kValue : error)));
    return false;
  }
  PeerClass& one = ClassOf(*peer, channel->message_class);
  peer->first_counter = setup.first_slot_counter;
  one.out.SetWindow(std::min(setup.window_messages, settings_.window_messages));
  channel->setup_received = one.ready = true;
  if (!peer->up && std::all_of(peer->classes.begin(), peer->classes.end(), [](const auto& c) { return c.ready; })) {
    peer->up = true;
    ++peer->sessions;
    Tell([this, id = peer->id] { handler_->OnPeerUp(id); });
  }
  Transmit(peer, channel->message_class);
  return true;
}

bool SimNode::Deliver(const PeerPointer& peer, const Message& message, std::span<const std::byte> payload,
                      size_t payload_bytes) {
  ClassStatistics& statistics = ClassOf(*peer, message.message_class).statistics;
  const bool old = floors_.IsOld(message);
  bool late = false;
  if (message.answer) {
    const SlotTable::State before = slots_.StateOf(message.slot);
    SlotTable::Request request;
    const AnswerFate fate =
        message.slot_node == settings_.self ? slots_.Answer(peer->id, message, !old, &request) : AnswerFate::kForeign;
    if (fate == AnswerFate::kForeign) {
      Malformed(peer, "an answer into a slot that it was not given");
      return false;
    }
    if (fate == AnswerFate::kStale) {
      ++statistics.dropped[static_cast<size_t>(DropReason::kStaleSlot)];
      return true;
    }
    late = fate == AnswerFate::kLate;
    if (!old) {
      if (!payload.empty()) WriteSlot(message.slot, payload, before);
      payload = BytesOf(SlotName::Decode(message.slot)).first(payload_bytes);
      if (const PeerPointer asked = Find(request.asked); asked != nullptr) {
        ++ClassOf(*asked, message.message_class).statistics.latency[LatencyBucket(Now() - request.sent)];
      }
    }
  }
  if (old) {
    ++statistics.dropped[static_cast<size_t>(DropReason::kOldEpoch)];
    TellSlotsFree();
    return true;
  }
  ++statistics.received_messages;
  statistics.received_bytes += kHeaderBytes + message.body.size() + payload_bytes;
  handler_->OnMessage(peer->id, message, payload, late);
  return true;
}

void SimNode::Malformed(const PeerPointer& peer, const std::string& detail) {
  ++statistics_.malformed;
  Fail(peer, PeerFailure::kMalformed, detail, Parting::kGoodbye);
}

std::span<std::byte> SimNode::BytesOf(const SlotName& name) {
  const bool bulk = name.message_class == MessageClass::kBulk;
  Pool& pool = pools_[(bulk ? 2 : 0) + (name.use == SlotUse::kSend ? 1 : 0)];
  HK_CHECK(name.index < pool.slots);
  return {pool.memory.get() + name.index * pool.slot_bytes, pool.slot_bytes};
}

void SimNode::WriteSlot(SlotId slot, std::span<const std::byte> payload, SlotTable::State state) {
  const SlotName name = SlotName::Decode(slot);
  std::copy(payload.begin(), payload.end(), BytesOf(name).begin());
  if (SimObserver* const observer = network_->observer(); observer != nullptr) {
    observer->OnSlotWrite(settings_.self, slot, payload,
                          state == SlotTable::State::kInFlight || state == SlotTable::State::kQuarantined);
  }
}

}  // namespace hk
