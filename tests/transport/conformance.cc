#include "tests/transport/conformance.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <iterator>
#include <thread>

#include "rdma/slots.h"

namespace hk {

namespace {

// Conditions that no handler tells of (statistics) are looked at so often.
constexpr std::chrono::milliseconds kLookAgain(2);

constexpr uint16_t kSettleType = 0x7fff;

}  // namespace

bool ThreadedBackEnd::RunUntil(const std::function<bool()>& condition) {
  const auto guard = std::chrono::steady_clock::now() + HangGuard();
  uint64_t seen;
  {
    MutexLock lock(&mutex_);
    seen = changes_;
  }
  while (!condition()) {
    MutexLock lock(&mutex_);
    const auto again = std::chrono::steady_clock::now() + kLookAgain;
    if (again > guard) return false;
    while (changes_ == seen && changed_.WaitUntil(&mutex_, again)) {
    }
    seen = changes_;
  }
  return true;
}

void ThreadedBackEnd::Wake() {
  MutexLock lock(&mutex_);
  ++changes_;
  changed_.SignalAll();
}

std::function<void()> ThreadedBackEnd::Spawn(std::function<void()> work) {
  auto thread = std::make_shared<std::thread>(std::move(work));
  return [thread] { thread->join(); };
}

void ThreadedBackEnd::Hold(NodeId node, MessageClass message_class) {
  MutexLock lock(&mutex_);
  held_.insert({node, message_class});
}

void ThreadedBackEnd::Pause(NodeId node, MessageClass message_class) {
  const auto guard = std::chrono::steady_clock::now() + HangGuard();
  MutexLock lock(&mutex_);
  while (held_.count({node, message_class}) != 0 && changed_.WaitUntil(&mutex_, guard)) {
  }
}

void ThreadedBackEnd::Resume(NodeId node, MessageClass message_class) {
  MutexLock lock(&mutex_);
  held_.erase({node, message_class});
  changed_.SignalAll();
}

Node::Node(BackEnd* back_end, const TransportSettings& settings) : back_end_(back_end), settings_(settings) {}

Node::~Node() {
  if (transport_ != nullptr) Stop();
}

absl::Status Node::Start() {
  auto made = back_end_->Make(settings_, this);
  if (!made.ok()) return made.status();
  transport_ = *std::move(made);
  return transport_->Start();
}

void Node::Stop() {
  for (size_t i = 0; i < kMessageClasses; ++i) Release(static_cast<MessageClass>(i));
  if (!stopped_) transport_->Stop();
  stopped_ = true;
}

template <typename Predicate>
size_t Node::CountWhere(Predicate where) const {
  MutexLock lock(&mutex_);
  return static_cast<size_t>(std::count_if(
      seen_.begin(), seen_.end(), [&](const Seen& seen) { return seen.message.type != kSettleType && where(seen); }));
}

template <typename Predicate>
std::vector<Seen> Node::AllWhere(Predicate where) const {
  MutexLock lock(&mutex_);
  std::vector<Seen> found;
  std::copy_if(seen_.begin(), seen_.end(), std::back_inserter(found),
               [&](const Seen& seen) { return seen.message.type != kSettleType && where(seen); });
  return found;
}

std::vector<Seen> Node::All(Seen::Kind kind) const {
  return AllWhere([&](const Seen& seen) { return seen.kind == kind; });
}

std::vector<Seen> Node::Messages(NodeId from, MessageClass message_class) const {
  return AllWhere([&](const Seen& seen) {
    return seen.kind == Seen::Kind::kMessage && seen.peer == from && seen.message_class == message_class;
  });
}

size_t Node::Count(Seen::Kind kind) const {
  return CountWhere([&](const Seen& seen) { return seen.kind == kind; });
}

size_t Node::Count(Seen::Kind kind, NodeId peer) const {
  return CountWhere([&](const Seen& seen) { return seen.kind == kind && seen.peer == peer; });
}

size_t Node::CountMessages(NodeId from, MessageClass message_class) const {
  return CountWhere([&](const Seen& seen) {
    return seen.kind == Seen::Kind::kMessage && seen.peer == from && seen.message_class == message_class;
  });
}

size_t Node::EndedAt(uint64_t transaction) const {
  return CountWhere(
      [&](const Seen& seen) { return seen.kind == Seen::Kind::kMessage && seen.message.transaction == transaction; });
}

size_t Node::Settled(NodeId from, uint64_t number) const {
  MutexLock lock(&mutex_);
  return static_cast<size_t>(std::count_if(seen_.begin(), seen_.end(), [&](const Seen& seen) {
    return seen.message.type == kSettleType && seen.peer == from && seen.message.transaction == number;
  }));
}

bool Node::IsUp(NodeId peer) const {
  MutexLock lock(&mutex_);
  const auto found = up_.find(peer);
  return found != up_.end() && found->second;
}

void Node::Note(Seen seen) {
  EXPECT_FALSE(stopped_) << "a handler was called after Stop returned";
  {
    MutexLock lock(&mutex_);
    seen_.push_back(seen);
  }
  if (react) react(seen);
  back_end_->Wake();
}

void Node::OnMessage(NodeId from, const Message& message, std::span<const std::byte> payload, bool late) {
  const auto index = static_cast<size_t>(message.message_class);
  EXPECT_EQ(in_class_[index].fetch_add(1), 0) << "two handlers of one class at a time";
  EXPECT_TRUE(IsUp(from)) << "a message of a peer that is not up";
  Seen seen;
  seen.kind = Seen::Kind::kMessage;
  seen.peer = from;
  seen.message = message;
  seen.message.body = {};
  seen.body.assign(reinterpret_cast<const char*>(message.body.data()), message.body.size());
  seen.payload.assign(reinterpret_cast<const char*>(payload.data()), payload.size());
  seen.payload_at = payload.data();
  seen.late = late;
  seen.message_class = message.message_class;
  Note(std::move(seen));
  back_end_->Pause(id(), message.message_class);
  in_class_[index].fetch_sub(1);
}

void Node::OnPeerUp(NodeId peer) {
  {
    MutexLock lock(&mutex_);
    EXPECT_FALSE(up_[peer]) << "up twice";
    up_[peer] = true;
  }
  Seen seen;
  seen.kind = Seen::Kind::kUp;
  seen.peer = peer;
  Note(std::move(seen));
}

void Node::OnPeerFailed(NodeId peer, PeerFailure why, const std::string& detail) {
  {
    MutexLock lock(&mutex_);
    EXPECT_TRUE(up_[peer]) << "a failure of a peer that was not up";
    up_[peer] = false;
  }
  EXPECT_FALSE(detail.empty());
  Seen seen;
  seen.kind = Seen::Kind::kFailed;
  seen.peer = peer;
  seen.failure = why;
  seen.detail = detail;
  Note(std::move(seen));
}

void Node::OnWritable(NodeId peer, MessageClass message_class) {
  Seen seen;
  seen.kind = Seen::Kind::kWritable;
  seen.peer = peer;
  seen.message_class = message_class;
  Note(std::move(seen));
}

void Node::OnSlotsFree(MessageClass message_class, SlotUse use) {
  Seen seen;
  seen.kind = Seen::Kind::kSlotsFree;
  seen.message_class = message_class;
  seen.use = use;
  Note(std::move(seen));
}

void Node::OnRequestExpired(NodeId asked, MessageClass message_class, uint64_t transaction, SlotId slot,
                            RequestFailure why) {
  Seen seen;
  seen.kind = Seen::Kind::kExpired;
  seen.peer = asked;
  seen.message_class = message_class;
  seen.transaction = transaction;
  seen.slot = slot;
  seen.expired = why;
  Note(std::move(seen));
}

void TransportConformance::TearDown() {
  for (auto& [id, node] : nodes_) node.reset();
}

TransportSettings TransportConformance::Patient(uint16_t node) const {
  TransportSettings settings;
  settings.cluster = "conformance";
  settings.self = NodeId(node);
  settings.node_epoch = Epoch(1);
  settings.lease_ms = 300'000;
  settings.heartbeat_ms = 50;
  settings.handshake_ms = 60'000;
  settings.request_ms = 60'000;
  settings.backoff_ms = 1;
  settings.backoff_max_ms = 10;
  settings.window_messages = 8;
  settings.queue_messages = 32;
  settings.strangers = 4;
  settings.fault_receive_slots = settings.fault_send_slots = 4;
  settings.bulk_receive_slots = settings.bulk_send_slots = 2;
  return settings;
}

TransportSettings TransportConformance::Short(uint16_t node) const {
  TransportSettings settings = Patient(node);
  settings.lease_ms = 400;
  settings.heartbeat_ms = 20;
  return settings;
}

Node& TransportConformance::StartNode(const TransportSettings& settings, std::function<void(const Seen&)> react) {
  std::unique_ptr<Node>& node = nodes_[settings.self];
  node.reset();
  node = std::make_unique<Node>(back_end_.get(), settings);
  node->react = std::move(react);
  const absl::Status started = node->Start();
  EXPECT_TRUE(started.ok()) << started;
  return *node;
}

void TransportConformance::Join(Node& a, Node& b) {
  const absl::Status to_b = a->AddPeer(b.id(), back_end_->Address(a.id(), b.id()));
  const absl::Status to_a = b->AddPeer(a.id(), back_end_->Address(b.id(), a.id()));
  ASSERT_TRUE(to_b.ok() && to_a.ok()) << to_b << " " << to_a;
  ASSERT_TRUE(Await([&] { return a.IsUp(b.id()) && b.IsUp(a.id()); })) << "not connected";
}

bool TransportConformance::Kill(NodeId node) {
  for (const auto& [id, other] : nodes_) {
    if (id != node && !back_end_->Cut(node, id)) return false;
  }
  nodes_.erase(node);
  for (const auto& [id, other] : nodes_) back_end_->Heal(node, id);
  return true;
}

Message TransportConformance::Plain(MessageClass message_class, uint64_t transaction) {
  Message message;
  message.message_class = message_class;
  message.type = kFirstUserType;
  message.transaction = transaction;
  return message;
}

Message TransportConformance::RequestInto(const Node& node, SlotId slot, uint64_t transaction) {
  Message message = Plain(SlotName::Decode(slot).message_class, transaction);
  message.guest = kGuest;
  message.generation = 1;
  message.epoch = Epoch(5);
  message.slot_node = node.id();
  message.slot = slot;
  return message;
}

Message TransportConformance::AnswerTo(const Message& request) {
  Message message = request;
  message.type = kFirstUserType + 1;
  message.answer = true;
  return message;
}

SlotId TransportConformance::Acquire(Node& node, MessageClass message_class, SlotUse use) {
  auto slot = node->AcquireSlot(message_class, use);
  EXPECT_TRUE(slot.ok()) << slot.status();
  return slot.ok() ? *slot : SlotId();
}

absl::Status TransportConformance::SendPage(Node& from, const Message& request, const std::string& text, size_t bytes) {
  auto slot = from->AcquireSlot(request.message_class, SlotUse::kSend);
  if (!slot.ok()) return slot.status();
  const std::span<std::byte> page = from->SlotBytes(*slot);
  std::fill(page.begin(), page.end(), std::byte{'.'});
  std::memcpy(page.data(), text.data(), std::min(text.size(), page.size()));
  SendOptions options;
  options.payload = *slot;
  options.payload_bytes = static_cast<uint32_t>(bytes);
  absl::Status sent = from->Send(request.slot_node, AnswerTo(request), options);
  from->ReleaseSlot(*slot);
  return sent;
}

bool TransportConformance::Settle(Node& a, Node& b) {
  static std::atomic<uint64_t> next = 1;
  const uint64_t number = next++;
  for (const MessageClass message_class : kClasses) {
    Message message = Plain(message_class, number);
    message.type = kSettleType;
    if (!Await([&] { return a->Send(b.id(), message).ok(); })) return false;
  }
  return Await([&] { return b.Settled(a.id(), number) == kMessageClasses; });
}

PeerStatistics TransportConformance::Of(Node& node, NodeId peer) {
  const auto statistics = node->Statistics(peer);
  EXPECT_TRUE(statistics.ok()) << statistics.status();
  return statistics.ok() ? *statistics : PeerStatistics();
}

uint64_t TransportConformance::Dropped(Node& node, NodeId peer, DropReason reason) {
  const PeerStatistics statistics = Of(node, peer);
  uint64_t dropped = 0;
  for (const ClassStatistics& one : statistics.classes) dropped += one.dropped[static_cast<size_t>(reason)];
  return dropped;
}

}  // namespace hk
