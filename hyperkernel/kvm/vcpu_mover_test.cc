#include "hyperkernel/kvm/vcpu_mover.h"

#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/probe_testing.h"
#include "hyperkernel/kvm/controller_guest.h"
#include "hyperkernel/kvm/guest_harness.h"
#include "hyperkernel/kvm/vcpu_state.h"

namespace hk {
namespace {

using std::chrono::milliseconds;

constexpr uint32_t kVcpus = 2;
constexpr int kMoves = 60;

// A node of a guest: its vCPUs' VM over the one memory, its controllers, and a thread that takes what others send.
class Node final : public InterruptLink {
 public:
  Node(std::array<std::unique_ptr<Node>, 2>* all, uint16_t self, Board* devices, const GuestRam& ram)
      : all_(all), self_(self), devices_(devices) {
    const InterruptNodes nodes{.self = NodeId(self),
                               .io_node = NodeId(0),
                               .nodes = {NodeId(0), NodeId(1)},
                               .vcpus = {NodeId(0), NodeId(1)},
                               .link = this};
    controller =
        std::make_unique<InterruptController>(InterruptControllerOptions{.vcpus = kVcpus}, nodes, &RealClock(), &vcpus);
    auto vm = Vm::Create(kVcpus);
    HK_CHECK(vm.ok() && (*vm)->AddMemory({.start = Gpa(0), .bytes = kGuestBytes, .host = ram.data()}).ok());
    auto model = CpuModel::Create((*vm)->facts().cpuid, ReadHostCpu(), {});
    HK_CHECK(model.ok());
    clock = std::make_unique<PvClock>(PvClockOrigin{.tsc_khz = 1'000'000}, kVcpus,
                                      [memory = ram.data()](Gpa at, std::span<const std::byte> bytes) {
                                        HK_CHECK(at.value() + bytes.size() <= kGuestBytes);
                                        std::memcpy(memory + at.value(), bytes.data(), bytes.size());
                                        return absl::OkStatus();
                                      });
    const auto config = [model = *std::move(model)](VcpuId id) {
      return VcpuConfig{.id = id, .cpuid = model.Cpuid(id.value(), kVcpus)};
    };
    HK_CHECK(vcpus
                 .Create(*std::move(vm), {config(VcpuId(self))},
                         [this](VcpuId id) {
                           return VcpuEnvironment{
                               .devices = devices_, .interrupts = &controller->vcpu(id), .clock = clock.get()};
                         })
                 .ok());
    mover = std::make_unique<VcpuMover>(&vcpus, controller.get(), config);
  }
  void Open() {
    thread_ = std::thread([this] { Run(); });
  }
  void Close() {
    {
      MutexLock lock(&mutex_);
      closing_ = true;
      changed_.Signal();
    }
    thread_.join();
  }

  bool Send(NodeId to, std::span<const std::byte> bytes) override {
    Node& other = *(*all_)[to.value()];
    MutexLock lock(&other.mutex_);
    other.messages_.emplace_back(bytes.begin(), bytes.end());
    other.changed_.Signal();
    return true;
  }

  std::unique_ptr<PvClock> clock;
  VcpuGroup vcpus{kVcpus};
  std::unique_ptr<InterruptController> controller;
  std::unique_ptr<VcpuMover> mover;

 private:
  void Run() {
    MutexLock lock(&mutex_);
    while (!closing_) {
      if (messages_.empty()) {
        changed_.WaitUntil(&mutex_, Guard());
        continue;
      }
      const std::vector<std::byte> message = std::move(messages_.front());
      messages_.pop_front();
      mutex_.Unlock();
      EXPECT_TRUE(controller->OnMessage(NodeId(1 - self_), message).ok());
      mutex_.Lock();
    }
  }

