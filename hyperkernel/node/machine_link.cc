#include "hyperkernel/node/machine_link.h"

#include <x86intrin.h>

#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/machine_wire.h"
#include "hyperkernel/node/move_wire.h"

namespace hk {
namespace {

// A pong that is not there by then will not make a good exchange: another ping is sent. Pings and pongs that find no
// room are dropped for the same reason.
constexpr std::chrono::milliseconds kPingPatience{100};
// A wait without an end of its own looks again so often.
constexpr std::chrono::hours kLookAgain{1};

}  // namespace

MachineLink::MachineLink(Transport* transport, SpaceRouter* router, MachineLinkOptions options)
    : transport_(transport), router_(router), options_([&] {
        if (!options.ticks) options.ticks = [] { return static_cast<uint64_t>(__rdtsc()); };
        return std::move(options);
      }()) {
  HK_CHECK(options_.failed && options_.guest != GuestId());
  HK_CHECK(std::ranges::count(options_.nodes, options_.self) == 1);
  HK_CHECK(std::ranges::count(options_.nodes, options_.io_node) == 1);
  peers_.resize(kMaxNodes);
  for (const NodeId node : options_.nodes) {
    HK_CHECK(node.value() < kMaxNodes && peers_[node.value()] == nullptr);
    if (node != options_.self) peers_[node.value()] = std::make_unique<Peer>();
  }
  reporter_ = std::thread([this] { Report(); });
}

MachineLink::~MachineLink() {
  Close();
}

void MachineLink::Attach(InterruptController* interrupts, ExitMessages* exits, MoveMessages* moves) {
  interrupts_ = interrupts;
  exits_ = exits;
  moves_ = moves;
}

absl::Status MachineLink::Open() {
  HK_CHECK(interrupts_ != nullptr && exits_ != nullptr);
  HK_RETURN_IF_ERROR(router_->Add(options_.guest, options_.generation, this));
  open_ = true;
  return absl::OkStatus();
}

void MachineLink::Close() {
  if (!reporter_.joinable()) return;
  ended_ = true;
  if (open_) router_->Remove(options_.guest, options_.generation);
  {
    MutexLock lock(&clock_mutex_);
    clock_changed_.SignalAll();
  }
  for (const std::unique_ptr<Peer>& peer : peers_) {
    if (peer == nullptr) continue;
    for (Lane* const lane : {&peer->fault, &peer->invalidate}) {
      MutexLock lock(&lane->mutex);  // a Send that is under way
      lane->kept.clear();
    }
  }
  {
    MutexLock lock(&end_mutex_);
    closing_ = true;
    end_changed_.Signal();
  }
  reporter_.join();
}

MachineLink::Peer* MachineLink::Find(NodeId node) const {
  return node.value() < kMaxNodes ? peers_[node.value()].get() : nullptr;
}

Message MachineLink::Header(uint16_t type, uint64_t transaction, std::span<const std::byte> body) const {
  Message message;
  message.message_class = ClassOfMachineType(type);
  message.type = type;
  message.guest = options_.guest;
  message.generation = options_.generation;
  message.transaction = transaction;
  message.body = body;
  return message;
}

bool MachineLink::Post(NodeId to, Lane* lane, uint16_t type, uint64_t transaction, std::span<const std::byte> body,
                       SendWhen when) {
  // Locked around the Send too: what another thread sends later must not overtake, and OnWritable must not miss what is
  // kept.
  if (ended_) return true;
  if (lane->kept.empty() || HK_MUTANT(machine_link_overtakes)) {
    const SendOptions options{.payload = {}, .writers = {}, .when = when};
    const absl::Status sent = transport_->Send(to, Header(type, transaction, body), options);
    if (sent.ok() || HK_MUTANT(machine_link_drops_refused)) return true;
    if (!absl::IsResourceExhausted(sent)) {
      NotSent(to, sent);
      return true;
    }
  }
  lane->kept.push_back({.type = type, .transaction = transaction, .body = {body.begin(), body.end()}});
  return false;
}

void MachineLink::Offer(NodeId to, Lane* lane, uint16_t type, uint64_t transaction, std::span<const std::byte> body) {
  MutexLock lock(&lane->mutex);
  if (ended_ || !lane->kept.empty()) return;
  const absl::Status sent = transport_->Send(to, Header(type, transaction, body));
  if (!sent.ok() && !absl::IsResourceExhausted(sent)) NotSent(to, sent);
}

void MachineLink::NotSent(NodeId to, const absl::Status& why) {
  Fail(to, fmt::format("cannot be sent to: {}", MessageOf(why)));
}

bool MachineLink::Drain(NodeId to, Lane* lane) {
  MutexLock lock(&lane->mutex);
  if (lane->kept.empty() || ended_) return false;
  while (!lane->kept.empty()) {
    const Kept& next = lane->kept.front();
    const absl::Status sent = transport_->Send(to, Header(next.type, next.transaction, next.body));
    if (absl::IsResourceExhausted(sent)) return false;  // OnWritable comes again
    if (!sent.ok()) {
      NotSent(to, sent);
      return false;
    }
    lane->kept.pop_front();
  }
  return true;
}

bool MachineLink::Send(NodeId to, std::span<const std::byte> bytes) {
  Peer* const peer = Find(to);
  HK_CHECK(peer != nullptr);
  MutexLock lock(&peer->invalidate.mutex);
  return Post(to, &peer->invalidate, kMachineInterruptType, 0, bytes);
}

bool MachineLink::PostExit(NodeId to, uint16_t type, uint64_t transaction, std::span<const std::byte> body) {
  Peer* const peer = Find(to);
  HK_CHECK(peer != nullptr);
  MutexLock lock(&peer->fault.mutex);
  return Post(to, &peer->fault, type, transaction, body);
}

bool MachineLink::PostDoorbell(NodeId to, std::span<const std::byte> body) {
  Peer* const peer = Find(to);
  HK_CHECK(peer != nullptr);
  Lane* const lane = &peer->fault;
  MutexLock lock(&lane->mutex);
  size_t waiting = 0;
  for (const Kept& kept : lane->kept) {
    if (kept.type != kMachineDoorbellType) continue;
    if (std::ranges::equal(kept.body, body)) return true;
    waiting++;
  }
  if (waiting != 0 && HK_MUTANT(machine_waiting_doorbell_drops_others)) return true;
  if (waiting >= kMostKeptDoorbells) return false;
  Post(to, lane, kMachineDoorbellType, 0, body);
  return true;
}

void MachineLink::PostMove(NodeId to, uint16_t type, uint64_t transaction, std::span<const std::byte> body) {
  Peer* const peer = Find(to);
  HK_CHECK(peer != nullptr && IsMoveType(type));
  MutexLock lock(&peer->fault.mutex);
  Post(to, &peer->fault, type, transaction, body);
}

void MachineLink::PostPieces(NodeId to, uint64_t transaction, VcpuId vcpu, std::span<const std::byte> bytes) {
  Peer* const peer = Find(to);
  HK_CHECK(peer != nullptr);
  MutexLock lock(&peer->fault.mutex);
  for (size_t at = 0; at < bytes.size(); at += kMostPieceBytes) {
    const bool last = bytes.size() - at <= kMostPieceBytes;
    Post(to, &peer->fault, kMachineMovePieceType, transaction, EncodeMovePiece(vcpu, bytes, at),
         last ? SendWhen::kNow : SendWhen::kWithNext);
  }
}

void MachineLink::OnWritable(NodeId node, MessageClass message_class) {
  Peer* const peer = Find(node);
  if (peer == nullptr) return;
  if (message_class == MessageClass::kInvalidate && Drain(node, &peer->invalidate)) interrupts_->OnWritable(node);
  if (message_class == MessageClass::kFault && Drain(node, &peer->fault)) exits_->OnExitsSent(node);
}

void MachineLink::OnPeerFailed(NodeId peer, PeerFailure, const std::string& detail) {
  if (Find(peer) == nullptr) return;
  Fail(peer, detail.empty() ? "is lost" : fmt::format("is lost: {}", detail));
}

void MachineLink::OnMessage(NodeId from, const Message& message, std::span<const std::byte> payload, bool) {
  const uint64_t received = message.type == kMachinePongType ? options_.ticks() : 0;
  // An answer's slot is this node's again. Nothing here has asked with one.
  if (message.answer) transport_->ReleaseSlot(message.slot);
  // Whoever has no part in the guest cannot harm it.
  if (ended_ || Find(from) == nullptr) return;
  const absl::Status taken =
      message.type == kMachinePongType ? OnPong(from, message, received) : Take(from, message, payload);
  if (!taken.ok()) Fail(from, fmt::format("is not to be relied on: {}", MessageOf(taken)));
}

absl::Status MachineLink::Take(NodeId from, const Message& message, std::span<const std::byte> payload) {
  HK_RETURN_IF_ERROR(CheckMachineHeader(message, payload));
  if (message.type == kMachineInterruptType) return interrupts_->OnMessage(from, message.body);
  if (IsMoveType(message.type)) {
    return moves_ != nullptr ? moves_->OnMoveMessage(from, message)
                             : absl::InvalidArgumentError("a word about a move where none is");
  }
  if (message.type != kMachinePingType) return exits_->OnExitMessage(from, message);
  HK_RETURN_IF_ERROR(DecodePing(message.body));
  if (options_.self != options_.io_node) return absl::InvalidArgumentError("a ping to a node that is not asked");
  Offer(from, &Find(from)->invalidate, kMachinePongType, message.transaction, EncodePong(options_.ticks()));
  return absl::OkStatus();
}

absl::Status MachineLink::OnPong(NodeId from, const Message& message, uint64_t received) {
  HK_RETURN_IF_ERROR(CheckMachineHeader(message, {}));
  const absl::StatusOr<uint64_t> remote = DecodePong(message.body);
  if (!remote.ok()) return remote.status();
  MutexLock lock(&clock_mutex_);
  const bool newest = message.transaction == exchange_.last;
  // One that is older was given up.
  if (from != options_.io_node || message.transaction > exchange_.last || (newest && !exchange_.awaited)) {
    return absl::InvalidArgumentError("a pong to no ping");
  }
  if (!newest) return absl::OkStatus();
  exchange_.awaited = false;
  exchange_.remote = *remote;
  exchange_.received = received;
  clock_changed_.Signal();
  return absl::OkStatus();
}

absl::StatusOr<TscOffset> MachineLink::MeasureTsc(Monotonic deadline, uint32_t exchanges) {
  if (options_.self == options_.io_node) return TscOffset();
  Lane* const lane = &Find(options_.io_node)->invalidate;
  TscEstimate estimate;
  {
    MutexLock lock(&clock_mutex_);
    if (exchange_.measuring) return absl::FailedPreconditionError("the clocks are being measured already");
    exchange_.measuring = true;
  }
  while (estimate.exchanges() < exchanges && !ended_ && std::chrono::steady_clock::now() < deadline) {
    uint64_t transaction = 0;
    {
      MutexLock lock(&clock_mutex_);
      transaction = ++exchange_.last;
      exchange_.awaited = true;
    }
    const uint64_t sent = options_.ticks();
    Offer(options_.io_node, lane, kMachinePingType, transaction, EncodePing());
    MutexLock lock(&clock_mutex_);
    const Monotonic patience = std::min(deadline, std::chrono::steady_clock::now() + kPingPatience);
    while (exchange_.awaited && !ended_ && clock_changed_.WaitUntil(&clock_mutex_, patience)) {
    }
    if (!exchange_.awaited) estimate.Add(sent, exchange_.remote, exchange_.received);
  }
  MutexLock lock(&clock_mutex_);
  exchange_.measuring = false;
  if (ended_) return absl::UnavailableError("the guest's link has ended");
  if (estimate.exchanges() == 0) return absl::DeadlineExceededError("the I/O node does not tell its clock");
  return estimate.best();
}

void MachineLink::Fail(NodeId peer, std::string reason) {
  MutexLock lock(&end_mutex_);
  if (failure_.has_value() || closing_) return;
  ended_ = true;
  failure_ = {.peer = peer, .reason = std::move(reason)};
  end_changed_.Signal();
}

void MachineLink::Report() {
  Failure failure;
  {
    MutexLock lock(&end_mutex_);
    while (!failure_.has_value() && !closing_) {
      end_changed_.WaitUntil(&end_mutex_, std::chrono::steady_clock::now() + kLookAgain);
    }
    if (closing_) return;
    failure = *failure_;
  }
  options_.failed(failure.peer, failure.reason);
}

}  // namespace hk
