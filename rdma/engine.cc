#include "rdma/engine.h"

#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/status.h"
#include "rdma/send_rules.h"

namespace hk {

namespace {

SlotCounts CountsOf(const TransportSettings& settings) {
  return {.fault_receive = settings.fault_receive_slots,
          .fault_send = settings.fault_send_slots,
          .bulk_receive = settings.bulk_receive_slots,
          .bulk_send = settings.bulk_send_slots};
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const TransportSettings& settings, TransportHandler* handler,
                                                       std::unique_ptr<Wire> wire, size_t slot_room,
                                                       const Clock& clock) {
  HK_RETURN_IF_ERROR(CheckSettings(settings));
  HK_ASSIGN_OR_RETURN(SlotMemory memory, SlotMemory::Create(CountsOf(settings), slot_room));
  return std::unique_ptr<Engine>(new Engine(settings, handler, std::move(wire), std::move(memory), clock));
}

Engine::Engine(const TransportSettings& settings, TransportHandler* handler, std::unique_ptr<Wire> wire,
               SlotMemory memory, const Clock& clock)
    : settings_(settings),
      handler_(handler),
      clock_(clock),
      memory_(std::move(memory)),
      wire_(std::move(wire)),
      cluster_(ClusterHash(settings.cluster)),
      node_epoch_(settings.node_epoch.value()),
      next_heartbeat_(clock.Now()),
      slots_(CountsOf(settings), FirstSlotCounter(clock.Wall())) {
  for (uint16_t node = 0; node < kMaxNodes; ++node) {
    if (NodeId(node) != settings_.self) peers_[node] = std::make_unique<Peer>(settings_.self, NodeId(node), settings_);
  }
}

Engine::~Engine() {
  Stop();
}

absl::Status Engine::Start() {
  if (stopped_) return absl::FailedPreconditionError("the transport was stopped");
  HK_RETURN_IF_ERROR(wire_->Start(this));
  wire_->WakeControl();
  return absl::OkStatus();
}

void Engine::Stop() {
  if (stopped_.exchange(true)) return;
  for (const std::unique_ptr<Peer>& peer : peers_) {
    if (peer == nullptr) continue;
    MutexLock lock(&peer->mutex);
    if (peer->begun) FailLocked(peer.get(), PeerFailure::kLeft, "this node stops", true);
  }
  wire_->Stop();
}

NodeIdentity Engine::Identity() const {
  return {cluster_, settings_.self, Epoch(node_epoch_.load())};
}

Peer* Engine::Find(NodeId node) const {
  return node.value() < kMaxNodes ? peers_[node.value()].get() : nullptr;
}

Lane& Engine::LaneOf(const LinkTicket& ticket) const {
  Peer* peer = Find(ticket.peer);
  HK_CHECK(peer != nullptr);
  return peer->LaneOf(ticket.message_class);
}

absl::Status Engine::AddPeer(NodeId node, const std::string& address) {
  Peer* peer = Find(node);
  if (peer == nullptr) return absl::InvalidArgumentError(fmt::format("{} is not another node's number", node.value()));
  HK_RETURN_IF_ERROR(wire_->CheckAddress(address));
  MutexLock lock(&peer->mutex);
  if (peer->added) return absl::AlreadyExistsError(fmt::format("node {} is a peer already", node.value()));
  peer->added = true;
  peer->address = address;
  peer->session.Restart(wire_->Random());
  peer->pause = {};
  peer->dials = {};
  peer->sessions_up = 0;
  for (Lane& lane : peer->lanes) {
    MutexLock lane_lock(&lane.mutex);
    lane.statistics = {};
    lane.expired_requests = 0;
  }
  wire_->WakeControl();
  return absl::OkStatus();
}

void Engine::RemovePeer(NodeId node) {
  Peer* peer = Find(node);
  if (peer == nullptr) return;
  MutexLock lock(&peer->mutex);
  if (!peer->added) return;
  peer->added = false;
  FailLocked(peer, PeerFailure::kLeft, "removed here", true);
}

void Engine::ResetPeer(NodeId node, Epoch admit_from) {
  Peer* peer = Find(node);
  if (peer == nullptr) return;
  MutexLock lock(&peer->mutex);
  peer->session.AdmitFrom(admit_from);
  FailLocked(peer, PeerFailure::kFenced, fmt::format("fenced: let in from epoch {}", admit_from.value()), true);
}

void Engine::SetNodeEpoch(Epoch epoch) {
  node_epoch_ = epoch.value();
}

absl::StatusOr<SlotId> Engine::AcquireSlot(MessageClass message_class, SlotUse use) {
  MutexLock lock(&tables_);
  return slots_.Acquire(message_class, use);
}

std::span<std::byte> Engine::SlotBytes(SlotId slot) {
  return memory_.Bytes(slot);
}

void Engine::ReleaseSlot(SlotId slot) {
  MutexLock lock(&tables_);
  HK_CHECK(slots_.Release(slot));
  PostFreeSlots();
}

absl::Status Engine::CancelRequest(SlotId slot) {
  MutexLock lock(&tables_);
  return slots_.Cancel(slot);
}

absl::StatusOr<PeerStatistics> Engine::Statistics(NodeId node) const {
  Peer* peer = Find(node);
  if (peer == nullptr) return absl::NotFoundError(fmt::format("{} is not another node's number", node.value()));
  MutexLock lock(&peer->mutex);
  if (!peer->added) return absl::NotFoundError(fmt::format("node {} is no peer", node.value()));
  PeerStatistics statistics{.up = peer->up, .sessions = peer->sessions_up, .classes = {}};
  for (size_t i = 0; i < kMessageClasses; ++i) {
    Lane& lane = peer->lanes[i];
    MutexLock lane_lock(&lane.mutex);
    statistics.classes[i] = lane.statistics;
    statistics.classes[i].expired_requests = lane.expired_requests.load(std::memory_order_relaxed);
  }
  return statistics;
}

TransportStatistics Engine::Statistics() const {
  MutexLock lock(&tables_);
  return {.slots_lent = slots_.Count(SlotTable::State::kLent),
          .slots_in_flight = slots_.Count(SlotTable::State::kInFlight),
          .slots_sending = slots_.Count(SlotTable::State::kSending),
          .slots_quarantined = slots_.Count(SlotTable::State::kQuarantined),
          .handshakes_refused = strangers_.count(StrangerEnd::kRefused),
          .strangers_closed = strangers_.count(StrangerEnd::kSilent) + strangers_.count(StrangerEnd::kCrowded) +
                              strangers_.count(StrangerEnd::kGone) + strangers_.count(StrangerEnd::kTls) +
                              strangers_.count(StrangerEnd::kNoFiles),
          .malformed = malformed_ + strangers_.count(StrangerEnd::kMalformed)};
}

void Engine::CountStranger(StrangerEnd reason, const std::string& who, const std::string& detail) {
  strangers_.Count(reason, who, detail, clock_.Now());
}

}  // namespace hk
