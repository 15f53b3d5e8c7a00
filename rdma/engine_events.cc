// Handler calls that no message causes, and what time brings.
#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "rdma/engine.h"

namespace hk {

namespace {

using std::chrono::milliseconds;

// Reasons as logs and metrics have them.
std::string_view NameOf(PeerFailure why) {
  switch (why) {
    case PeerFailure::kLeaseExpired:
      return "lease-expired";
    case PeerFailure::kMalformed:
      return "malformed";
    case PeerFailure::kRejected:
      return "rejected";
    case PeerFailure::kFenced:
      return "fenced";
    case PeerFailure::kRestarted:
      return "restarted";
    case PeerFailure::kLeft:
      return "left";
    case PeerFailure::kLocal:
      return "local";
  }
  return "unknown";
}

void WriteFailure(NodeId peer, PeerFailure why, const std::string& detail, uint64_t others) {
  log::Warning("transport", "peer failed",
               {{"peer", std::to_string(peer.value())},
                {"reason", std::string(NameOf(why))},
                {"detail", detail},
                {"others_since_last_line", std::to_string(others)}});
}

}  // namespace

void Engine::Post(MessageClass message_class, ClassEvent event) {
  ClassState& state = classes_[static_cast<size_t>(message_class)];
  MutexLock lock(&state.mutex);
  state.events.push_back(std::move(event));
  if (!state.pending.exchange(true)) wire_->WakeClass(message_class);
}

void Engine::PostExpired(const std::vector<ExpiredRequest>& expired) {
  for (const ExpiredRequest& request : expired) {
    Find(request.asked)->LaneOf(request.message_class).expired_requests.fetch_add(1, std::memory_order_relaxed);
    Post(request.message_class, request);
  }
}

void Engine::PostFreeSlots() {
  if (!slots_.AnyRefused()) return;
  for (const MessageClass message_class : {MessageClass::kFault, MessageClass::kBulk}) {
    for (const SlotUse use : {SlotUse::kReceive, SlotUse::kSend}) {
      if (slots_.TakeSlotsFree(message_class, use)) Post(message_class, SlotsFreeEvent{use});
    }
  }
}

void Engine::RunEvent(MessageClass message_class, const ClassEvent& event) {
  if (const auto* free = std::get_if<SlotsFreeEvent>(&event)) {
    handler_->OnSlotsFree(message_class, free->use);
  } else if (const auto* expired = std::get_if<ExpiredRequest>(&event)) {
    handler_->OnRequestExpired(expired->asked, message_class, expired->transaction, expired->slot, expired->why);
  } else if (const auto* unhurried = std::get_if<UnhurriedEvent>(&event)) {
    ClassState& state = classes_[static_cast<size_t>(message_class)];
    if (state.acks.empty()) state.acks_due = clock_.Now() + kAckDelay;
    state.acks.Add(unhurried->peer);
  } else if (const auto* writable = std::get_if<WritableEvent>(&event)) {
    Lane& lane = Find(writable->peer)->LaneOf(message_class);
    {
      MutexLock lock(&lane.mutex);
      if (lane.session != writable->session || !lane.open) return;
      lane.handlers.fetch_add(1);
    }
    handler_->OnWritable(writable->peer, message_class);
    Leave(&lane);
  }
}

void Engine::RunEvents(MessageClass message_class) {
  ClassState& state = classes_[static_cast<size_t>(message_class)];
  if (!state.pending.load(std::memory_order_acquire)) return;
  std::deque<ClassEvent> events;
  {
    MutexLock lock(&state.mutex);
    state.pending = false;
    events.swap(state.events);
  }
  for (const ClassEvent& event : events) {
    if (stopped_) break;
    RunEvent(message_class, event);
  }
}

Monotonic Engine::RunClass(MessageClass message_class) {
  RunEvents(message_class);
  ClassState& state = classes_[static_cast<size_t>(message_class)];
  if (state.acks.empty()) return Monotonic::max();
  if (clock_.Now() < state.acks_due) return state.acks_due;
  for (uint16_t node = 0; node < kMaxNodes; ++node) {
    if (!state.acks.Contains(NodeId(node))) continue;
    Lane& lane = peers_[node]->LaneOf(message_class);
    MutexLock lock(&lane.mutex);
    if (lane.received.unacknowledged() == 0 && !lane.unhurried) continue;
    lane.ack_due = true;
    Pump(&lane);
  }
  state.acks = {};
  return Monotonic::max();
}

bool Engine::RunPeerEvent(Peer* peer) {
  std::optional<std::pair<PeerFailure, std::string>> failed;
  uint64_t session = 0;
  {
    MutexLock lock(&peer->mutex);
    if (stopped_ || (!peer->failed_due && !peer->up_due)) return false;
    if (peer->failed_due) {
      for (const Lane& lane : peer->lanes) {
        if (lane.handlers.load() != 0) return false;  // Leave wakes us
      }
      failed = std::exchange(peer->failed_due, std::nullopt);
    } else {
      peer->up_due = false;
      peer->up = true;
      peer->up_since = clock_.Now();
      ++peer->sessions_up;
      session = peer->session_count;
      for (Lane& lane : peer->lanes) {
        MutexLock lane_lock(&lane.mutex);
        lane.up = true;
      }
    }
  }
  if (failed) {
    LogFailure(peer, failed->first, failed->second);
    handler_->OnPeerFailed(peer->id, failed->first, failed->second);
    return true;
  }
  LogUp(peer);
  handler_->OnPeerUp(peer->id);
  MutexLock lock(&peer->mutex);
  if (peer->session_count != session) return true;
  for (Lane& lane : peer->lanes) {
    MutexLock lane_lock(&lane.mutex);
    lane.open = true;
    lane.ended = false;
    if (!HK_MUTANT(early_room_untold)) WindowMoved(&lane);
    if (lane.link != nullptr) lane.link->Resume();
  }
  return true;
}

void Engine::LogUp(Peer* peer) {
  {
    MutexLock lock(&peer->mutex);
    peer->unlogged.reset();
    if (!peer->failure_logged) return;
  }
  log::Info("transport", "peer up", {{"peer", std::to_string(peer->id.value())}});
}

void Engine::LogFailure(Peer* peer, PeerFailure why, const std::string& detail) {
  std::optional<uint64_t> more;
  {
    MutexLock lock(&peer->mutex);
    more = peer->failure_log.Take(clock_.Now());
    peer->failure_logged = more.has_value();
    if (!more) peer->unlogged.emplace(why, detail);
  }
  if (more) WriteFailure(peer->id, why, detail, *more);
}

void Engine::LogHeldBack(Peer* peer, Monotonic now) {
  std::optional<std::pair<PeerFailure, std::string>> held;
  uint64_t more = 0;
  {
    MutexLock lock(&peer->mutex);
    if (!peer->unlogged || !peer->failure_log.Allows(now)) return;
    held = std::exchange(peer->unlogged, std::nullopt);
    more = *peer->failure_log.Take(now) - 1;  // itself was counted
    peer->failure_logged = true;
  }
  WriteFailure(peer->id, held->first, held->second, more);
}

void Engine::Dial(Peer* peer, Monotonic now) {
  for (const MessageClass message_class : {MessageClass::kFault, MessageClass::kInvalidate, MessageClass::kBulk}) {
    uint64_t attempt = 0;
    Hello hello;
    std::string address;
    {
      MutexLock lock(&peer->mutex);
      DialState& dial = peer->dials[static_cast<size_t>(message_class)];
      if (!peer->added || stopped_ || !peer->session.Dials() || dial.attempt != 0) continue;
      Lane& lane = peer->LaneOf(message_class);
      MutexLock lane_lock(&lane.mutex);
      if (lane.ticket != 0 || now < DialTime(lane, dial)) continue;
      attempt = dial.attempt = next_attempt_.fetch_add(1);
      hello = peer->session.MakeHello(Identity(), message_class, lane.received.received());
      address = peer->address;
    }
    wire_->Dial(peer->id, address, hello, attempt);
  }
}

// A connection that broke is dialled again after the first pause; other pauses are in DialState.
Monotonic Engine::DialTime(const Lane& lane, const DialState& dial) const {
  if (!lane.broken_since || !lane.connected_before) return dial.next;
  return std::max(dial.next, *lane.broken_since + milliseconds(settings_.backoff_ms));
}

Monotonic Engine::RunTimers(Peer* peer, Monotonic now) {
  MutexLock lock(&peer->mutex);
  if (!peer->added) return Monotonic::max();
  const milliseconds lease(settings_.lease_ms);
  Monotonic next = Monotonic::max();
  if (peer->begun) {
    const Monotonic silent = peer->heard.load(std::memory_order_relaxed) + lease;
    std::string expired;
    if (silent <= now) expired = fmt::format("nothing heard for {} ms", lease.count());
    next = silent;
    for (Lane& lane : peer->lanes) {
      MutexLock lane_lock(&lane.mutex);
      if (!lane.broken_since) continue;
      if (*lane.broken_since + lease <= now) {
        expired = fmt::format("class {} not connected for {} ms{}{}", static_cast<int>(lane.message_class),
                              lease.count(), lane.broken_why.empty() ? "" : ", broken by: ", lane.broken_why);
      }
      next = std::min(next, *lane.broken_since + lease);
    }
    if (!expired.empty()) {
      FailLocked(peer, PeerFailure::kLeaseExpired, expired, true);
      return now;
    }
  }
  if (!peer->session.Dials()) return next;
  for (size_t i = 0; i < kMessageClasses; ++i) {
    if (peer->dials[i].attempt != 0) continue;
    Lane& lane = peer->lanes[i];
    MutexLock lane_lock(&lane.mutex);
    if (lane.ticket == 0) next = std::min(next, DialTime(lane, peer->dials[i]));
  }
  return next;
}

void Engine::Heartbeat(Peer* peer) {
  Lane& lane = peer->LaneOf(MessageClass::kInvalidate);
  MutexLock lock(&lane.mutex);
  if (!lane.joined) return;
  lane.heartbeat_due = true;
  Pump(&lane);
}

void Engine::Probe(Peer* peer) {
  for (const MessageClass message_class : {MessageClass::kFault, MessageClass::kBulk}) {
    Lane& lane = peer->LaneOf(message_class);
    MutexLock lock(&lane.mutex);
    if (!lane.joined || HK_MUTANT(idle_classes_unprobed)) continue;
    lane.ack_due = true;
    Pump(&lane);
  }
}

Monotonic Engine::RunControl() {
  // What wakes us from now on is seen by the next call.
  const Monotonic now = clock_.Now();
  Monotonic next = next_heartbeat_;
  const bool heartbeat = next <= now;
  if (heartbeat) next_heartbeat_ = next = now + milliseconds(settings_.heartbeat_ms);
  // Four times in a lease: a device takes a third of it to find out (AckTimeout), and there is time to dial again.
  const bool probe = heartbeat && ++heartbeats_ % std::max(settings_.lease_ms / settings_.heartbeat_ms / 4, 1U) == 0;
  for (const std::unique_ptr<Peer>& peer : peers_) {
    if (peer == nullptr) continue;
    while (RunPeerEvent(peer.get())) {
    }
    if (heartbeat) {
      Heartbeat(peer.get());
      if (probe) Probe(peer.get());
      LogHeldBack(peer.get(), now);
    }
    next = std::min(next, RunTimers(peer.get(), now));
    Dial(peer.get(), now);
  }
  MutexLock lock(&tables_);
  FreeRead();
  if (next_deadline_ <= now) {
    PostExpired(slots_.Expire(now));
    next_deadline_ = slots_.NextDeadline().value_or(Monotonic::max());
  }
  next = std::min(next, next_deadline_);
  control_wakes_.store(next, std::memory_order_relaxed);
  return next;
}

}  // namespace hk
