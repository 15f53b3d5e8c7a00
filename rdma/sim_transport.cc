#include "rdma/sim_transport.h"

#include <new>
#include <utility>

#include "hyperkernel/base/check.h"
#include "rdma/send_rules.h"
#include "rdma/sim_node.h"

namespace hk {

namespace {

// Entries of a queue beyond queue_messages, for Barriers: those of a session's begin, and as many again for epochs that
// are raised before the peer has acknowledged them.
constexpr size_t kBarrierReserve = 2 * kMaxFloors;

constexpr size_t kSlotAlignment = 64;

}  // namespace

absl::StatusOr<std::unique_ptr<Transport>> MakeSimTransport(SimNetwork* network, const TransportSettings& settings,
                                                            TransportHandler* handler) {
  if (absl::Status status = CheckSettings(settings); !status.ok()) return status;
  return std::make_unique<SimNode>(network, settings, handler);
}

SimNode::PeerClass::PeerClass(const TransportSettings& settings)
    : out(settings.queue_messages, settings.window_messages, kBarrierReserve) {}

SimNode::Peer::Peer(NodeId self, NodeId peer, const TransportSettings& settings)
    : id(peer), session(self, peer), classes{PeerClass(settings), PeerClass(settings), PeerClass(settings)} {}

void SimNode::Pool::Free::operator()(std::byte* bytes) const {
  ::operator delete[](bytes, std::align_val_t(kSlotAlignment));
}

SimNode::Pool::Pool(size_t count, size_t bytes)
    : slots(count),
      slot_bytes(bytes),
      memory(static_cast<std::byte*>(::operator new[](count* bytes, std::align_val_t(kSlotAlignment)))) {
  std::fill_n(memory.get(), count * bytes, std::byte{0});
}

SimNode::SimNode(SimNetwork* network, const TransportSettings& settings, TransportHandler* handler)
    : network_(network),
      settings_(settings),
      handler_(handler),
      cluster_(ClusterHash(settings.cluster)),
      node_epoch_(settings.node_epoch),
      alive_(std::make_shared<bool>(true)),
      slots_(SlotCounts{settings.fault_receive_slots, settings.fault_send_slots, settings.bulk_receive_slots,
                        settings.bulk_send_slots}),
      pools_{Pool(settings.fault_receive_slots, kFaultSlotBytes), Pool(settings.fault_send_slots, kFaultSlotBytes),
             Pool(settings.bulk_receive_slots, kBulkSlotBytes), Pool(settings.bulk_send_slots, kBulkSlotBytes)} {}

void SimNode::After(Duration delay, std::function<void()> event) {
  simulation().After(delay, [alive = std::weak_ptr<bool>(alive_), event = std::move(event)] {
    if (!alive.expired()) event();
  });
}

void SimNode::AfterInLife(const PeerPointer& peer, Duration delay, std::function<void()> event) {
  After(delay, [peer, life = peer->life, event = std::move(event)] {
    if (peer->life == life) event();
  });
}

void SimNode::Tell(std::function<void()> call) {
  to_tell_.push_back(std::move(call));
  if (to_tell_.size() == 1) After({}, [this] { TellAll(); });
}

void SimNode::TellAll() {
  while (!to_tell_.empty()) {
    // Taken out only afterwards: what a handler causes is told behind it, by this loop.
    const std::function<void()> call = to_tell_.front();
    call();
    to_tell_.pop_front();
  }
  TakeAllMessages();
}

void SimNode::TellExpired(const std::vector<ExpiredRequest>& expired) {
  for (const ExpiredRequest& one : expired) {
    if (const PeerPointer asked = Find(one.asked); asked != nullptr) {
      ++ClassOf(*asked, one.message_class).statistics.expired_requests;
    }
    Tell([this, one] { handler_->OnRequestExpired(one.asked, one.message_class, one.transaction, one.slot, one.why); });
  }
}

void SimNode::TellSlotsFree() {
  for (const MessageClass message_class : {MessageClass::kFault, MessageClass::kBulk}) {
    for (const SlotUse use : {SlotUse::kReceive, SlotUse::kSend}) {
      if (!slots_.TakeSlotsFree(message_class, use)) continue;
      Tell([this, message_class, use] { handler_->OnSlotsFree(message_class, use); });
    }
  }
}

uint64_t SimNode::NewNumber() {
  uint64_t number = 0;
  while (number == 0) number = simulation().Random();
  return number;
}

absl::Status SimNode::Start() {
  if (!network_->Listen(settings_.self, this)) {
    return absl::AlreadyExistsError(SimNetwork::AddressOf(settings_.self) + " is in use");
  }
  started_ = true;
  for (const auto& [id, peer] : peers_) DialAll(peer);
  return absl::OkStatus();
}

void SimNode::Stop() {
  if (alive_ == nullptr) return;
  alive_.reset();
  if (started_) network_->StopListening(settings_.self, this);
  started_ = false;
  for (const auto& [id, peer] : peers_) {
    peer->removed = true;
    Fail(peer, PeerFailure::kLeft, "stopped", Parting::kGoodbye);
  }
  peers_.clear();
  while (!strangers_.empty()) CloseStranger(strangers_.front(), false);
  to_tell_.clear();
}

absl::Status SimNode::AddPeer(NodeId peer, const std::string& address) {
  if (peer == settings_.self || peer.value() >= kMaxNodes) return absl::InvalidArgumentError("no other node's number");
  const NodeId node = SimNetwork::NodeOf(address);
  if (node == SimNetwork::kNowhere) return absl::InvalidArgumentError("'" + address + "' is no simulated address");
  if (peers_.count(peer) != 0) return absl::AlreadyExistsError("the peer was added before");
  const auto added = std::make_shared<Peer>(settings_.self, peer, settings_);
  added->address = node;
  added->session.Restart(NewNumber());
  peers_.emplace(peer, added);
  DialAll(added);
  return absl::OkStatus();
}

void SimNode::RemovePeer(NodeId peer) {
  const PeerPointer found = Find(peer);
  if (found == nullptr) return;
  found->removed = true;
  Fail(found, PeerFailure::kLeft, "it was removed", Parting::kGoodbye);
  peers_.erase(peer);
}

void SimNode::ResetPeer(NodeId peer, Epoch admit_from) {
  const PeerPointer found = Find(peer);
  if (found == nullptr) return;
  found->session.AdmitFrom(admit_from);
  Fail(found, PeerFailure::kFenced, "it was fenced", Parting::kAbort);
}

void SimNode::SetNodeEpoch(Epoch epoch) {
  node_epoch_ = std::max(node_epoch_, epoch);
}

absl::Status SimNode::SetEpoch(GuestId guest, uint32_t generation, Epoch epoch) {
  bool raised = false;
  if (absl::Status status = floors_.Raise(guest, generation, epoch, &raised); !status.ok()) return status;
  if (!raised) return absl::OkStatus();
  // As it is now: each part is the higher of both.
  for (const EpochFloors::Entry& floor : floors_.All()) {
    if (floor.guest != guest) continue;
    TellExpired(slots_.EpochRaised(guest, floor.floor.generation, floor.floor.epoch));
    for (const auto& [id, peer] : peers_) {
      if (peer->in_session) PushBarrier(peer, floor);
    }
  }
  return absl::OkStatus();
}

void SimNode::ForgetGuest(GuestId guest) {
  floors_.Forget(guest);
}

absl::Status SimNode::Send(NodeId to, const Message& message, const SendOptions& options) {
  if (absl::Status status = CheckSend(settings_.self, to, message, options); !status.ok()) return status;
  const PeerPointer peer = Find(to);
  if (peer == nullptr || !peer->up) return absl::UnavailableError("the peer is not up");
  if (floors_.IsOld(message)) return absl::AbortedError("the guest's epoch or generation is over");
  if (message.answer && SlotName::Decode(message.slot).counter < peer->first_counter) {
    return absl::AbortedError("the slot is from before this session");
  }
  PeerClass& one = ClassOf(*peer, message.message_class);
  Entry entry;
  if (one.out.size() >= settings_.queue_messages) {
    one.out.Push(std::move(entry));  // is refused, and remembers it
    ++one.statistics.refused_full;
    return absl::ResourceExhaustedError("the queue is full");
  }
  if (options.payload != SlotId()) {
    if (absl::Status status = slots_.SendStarted(options.payload); !status.ok()) return status;
  }
  if (IsRequest(settings_.self, message)) {
    if (absl::Status status = Ask(to, message, options); !status.ok()) return status;
  }
  entry.message = message;
  entry.message.body = {};
  entry.body.assign(message.body.begin(), message.body.end());
  entry.payload = options.payload;
  entry.payload_bytes = options.payload_bytes;
  HK_CHECK(one.out.Push(std::move(entry)));
  Transmit(peer, message.message_class);
  return absl::OkStatus();
}

absl::Status SimNode::Ask(NodeId to, const Message& message, const SendOptions& options) {
  SlotTable::Request request;
  request.asked = to;
  request.writers = floors_.WithoutPassed(WritersOf(settings_.self, to, options), message);
  for (uint16_t node = 0; node < kMaxNodes; ++node) {
    if (!request.writers.Contains(NodeId(node))) continue;
    const PeerPointer writer = Find(NodeId(node));
    if (writer == nullptr || !writer->in_session) request.writers.Remove(NodeId(node));
  }
  if (request.writers.empty()) return absl::AbortedError("nobody is left that would answer");
  request.guest = message.guest;
  request.generation = message.generation;
  request.epoch = message.epoch;
  request.transaction = message.transaction;
  request.sent = Now();
  const Duration deadline =
      options.deadline.count() != 0 ? options.deadline : std::chrono::milliseconds(settings_.request_ms);
  request.deadline = Now() + deadline;
  if (absl::Status status = slots_.Ask(message.slot, request); !status.ok()) return status;
  After(deadline, [this] { TellExpired(slots_.Expire(Now())); });
  return absl::OkStatus();
}

absl::StatusOr<SlotId> SimNode::AcquireSlot(MessageClass message_class, SlotUse use) {
  return slots_.Acquire(message_class, use);
}

std::span<std::byte> SimNode::SlotBytes(SlotId slot) {
  return BytesOf(SlotName::Decode(slot));
}

void SimNode::ReleaseSlot(SlotId slot) {
  slots_.Release(slot);
  TellSlotsFree();
}

absl::Status SimNode::CancelRequest(SlotId slot) {
  return slots_.Cancel(slot);
}

absl::StatusOr<PeerStatistics> SimNode::Statistics(NodeId peer) const {
  const PeerPointer found = Find(peer);
  if (found == nullptr) return absl::NotFoundError("no such peer");
  PeerStatistics statistics;
  statistics.up = found->up;
  statistics.sessions = found->sessions;
  for (size_t i = 0; i < kMessageClasses; ++i) {
    statistics.classes[i] = found->classes[i].statistics;
    statistics.classes[i].resent_messages = found->classes[i].out.resent_messages();
  }
  return statistics;
}

TransportStatistics SimNode::Statistics() const {
  TransportStatistics statistics = statistics_;
  statistics.slots_lent = slots_.Count(SlotTable::State::kLent);
  statistics.slots_in_flight = slots_.Count(SlotTable::State::kInFlight);
  statistics.slots_sending = slots_.Count(SlotTable::State::kSending);
  statistics.slots_quarantined = slots_.Count(SlotTable::State::kQuarantined);
  return statistics;
}

void SimNode::SetBusy(MessageClass message_class, bool busy) {
  busy_[static_cast<size_t>(message_class)] = busy;
  if (!busy) After({}, [this] { TakeAllMessages(); });
}

}  // namespace hk