  std::array<std::unique_ptr<Node>, 2>* const all_;
  const uint16_t self_;
  Board* const devices_;
  Mutex mutex_;
  CondVar changed_;
  std::deque<std::vector<std::byte>> messages_ ABSL_GUARDED_BY(mutex_);
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

// A guest of two vCPUs on two nodes, 0 on 0 and 1 on 1.
class TwoNodes {
 public:
  explicit TwoNodes(const std::string& program) : ram_(program) {
    for (uint16_t i = 0; i < 2; ++i) nodes[i] = std::make_unique<Node>(&nodes, i, &devices, ram_);
    devices.interrupts = nodes[0]->controller.get();
    for (auto& node : nodes) node->Open();
  }
  ~TwoNodes() {
    for (auto& node : nodes) EXPECT_TRUE(node->vcpus.Stop(Guard()).ok());
    for (auto& node : nodes) node->Close();
    for (auto& node : nodes) node->vcpus.Clear();
  }
  void Start() {
    ASSERT_TRUE(nodes[1]->vcpus.Resume().ok());
    ASSERT_TRUE(nodes[0]->vcpus.Start(GuestRam::Entry(), Guard()).ok());
  }
  Node& Of(VcpuId id) { return *nodes[at[id.value()]]; }
  Node& Other(VcpuId id) { return *nodes[1 - at[id.value()]]; }
  // To the other node.
  void Move(VcpuId id) {
    ASSERT_TRUE(Other(id).mover->Prepare(id).ok());
    const auto moved = Of(id).mover->Leave(id, NodeId(1 - at[id.value()]), nullptr);
    ASSERT_TRUE(moved.ok()) << moved.status();
    const absl::Status arrived = Other(id).mover->Arrive(*moved);
    ASSERT_TRUE(arrived.ok()) << arrived;
    at[id.value()] = static_cast<uint16_t>(1 - at[id.value()]);
  }
  // It runs, and finds nothing wrong.
  void ExpectTicks(uint64_t more) {
    EXPECT_TRUE(devices.WaitForTicks(devices.ticks() + more, HangGuard()))
        << "step " << devices.step() << " " << devices.reason();
    EXPECT_EQ(devices.WaitForEnd(milliseconds(0)), FakeDevices::End::kNone)
        << "step " << devices.step() << " " << devices.reason();
  }

  Board devices;
  std::array<std::unique_ptr<Node>, 2> nodes;
  std::array<uint16_t, kVcpus> at{0, 1};

