#include "hyperkernel/device/virtio_net.h"

#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/device/testing_virtio.h"
#include "hyperkernel/device/virtio_net_format.h"

namespace hk {
namespace {

constexpr uint64_t kData = 0x200000;

// Packet sockets in place of a tap: one read or write is one frame.
class FakeBackend final : public NetBackend {
 public:
  explicit FakeBackend(size_t queues) {
    for (size_t i = 0; i < queues; ++i) {
      int fds[2];
      HK_CHECK(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) == 0);
      mine_.emplace_back(fds[0]);
      fds_.push_back(fds[0]);
      far.emplace_back(fds[1]);
    }
  }
  std::span<const int> queues() const override { return fds_; }
  absl::Status SetOffloads(const NetOffloads& wanted) override {
    offloads = wanted;
    return absl::OkStatus();
  }
  absl::Status SetActiveQueues(size_t count) override {
    active = count;
    return absl::OkStatus();
  }
  std::vector<OwnedFd> far;
  NetOffloads offloads;
  size_t active = 0;

 private:
  std::vector<OwnedFd> mine_;
  std::vector<int> fds_;
};

class VirtioNetTest : public testing::Test {
 protected:
  void SetUp() override { Open(2); }
  void Open(size_t pairs) {
    machine_.reset();
    auto backend = std::make_unique<FakeBackend>(pairs);
    backend_ = backend.get();
    net_ = *VirtioNet::Create(std::move(backend), {0x02, 0, 0, 0, 0, 0x01});
    machine_ = std::make_unique<TestVirtioMachine>(net_.get());
  }
  static std::string Header() { return std::string(kNetHeaderBytes, '\0'); }
  void FromHost(const std::string& payload, size_t pair = 0) {
    const std::string frame = Header() + payload;
    ASSERT_EQ(::write(backend_->far[pair].get(), frame.data(), frame.size()), static_cast<ssize_t>(frame.size()));
  }
  std::string ToHost(size_t pair = 0) {
    std::string frame(kMaxFrameBytes, '\0');
    const ssize_t got = ::read(backend_->far[pair].get(), frame.data(), frame.size());
    return got < 0 ? "nothing" : frame.substr(0, static_cast<size_t>(got));
  }
  void AddBuffers(size_t count, uint32_t bytes, uint16_t queue = 0) {
    for (size_t i = 0; i < count; ++i) machine_->drivers[queue]->Add({{kData + i * 0x1000, bytes, true}});
    machine_->Notify(queue);
    machine_->Run();
  }

