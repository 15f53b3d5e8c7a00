// What tests of a machine's links share: nodes whose transports are queues in memory, delivered when the test says so.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/hang_guard.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/device/doorbells.h"
#include "hyperkernel/irq/irq_testing.h"
#include "hyperkernel/kvm/exit_handler.h"
#include "hyperkernel/memory/space_router.h"
#include "hyperkernel/memory/space_testing.h"
#include "hyperkernel/node/machine_link.h"
#include "hyperkernel/node/machine_wire.h"

namespace hk {

// A message and its memory.
struct MemoryMessage {
  Message message;
  std::vector<std::byte> body;
};

// Nodes 0 to nodes - 1 of one guest; the last is the I/O node. Sends may come from any thread; all else is the test's
// thread's.
class MachineNetwork {
 public:
  static constexpr GuestId kGuest{77};
  using Lane = std::tuple<uint16_t, uint16_t, MessageClass>;  // from, to

  explicit MachineNetwork(uint16_t count) : io_node(static_cast<uint16_t>(count - 1)) {
    std::vector<NodeId> all;
    for (uint16_t i = 0; i < count; ++i) all.push_back(NodeId(i));
    for (uint16_t i = 0; i < count; ++i) {
      nodes_.push_back(std::make_unique<Node>(this, i));
      Node* const node = nodes_.back().get();
      node->router.SetTransport(&node->transport);
      MachineLinkOptions options;
      options.guest = kGuest;
      options.self = NodeId(i);
      options.io_node = NodeId(io_node);
      options.nodes = all;
      options.ticks = [node] { return node->ticks(); };
      options.failed = [this, node](NodeId peer, const std::string& reason) {
        MutexLock lock(&mutex_);
        node->failures.push_back(std::to_string(peer.value()) + ": " + reason);
        changed_.SignalAll();
      };
      node->link = std::make_unique<MachineLink>(&node->transport, &node->router, std::move(options));
    }
  }
  ~MachineNetwork() { Close(); }
  // Before what was given to Open ends.
  void Close() {
    for (auto& node : nodes_) node->link->Close();
  }

  MachineLink* link(uint16_t node) { return nodes_[node]->link.get(); }
  SpaceRouter* router(uint16_t node) { return &nodes_[node]->router; }
  void SetTicks(uint16_t node, std::function<uint64_t()> ticks) { nodes_[node]->ticks = std::move(ticks); }
  // Makes controllers, with vCPUs dealt out in turn, and opens the links.
  void Open(std::vector<ExitMessages*> exits, uint32_t vcpus = 2, std::vector<MoveMessages*> moves = {}) {
    moves.resize(nodes_.size());
    InterruptNodes placement;
    placement.io_node = NodeId(io_node);
    for (uint16_t i = 0; i < nodes_.size(); ++i) placement.nodes.push_back(NodeId(i));
    for (uint32_t i = 0; i < vcpus; ++i) placement.vcpus.push_back(NodeId(static_cast<uint16_t>(i % nodes_.size())));
    for (uint16_t i = 0; i < nodes_.size(); ++i) {
      placement.self = NodeId(i);
      placement.link = link(i);
      nodes_[i]->interrupts = std::make_unique<InterruptController>(InterruptControllerOptions{.vcpus = vcpus},
                                                                    placement, &clock_, &waker_);
      link(i)->Attach(nodes_[i]->interrupts.get(), exits[i], moves[i]);
      HK_CHECK(link(i)->Open().ok());
    }
  }
  InterruptController& interrupts(uint16_t node) { return *nodes_[node]->interrupts; }

