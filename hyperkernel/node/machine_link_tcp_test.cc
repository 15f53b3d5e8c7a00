// Links over real transports: TCP on this host's loopback.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "hyperkernel/base/address.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/hang_guard.h"
#include "hyperkernel/node/exit_server.h"
#include "hyperkernel/node/forwarded_exits.h"
#include "hyperkernel/node/machine_link_testing.h"
#include "rdma/tcp_socket.h"
#include "rdma/tcp_transport.h"

namespace hk {
namespace {

constexpr uint32_t kIcr = 0x830, kEoi = 0x80b, kSvr = 0x80f;
constexpr uint32_t kVcpus = 6;

// Counts who was woken.
class CountingWaker final : public VcpuWaker {
 public:
  void Wake(VcpuId) override {
    MutexLock lock(&mutex_);
    ++woken_;
    changed_.SignalAll();
  }
  // Until `done`, which is asked again whenever one is woken.
  void WaitUntil(const std::function<bool()>& done) {
    const auto guard = std::chrono::steady_clock::now() + HangGuard();
    for (;;) {
      uint64_t before = 0;
      {
        MutexLock lock(&mutex_);
        before = woken_;
      }
      if (done()) return;
      MutexLock lock(&mutex_);
      while (woken_ == before) HK_CHECK(changed_.WaitUntil(&mutex_, guard));
    }
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  uint64_t woken_ = 0;
};

// Three nodes; 0 is the I/O node. vCPUs are dealt out in turn.
class MachineLinkTcpTest : public testing::Test {
 protected:
  struct Node {
    std::unique_ptr<SpaceRouter> router;
    std::unique_ptr<Transport> transport;
    std::unique_ptr<MachineLink> link;
    std::unique_ptr<InterruptController> interrupts;
    std::unique_ptr<ForwardedExits> forwarded;
    std::unique_ptr<ExitServer> server;
    std::string failure;
    int peers_up = 0;
  };