  std::unique_ptr<VirtioNet> net_;
  FakeBackend* backend_ = nullptr;
  std::unique_ptr<TestVirtioMachine> machine_;
};

TEST_F(VirtioNetTest, NegotiatesOffloadsAndShowsItself) {
  ASSERT_TRUE(machine_->Start());
  EXPECT_TRUE(backend_->offloads.checksum && backend_->offloads.tso4 && backend_->offloads.tso6);
  EXPECT_EQ(backend_->active, 1u);
  const uint64_t config = machine_->bar + VirtioPci::kDeviceOffset;
  EXPECT_EQ(machine_->Read(config, 6), 0x010000000002u);
  EXPECT_EQ(machine_->Read(config + 6, 2), 1u) << "link up";
  EXPECT_EQ(machine_->Read(config + 8, 2), 2u);
  ASSERT_TRUE(machine_->Start(kVirtioEventIndex | 1 << VIRTIO_NET_F_GUEST_CSUM));
  EXPECT_FALSE(backend_->offloads.checksum);
}

TEST_F(VirtioNetTest, SendsFramesOfAnyLayout) {
  ASSERT_TRUE(machine_->Start());
  machine_->drivers[1]->SetText(kData, Header() + "hello");
  EXPECT_EQ(machine_->Do(1, {{kData, 5, false}, {kData + 5, 12, false}}), 0u);
  EXPECT_EQ(ToHost(), Header() + "hello");
  machine_->drivers[3]->SetText(kData, Header() + "second queue");
  EXPECT_EQ(machine_->Do(3, {{kData, 24, false}}), 0u);
  EXPECT_EQ(ToHost(1), Header() + "second queue");
  EXPECT_EQ(machine_->Do(1, {{kData, 12, false}}), 0u) << "no frame: dropped";
  EXPECT_EQ(machine_->Do(1, {{kData, 0x20000, false}}), 0u) << "too long: dropped";
  EXPECT_EQ(ToHost(), "nothing");
  EXPECT_EQ(net_->counters().dropped_send, 2u);
}

TEST_F(VirtioNetTest, FullBackendDropsFrames) {
  ASSERT_TRUE(machine_->Start());
  machine_->drivers[1]->SetText(kData, Header() + std::string(60000, 'x'));
  for (int i = 0; i < 50; ++i) ASSERT_EQ(machine_->Do(1, {{kData, 60012, false}}), 0u);
  EXPECT_GT(net_->counters().dropped_send, 0u);
  EXPECT_GT(net_->counters().sent, 0u);
}

TEST_F(VirtioNetTest, ReceivesIntoOneBuffer) {
  ASSERT_TRUE(machine_->Start());
  AddBuffers(4, 0x1000);
  FromHost("frame");
  EXPECT_EQ(machine_->Wait(0), 17u);
  EXPECT_EQ(machine_->drivers[0]->Text(kData, 17), Header().substr(0, 10) + std::string("\1\0", 2) + "frame");
  EXPECT_EQ(machine_->interrupts.TakeMessages().size(), 1u);
}

TEST_F(VirtioNetTest, MergesBuffersForLargeFrames) {
  ASSERT_TRUE(machine_->Start());
  AddBuffers(8, 1000);
  FromHost(std::string(2500, 'm'));
  EXPECT_EQ(machine_->Wait(0), 1000u);
  EXPECT_EQ(machine_->Wait(0), 1000u);
  EXPECT_EQ(machine_->Wait(0), 512u);
  EXPECT_EQ(machine_->drivers[0]->Text(kData + 10, 2), std::string("\3\0", 2));
  EXPECT_EQ(machine_->drivers[0]->Text(kData + 0x2000, 512), std::string(512, 'm'));
}

TEST_F(VirtioNetTest, FramesWaitForBuffers) {
  ASSERT_TRUE(machine_->Start());
  for (int i = 0; i < 5; ++i) FromHost("frame" + std::to_string(i));
  for (int i = 0; i < 10; ++i) machine_->Run();
  for (int i = 0; i < 5; ++i) {
    AddBuffers(1, 0x1000);
    ASSERT_EQ(machine_->Wait(0), 18u);
    EXPECT_EQ(machine_->drivers[0]->Text(kData + 12, 6), "frame" + std::to_string(i));
  }
  FromHost(std::string(3000, 'b'));
  AddBuffers(2, 1000);
  for (int i = 0; i < 10; ++i) machine_->Run();
  EXPECT_FALSE(machine_->drivers[0]->Take().has_value()) << "two are not enough";
  AddBuffers(2, 1000);
  EXPECT_EQ(machine_->Wait(0), 1000u);
}

TEST_F(VirtioNetTest, WithoutMergingAFrameNeedsOneBuffer) {
  ASSERT_TRUE(machine_->Start(kVirtioEventIndex | 1 << VIRTIO_NET_F_MRG_RXBUF));
  AddBuffers(3, 1000);
  FromHost(std::string(2000, 'b'));
  FromHost("fits");
  EXPECT_EQ(machine_->Wait(0), 16u);
  EXPECT_EQ(net_->counters().dropped_receive, 1u);
}

TEST_F(VirtioNetTest, ControlSetsQueuePairs) {
  ASSERT_TRUE(machine_->Start());
  auto control = [&](std::string request) {
    machine_->drivers[4]->SetText(kData, request);
    EXPECT_EQ(machine_->Do(4, {{kData, static_cast<uint32_t>(request.size()), false}, {kData + 64, 1, true}}), 1u);
    return static_cast<int>(machine_->memory.Find(Gpa(kData + 64), 1)[0]);
  };
  EXPECT_EQ(control(std::string("\4\0\2\0", 4)), VIRTIO_NET_OK);
  EXPECT_EQ(backend_->active, 2u);
  EXPECT_EQ(control(std::string("\4\0\3\0", 4)), VIRTIO_NET_ERR);
  EXPECT_EQ(control(std::string("\4\0\0\0", 4)), VIRTIO_NET_ERR);
  EXPECT_EQ(control(std::string("\1\0\1\0", 4)), VIRTIO_NET_ERR);
  EXPECT_EQ(control("\4"), VIRTIO_NET_ERR);
}

TEST_F(VirtioNetTest, OnePairHasNoControlQueue) {
  Open(1);
  ASSERT_TRUE(machine_->Start());
  EXPECT_EQ(machine_->Common(VIRTIO_PCI_COMMON_NUMQ, 2), 2u);
  AddBuffers(1, 0x1000);
  FromHost("frame");
  EXPECT_EQ(machine_->Wait(0), 17u);
}

TEST_F(VirtioNetTest, ResetForgetsTheHeldFrame) {
  ASSERT_TRUE(machine_->Start());
  FromHost("old");
  for (int i = 0; i < 5; ++i) machine_->Run();
  ASSERT_TRUE(machine_->Start());
  FromHost("new");
  AddBuffers(1, 0x1000);
  ASSERT_EQ(machine_->Wait(0), 15u);
  EXPECT_EQ(machine_->drivers[0]->Text(kData + 12, 3), "new");
}

TEST_F(VirtioNetTest, ABackendThatIsGoneIsLeftAlone) {
  ASSERT_TRUE(machine_->Start());
  AddBuffers(1, 0x1000);
  backend_->far[0].Reset();
  for (int i = 0; i < 5; ++i) machine_->Run();
  const auto start = std::chrono::steady_clock::now();
  // A spinning loop is through with this at once; a single wait may be cut short by a signal.
  for (int i = 0; i < 10; ++i) machine_->Run(10);
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(50)) << "the loop does not spin";
}

