// Connections of the simulated back end: dialling, hellos, sessions, leases, failures.

#include <algorithm>
#include <utility>

#include "hyperkernel/base/mutant.h"
#include "rdma/sim_node.h"

namespace hk {

using std::chrono::milliseconds;

void SimChannel::OnConnected() {
  node->Connected(shared_from_this());
}

void SimChannel::OnBytes(std::span<const std::byte> bytes) {
  const auto self = shared_from_this();
  received.insert(received.end(), bytes.begin(), bytes.end());
  switch (state) {
    case State::kStranger:
      return node->TakeHello(self);
    case State::kSaidHello:
      return node->TakeReply(self);
    case State::kJoined:
      if (const auto found = node->Find(peer); found != nullptr) {
        found->heard = node->Now();
        node->TakeMessages(found, message_class);
      }
      return;
    case State::kDialling:
    case State::kOver:
      return;
  }
}

void SimChannel::OnWrite(SlotId slot, std::span<const std::byte> payload) {
  if (state == State::kJoined) node->WriteSlot(slot, payload, node->slots_.StateOf(slot));
}

void SimChannel::OnClosed() {
  const auto self = shared_from_this();
  if (state == State::kJoined) return node->Broken(self);
  if (state == State::kStranger) return node->CloseStranger(self, false);
  if (state != State::kOver) node->GiveUpDial(self);
}

SimNode::PeerPointer SimNode::Find(NodeId peer) const {
  const auto found = peers_.find(peer);
  return found == peers_.end() ? nullptr : found->second;
}

void SimNode::DialAll(const PeerPointer& peer) {
  if (!started_ || peer->removed || !peer->session.Dials()) return;
  for (size_t i = 0; i < kMessageClasses; ++i) Dial(peer, static_cast<MessageClass>(i));
}

void SimNode::DialLater(const PeerPointer& peer, MessageClass message_class) {
  PeerClass& one = ClassOf(*peer, message_class);
  if (!started_ || peer->removed || !peer->session.Dials() || one.dial_due) return;
  one.dial_due = true;
  one.backoff =
      std::clamp<Duration>(one.backoff * 2, milliseconds(settings_.backoff_ms), milliseconds(settings_.backoff_max_ms));
  After(one.backoff, [this, peer, message_class] {
    ClassOf(*peer, message_class).dial_due = false;
    Dial(peer, message_class);
  });
}

void SimNode::Dial(const PeerPointer& peer, MessageClass message_class) {
  PeerClass& one = ClassOf(*peer, message_class);
  if (peer->removed || one.channel != nullptr || one.dialling != nullptr || one.dial_due) return;
  auto channel = std::make_shared<SimChannel>(this);
  channel->state = SimChannel::State::kDialling;
  channel->peer = peer->id;
  channel->message_class = message_class;
  one.dialling = channel;
  channel->socket = network_->Connect(settings_.self, peer->address, channel);
  After(milliseconds(settings_.handshake_ms), [this, weak = std::weak_ptr<SimChannel>(channel)] {
    const ChannelPointer still = weak.lock();
    if (still != nullptr &&
        (still->state == SimChannel::State::kDialling || still->state == SimChannel::State::kSaidHello))
      GiveUpDial(still);
  });
}

void SimNode::GiveUpDial(const ChannelPointer& channel) {
  const PeerPointer peer = Find(channel->peer);
  channel->state = SimChannel::State::kOver;
  channel->socket->Abort();
  if (peer == nullptr) return;
  PeerClass& one = ClassOf(*peer, channel->message_class);
  if (one.dialling != channel) return;
  one.dialling.reset();
  DialLater(peer, channel->message_class);
}

uint64_t SimNode::SaidReceived(PeerClass* one) {
  const SimNetworkSettings& network = network_->settings();
  const uint64_t unsaid = one->in.received() - one->told;
  if (!network.direct_writes && network.understatements_per_million != 0 && unsaid != 0 &&
      simulation().Chance(network.understatements_per_million)) {
    one->told += simulation().Below(unsaid);
  } else {
    one->told += unsaid;
  }
  return one->told;
}

void SimNode::Connected(const ChannelPointer& channel) {
  const PeerPointer peer = Find(channel->peer);
  if (peer == nullptr || channel->state != SimChannel::State::kDialling) return;
  channel->state = SimChannel::State::kSaidHello;
  const uint64_t received = SaidReceived(&ClassOf(*peer, channel->message_class));
  channel->socket->Send(EncodeHello(peer->session.MakeHello(Identity(), channel->message_class, received)));
}

void SimNode::TakeReply(const ChannelPointer& channel) {
  if (channel->received.size() < kHelloBytes) return;
  const PeerPointer peer = Find(channel->peer);
  Hello reply;
  const WireError error = DecodeHello(channel->received, &reply);
  if (error == WireError::kVersion) {
    Fail(peer, PeerFailure::kRejected, "it speaks another version of the protocol", Parting::kAbort);
    return;
  }
  if (error != WireError::kNone) return GiveUpDial(channel);  // of the connection only: nobody has shown who he is
  channel->received.erase(channel->received.begin(), channel->received.begin() + kHelloBytes);
  PeerClass& one = ClassOf(*peer, channel->message_class);
  HandshakeOutcome outcome = peer->session.OnReply(Identity(), channel->message_class, reply);
  if (outcome.connected && !one.out.Resume(outcome.resume_from, [&](const Entry& entry) { Done(entry); })) {
    outcome = peer->session.CannotResume(Identity(), channel->message_class);
  }
  if (outcome.failed) {
    Fail(peer, *outcome.failed, "handshake: " + std::string(HelloKindName(reply.kind)), Parting::kAbort);
  } else if (!outcome.connected) {
    GiveUpDial(channel);
  } else {
    one.dialling.reset();
    Join(peer, channel, channel->message_class);
  }
}

void SimNode::OnConnection(std::unique_ptr<SimSocket> socket) {
  auto channel = std::make_shared<SimChannel>(this);
  socket->SetHandler(channel);
  channel->socket = std::move(socket);
  strangers_.push_back(channel);
  if (strangers_.size() > settings_.strangers) CloseStranger(strangers_.front(), true);
  After(milliseconds(settings_.handshake_ms), [this, weak = std::weak_ptr<SimChannel>(channel)] {
    const ChannelPointer still = weak.lock();
    if (still != nullptr && still->state == SimChannel::State::kStranger) CloseStranger(still, true);
  });
}

void SimNode::CloseStranger(const ChannelPointer& channel, bool counted) {
  const ChannelPointer kept = channel;  // it may be the list's own
  if (counted) ++statistics_.strangers_closed;
  kept->state = SimChannel::State::kOver;
  kept->socket->Close();
  std::erase(strangers_, kept);
}

void SimNode::Answer(const ChannelPointer& channel, const Hello& reply) {
  channel->socket->Send(EncodeHello(reply));
  if (reply.kind < HelloKind::kRejectVersion) return;
  ++statistics_.handshakes_refused;
  CloseStranger(channel, false);
}

void SimNode::TakeHello(const ChannelPointer& channel) {
  if (channel->received.size() < kHelloBytes) return;
  Hello hello;
  const WireError error = DecodeHello(channel->received, &hello);
  if (error == WireError::kVersion) return Answer(channel, RefuseVersion(Identity()));
  if (error != WireError::kNone) return CloseStranger(channel, true);
  channel->received.erase(channel->received.begin(), channel->received.begin() + kHelloBytes);
  const PeerPointer peer = Find(hello.from);
  if (const std::optional<Hello> refusal = RefuseStranger(Identity(), hello, peer != nullptr)) {
    return Answer(channel, *refusal);
  }
  PeerClass& one = ClassOf(*peer, hello.message_class);
  HandshakeOutcome outcome = peer->session.OnHello(Identity(), hello, SaidReceived(&one), NewNumber());
  if (outcome.failed) Fail(peer, *outcome.failed, "it began a new session", Parting::kAbort, false);
  if (outcome.connected && !one.out.Resume(outcome.resume_from, [&](const Entry& entry) { Done(entry); })) {
    outcome = peer->session.CannotResume(Identity(), hello.message_class);
    Fail(peer, *outcome.failed, "it cannot be resumed", Parting::kAbort);
  }
  Answer(channel, outcome.reply);
  if (!outcome.connected) return;
  std::erase(strangers_, channel);
  channel->peer = peer->id;
  Join(peer, channel, hello.message_class);
}

void SimNode::Join(const PeerPointer& peer, const ChannelPointer& channel, MessageClass message_class) {
  PeerClass& one = ClassOf(*peer, message_class);
  CloseChannel(&one.channel, Parting::kAbort);
  if (!peer->in_session) BeginSession(peer);
  if (one.breaks != 0) ++one.statistics.reconnects;
  ++one.breaks;
  one.backoff = {};
  one.channel = channel;
  channel->state = SimChannel::State::kJoined;
  channel->message_class = message_class;
  peer->heard = Now();
  SendSetup(peer, message_class);
  TakeMessages(peer, message_class);
}

void SimNode::BeginSession(const PeerPointer& peer) {
  // What was given out until now is void: the peer is told so in the Setup that follows.
  TellExpired(slots_.PeerReset(peer->id));
  TellSlotsFree();
  peer->in_session = true;
  peer->heard = Now();
  for (const EpochFloors::Entry& floor : floors_.All()) PushBarrier(peer, floor);
  AfterInLife(peer, milliseconds(settings_.lease_ms), [this, peer] {
    if (!peer->up) Fail(peer, PeerFailure::kLeaseExpired, "not all classes were connected in time", Parting::kAbort);
  });
  WatchLease(peer);
  Beat(peer);
}

void SimNode::WatchLease(const PeerPointer& peer) {
  const Duration lease = milliseconds(settings_.lease_ms), heard_before = Now() - peer->heard;
  if (heard_before >= lease) {
    Fail(peer, PeerFailure::kLeaseExpired, "nothing was heard of it in " + std::to_string(settings_.lease_ms) + " ms",
         Parting::kAbort);
    return;
  }
  AfterInLife(peer, lease - heard_before, [this, peer] { WatchLease(peer); });
}

void SimNode::Beat(const PeerPointer& peer) {
  SendOwn(ClassOf(*peer, MessageClass::kInvalidate), MessageClass::kInvalidate, OwnType::kHeartbeat);
  AfterInLife(peer, milliseconds(settings_.heartbeat_ms), [this, peer] { Beat(peer); });
}

void SimNode::Broken(const ChannelPointer& channel) {
  channel->state = SimChannel::State::kOver;
  const PeerPointer peer = Find(channel->peer);
  if (peer == nullptr) return;
  PeerClass& one = ClassOf(*peer, channel->message_class);
  if (one.channel != channel) return;
  one.channel.reset();
  const uint64_t breaks = ++one.breaks;
  const MessageClass message_class = channel->message_class;
  AfterInLife(peer, milliseconds(settings_.lease_ms), [this, peer, message_class, breaks] {
    if (ClassOf(*peer, message_class).breaks != breaks) return;
    Fail(peer, PeerFailure::kLeaseExpired,
         "a connection broke and was not resumed in " + std::to_string(settings_.lease_ms) + " ms", Parting::kAbort);
  });
  DialLater(peer, message_class);
}

void SimNode::CloseChannel(ChannelPointer* channel, Parting parting) {
  if (*channel == nullptr) return;
  (*channel)->state = SimChannel::State::kOver;
  (*channel)->received.clear();
  if (parting == Parting::kGoodbye) (*channel)->socket->Close();
  (*channel)->socket->Abort();
  channel->reset();
}

void SimNode::Fail(const PeerPointer& peer, PeerFailure why, const std::string& detail, Parting parting, bool restart) {
  ++peer->life;
  for (size_t i = 0; i < kMessageClasses; ++i) {
    PeerClass& one = peer->classes[i];
    if (parting == Parting::kGoodbye) {
      SendOwn(one, static_cast<MessageClass>(i), OwnType::kGoodbye, static_cast<uint8_t>(why));
    }
    CloseChannel(&one.channel, parting);
    CloseChannel(&one.dialling, Parting::kAbort);
    one.out.Clear([&](const Entry& entry) {
      Done(entry);
      if (entry.message.type >= kFirstUserType) {
        ++one.statistics.dropped[static_cast<size_t>(DropReason::kPeerFailed)];
      }
    });
    one.in.Clear();
    one.told = 0;
    one.breaks = 0;
    one.ready = one.ack_due = false;
  }
  floors_.PeerReset(peer->id);
  peer->in_session = false;
  peer->first_counter = 0;
  if (peer->up) {
    peer->up = false;
    Tell([this, id = peer->id, why, detail] { handler_->OnPeerFailed(id, why, detail); });
  }
  TellExpired(slots_.PeerReset(peer->id));
  TellSlotsFree();
  if (restart) peer->session.Restart(NewNumber());
  for (size_t i = 0; i < kMessageClasses; ++i) DialLater(peer, static_cast<MessageClass>(i));
}

}  // namespace hk
