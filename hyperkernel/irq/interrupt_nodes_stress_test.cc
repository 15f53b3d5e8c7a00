// Controllers of several nodes under threads: one for each vCPU, which moves itself, one for each node's messages, and
// a device. ThreadSanitizer runs this too.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <deque>
#include <random>
#include <thread>
#include <vector>

#include "hyperkernel/irq/interrupt_controller.h"
#include "hyperkernel/irq/irq_nodes_testing.h"

namespace hk {
namespace {

using Kind = VcpuWork::Kind;

constexpr uint32_t kVcpus = 5;
constexpr uint16_t kNodes = 3;
constexpr uint8_t kToken = 0x40;  // + where it started
constexpr uint8_t kLevelVector = 0x60;
constexpr uint8_t kPin = 3;
constexpr uint64_t kRounds = 300, kDeviceInterrupts = 300;
constexpr auto kLimit = std::chrono::seconds(60);

// Sleeps until it is rung.
class Bell {
 public:
  void Ring() {
    {
      MutexLock lock(&mutex_);
      rung_ = true;
    }
    changed_.Signal();
  }
  // Whether it was rung before the deadline.
  bool Wait(Monotonic end) {
    MutexLock lock(&mutex_);
    while (!rung_ && changed_.WaitUntil(&mutex_, end)) {
    }
    return std::exchange(rung_, false);
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool rung_ ABSL_GUARDED_BY(mutex_) = false;
};

// One node: what has come for it, and who is told.
class Mailbox final : public InterruptLink {
 public:
  Mailbox(std::array<Mailbox, kNodes>* all, uint16_t self) : all_(all), self_(self) {}
  bool Send(NodeId to, std::span<const std::byte> bytes) override {
    Mailbox& other = (*all_)[to.value()];
    bool room;
    {
      MutexLock lock(&other.mutex_);
      other.messages_.emplace_back(self_, InterruptBytes(bytes.begin(), bytes.end()));
      room = other.messages_.size() < 4;
      if (!room) other.refused_.push_back(self_);
    }
    other.bell.Ring();
    return room;
  }
  // The node's own thread: everything that has come, and then who may send again.
  void Deliver(const std::vector<std::unique_ptr<InterruptController>>& controllers) {
    while (true) {
      std::pair<uint16_t, InterruptBytes> next;
      std::vector<uint16_t> refused;
      {
        MutexLock lock(&mutex_);
        if (messages_.empty()) {
          refused = std::exchange(refused_, {});
          if (refused.empty()) return;
        } else {
          next = std::move(messages_.front());
          messages_.pop_front();
        }
      }
      for (uint16_t node : refused) controllers[node]->OnWritable(NodeId(self_));
      if (!next.second.empty()) {
        EXPECT_TRUE(controllers[self_]->OnMessage(NodeId(next.first), next.second).ok());
      }
    }
  }
  Bell bell;

 private:
  std::array<Mailbox, kNodes>* const all_;
  const uint16_t self_;
  Mutex mutex_;
  std::deque<std::pair<uint16_t, InterruptBytes>> messages_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint16_t> refused_ ABSL_GUARDED_BY(mutex_);
};

class Cluster final : public VcpuWaker {
 public:
  Cluster() : boxes_{Mailbox(&boxes_, 0), Mailbox(&boxes_, 1), Mailbox(&boxes_, 2)} {
    InterruptNodes nodes;
    nodes.io_node = NodeId(0);
    for (uint16_t i = 0; i < kNodes; ++i) nodes.nodes.push_back(NodeId(i));
    for (uint32_t i = 0; i < kVcpus; ++i) nodes.vcpus.push_back(NodeId(static_cast<uint16_t>(i % kNodes)));
    for (uint16_t i = 0; i < kNodes; ++i) {
      nodes.self = NodeId(i);
      nodes.link = &boxes_[i];
      controllers_.push_back(std::make_unique<InterruptController>(InterruptControllerOptions{.vcpus = kVcpus}, nodes,
                                                                   &RealClock(), this));
    }
    for (uint16_t i = 0; i < kNodes; ++i) {
      threads_.emplace_back([this, i] {
        while (!stopping_) {
          boxes_[i].bell.Wait(RealClock().Now() + std::chrono::milliseconds(50));
          boxes_[i].Deliver(controllers_);
        }
      });
    }
    for (uint32_t i = 0; i < kVcpus; ++i) {
      threads_.emplace_back([this, i] { Serve(i); });
    }
  }
  ~Cluster() override {
    stopping_ = true;
    for (auto& thread : threads_) thread.join();
  }
  void Wake(VcpuId vcpu) override { bells_[vcpu.value()].Ring(); }
  InterruptController& io() { return *controllers_[0]; }
  uint64_t Sum(uint64_t InterruptExchangeStatistics::*what) {
    uint64_t sum = 0;
    for (auto& each : controllers_) sum += each->ExchangeStatistics().*what;
    return sum;
  }