 private:
  GuestRam ram_;
};

class VcpuMoverTest : public KvmTest {
 protected:
  static void MoveMany(const std::string& program) {
    const char* chosen = std::getenv("HK_SEED");
    const auto seed =
        chosen != nullptr ? static_cast<uint32_t>(std::strtoul(chosen, nullptr, 10)) : std::random_device()();
    SCOPED_TRACE("HK_SEED=" + std::to_string(seed));
    std::mt19937 random(seed);
    TwoNodes guest(program);
    guest.Start();
    for (int i = 0; i < kMoves; ++i) {
      SCOPED_TRACE(i);
      // Some right behind one another.
      guest.ExpectTicks(random() % 3 == 0 ? 0 : random() % 4);
      if (HasFailure()) return;
      ASSERT_NO_FATAL_FAILURE(guest.Move(VcpuId(random() % kVcpus)));
    }
    guest.ExpectTicks(10);
  }
};

TEST_F(VcpuMoverTest, MovedWhileIpisFly) {
  MoveMany("ipi_steady");
}

TEST_F(VcpuMoverTest, MovedBetweenTimersAndHalts) {
  MoveMany("timer_steady");
}

TEST_F(VcpuMoverTest, MovedBetweenExits) {
  MoveMany("count");
}

// What was prepared may never come, come without it, or come after what it was prepared for is gone.
TEST_F(VcpuMoverTest, WhateverWasPrepared) {
  TwoNodes guest("ipi_steady");
  guest.Start();
  guest.ExpectTicks(2);
  const auto move = [&guest](uint32_t id, const std::function<void(Node&)>& before) {
    Node& to = guest.Other(VcpuId(id));
    before(to);
    const auto moved = guest.Of(VcpuId(id)).mover->Leave(VcpuId(id), NodeId(1 - guest.at[id]), nullptr);
    ASSERT_TRUE(moved.ok()) << moved.status();
    const absl::Status arrived = to.mover->Arrive(*moved);
    ASSERT_TRUE(arrived.ok()) << arrived;
    guest.at[id] = static_cast<uint16_t>(1 - guest.at[id]);
    guest.ExpectTicks(2);
  };
  move(1, [](Node&) {});
  move(1, [](Node& to) {
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(to.mover->Prepare(VcpuId(1)).ok());
  });
  move(1, [](Node& to) {
    EXPECT_TRUE(to.mover->Prepare(VcpuId(1)).ok());
    EXPECT_TRUE(to.mover->Prepare(VcpuId(0)).ok()) << "it is here: nothing is to be made";
  });
  move(1, [](Node& to) {
    EXPECT_TRUE(to.mover->Prepare(VcpuId(1)).ok());
    EXPECT_TRUE(to.vcpus.Pause(Guard()).ok());
    EXPECT_TRUE(to.vcpus.Resume().ok());
  });
  move(1, [](Node& to) {
    EXPECT_TRUE(to.mover->Prepare(VcpuId(1)).ok());
    const absl::Status renewed = to.vcpus.Renew([](Vm*) { return absl::OkStatus(); }, Guard());
    EXPECT_TRUE(renewed.ok()) << renewed;
  });
  // The last one never comes.
  EXPECT_TRUE(guest.Other(VcpuId(1)).mover->Prepare(VcpuId(1)).ok());
}

// Not every KVM keeps an offset, so this does not ask one.
TEST(AtThisNode, TheTscGoesOnByTheNodesOffset) {
  VcpuState state;
  state.tsc_khz = 2'000'001;
  state.tsc_offset = 1'000;
  state.regs.rip = 7;
  const VcpuState here = AtThisNode(state, {.id = VcpuId(1), .cpuid = {}, .tsc_khz = 0, .tsc_offset = 2'000});
  EXPECT_EQ(here.tsc_offset, 2'000u);
  EXPECT_EQ(here.tsc_khz, 0u) << "the host's rate, as that of all vCPUs there";
  EXPECT_EQ(here.regs.rip, 7u);
}

TEST(AtThisNode, AndBySteps) {
  VcpuState state;
  state.tsc_offset = 2'000;
  EXPECT_EQ(AfterTscSteps(state, 0).tsc_offset, 2'000u);
  EXPECT_EQ(AfterTscSteps(state, 30).tsc_offset, 2'030u);
}

TEST_F(VcpuMoverTest, WhatIsRefusedIsTakenBack) {
  TwoNodes guest("ipi_steady");
  guest.Start();
  guest.ExpectTicks(2);
  VcpuMover& source = *guest.nodes[1]->mover;
  VcpuMover& target = *guest.nodes[0]->mover;
  EXPECT_TRUE(absl::IsNotFound(target.Leave(VcpuId(1), NodeId(1), nullptr).status()));
  // Where the interrupts cannot go, nothing goes.
  EXPECT_TRUE(absl::IsInvalidArgument(source.Leave(VcpuId(1), NodeId(7), nullptr).status()));
  guest.ExpectTicks(2);
  auto moved = source.Leave(VcpuId(1), NodeId(0), nullptr);
  ASSERT_TRUE(moved.ok()) << moved.status();
  EXPECT_TRUE(absl::IsNotFound(source.Leave(VcpuId(1), NodeId(0), nullptr).status()));
  for (auto MovedVcpu::*bytes : {&MovedVcpu::state, &MovedVcpu::local_apic}) {
    MovedVcpu bad = *moved;
    (bad.*bytes).pop_back();
    EXPECT_TRUE(absl::IsInvalidArgument(target.Arrive(bad)));
  }
  MovedVcpu old = *moved;
  old.version = 1;
  EXPECT_TRUE(absl::IsFailedPrecondition(target.Arrive(old)));
  EXPECT_TRUE(absl::IsFailedPrecondition(source.Arrive(*moved))) << "it has left as of this version";
  moved->version++;
  ASSERT_TRUE(source.Arrive(*moved).ok());
  EXPECT_TRUE(absl::IsAlreadyExists(source.Arrive(*moved)));
  guest.ExpectTicks(5);
  guest.Move(VcpuId(1));
  guest.ExpectTicks(5);
}

TEST_F(VcpuMoverTest, PausedStaysPaused) {
  TwoNodes guest("ipi_steady");
  guest.Start();
  guest.ExpectTicks(2);
  for (auto& node : guest.nodes) ASSERT_TRUE(node->vcpus.Pause(Guard()).ok());
  const uint64_t ticks = guest.devices.ticks();
  const uint64_t exits = guest.nodes[0]->vcpus.exits() + guest.nodes[1]->vcpus.exits();
  // All to one node, which has none then, and back.
  ASSERT_NO_FATAL_FAILURE(guest.Move(VcpuId(0)));
  ASSERT_TRUE(guest.nodes[0]->vcpus.Pause(Guard()).ok());
  ASSERT_TRUE(guest.nodes[0]->vcpus.Renew([](Vm*) { return absl::OkStatus(); }, Guard()).ok());
  ASSERT_NO_FATAL_FAILURE(guest.Move(VcpuId(1)));
  ASSERT_NO_FATAL_FAILURE(guest.Move(VcpuId(0)));
  EXPECT_EQ(guest.devices.ticks(), ticks);
  EXPECT_EQ(guest.nodes[0]->vcpus.exits() + guest.nodes[1]->vcpus.exits(), exits) << "each is counted once";
  for (auto& node : guest.nodes) ASSERT_TRUE(node->vcpus.Resume().ok());
  guest.ExpectTicks(3);
}

TEST_F(VcpuMoverTest, TakesWhatHasComeForItAlong) {
  TwoNodes guest("ipi_steady");
  guest.Start();
  for (int i = 0; i < 4; ++i) {
    SCOPED_TRACE(i);
    guest.ExpectTicks(2);
    Node& source = guest.Of(VcpuId(1));
    // Held until the other one waits for the answer to an interrupt that it has not taken; it may also be held just
    // after it took one.
    ASSERT_TRUE(Eventually([&] {
      HK_CHECK(source.vcpus.Pause(Guard()).ok());
      for (const Monotonic limit = After(milliseconds(10)); RealClock().Now() < limit; std::this_thread::yield()) {
        if (source.controller->SaveVcpu(VcpuId(1)).irr != LocalApicState().irr) return true;
      }
      HK_CHECK(source.vcpus.Resume().ok());
      return false;
    }));
    ASSERT_NO_FATAL_FAILURE(guest.Move(VcpuId(1)));
    ASSERT_TRUE(source.vcpus.Resume().ok());
    guest.ExpectTicks(2);
    ASSERT_NO_FATAL_FAILURE(guest.Move(VcpuId(1)));
  }
}

// Where KVM keeps offsets; elsewhere it shows that nothing else changes.
TEST_F(VcpuMoverTest, TheTscStepsForAllHereAndForWhoComes) {
  constexpr uint64_t kStep = 1'000'003;
  TwoNodes guest("ipi_steady");
  guest.Start();
  const auto offset = [&](VcpuId id) {
    Node& node = guest.Of(id);
    auto moved = node.mover->Leave(id, NodeId(1 - guest.at[id.value()]), nullptr);
    HK_CHECK(moved.ok());
    const auto state = DecodeVcpuState(moved->state);
    moved->version++;
    HK_CHECK(state.ok() && node.mover->Arrive(*moved).ok());
    return state->tsc_offset;
  };
  for (int i = 0; i < 3; ++i) {
    SCOPED_TRACE(i);
    guest.ExpectTicks(2);
    for (auto& node : guest.nodes) ASSERT_TRUE(node->vcpus.StepTsc(kStep, Guard()).ok());
  }
  guest.ExpectTicks(2);
  const uint64_t stepped = offset(VcpuId(1));
  EXPECT_EQ(offset(VcpuId(1)), stepped) << "not twice for one that is back";
  ASSERT_TRUE(guest.nodes[0]->vcpus.StepTsc(kStep, Guard()).ok());
  ASSERT_NO_FATAL_FAILURE(guest.Move(VcpuId(1)));
  EXPECT_EQ(offset(VcpuId(1)), offset(VcpuId(0))) << "it has come to where there was a step more";
  if (stepped == 3 * kStep) {
    EXPECT_EQ(offset(VcpuId(0)), 4 * kStep);
  }
  guest.ExpectTicks(2);
  // Held, and they stay so.
  for (auto& node : guest.nodes) ASSERT_TRUE(node->vcpus.Pause(Guard()).ok());
  const uint64_t ticks = guest.devices.ticks();
  for (auto& node : guest.nodes) ASSERT_TRUE(node->vcpus.StepTsc(kStep, Guard()).ok());
  EXPECT_EQ(guest.devices.ticks(), ticks);
  for (auto& node : guest.nodes) ASSERT_TRUE(node->vcpus.Resume().ok());
  guest.ExpectTicks(2);
}

TEST_F(VcpuMoverTest, BeforeTheStart) {
  TwoNodes guest("ipi_steady");
  // It waits for a SIPI, which comes to where it is.
  ASSERT_NO_FATAL_FAILURE(guest.Move(VcpuId(1)));
  guest.Start();
  guest.ExpectTicks(3);
}

// KVM has a number of vCPUs that one VM can ever have.
TEST_F(VcpuMoverTest, ComingAndGoingUsesNothingUp) {
  TwoNodes guest("ipi_steady");
  guest.Start();
  for (int i = 0; i < 2; ++i) ASSERT_NO_FATAL_FAILURE(guest.Move(VcpuId(1)));
  const size_t before = CurrentProcessState().descriptors;
  for (int i = 0; i < 6; ++i) {
    guest.ExpectTicks(1);
    ASSERT_NO_FATAL_FAILURE(guest.Move(VcpuId(1)));
  }
  EXPECT_EQ(CurrentProcessState().descriptors, before);
}

}  // namespace
}  // namespace hk
