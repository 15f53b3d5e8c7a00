// Where sessions and connections begin and end.
#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "rdma/engine.h"

namespace hk {

namespace {

using std::chrono::milliseconds;

}  // namespace

void Engine::RedialLater(DialState* dial) {
  dial->attempt = 0;
  dial->pause = std::clamp(dial->pause * 2, milliseconds(settings_.backoff_ms), milliseconds(settings_.backoff_max_ms));
  dial->next = clock_.Now() + dial->pause;
}

void Engine::Detach(Lane* lane, bool abort) {
  if (lane->link != nullptr) {
    lane->link->Close(abort);
    lane->link.reset();
  }
  lane->ticket = 0;
  lane->setup_received = false;
  lane->link_full = false;
  if (lane->claimed != SlotId() && !HK_MUTANT(claim_outlives_connection)) {
    MutexLock lock(&tables_);
    slots_.Abandon(lane->peer, std::exchange(lane->claimed, SlotId()));
  }
  if (HK_MUTANT(slots_freed_by_a_break)) {
    MutexLock lock(&tables_);
    PostExpired(slots_.PeerReset(lane->peer));
  }
  if (lane->joined && !lane->broken_since) lane->broken_since = clock_.Now();
}

void Engine::EndLane(Lane* lane, PeerFailure why, uint64_t next_session) {
  std::vector<SlotId> payloads;
  MutexLock lock(&lane->mutex);
  // A fenced peer is told nothing: what is under way to it may be lost, and shall be.
  const bool fenced = why == PeerFailure::kFenced;
  if (lane->link != nullptr && !fenced) SendOwn(lane, OwnType::kGoodbye, static_cast<uint8_t>(why), {});
  const std::shared_ptr<Link> link = lane->link;
  Detach(lane, fenced);
  lane->session = next_session;
  lane->ended = true;
  lane->joined = lane->up = lane->open = lane->connected_before = false;
  lane->ack_due = lane->heartbeat_due = lane->unhurried = false;
  lane->broken_since.reset();
  lane->broken_why.clear();
  lane->owed_barriers.clear();
  lane->received.Clear();
  lane->told.clear();
  uint64_t& dropped = lane->statistics.dropped[static_cast<size_t>(DropReason::kPeerFailed)];
  lane->window.Clear([&](const Outgoing& outgoing) {
    dropped += outgoing.message.type >= kFirstUserType ? 1 : 0;
    if (outgoing.payload != SlotId()) payloads.push_back(outgoing.payload);
  });
  MutexLock tables_lock(&tables_);
  joined_[static_cast<size_t>(lane->message_class)].Remove(lane->peer);
  if (link != nullptr && link->ReadsPayloads()) {
    if (!payloads.empty()) still_read_.emplace_back(link, std::move(payloads));
    return;
  }
  for (const SlotId payload : payloads) slots_.SendDone(payload);
}

void Engine::FreeRead() {
  for (size_t i = still_read_.size(); i-- > 0;) {
    if (!still_read_[i].first.expired()) continue;
    for (const SlotId payload : still_read_[i].second) slots_.SendDone(payload);
    still_read_.erase(still_read_.begin() + static_cast<ptrdiff_t>(i));
    PostFreeSlots();
  }
}

void Engine::FailLocked(Peer* peer, PeerFailure why, const std::string& detail, bool restart) {
  ++peer->session_count;
  for (Lane& lane : peer->lanes) EndLane(&lane, why, peer->session_count);
  {
    MutexLock lock(&tables_);
    PostExpired(slots_.PeerReset(peer->id));
    floors_.PeerReset(peer->id);
    PostFreeSlots();
  }
  if (restart) peer->session.Restart(wire_->Random());
  peer->up_due = false;
  if (peer->up) {
    HK_CHECK(!peer->failed_due);
    peer->failed_due.emplace(why, detail);
    // A peer that was well for a while is dialled again at once.
    if (clock_.Now() - peer->up_since >= milliseconds(settings_.backoff_max_ms)) peer->pause = {};
    peer->up = false;
  } else if (peer->begun && why != PeerFailure::kLeft && why != PeerFailure::kFenced) {
    // Nobody is told by the handler: without this an operator sees a peer that does not come up, and no reason.
    LogDial(peer, fmt::format("the session ended before it was up: {}", detail));
  }
  peer->begun = false;
  peer->pause = std::clamp(peer->pause * 2, milliseconds(settings_.backoff_ms), milliseconds(settings_.backoff_max_ms));
  for (DialState& dial : peer->dials) dial = {.attempt = 0, .next = clock_.Now() + peer->pause, .pause = {}};
  wire_->WakeControl();
}

void Engine::Fail(Peer* peer, uint64_t session, PeerFailure why, const std::string& detail) {
  MutexLock lock(&peer->mutex);
  if (peer->session_count == session) FailLocked(peer, why, detail, true);
}

void Engine::FailAll(const std::string& detail) {
  for (const std::unique_ptr<Peer>& peer : peers_) {
    if (peer == nullptr) continue;
    MutexLock lock(&peer->mutex);
    if (peer->begun) FailLocked(peer.get(), PeerFailure::kLocal, detail, true);
  }
}

void Engine::BeginLocked(Peer* peer) {
  if (peer->begun) return;
  peer->begun = true;
  peer->heard.store(clock_.Now(), std::memory_order_relaxed);
  {
    MutexLock lock(&tables_);
    PostExpired(slots_.PeerReset(peer->id));
    PostFreeSlots();
    // Slots that are given out from now on may be answered by the peer, whichever class is connected first.
    for (NodeSet& joined : joined_) joined.Add(peer->id);
  }
  for (Lane& lane : peer->lanes) {
    MutexLock lock(&lane.mutex);
    lane.session = peer->session_count;
    lane.joined = true;
    lane.broken_since = clock_.Now();
    std::vector<EpochFloors::Entry> floors;
    {
      MutexLock tables_lock(&tables_);
      floors = floors_.All();
    }
    if (HK_MUTANT(new_session_without_barriers)) floors.clear();
    for (const EpochFloors::Entry& entry : floors) PushBarrier(&lane, entry.guest, entry.floor);
  }
}

bool Engine::Connect(Peer* peer, Lane* lane, uint64_t resume_from, LinkTicket* ticket) {
  MutexLock lock(&lane->mutex);
  Detach(lane, true);
  std::vector<SlotId>* const delivered = &lane->delivered;
  const bool possible = lane->window.Resume(resume_from, [delivered](const Outgoing& outgoing) {
    if (outgoing.payload != SlotId()) delivered->push_back(outgoing.payload);
  });
  {
    MutexLock tables_lock(&tables_);
    FreeDelivered(lane);
  }
  WindowMoved(lane);
  if (!possible) return false;
  lane->ticket = next_ticket_.fetch_add(1);
  *ticket = {peer->id, lane->message_class, lane->ticket};
  return true;
}

Engine::Admission Engine::OnHello(const Hello& hello, const std::string& who) {
  const NodeIdentity identity = Identity();
  Peer* peer = Find(hello.from);
  auto refuse = [&](const Hello& reply) {
    CountStranger(StrangerEnd::kRefused, who,
                  fmt::format("it says that it is node {}: {}", hello.from.value(), HelloKindName(reply.kind)));
    return Admission{reply, std::nullopt};
  };
  if (peer == nullptr) return refuse(*RefuseStranger(identity, hello, false));
  MutexLock lock(&peer->mutex);
  if (const std::optional<Hello> reply = RefuseStranger(identity, hello, peer->added && !stopped_)) {
    return refuse(*reply);
  }
  Lane& lane = peer->LaneOf(hello.message_class);
  HandshakeOutcome outcome;
  {
    MutexLock lane_lock(&lane.mutex);
    outcome = peer->session.OnHello(identity, hello, lane.received.received(), wire_->Random());
    // Nothing more is received on the connection that this one replaces: its number has just been told.
    if (outcome.connected) Detach(&lane, true);
  }
  if (outcome.failed) FailLocked(peer, *outcome.failed, "it began a new session", false);
  if (!outcome.connected) return refuse(outcome.reply);
  BeginLocked(peer);
  LinkTicket ticket;
  if (!Connect(peer, &lane, outcome.resume_from, &ticket)) {
    outcome = peer->session.CannotResume(identity, hello.message_class);
    FailLocked(peer, *outcome.failed, "it cannot be resumed", true);
    return refuse(outcome.reply);
  }
  return {outcome.reply, ticket};
}

std::optional<LinkTicket> Engine::OnReply(NodeId node, MessageClass message_class, uint64_t attempt,
                                          const Hello& reply) {
  Peer* peer = Find(node);
  HK_CHECK(peer != nullptr);
  MutexLock lock(&peer->mutex);
  DialState& dial = peer->dials[static_cast<size_t>(message_class)];
  if (dial.attempt != attempt || stopped_) return std::nullopt;
  const std::string said(HelloKindName(reply.kind));
  const HandshakeOutcome outcome = peer->session.OnReply(Identity(), message_class, reply);
  if (outcome.failed) {
    LogDial(peer, fmt::format("its reply: {}", said));
    FailLocked(peer, *outcome.failed, fmt::format("reply to our hello: {}", said), true);
    return std::nullopt;
  }
  if (!outcome.connected) {
    LogDial(peer, fmt::format("its reply: {}", said));
    RedialLater(&dial);
    return std::nullopt;
  }
  dial.attempt = 0;
  BeginLocked(peer);
  LinkTicket ticket;
  if (!Connect(peer, &peer->LaneOf(message_class), outcome.resume_from, &ticket)) {
    FailLocked(peer, PeerFailure::kRestarted, "it cannot be resumed", true);
    return std::nullopt;
  }
  return ticket;
}

void Engine::OnDialFailed(NodeId node, MessageClass message_class, uint64_t attempt, const std::string& detail) {
  Peer* peer = Find(node);
  HK_CHECK(peer != nullptr);
  MutexLock lock(&peer->mutex);
  DialState& dial = peer->dials[static_cast<size_t>(message_class)];
  if (dial.attempt != attempt) return;
  LogDial(peer, detail);
  RedialLater(&dial);
}

void Engine::LogDial(Peer* peer, const std::string& detail) {
  const std::optional<uint64_t> more = peer->dial_log.Take(clock_.Now());
  if (!more) return;
  log::Info("transport", "cannot connect to the peer",
            {{"peer", std::to_string(peer->id.value())},
             {"address", peer->address},
             {"detail", detail},
             {"others_since_last_line", std::to_string(*more)}});
}

bool Engine::Attach(const LinkTicket& ticket, std::shared_ptr<Link> link) {
  Lane& lane = LaneOf(ticket);
  MutexLock lock(&lane.mutex);
  if (lane.ticket != ticket.number || lane.link != nullptr) return false;
  lane.link = std::move(link);
  if (std::exchange(lane.connected_before, true)) ++lane.statistics.reconnects;
  SetupBody setup{.window_messages = settings_.window_messages, .heartbeat_ms = settings_.heartbeat_ms};
  {
    MutexLock tables_lock(&tables_);
    setup.first_slot_counter = slots_.FirstCounterFor(lane.peer);
  }
  if (lane.message_class != MessageClass::kInvalidate) {
    setup.slot_count =
        lane.message_class == MessageClass::kFault ? settings_.fault_receive_slots : settings_.bulk_receive_slots;
  }
  lane.link->FillSetup(&setup);
  SendOwn(&lane, OwnType::kSetup, 0, EncodeSetup(setup));
  return lane.link != nullptr;
}

void Engine::CheckUp(Peer* peer, uint64_t session, MessageClass message_class) {
  MutexLock lock(&peer->mutex);
  if (peer->session_count != session) return;
  peer->dials[static_cast<size_t>(message_class)].pause = {};
  if (peer->up || peer->up_due) return;
  for (Lane& lane : peer->lanes) {
    MutexLock lane_lock(&lane.mutex);
    if (!lane.setup_received) return;
  }
  peer->up_due = true;
  wire_->WakeControl();
}

void Engine::OnBroken(const LinkTicket& ticket, const std::string& detail) {
  Lane& lane = LaneOf(ticket);
  {
    MutexLock lock(&lane.mutex);
    if (lane.ticket != ticket.number) return;
    Detach(&lane, true);
    lane.broken_why = detail;
  }
  log::Debug("transport", "a connection broke",
             {{"peer", std::to_string(ticket.peer.value())},
              {"class", std::to_string(static_cast<int>(ticket.message_class))},
              {"detail", detail}});
  wire_->WakeControl();
}

void Engine::OnMalformed(const LinkTicket& ticket, const std::string& detail) {
  Lane& lane = LaneOf(ticket);
  uint64_t session = 0;
  {
    MutexLock lock(&lane.mutex);
    if (lane.ticket != ticket.number) return;
    session = lane.session;
  }
  malformed_.fetch_add(1, std::memory_order_relaxed);
  Fail(Find(ticket.peer), session, PeerFailure::kMalformed, detail);
}

}  // namespace hk