  std::atomic<uint32_t> started{0};
  std::atomic<uint64_t> hops{0}, moves{0};
  std::atomic<bool> asserted{false};
  Bell served, done;

 private:
  void Serve(uint32_t id) {
    std::mt19937 random(id);
    uint16_t node = static_cast<uint16_t>(id % kNodes);
    const VcpuId self(id);
    if (id == 0) {
      for (uint32_t i = 1; i < kVcpus; ++i) {
        controllers_[0]->vcpu(self).WriteMsr(0x830, uint64_t{i} << 32 | 0x4500);
        controllers_[0]->vcpu(self).WriteMsr(0x830, uint64_t{i} << 32 | 0x4608);
      }
      Begin(id, node);
    }
    while (!stopping_) {
      VcpuInterrupts& vcpu = controllers_[node]->vcpu(self);
      if (!controllers_[node]->Settled(self)) {
        bells_[id].Wait(RealClock().Now() + std::chrono::milliseconds(50));
        continue;
      }
      if (random() % 16 == 0 && controllers_[node]->Drained(self)) {
        const auto to = static_cast<uint16_t>((node + 1 + random() % (kNodes - 1)) % kNodes);
        const auto moved = controllers_[node]->TakeVcpu(self, NodeId(to));
        ASSERT_TRUE(moved.ok()) << moved.status();
        ASSERT_TRUE(controllers_[to]->PutVcpu(self, *moved).ok());
        node = to;
        ++moves;
        continue;
      }
      const VcpuWork work = vcpu.Peek();
      switch (work.kind) {
        case Kind::kNone:
          bells_[id].Wait(RealClock().Now() + std::chrono::milliseconds(200));
          break;
        case Kind::kInterrupt: {
          const auto vector = vcpu.Acknowledge();
          if (!vector) break;
          if (*vector == kLevelVector) {
            io().SetLine(kPin, false);
            asserted = false;
            served.Ring();
          } else {
            // On to the next, from the other end of time.
            vcpu.WriteMsr(0x830, uint64_t{(id + 1) % kVcpus} << 32 | *vector);
            if (++hops == kRounds * kVcpus) done.Ring();
          }
          vcpu.WriteMsr(0x80b, 0);
          break;
        }
        case Kind::kSipi:
          vcpu.Take(work);
          Begin(id, node);
          break;
        case Kind::kInit:
        case Kind::kNmi:
          vcpu.Take(work);
          break;
      }
    }
  }
  // The vCPU runs: it accepts, and when all do, its token goes round.
  void Begin(uint32_t id, uint16_t node) {
    VcpuInterrupts& vcpu = controllers_[node]->vcpu(VcpuId(id));
    vcpu.WriteMsr(0x80f, 0x1ff);
    ++started;
    while (started < kVcpus && !stopping_) std::this_thread::yield();
    vcpu.WriteMsr(0x830, uint64_t{(id + 1) % kVcpus} << 32 | (kToken + id));
  }

  std::array<Mailbox, kNodes> boxes_;
  std::array<Bell, kVcpus> bells_;
  std::vector<std::unique_ptr<InterruptController>> controllers_;
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> threads_;
};

// Each vCPU sends on what it gets: an interrupt that is lost stops its round, one that comes twice makes no difference
// here (tests/sim looks for those).
TEST(InterruptNodesStress, TokensGoRoundWhileEverybodyMoves) {
  Cluster cluster;
  const Monotonic end = RealClock().Now() + kLimit;
  while (cluster.started < kVcpus && RealClock().Now() < end) std::this_thread::yield();
  cluster.io().IoApicWrite(0, 0x11 + 2 * kPin);
  cluster.io().IoApicWrite(0x10, 0xff000000);
  cluster.io().IoApicWrite(0, 0x10 + 2 * kPin);
  cluster.io().IoApicWrite(0x10, 0x8000 | 0x800 | 0x100 | kLevelVector);  // lowest priority among all
  const auto enough = [&] { return cluster.moves >= 100 && cluster.Sum(&InterruptExchangeStatistics::forwarded) != 0; };
  for (uint64_t i = 0; i < kDeviceInterrupts || !enough(); ++i) {
    cluster.asserted = true;
    cluster.io().SetLine(kPin, true);
    while (cluster.asserted && RealClock().Now() < end) cluster.served.Wait(end);
    ASSERT_FALSE(cluster.asserted) << "interrupt " << i << " never came";
  }
  EXPECT_TRUE(cluster.hops >= kRounds * kVcpus || cluster.done.Wait(end)) << cluster.hops;
  EXPECT_EQ(cluster.Sum(&InterruptExchangeStatistics::refused), 0u);
}

}  // namespace
}  // namespace hk