  void SetUp() override {
    std::vector<std::string> addresses;
    std::vector<NodeId> ids;
    for (uint16_t i = 0; i < 3; ++i) {
      Node* const node = &nodes_[i];
      ids.push_back(NodeId(i));
      node->router = std::make_unique<SpaceRouter>(SpaceRouter::Watch{.up =
                                                                          [this, node](NodeId) {
                                                                            MutexLock lock(&mutex_);
                                                                            ++node->peers_up;
                                                                            changed_.SignalAll();
                                                                          },
                                                                      .failed = {}});
      auto listener =
          BindTcp({.kind = Address::Kind::kTcp, .path = {}, .host = "127.0.0.1", .port = 0, .is_literal = true});
      ASSERT_TRUE(listener.ok()) << listener.status();
      addresses.push_back("127.0.0.1:" + std::to_string(BoundAddress(listener->get())->port));
      TransportSettings settings;
      settings.cluster = "machine-link-test";
      settings.self = NodeId(i);
      settings.queue_messages = settings.window_messages;  // it refuses now and then
      auto transport =
          MakeTcpTransport(settings, {.listen = {}, .listener = *std::move(listener), .tls = {}}, node->router.get());
      ASSERT_TRUE(transport.ok()) << transport.status();
      node->transport = *std::move(transport);
      node->router->SetTransport(node->transport.get());
      ASSERT_TRUE(node->transport->Start().ok());
    }
    for (uint16_t i = 0; i < 3; ++i) {
      for (uint16_t peer = 0; peer < 3; ++peer) {
        if (peer != i) {
          ASSERT_TRUE(nodes_[i].transport->AddPeer(ids[peer], addresses[peer]).ok());
        }
      }
    }
    {
      MutexLock lock(&mutex_);
      const auto guard = std::chrono::steady_clock::now() + HangGuard();
      for (Node& node : nodes_) {
        while (node.peers_up < 2) ASSERT_TRUE(changed_.WaitUntil(&mutex_, guard));
      }
    }
    for (uint16_t i = 0; i < 3; ++i) {
      Node* const node = &nodes_[i];
      MachineLinkOptions options;
      options.guest = GuestId(9);
      options.self = NodeId(i);
      options.io_node = NodeId(0);
      options.nodes = ids;
      options.failed = [this, node](NodeId peer, const std::string& reason) {
        MutexLock lock(&mutex_);
        node->failure = std::to_string(peer.value()) + ": " + reason;
        changed_.SignalAll();
      };
      node->link = std::make_unique<MachineLink>(node->transport.get(), node->router.get(), std::move(options));
      InterruptNodes placement{.self = NodeId(i), .io_node = NodeId(0), .nodes = ids, .vcpus = {}, .link = {}};
      for (uint32_t vcpu = 0; vcpu < kVcpus; ++vcpu) placement.vcpus.push_back(ids[vcpu % 3]);
      placement.link = node->link.get();
      node->interrupts = std::make_unique<InterruptController>(InterruptControllerOptions{.vcpus = kVcpus}, placement,
                                                               &RealClock(), &waker_);
      if (i == 0) {
        node->server = std::make_unique<ExitServer>(node->link.get(), &devices_, kVcpus);
      } else {
        node->forwarded = std::make_unique<ForwardedExits>(node->link.get(), kVcpus);
      }
      node->link->Attach(node->interrupts.get(),
                         i == 0 ? static_cast<ExitMessages*>(node->server.get()) : node->forwarded.get());
      ASSERT_TRUE(node->link->Open().ok());
    }
  }
  void TearDown() override {
    for (Node& node : nodes_) node.link->Close();
    for (Node& node : nodes_) node.transport.reset();
    for (Node& node : nodes_) node.server.reset();
  }
  std::string Failure(size_t node) {
    MutexLock lock(&mutex_);
    const auto guard = std::chrono::steady_clock::now() + HangGuard();
    while (nodes_[node].failure.empty() && changed_.WaitUntil(&mutex_, guard)) {
    }
    return nodes_[node].failure;
  }
  void ExpectNoFailure() {
    MutexLock lock(&mutex_);
    for (const Node& node : nodes_) EXPECT_EQ(node.failure, "");
  }
  VcpuInterrupts& vcpu(uint32_t which) { return nodes_[which % 3].interrupts->vcpu(VcpuId(which)); }