  // How many messages a lane holds; OnWritable comes when half of them are gone, and what is sent before is taken.
  void SetRoom(size_t room) {
    MutexLock lock(&mutex_);
    room_ = room;
  }
  // What is sent to the node fails.
  void SetDown(uint16_t to) {
    MutexLock lock(&mutex_);
    down_.insert(to);
  }
  uint64_t refused() {
    MutexLock lock(&mutex_);
    return refused_;
  }
  // Waits until that many were.
  void WaitRefused(uint64_t count) {
    MutexLock lock(&mutex_);
    const auto guard = std::chrono::steady_clock::now() + HangGuard();
    while (refused_ < count) HK_CHECK(changed_.WaitUntil(&mutex_, guard));
  }
  // There is room in a lane that has refused something.
  void Writable(uint16_t from, uint16_t to, MessageClass message_class) {
    {
      MutexLock lock(&mutex_);
      lanes_[{from, to, message_class}].full = false;
    }
    router(from)->OnWritable(NodeId(to), message_class);
  }
  // Slots that the node has given back.
  std::vector<uint64_t> released(uint16_t node) { return nodes_[node]->transport.released; }
  size_t waiting(uint16_t from, uint16_t to, MessageClass message_class) {
    MutexLock lock(&mutex_);
    return lanes_[{from, to, message_class}].messages.size();
  }
  // What a node would be told, had a peer sent it.
  void Give(uint16_t from, uint16_t to, const MemoryMessage& message) {
    Message given = message.message;
    given.body = message.body;
    router(to)->OnMessage(NodeId(from), given, {}, false);
  }
  void Give(uint16_t from, uint16_t to, uint16_t type, uint64_t transaction, std::span<const std::byte> body) {
    Give(from, to, Make(type, transaction, body));
  }
  static MemoryMessage Make(uint16_t type, uint64_t transaction, std::span<const std::byte> body) {
    MemoryMessage made;
    made.message.message_class = ClassOfMachineType(type);
    made.message.type = type;
    made.message.guest = kGuest;
    made.message.generation = 1;
    made.message.transaction = transaction;
    made.body.assign(body.begin(), body.end());
    return made;
  }
  // The oldest message of a lane, taken off; waits until there is one.
  MemoryMessage Take(uint16_t from, uint16_t to, MessageClass message_class) {
    MemoryMessage taken;
    bool writable = false;
    {
      MutexLock lock(&mutex_);
      Queue& queue = lanes_[{from, to, message_class}];
      const auto guard = std::chrono::steady_clock::now() + HangGuard();
      while (queue.messages.empty()) HK_CHECK(changed_.WaitUntil(&mutex_, guard));
      taken = std::move(queue.messages.front());
      queue.messages.pop_front();
      writable = queue.full && queue.messages.size() <= room_ / 2;
      if (writable) queue.full = false;
    }
    if (writable) router(from)->OnWritable(NodeId(to), message_class);
    return taken;
  }
  void Deliver(uint16_t from, uint16_t to, MessageClass message_class) {
    const MemoryMessage message = Take(from, to, message_class);
    if (before_delivery) before_delivery(message);
    Give(from, to, message);
  }
  // One message of the `pick`-th lane that has any. False: none has.
  bool DeliverOne(size_t pick = 0) {
    std::vector<Lane> busy;
    {
      MutexLock lock(&mutex_);
      for (const auto& [lane, queue] : lanes_) {
        if (!queue.messages.empty()) busy.push_back(lane);
      }
    }
    if (busy.empty()) return false;
    const auto& [from, to, message_class] = busy[pick % busy.size()];
    Deliver(from, to, message_class);
    return true;
  }
  void DeliverAll() {
    while (DeliverOne()) {
    }
  }
  // Delivers until `done`, which is asked again after each message and Notify. Called with no lock held.
  void DeliverUntil(const std::function<bool()>& done) {
    const auto guard = std::chrono::steady_clock::now() + HangGuard();
    while (!done()) {
      if (DeliverOne()) continue;
      MutexLock lock(&mutex_);
      if (!AnyWaits()) {
        // Short: `done` may have become true just before.
        changed_.WaitUntil(&mutex_, std::chrono::steady_clock::now() + std::chrono::milliseconds(10));
      }
      HK_CHECK(std::chrono::steady_clock::now() < guard);
    }
  }
  // Why the node's link failed, as its owner was told; waits for it.
  std::string Failure(uint16_t node) {
    MutexLock lock(&mutex_);
    const auto guard = std::chrono::steady_clock::now() + HangGuard();
    while (nodes_[node]->failures.empty() && changed_.WaitUntil(&mutex_, guard)) {
    }
    return nodes_[node]->failures.empty() ? "" : nodes_[node]->failures.front();
  }
  size_t Failures(uint16_t node) {
    MutexLock lock(&mutex_);
    return nodes_[node]->failures.size();
  }

  const uint16_t io_node;
  std::function<void(const MemoryMessage&)> before_delivery;  // of what Deliver and its like deliver

 private:
  struct Queue {
    std::deque<MemoryMessage> messages;
    bool full = false;
  };
  // A node's transport.
  class MemoryTransport final : public NotingTransport {
   public:
    MemoryTransport(MachineNetwork* network, uint16_t self) : network_(network), self_(self) {}
    absl::Status Send(NodeId to, const Message& message, const SendOptions&) override {
      return network_->Send(self_, to.value(), message);
    }

   private:
    MachineNetwork* const network_;
    const uint16_t self_;
  };
  struct Node {
    Node(MachineNetwork* network, uint16_t self) : transport(network, self) {}
    SpaceRouter router;
    MemoryTransport transport;
    std::function<uint64_t()> ticks = [] { return uint64_t{0}; };
    std::vector<std::string> failures;
    std::unique_ptr<MachineLink> link;
    std::unique_ptr<InterruptController> interrupts;
  };