TEST_F(VirtioNetTest, BothDirectionsAtOnce) {
  ASSERT_TRUE(machine_->Start());
  machine_->StartThread();
  constexpr int kFrames = 3000;
  std::thread host([&] {
    std::string frame = Header() + std::string(200, 'h');
    for (int sent = 0; sent < kFrames;) {
      sent += ::write(backend_->far[0].get(), frame.data(), frame.size()) > 0;
      ToHost();
    }
  });
  machine_->drivers[1]->SetText(kData + 0x8000, Header() + std::string(100, 'g'));
  for (int i = 0; i < 8; ++i) machine_->drivers[0]->Add({{kData, 0x1000, true}});
  machine_->Notify(0);
  for (int received = 0; received < kFrames;) {
    if (machine_->drivers[0]->Take()) {
      machine_->drivers[0]->Add({{kData, 0x1000, true}});
      machine_->Notify(0);
      ++received;
    }
    if (received % 10 == 0) {
      ASSERT_EQ(machine_->Do(1, {{kData + 0x8000, 112, false}}), 0u);
    }
  }
  host.join();
}

TEST(TapTest, RefusalsNameTheTap) {
  auto tap = Tap::Open("a-name-that-is-too-long", 1);
  ASSERT_FALSE(tap.ok());
  EXPECT_NE(tap.status().ToString().find("a-name-that-is-too-long"), std::string::npos);
  tap = Tap::Open("hk-test-tap0", 2);
  if (!tap.ok()) {
    EXPECT_NE(tap.status().ToString().find("hk-test-tap0: "), std::string::npos) << tap.status();
    GTEST_SKIP() << tap.status();
  }
  EXPECT_EQ((*tap)->queues().size(), 2u);
  EXPECT_TRUE((*tap)->SetOffloads({.checksum = true, .tso4 = true, .tso6 = true}).ok());
  EXPECT_TRUE((*tap)->SetActiveQueues(1).ok());
  EXPECT_TRUE((*tap)->SetActiveQueues(2).ok());
  EXPECT_EQ(Tap::Open("lo", 1).status().code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace hk