  Mutex mutex_;
  CondVar changed_;
  CountingWaker waker_;
  NotingDevices devices_;
  std::array<Node, 3> nodes_;
};

TEST_F(MachineLinkTcpTest, SeveralVcpusReachTheDevicesAtOnce) {
  constexpr uint64_t kRounds = 300;
  std::atomic<uint32_t> wrong{0};
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < kVcpus; ++i) {
    threads.emplace_back([&, i] {
      ForwardedExits& exits = *nodes_[1 + i % 2].forwarded;
      for (uint64_t round = 1; round <= kRounds; ++round) {
        const uint64_t value = round << 8 | i;
        uint64_t read = 0;
        exits.MmioWrite(Gpa(0x1000 + i), std::as_bytes(std::span(&value, 1)));
        exits.MmioRead(Gpa(0x1000 + i), std::as_writable_bytes(std::span(&read, 1)));
        wrong += read != value;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0u);
  nodes_[2].forwarded->OnGuestFailure(VcpuId(2), "triple fault");
  EXPECT_EQ(devices_.failures(), std::vector<std::string>{"2: triple fault"});
  ExpectNoFailure();
}

TEST_F(MachineLinkTcpTest, DoorbellsOfSeveralVcpusArriveBeforeWhatFollows) {
  constexpr uint64_t kRounds = 2000;
  constexpr std::array<std::byte, 2> kRing{};
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < kVcpus; ++i) {
    threads.emplace_back([&, i] {
      ForwardedExits& exits = *nodes_[1 + i % 2].forwarded;
      for (uint64_t round = 0; round < kRounds; ++round) exits.MmioWrite(DoorbellAt(i), kRing);
      std::array<std::byte, 4> read{};
      const uint64_t before = devices_.rung();
      exits.MmioWrite(DoorbellAt(i), kRing);
      exits.MmioRead(Gpa(0x1000 + i), read);
      EXPECT_GT(devices_.rung(), before);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(devices_.rung(), kVcpus * (kRounds + 1));
  ExpectNoFailure();
}

TEST_F(MachineLinkTcpTest, InterruptsOfAllToAll) {
  for (uint32_t i = 1; i < kVcpus; ++i) {
    vcpu(0).WriteMsr(kIcr, uint64_t{i} << 32 | 0x4500);
    vcpu(0).WriteMsr(kIcr, uint64_t{i} << 32 | 0x4608);
  }
  for (uint32_t i = 1; i < kVcpus; ++i) {
    for (const VcpuWork::Kind kind : {VcpuWork::Kind::kInit, VcpuWork::Kind::kSipi}) {
      waker_.WaitUntil([&] { return vcpu(i).Peek().kind == kind; });
      vcpu(i).Take(vcpu(i).Peek());
    }
  }
  for (uint32_t i = 0; i < kVcpus; ++i) {
    vcpu(i).WriteMsr(kSvr, 0x1ff);
    waker_.WaitUntil([&] { return nodes_[i % 3].interrupts->Settled(VcpuId(i)); });
  }
  // Each node's vCPUs on a thread of their own; each sender waits until all others have its interrupt.
  std::array<std::atomic<uint32_t>, kVcpus> seen{};
  for (int round = 0; round < 100; ++round) {
    std::vector<std::thread> threads;
    for (uint32_t from = 0; from < kVcpus; ++from) {
      threads.emplace_back([&, from] { vcpu(from).WriteMsr(kIcr, 0xc0000 | (0x40 + from)); });
    }
    for (std::thread& thread : threads) thread.join();
    for (uint32_t to = 0; to < kVcpus; ++to) {
      for (uint32_t count = 0; count + 1 < kVcpus; ++count) {
        std::optional<uint8_t> vector;
        waker_.WaitUntil([&] { return (vector = vcpu(to).Acknowledge()).has_value(); });
        ASSERT_TRUE(*vector >= 0x40 && *vector < 0x40 + kVcpus && *vector != 0x40 + to);
        ++seen[*vector - 0x40u];
        vcpu(to).WriteMsr(kEoi, 0);
      }
      ASSERT_EQ(vcpu(to).Acknowledge(), std::nullopt);
    }
  }
  for (const auto& each : seen) EXPECT_EQ(each, 100 * (kVcpus - 1));
  ExpectNoFailure();
}

TEST_F(MachineLinkTcpTest, ClocksOfOneProcessorDifferByLessThanTheError) {
  const auto measured = nodes_[1].link->MeasureTsc(std::chrono::steady_clock::now() + HangGuard());
  ASSERT_TRUE(measured.ok()) << measured.status();
  EXPECT_EQ(measured->exchanges, kClockExchanges);
  EXPECT_LE(static_cast<uint64_t>(std::abs(measured->offset)), measured->error);
}

TEST_F(MachineLinkTcpTest, ANodeThatGoesFailsTheOthersAndAbandonFreesWhoWaits) {
  devices_.SetBusy(true);
  std::array<std::byte, 4> read{};
  std::thread reader([&] { nodes_[1].forwarded->PortRead(0x60, read); });
  devices_.WaitEntered();
  nodes_[2].link->Close();
  nodes_[2].transport->Stop();
  EXPECT_EQ(Failure(1).substr(0, 10), "2: is lost");
  EXPECT_EQ(Failure(0).substr(0, 10), "2: is lost");
  nodes_[1].forwarded->Abandon();
  reader.join();
  EXPECT_EQ(read[0], std::byte{0xff});
  devices_.SetBusy(false);
}

}  // namespace
}  // namespace hk