  absl::Status Send(uint16_t from, uint16_t to, const Message& message) {
    MutexLock lock(&mutex_);
    if (down_.contains(to)) return absl::UnavailableError("the peer is not up");
    Queue& queue = lanes_[{from, to, message.message_class}];
    if (queue.messages.size() >= room_) {
      queue.full = true;
      ++refused_;
      changed_.SignalAll();
      return absl::ResourceExhaustedError("the queue is full");
    }
    queue.messages.push_back({message, {message.body.begin(), message.body.end()}});
    changed_.SignalAll();
    return absl::OkStatus();
  }
  bool AnyWaits() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return std::ranges::any_of(lanes_, [](const auto& lane) { return !lane.second.messages.empty(); });
  }

  ManualClock clock_;
  RecordingWaker waker_;
  Mutex mutex_;
  CondVar changed_;
  size_t room_ = 1000;
  uint64_t refused_ = 0;
  std::set<uint16_t> down_;
  std::map<Lane, Queue> lanes_;
  std::vector<std::unique_ptr<Node>> nodes_;  // last: their links end before what they use
};

// Takes no messages about exits.
class NoExits final : public ExitMessages {
 public:
  absl::Status OnExitMessage(NodeId, const Message&) override { return absl::InvalidArgumentError("no exits here"); }
  void OnExitsSent(NodeId) override { sent++; }
  int sent = 0;
};

// A doorbell, by number.
constexpr Gpa DoorbellAt(uint64_t number) {
  return Gpa(kPci32Start.value() + number / 64 * kDoorbellBarBytes + kDoorbellsOffset + number % 64 * kDoorbellStride);
}

// Devices that remember: a register of 8 bytes for each port and address; and doorbells, which only count. Thread-safe.
class NotingDevices final : public ExitHandler {
 public:
  void PortRead(uint16_t port, std::span<std::byte> data) override { Read(port, data); }
  void PortWrite(uint16_t port, std::span<const std::byte> data) override { Write(port, data); }
  void MmioRead(Gpa address, std::span<std::byte> data) override { Read(address.value(), data); }
  void MmioWrite(Gpa address, std::span<const std::byte> data) override {
    if (!MayBeDoorbell(address)) return Write(address.value(), data);
    MutexLock lock(&mutex_);
    ++rung_;
  }
  void OnGuestFailure(VcpuId vcpu, const std::string& reason) override {
    MutexLock lock(&mutex_);
    failures_.push_back(std::to_string(vcpu.value()) + ": " + reason);
    changed_.SignalAll();
  }

  // Accesses wait while it is true.
  void SetBusy(bool busy) {
    MutexLock lock(&mutex_);
    busy_ = busy;
    changed_.SignalAll();
  }
  void WaitEntered() {
    MutexLock lock(&mutex_);
    const auto guard = std::chrono::steady_clock::now() + HangGuard();
    while (inside_ == 0) HK_CHECK(changed_.WaitUntil(&mutex_, guard));
  }
  uint64_t accesses() {
    MutexLock lock(&mutex_);
    return accesses_;
  }
  // Writes to doorbells.
  uint64_t rung() {
    MutexLock lock(&mutex_);
    return rung_;
  }
  // Waits for the first.
  std::vector<std::string> failures() {
    MutexLock lock(&mutex_);
    const auto guard = std::chrono::steady_clock::now() + HangGuard();
    while (failures_.empty()) HK_CHECK(changed_.WaitUntil(&mutex_, guard));
    return failures_;
  }

 private:
  void Enter() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    ++accesses_;
    ++inside_;
    changed_.SignalAll();
    const auto guard = std::chrono::steady_clock::now() + HangGuard();
    while (busy_) HK_CHECK(changed_.WaitUntil(&mutex_, guard));
    --inside_;
  }
  void Read(uint64_t address, std::span<std::byte> data) {
    MutexLock lock(&mutex_);
    Enter();
    std::copy_n(registers_[address].begin(), data.size(), data.begin());
  }
  void Write(uint64_t address, std::span<const std::byte> data) {
    MutexLock lock(&mutex_);
    Enter();
    std::ranges::copy(data, registers_[address].begin());
  }

  Mutex mutex_;
  CondVar changed_;
  bool busy_ = false;
  int inside_ = 0;
  uint64_t accesses_ = 0, rung_ = 0;
  std::vector<std::string> failures_;
  std::map<uint64_t, std::array<std::byte, kMaxExitBytes>> registers_;
};

}  // namespace hk
