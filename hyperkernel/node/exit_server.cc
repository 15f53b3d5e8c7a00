#include "hyperkernel/node/exit_server.h"

#include <array>
#include <chrono>
#include <span>
#include <utility>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/service_thread.h"

namespace hk {
namespace {

// A wait without an end of its own looks again so often.
constexpr std::chrono::hours kLookAgain{1};

}  // namespace

ExitServer::ExitServer(MachineLink* link, ExitHandler* local, uint32_t vcpus)
    : link_(link), local_(local), vcpus_(vcpus) {
  HK_CHECK(link->self() == link->io_node() && vcpus >= 1 && vcpus <= kMaxVcpus);
  for (const NodeId node : link->nodes()) {
    if (node == link->self()) continue;
    peers_.push_back(std::make_unique<Peer>(node, vcpus));
    Peer* const peer = peers_.back().get();
    peer->thread = std::thread([this, peer] { Run(peer); });
  }
}

ExitServer::~ExitServer() {
  Stop();
}

void ExitServer::Stop() {
  for (const std::unique_ptr<Peer>& peer : peers_) {
    MutexLock lock(&peer->mutex);
    peer->stopping = true;
    peer->changed.SignalAll();
    while (peer->ringing) peer->changed.WaitUntil(&peer->mutex, std::chrono::steady_clock::now() + kLookAgain);
  }
  for (const std::unique_ptr<Peer>& peer : peers_) {
    if (peer->thread.joinable()) peer->thread.join();
  }
}

ExitServer::Peer* ExitServer::Find(NodeId node) {
  for (const std::unique_ptr<Peer>& peer : peers_) {
    if (peer->node == node) return peer.get();
  }
  return nullptr;
}

absl::Status ExitServer::OnExitMessage(NodeId from, const Message& message) {
  Peer* const peer = Find(from);
  HK_CHECK(peer != nullptr);
  if (message.type == kMachineFailureType) {
    absl::StatusOr<VcpuFailure> failure = DecodeFailure(message.body);
    if (!failure.ok()) return failure.status();
    if (failure->vcpu.value() >= vcpus_) return absl::InvalidArgumentError("the failure of a vCPU that there is not");
    MutexLock lock(&peer->mutex);
    if (peer->failed.Contains(failure->vcpu)) return absl::InvalidArgumentError("a vCPU that fails twice");
    peer->failed.Add(failure->vcpu);
    peer->failures.push_back(*std::move(failure));
    peer->changed.Signal();
    return absl::OkStatus();
  }
  if (message.type == kMachineDoorbellType) {
    const absl::StatusOr<Gpa> address = DecodeDoorbell(message.body);
    if (address.ok()) Ring(peer, *address);
    return address.status();
  }
  if (message.type != kMachineExitType) return absl::InvalidArgumentError("an answer to the node of the devices");
  const absl::StatusOr<ExitRequest> request = DecodeExitRequest(message.body);
  if (!request.ok()) return request.status();
  {
    MutexLock lock(&peer->mutex);
    if (peer->stopping) return absl::OkStatus();
    if (peer->count == peer->accesses.size() && HK_MUTANT(machine_queue_unbounded)) peer->count--;
    if (peer->count == peer->accesses.size()) return absl::InvalidArgumentError("more accesses at a time than vCPUs");
    peer->accesses[(peer->first + peer->count++) % peer->accesses.size()] = {message.transaction, *request};
  }
  peer->changed.Signal();  // not under the lock, which who is woken needs
  return absl::OkStatus();
}

// At once: not behind accesses of other vCPUs that take long. The vCPU's own are made by now: it waited for them.
void ExitServer::Ring(Peer* peer, Gpa address) {
  {
    MutexLock lock(&peer->mutex);
    if (peer->stopping) return;
    peer->ringing = true;
  }
  // Which queue is meant stands in the address, and what is written means nothing (virtio 1.2, 4.1.4.4).
  constexpr std::array<std::byte, 2> kAnything{};
  local_->MmioWrite(address, kAnything);
  MutexLock lock(&peer->mutex);
  peer->ringing = false;
  if (peer->stopping) peer->changed.SignalAll();
}

void ExitServer::OnExitsSent(NodeId to) {
  Peer* const peer = Find(to);
  HK_CHECK(peer != nullptr);
  MutexLock lock(&peer->mutex);
  peer->sent = true;
  peer->changed.Signal();
}

// One answer at a time is not yet with the transport: a node that takes none gets no more work done.
void ExitServer::Run(Peer* peer) {
  ServeFirst();
  for (;;) {
    Access access;
    std::vector<VcpuFailure> failures;
    bool made = false;
    {
      MutexLock lock(&peer->mutex);
      while (!peer->stopping && peer->failures.empty() && (!peer->sent || peer->count == 0)) {
        peer->changed.WaitUntil(&peer->mutex, std::chrono::steady_clock::now() + kLookAgain);
      }
      if (peer->stopping) return;
      failures.swap(peer->failures);
      if (failures.empty()) {
        access = peer->accesses[peer->first];
        peer->first = (peer->first + 1) % peer->accesses.size();
        peer->count--;
        peer->sent = false;
        made = true;
      }
    }
    for (const VcpuFailure& failure : failures) local_->OnGuestFailure(failure.vcpu, failure.reason);
    if (!made) continue;
    const auto body = EncodeExitAnswer(Make(access.request));
    if (link_->PostExit(peer->node, kMachineAnswerType, access.transaction, body)) OnExitsSent(peer->node);
  }
}

ExitAnswer ExitServer::Make(const ExitRequest& request) {
  ExitAnswer answer{.kind = request.kind, .size = request.size, .data = {}};
  const auto port = static_cast<uint16_t>(request.address);
  const std::span<std::byte> read = std::span(answer.data).first(request.size);
  const std::span<const std::byte> written = std::span(request.data).first(request.size);
  switch (request.kind) {
    case ExitKind::kPortRead:
      local_->PortRead(port, read);
      break;
    case ExitKind::kPortWrite:
      local_->PortWrite(port, written);
      break;
    case ExitKind::kMmioRead:
      local_->MmioRead(Gpa(request.address), read);
      break;
    case ExitKind::kMmioWrite:
      local_->MmioWrite(Gpa(request.address), written);
      break;
  }
  return answer;
}

}  // namespace hk
