#include "tests/transport/contract_checker.h"

#include <algorithm>
#include <cstring>

#include "fmt/format.h"
#include "rdma/send_rules.h"
#include "rdma/slots.h"
#include "rdma/wire.h"

namespace hk {

namespace {

// Of violations of one run: the first says what happened, the others are mostly its consequences.
constexpr size_t kMostViolations = 8;

std::string Text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

size_t Index(MessageClass message_class) {
  return static_cast<size_t>(message_class);
}

std::string Describe(const Message& message) {
  return fmt::format("class {} type {}{} transaction {:x} guest {}/{}/{} slot {}:{:x}", Index(message.message_class),
                     message.type, message.answer ? " answer" : "", message.transaction, message.guest.value(),
                     message.generation, message.epoch.value(), message.slot_node.value(), message.slot.value());
}

bool SameFields(const Message& a, const Message& b) {
  return a.message_class == b.message_class && a.type == b.type && a.flags == b.flags && a.answer == b.answer &&
         a.guest == b.guest && a.generation == b.generation && a.epoch == b.epoch && a.transaction == b.transaction &&
         a.gfn == b.gfn && a.slot == b.slot && (a.slot == SlotId() || a.slot_node == b.slot_node);
}

}  // namespace

// --- The cluster ---

void ContractChecker::Violation(const std::string& what) {
  if (violations_.empty()) before_violation_ = simulation_->Tail();
  simulation_->Trace("VIOLATION " + what);
  if (violations_.size() < kMostViolations) {
    violations_.push_back(fmt::format("at {} us: {}", simulation_->Now().time_since_epoch().count() / 1000, what));
  }
}

void ContractChecker::OnSlotWrite(NodeId node, SlotId slot, std::span<const std::byte> bytes) {
  const auto found = nodes_.find(node);
  if (found == nodes_.end())
    return Violation(fmt::format("slot {:x} of node {} is written, which is gone", slot.value(), node.value()));
  CheckedTransport& life = *found->second;
  const CheckedTransport::Slot& use = life.slots_[CheckedTransport::PlaceOf(slot)];
  using State = CheckedTransport::SlotState;
  if (use.id != slot || (use.state != State::kAsked && use.state != State::kQuarantined)) {
    life.Violation(fmt::format("{} bytes are written to slot {:x}, whose place is {:x} now, state {}", bytes.size(),
                               slot.value(), use.id.value(), static_cast<int>(use.state)));
  }
}

void ContractChecker::OnOverrun(NodeId node, NodeId from, MessageClass message_class) {
  Violation(fmt::format("node {} has sent more to node {} in class {} than its window", from.value(), node.value(),
                        Index(message_class)));
}

void ContractChecker::CheckQuiet() {
  for (const auto& [id, node] : nodes_) node->CheckQuiet();
}

// --- A node: what its user does ---

CheckedTransport::CheckedTransport(ContractChecker* checker, const TransportSettings& settings, TransportHandler* user)
    : checker_(checker), settings_(settings), user_(user), node_epoch_(settings.node_epoch) {
  checker_->nodes_[settings.self] = this;
}

CheckedTransport::~CheckedTransport() {
  *alive_ = false;
  transport_.reset();
  checker_->nodes_.erase(settings_.self);
}

std::string CheckedTransport::Name() const {
  return fmt::format("node {}", settings_.self.value());
}

void CheckedTransport::Violation(const std::string& what) {
  checker_->Violation(Name() + ": " + what);
}

void CheckedTransport::Trace(const std::string& what) {
  checker_->simulation_->Trace(Name() + " " + what);
}

void CheckedTransport::NoteRefused(Refusals* refusals) {
  refusals->waits = true;
  ++refusals->refused;
}

// A call may be late (its class is busy), so one for an earlier refusal may come after the next refusal.
void CheckedTransport::CheckTold(Refusals* refusals, const std::string& what) {
  refusals->waits = false;
  if (++refusals->told > refusals->refused) Violation(what + " without a refusal");
}

bool CheckedTransport::IsUp(NodeId peer) const {
  const auto found = peers_.find(peer);
  return found != peers_.end() && found->second.up;
}

bool CheckedTransport::IsOld(const Message& message) const {
  const auto found = floors_.find(message.guest);
  return found != floors_.end() &&
         (message.generation < found->second.generation || message.epoch < found->second.epoch);
}

bool CheckedTransport::MayBeDropped(const Message& message) const {
  const auto highest = highest_.find(message.guest);
  if (highest != highest_.end() &&
      (message.generation < highest->second.generation || message.epoch < highest->second.epoch)) {
    return true;
  }
  if (message.answer && message.type >= checker_->first_superfluous_) return true;
  const auto answers = checker_->answers_.find({message.slot_node, message.slot});
  return message.answer && answers != checker_->answers_.end() && answers->second > 1;
}

absl::Status CheckedTransport::Start() {
  return transport_->Start();
}

void CheckedTransport::Stop() {
  *alive_ = false;
  transport_->Stop();
}

absl::Status CheckedTransport::AddPeer(NodeId peer, const std::string& address) {
  absl::Status status = transport_->AddPeer(peer, address);
  if (!status.ok()) return status;
  Trace(fmt::format("adds {}", peer.value()));
  peers_[peer].sessions = 0;
  peers_[peer].counts = {};
  return status;
}

void CheckedTransport::RemovePeer(NodeId peer) {
  Trace(fmt::format("removes {}", peer.value()));
  peers_[peer].reset = peers_[peer].up;
  peers_[peer].removed = true;
  transport_->RemovePeer(peer);
}

void CheckedTransport::ResetPeer(NodeId peer, Epoch admit_from) {
  Trace(fmt::format("fences {} until {}", peer.value(), admit_from.value()));
  PeerState& state = peers_[peer];
  state.reset = state.up;
  state.admit_from = std::max(state.admit_from, admit_from);
  transport_->ResetPeer(peer, admit_from);
}

void CheckedTransport::SetNodeEpoch(Epoch epoch) {
  Trace(fmt::format("has node epoch {}", epoch.value()));
  node_epoch_ = epoch;
  transport_->SetNodeEpoch(epoch);
}

absl::Status CheckedTransport::SetEpoch(GuestId guest, uint32_t generation, Epoch epoch) {
  Trace(fmt::format("raises guest {} to {}/{}", guest.value(), generation, epoch.value()));
  absl::Status status = transport_->SetEpoch(guest, generation, epoch);
  if (!status.ok()) return status;
  for (Floor* floor : {&floors_[guest], &highest_[guest]}) {
    floor->generation = std::max(floor->generation, generation);
    floor->epoch = std::max(floor->epoch, epoch);
  }
  return status;
}

void CheckedTransport::ForgetGuest(GuestId guest) {
  Trace(fmt::format("forgets guest {}", guest.value()));
  floors_.erase(guest);
  transport_->ForgetGuest(guest);
}

absl::Status CheckedTransport::Send(NodeId to, const Message& message, const SendOptions& options) {
  // Before: with the simulator a message may be on its way when Send returns.
  absl::Status status = transport_->Send(to, message, options);
  Trace(fmt::format("sends {} to {}: {}", Describe(message), to.value(), status.ToString()));
  PeerState& peer = peers_[to];
  if (status.ok()) {
    if (!peer.up) Violation(fmt::format("Send to {} is taken, which is not up", to.value()));
    if (peer.reset) Violation(fmt::format("Send to {} is taken, which was reset", to.value()));
    if (IsOld(message)) Violation("an old message is taken: " + Describe(message));
    ++peer.counts[Index(message.message_class)].accepted;
    if (peer.sending != nullptr) NoteSent(to, message, options);
  } else if (absl::IsResourceExhausted(status)) {
    ++peer.counts[Index(message.message_class)].refused;
    NoteRefused(&peer.refusals[Index(message.message_class)]);
  } else if (absl::IsUnavailable(status)) {
    if (peer.up && !peer.reset) ExpectFailure(to);
  } else if (!absl::IsAborted(status)) {
    Violation(fmt::format("Send of {}: {}", Describe(message), status.ToString()));
  }
  return status;
}

void CheckedTransport::ExpectFailure(NodeId peer) {
  Trace(fmt::format("{} is unavailable, although up", peer.value()));
  checker_->simulation_->After(checker_->slack_, [this, alive = alive_, peer, session = peers_[peer].sending] {
    if (*alive && peers_[peer].sending == session) {
      Violation(fmt::format("Send to {} is refused, which is up, and no failure was told", peer.value()));
    }
  });
}

void CheckedTransport::CheckRefusedSlot(MessageClass message_class, SlotUse use) {
  // A send slot may be under way after its owner has released it; nobody sees until when.
  if (use == SlotUse::kSend) return;
  const bool bulk = message_class == MessageClass::kBulk;
  size_t taken = 0;
  for (const auto& [place, slot] : slots_) {
    const SlotName name = SlotName::Decode(slot.id);
    taken += slot.state != SlotState::kGone && name.use == use && name.message_class == message_class ? 1 : 0;
  }
  if (taken < (bulk ? settings_.bulk_receive_slots : settings_.fault_receive_slots)) {
    Violation(fmt::format("no slot of class {}, although only {} are taken", Index(message_class), taken));
  }
}

void CheckedTransport::NoteSent(NodeId to, const Message& message, const SendOptions& options) {
  ContractChecker::Sent sent;
  sent.message = message;
  sent.message.body = {};
  sent.body = Text(message.body);
  sent.order = checker_->next_order_++;
  if (options.payload != SlotId()) {
    const auto slot = slots_.find(PlaceOf(options.payload));
    if (slot == slots_.end() || slot->second.id != options.payload || slot->second.state != SlotState::kOwned) {
      Violation(fmt::format("a payload in slot {:x} is taken, which is not its sender's", options.payload.value()));
    }
    sent.payload = Text(transport_->SlotBytes(options.payload).first(options.payload_bytes));
  }
  PeerState& peer = peers_[to];
  auto& messages = peer.sending->sent[Index(message.message_class)];
  checker_->pairs_[{settings_.self, to}].where[{message.message_class, message.type, message.transaction}] = {
      peer.sending, messages.size()};
  messages.push_back(std::move(sent));
  if (message.answer) ++checker_->answers_[{message.slot_node, message.slot}];
  if (!IsRequest(settings_.self, message)) return;
  Slot& slot = slots_[PlaceOf(message.slot)];
  if (slot.id != message.slot || slot.state != SlotState::kOwned) {
    Violation(fmt::format("a request for slot {:x} is taken, which is not its sender's", message.slot.value()));
  }
  slot.state = SlotState::kAsked;
  slot.request = message;
  slot.request.body = {};
  slot.writers = WritersOf(settings_.self, to, options);
  slot.untold = {};
  for (const auto& [id, writer] : peers_) {
    const absl::StatusOr<PeerStatistics> now = transport_->Statistics(id);
    if (writer.up && now.ok() && !now->up) slot.untold.Add(id);
  }
  const auto deadline =
      options.deadline.count() != 0 ? options.deadline : std::chrono::milliseconds(settings_.request_ms);
  checker_->simulation_->After(deadline + checker_->slack_, [this, alive = alive_, id = message.slot] {
    if (*alive) CheckEnded(id);
  });
}

void CheckedTransport::CheckEnded(SlotId slot) {
  const Slot& use = slots_[PlaceOf(slot)];
  if ((use.id == slot && use.state == SlotState::kAsked) || lagging_.count(slot) != 0) {
    Violation(fmt::format("the request for slot {:x} has not ended at its deadline", slot.value()));
  }
}

absl::StatusOr<SlotId> CheckedTransport::AcquireSlot(MessageClass message_class, SlotUse use) {
  absl::StatusOr<SlotId> slot = transport_->AcquireSlot(message_class, use);
  if (!slot.ok()) {
    NoteRefused(&slot_refusals_[{message_class, use}]);
    CheckRefusedSlot(message_class, use);
    return slot;
  }
  const SlotName name = SlotName::Decode(*slot);
  Trace(fmt::format("acquires {:x}", slot->value()));
  if (name.message_class != message_class || name.use != use) Violation("a slot of another pool is given out");
  if (name.counter <= last_counter_) Violation(fmt::format("slot {:x} was given out before", slot->value()));
  last_counter_ = std::max(last_counter_, name.counter);
  Slot& place = slots_[PlaceOf(*slot)];
  if (place.state == SlotState::kOwned) {
    Violation(fmt::format("slot {:x} is given out, but {:x} is not released", slot->value(), place.id.value()));
  }
  if (place.state == SlotState::kAsked) lagging_[place.id] = place;
  place = Slot();
  place.id = *slot;
  place.state = SlotState::kOwned;
  return slot;
}

std::span<std::byte> CheckedTransport::SlotBytes(SlotId slot) {
  return transport_->SlotBytes(slot);
}

void CheckedTransport::CheckPage(const Slot& slot) {
  if (slot.page.empty()) return;
  if (std::memcmp(slot.page.data(), transport_->SlotBytes(slot.id).data(), slot.page.size()) != 0) {
    Violation(fmt::format("the page in slot {:x} has changed while it was its owner's", slot.id.value()));
  }
}

void CheckedTransport::ReleaseSlot(SlotId slot) {
  Trace(fmt::format("releases {:x}", slot.value()));
  Slot& use = slots_[PlaceOf(slot)];
  if (use.id == slot && use.state == SlotState::kOwned) {
    CheckPage(use);
    use.state = SlotState::kGone;
  }
  transport_->ReleaseSlot(slot);
}

absl::Status CheckedTransport::CancelRequest(SlotId slot) {
  absl::Status status = transport_->CancelRequest(slot);
  Trace(fmt::format("cancels {:x}: {}", slot.value(), status.ToString()));
  if (!status.ok()) return status;
  Slot& use = slots_[PlaceOf(slot)];
  if (use.id != slot || use.state != SlotState::kAsked) Violation("what is cancelled was not in flight");
  use.state = SlotState::kQuarantined;
  return status;
}

absl::StatusOr<PeerStatistics> CheckedTransport::Statistics(NodeId peer) const {
  return transport_->Statistics(peer);
}

TransportStatistics CheckedTransport::Statistics() const {
  return transport_->Statistics();
}

// --- A node: what its transport tells ---

void CheckedTransport::OnPeerUp(NodeId peer) {
  Trace(fmt::format("hears {} is up", peer.value()));
  PeerState& state = peers_[peer];
  if (state.up) Violation(fmt::format("{} is up twice", peer.value()));
  state.up = true;
  ++state.sessions;
  state.sending = std::make_shared<ContractChecker::SendSession>();
  state.sending->number = ++checker_->pairs_[{settings_.self, peer}].sessions;
  state.receiving = {};
  const auto other = checker_->nodes_.find(peer);
  if (other != checker_->nodes_.end() && other->second->node_epoch_ < state.admit_from) {
    Violation(fmt::format("{} is let in with epoch {}, but is fenced until {}", peer.value(),
                          other->second->node_epoch_.value(), state.admit_from.value()));
  }
  user_->OnPeerUp(peer);
}

void CheckedTransport::OnPeerFailed(NodeId peer, PeerFailure why, const std::string& detail) {
  Trace(fmt::format("hears {} failed: {} {}", peer.value(), static_cast<int>(why), detail));
  PeerState& state = peers_[peer];
  if (!state.up) Violation(fmt::format("{} fails, which was not up", peer.value()));
  if (why == PeerFailure::kMalformed && !checker_->malformed_) {
    Violation(fmt::format("{} is malformed, although nothing was changed on the way: {}", peer.value(), detail));
  }
  state.up = state.reset = false;
  state.sending.reset();
  state.refusals = {};
  RemoveWriter(peer);
  user_->OnPeerFailed(peer, why, detail);
}

void CheckedTransport::RemoveWriter(NodeId peer) {
  for (auto& [place, slot] : slots_) {
    if ((slot.state != SlotState::kAsked && slot.state != SlotState::kQuarantined) || !slot.writers.Contains(peer)) {
      continue;
    }
    if (slot.untold.Contains(peer)) {
      slot.untold.Remove(peer);
      continue;
    }
    slot.writers.Remove(peer);
    if (slot.state != SlotState::kAsked || !slot.writers.empty()) continue;
    checker_->simulation_->After(checker_->slack_, [this, alive = alive_, id = slot.id] {
      if (!*alive) return;
      const Slot& use = slots_[PlaceOf(id)];
      if (use.id == id && use.state == SlotState::kAsked) {
        Violation(fmt::format("nobody is left to answer into slot {:x}, and its request has not ended", id.value()));
      }
    });
  }
}

bool CheckedTransport::MayBeWritten(const Slot& slot) const {
  for (const auto& [id, node] : checker_->nodes_) {
    if (slot.writers.Contains(id) && !node->IsOld(slot.request)) return true;
  }
  return false;
}

void CheckedTransport::OnWritable(NodeId peer, MessageClass message_class) {
  Trace(fmt::format("hears {} class {} is writable", peer.value(), Index(message_class)));
  CheckTold(&peers_[peer].refusals[Index(message_class)], "OnWritable");
  user_->OnWritable(peer, message_class);
}

void CheckedTransport::OnSlotsFree(MessageClass message_class, SlotUse use) {
  Trace(fmt::format("hears slots {} {} are free", Index(message_class), static_cast<int>(use)));
  CheckTold(&slot_refusals_[{message_class, use}], "OnSlotsFree");
  user_->OnSlotsFree(message_class, use);
}

void CheckedTransport::OnRequestExpired(NodeId asked, MessageClass message_class, uint64_t transaction, SlotId slot,
                                        RequestFailure why) {
  Trace(fmt::format("hears {:x} expired: {}", slot.value(), static_cast<int>(why)));
  Slot& use = slots_[PlaceOf(slot)];
  const bool present = use.id == slot;
  const auto lagging = lagging_.find(slot);
  const Slot& ended = present || lagging == lagging_.end() ? use : lagging->second;
  if (ended.id != slot || ended.state != SlotState::kAsked) {
    Violation(fmt::format("a request for slot {:x} expires that is not in flight", slot.value()));
  } else if (ended.request.transaction != transaction || ended.request.message_class != message_class) {
    Violation(fmt::format("a request for slot {:x} expires that is another", slot.value()));
  }
  if (!present) {
    lagging_.erase(slot);
  } else {
    use.state = why == RequestFailure::kNobodyLeft ? SlotState::kGone : SlotState::kQuarantined;
  }
  ++peers_[asked].counts[Index(message_class)].expired;
  user_->OnRequestExpired(asked, message_class, transaction, slot, why);
}

void CheckedTransport::OnMessage(NodeId from, const Message& message, std::span<const std::byte> payload, bool late) {
  Trace(fmt::format("is given {} of {} with {} bytes{}", Describe(message), from.value(), payload.size(),
                    late ? ", late" : ""));
  ++checker_->delivered_;
  PeerState& peer = peers_[from];
  Counts& counts = peer.counts[Index(message.message_class)];
  ++counts.received;
  counts.received_bytes += kHeaderBytes + message.body.size() + payload.size();
  counts.answers += message.answer ? 1 : 0;
  if (!peer.up) Violation(fmt::format("a message of {}, which is not up", from.value()));
  if (peer.reset) Violation(fmt::format("a message of {} after it was reset", from.value()));
  if (IsOld(message)) Violation("an old message is delivered: " + Describe(message));
  CheckOrder(from, message, payload);
  if (message.answer) CheckAnswer(from, message, payload, late);
  user_->OnMessage(from, message, payload, late);
}

void CheckedTransport::CheckOrder(NodeId from, const Message& message, std::span<const std::byte> payload) {
  ContractChecker::Pair& pair = checker_->pairs_[{from, settings_.self}];
  const auto where = pair.where.find({message.message_class, message.type, message.transaction});
  if (where == pair.where.end()) return Violation("a message that was never sent: " + Describe(message));
  const auto& [session, position] = where->second;
  const std::vector<ContractChecker::Sent>& sent = session->sent[Index(message.message_class)];
  ContractChecker::ReceiveSession& receiving = peers_[from].receiving;
  if (receiving.from == nullptr) {
    if (session->number <= pair.received) {
      return Violation("a message of a session that was over: " + Describe(message));
    }
    receiving.from = session;
    pair.received = session->number;
  }
  if (receiving.from != session) return Violation("a message of another session: " + Describe(message));
  size_t& next = receiving.next[Index(message.message_class)];
  if (position < next) return Violation("a message that was delivered before: " + Describe(message));
  for (; next < position; ++next) {
    if (!MayBeDropped(sent[next].message)) Violation("a message is left out: " + Describe(sent[next].message));
  }
  next = position + 1;
  const ContractChecker::Sent& expected = sent[position];
  checker_->overtaken_ += expected.order < receiving.last_order ? 1 : 0;
  receiving.last_order = std::max(receiving.last_order, expected.order);
  if (!SameFields(message, expected.message) || Text(message.body) != expected.body) {
    Violation(fmt::format("sent: {}; delivered: {}", Describe(expected.message), Describe(message)));
  }
  if (Text(payload) != expected.payload) Violation("a payload that is not what was sent: " + Describe(message));
}

void CheckedTransport::CheckAnswer(NodeId from, const Message& message, std::span<const std::byte> payload, bool late) {
  Slot& slot = slots_[PlaceOf(message.slot)];
  if (message.slot_node != settings_.self || slot.id != message.slot ||
      (slot.state != SlotState::kAsked && slot.state != SlotState::kQuarantined)) {
    return Violation("an answer to no request: " + Describe(message));
  }
  if (late != (slot.state == SlotState::kQuarantined)) {
    Violation(fmt::format("late is {}, but the request had {}ended", late, late ? "not " : ""));
  }
  if (!slot.writers.Contains(from)) Violation(fmt::format("{} answers, which was not asked", from.value()));
  const Message& request = slot.request;
  if (message.guest != request.guest || message.generation != request.generation || message.epoch != request.epoch) {
    Violation("an answer of other fields than its request: " + Describe(message));
  }
  if (!payload.empty() && payload.data() != transport_->SlotBytes(message.slot).data()) {
    Violation("a payload that is not in its slot");
  }
  slot.state = SlotState::kOwned;
  slot.page = Text(payload);
  if (!payload.empty()) ++checker_->pages_;
}

void CheckedTransport::CheckQuiet() {
  for (const auto& [id, peer] : peers_) {
    CheckStatistics(id, peer);
    if (peer.up) CheckArrived(id, peer);
  }
  CheckSlots();
}

void CheckedTransport::CheckArrived(NodeId id, const PeerState& peer) {
  for (const Refusals& refusals : peer.refusals) {
    if (refusals.waits) Violation(fmt::format("a refused Send to {} is never followed by OnWritable", id.value()));
  }
  const auto other = checker_->nodes_.find(id);
  if (other == checker_->nodes_.end()) return;
  CheckedTransport& receiver = *other->second;
  const PeerState& there = receiver.peers_[settings_.self];
  if (!there.up) return;
  for (size_t i = 0; i < kMessageClasses; ++i) {
    size_t next = there.receiving.from == peer.sending ? there.receiving.next[i] : 0;
    for (; next < peer.sending->sent[i].size(); ++next) {
      const Message& message = peer.sending->sent[i][next].message;
      if (!receiver.MayBeDropped(message)) {
        Violation(fmt::format("never arrived at {}: {}", id.value(), Describe(message)));
      }
    }
  }
}

void CheckedTransport::CheckSlots() {
  std::array<uint64_t, 2> owned{};  // receive, send
  uint64_t asked = 0, quarantined = 0;
  for (const auto& [place, slot] : slots_) {
    if (slot.state == SlotState::kOwned) {
      ++owned[static_cast<size_t>(SlotName::Decode(slot.id).use)];
      CheckPage(slot);
    }
    asked += slot.state == SlotState::kAsked ? 1 : 0;
    quarantined += slot.state == SlotState::kQuarantined && MayBeWritten(slot) ? 1 : 0;
  }
  const TransportStatistics statistics = transport_->Statistics();
  if (statistics.slots_lent != owned[0] + owned[1] || statistics.slots_in_flight != asked ||
      statistics.slots_quarantined > quarantined || statistics.slots_sending != 0) {
    Violation(fmt::format("slots lent {} in flight {} quarantined {} sending {}, but owned {}+{} asked {} given up {}",
                          statistics.slots_lent, statistics.slots_in_flight, statistics.slots_quarantined,
                          statistics.slots_sending, owned[0], owned[1], asked, quarantined));
  }
  for (const auto& [pool, refusals] : slot_refusals_) {
    if (refusals.waits && transport_->AcquireSlot(pool.first, pool.second).ok()) {
      Violation("a refused AcquireSlot is never followed by OnSlotsFree");
    }
  }
}

void CheckedTransport::CheckStatistics(NodeId id, const PeerState& peer) {
  const absl::StatusOr<PeerStatistics> told = transport_->Statistics(id);
  if (!told.ok()) return;  // removed
  if (told->up != peer.up || told->sessions != peer.sessions) {
    Violation(fmt::format("statistics of {}: up {}, {} sessions, but it is {}, {}", id.value(), told->up,
                          told->sessions, peer.up, peer.sessions));
  }
  for (size_t i = 0; i < kMessageClasses; ++i) {
    const ClassStatistics& said = told->classes[i];
    const Counts& counts = peer.counts[i];
    uint64_t answers = 0;
    for (const uint64_t bucket : said.latency) answers += bucket;
    const uint64_t failed = said.dropped[static_cast<size_t>(DropReason::kPeerFailed)];
    checker_->duplicates_ += said.dropped[static_cast<size_t>(DropReason::kDuplicate)];
    // What was under way when a session ended was sent or not; nobody saw which.
    const bool sent = said.sent_messages <= counts.accepted && said.sent_messages + failed >= counts.accepted;
    if (!sent || said.sent_bytes < said.sent_messages * kHeaderBytes || said.received_messages != counts.received ||
        said.received_bytes != counts.received_bytes || answers != counts.answers ||
        said.refused_full != counts.refused || (!peer.removed && said.expired_requests != counts.expired)) {
      Violation(fmt::format(
          "statistics of {} class {}: sent {} (accepted {}, lost with sessions {}), received {} ({}), bytes {} ({}), "
          "answers {} ({}), refused {} ({}), expired {} ({})",
          id.value(), i, said.sent_messages, counts.accepted, failed, said.received_messages, counts.received,
          said.received_bytes, counts.received_bytes, answers, counts.answers, said.refused_full, counts.refused,
          said.expired_requests, counts.expired));
    }
  }
}

}  // namespace hk
