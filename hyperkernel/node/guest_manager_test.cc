#include "hyperkernel/node/guest_manager.h"

#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <functional>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/status.h"
#include "proto/state.pb.h"

namespace hk {
namespace {

using testing::HasSubstr;

// A machine that does what it is told and remembers it.
class FakeMachine final : public Machine {
 public:
  FakeMachine(MachineEvents* events, std::atomic<int>* alive) : events_(events), alive_(alive) { alive_->fetch_add(1); }
  ~FakeMachine() override { alive_->fetch_sub(1); }
  size_t ConsoleInput(std::string_view bytes) override {
    events_->OnConsoleOutput("echo " + std::string(bytes));
    return bytes.size();
  }
  void PressPowerButton() override { events_->OnEnd(MachineEnd::kPowerOff, ""); }
  absl::Status Pause() override { return pause_status; }
  absl::Status Unpause() override { return absl::OkStatus(); }
  uint64_t frame_bytes() const override { return 4096; }
  uint64_t exits() const override { return 7; }
  std::map<std::string, uint64_t> exits_by_kind() const override { return {{"port", 7}}; }
  MachineEvents* events() { return events_; }
  absl::Status pause_status;

 private:
  MachineEvents* const events_;
  std::atomic<int>* const alive_;
};

class GuestManagerTest : public testing::Test {
 protected:
  void SetUp() override {
    char pattern[] = "/tmp/hk_guest_manager_test.XXXXXX";
    ASSERT_NE(::mkdtemp(pattern), nullptr);
    directory_ = pattern;
    Open();
  }
  void TearDown() override {
    manager_.reset();
    EXPECT_EQ(alive_.load(), 0);
    store_.reset();
    std::filesystem::remove_all(directory_);
  }
  void Open() {
    store_ = *StateStore::Open(directory_ + "/state");
    manager_ = *GuestManager::Open(
        store_.get(), "n", [](const v1::VmSpec&) { return absl::OkStatus(); },
        [this](const v1::VmSpec&, uint64_t generation,
               MachineEvents* events) -> absl::StatusOr<std::unique_ptr<Machine>> {
          if (!fail_.ok()) return fail_;
          generation_ = generation;
          auto machine = std::make_unique<FakeMachine>(events, &alive_);
          machine_ = machine.get();
          return machine;
        },
        RealClock());
  }
  void Create(v1::OnCrash on_crash = v1::ON_CRASH_STOP) {
    v1::VmSpec spec;
    spec.set_name("g");
    spec.set_memory_mib(64);
    spec.set_kernel("/k");
    spec.set_on_crash(on_crash);
    ASSERT_TRUE(manager_->Create(spec, false).ok());
  }
  absl::Status Do(v1::VmAction action) { return manager_->Control("g", action).status(); }
  v1::Vm Get() { return *manager_->Get("g"); }
  // The end of a guest is handled on the manager's thread.
  void AwaitState(v1::VmState state, uint64_t generation = 0) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (Get().state() != state || (generation != 0 && generation_ != generation)) {
      ASSERT_LT(std::chrono::steady_clock::now(), deadline) << Get().ShortDebugString();
      std::this_thread::yield();
    }
  }

  std::string directory_;
  std::unique_ptr<StateStore> store_;
  std::unique_ptr<GuestManager> manager_;
  std::atomic<int> alive_{0};
  std::atomic<uint64_t> generation_{0};
  FakeMachine* machine_ = nullptr;
  absl::Status fail_;
};

TEST_F(GuestManagerTest, TheTableOfStatesHolds) {
  Create();
  EXPECT_EQ(Get().state(), v1::VM_STATE_STOPPED);
  for (const auto action : {v1::VM_ACTION_STOP, v1::VM_ACTION_FORCE_STOP, v1::VM_ACTION_RESET, v1::VM_ACTION_PAUSE,
                            v1::VM_ACTION_UNPAUSE}) {
    EXPECT_EQ(Do(action).code(), absl::StatusCode::kFailedPrecondition) << action;
  }
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  EXPECT_EQ(Get().state(), v1::VM_STATE_RUNNING);
  EXPECT_EQ(Get().exits(), 7u);
  EXPECT_EQ(Get().exits_by_kind().at("port"), 7u);
  EXPECT_FALSE(Do(v1::VM_ACTION_START).ok());
  EXPECT_FALSE(Do(v1::VM_ACTION_UNPAUSE).ok());
  EXPECT_FALSE(manager_->Delete("g").ok());
  ASSERT_TRUE(Do(v1::VM_ACTION_PAUSE).ok());
  EXPECT_EQ(Get().state(), v1::VM_STATE_PAUSED);
  EXPECT_FALSE(Do(v1::VM_ACTION_STOP).ok());
  ASSERT_TRUE(Do(v1::VM_ACTION_UNPAUSE).ok());
  ASSERT_TRUE(Do(v1::VM_ACTION_RESET).ok());
  EXPECT_EQ(Get().state(), v1::VM_STATE_RUNNING);
  EXPECT_EQ(generation_, 2u);
  ASSERT_TRUE(Do(v1::VM_ACTION_FORCE_STOP).ok());
  EXPECT_EQ(alive_.load(), 0);
  EXPECT_TRUE(manager_->Delete("g").ok());
  EXPECT_TRUE(absl::IsNotFound(manager_->Get("g").status()));
}

TEST_F(GuestManagerTest, AGuestsOwnEndIsAStateWithAReason) {
  Create();
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  ASSERT_TRUE(Do(v1::VM_ACTION_STOP).ok());
  AwaitState(v1::VM_STATE_STOPPED);
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  machine_->events()->OnEnd(MachineEnd::kCrash, "triple fault");
  AwaitState(v1::VM_STATE_CRASHED);
  EXPECT_EQ(Get().reason(), "triple fault");
  EXPECT_TRUE((*manager_->Console("g"))->Read(0, 10, std::chrono::steady_clock::now()).ended);
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  machine_->events()->OnEnd(MachineEnd::kReset, "");
  AwaitState(v1::VM_STATE_RUNNING, 4);
}

TEST_F(GuestManagerTest, OnCrashResetStartsAgain) {
  Create(v1::ON_CRASH_RESET);
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  machine_->events()->OnEnd(MachineEnd::kCrash, "x");
  AwaitState(v1::VM_STATE_RUNNING, 2);
}

TEST_F(GuestManagerTest, AFailedStartIsToldAndShown) {
  Create();
  fail_ = absl::ResourceExhaustedError("no room");
  EXPECT_EQ(MessageOf(Do(v1::VM_ACTION_START)), "no room");
  EXPECT_EQ(Get().state(), v1::VM_STATE_STOPPED);
  EXPECT_THAT(Get().reason(), HasSubstr("start failed: no room"));
}

TEST_F(GuestManagerTest, APauseThatFailsChangesNothing) {
  Create();
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  machine_->pause_status = absl::DeadlineExceededError("vCPU 0");
  EXPECT_FALSE(Do(v1::VM_ACTION_PAUSE).ok());
  EXPECT_EQ(Get().state(), v1::VM_STATE_RUNNING);
}

TEST_F(GuestManagerTest, DefinitionsAndGenerationsOutliveTheDaemon) {
  Create();
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  manager_.reset();
  store_.reset();
  Open();
  EXPECT_EQ(Get().state(), v1::VM_STATE_STOPPED);
  EXPECT_EQ(Get().reason(), "") << "it was stopped in good order";
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  EXPECT_EQ(generation_, 2u);
}

TEST_F(GuestManagerTest, AGuestWhoseDaemonWasKilledIsStoppedWithThatReason) {
  Create();
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  const auto entries = store_->List("vm/");
  ASSERT_TRUE(entries.ok() && entries->size() == 1) << entries.status();
  v1::VmRecord as_killed;
  ASSERT_TRUE(as_killed.ParseFromString(entries->front().second));
  EXPECT_TRUE(as_killed.running());
  manager_.reset();
  ASSERT_TRUE(store_->Put("vm/g", as_killed).ok());
  store_.reset();
  Open();
  EXPECT_EQ(Get().state(), v1::VM_STATE_STOPPED);
  EXPECT_THAT(Get().reason(), HasSubstr("its daemon ended without stopping it"));
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  EXPECT_EQ(Get().reason(), "");
}

TEST_F(GuestManagerTest, TheConsoleEchoesAndNeedsARun) {
  Create();
  EXPECT_EQ(manager_->Console("g").status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(manager_->ConsoleInput("g", "x").ok());
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  ASSERT_TRUE(manager_->ConsoleInput("g", "x").ok());
  EXPECT_EQ((*manager_->Console("g"))->Read(0, 100, std::chrono::steady_clock::now()).bytes, "echo x");
}

TEST_F(GuestManagerTest, NamesAreUniqueAndDryRunsDefineNothing) {
  v1::VmSpec spec;
  spec.set_name("g");
  spec.set_memory_mib(64);
  spec.set_kernel("/k");
  ASSERT_TRUE(manager_->Create(spec, true).ok());
  EXPECT_TRUE(manager_->List().empty());
  Create();
  EXPECT_EQ(manager_->Create(spec, false).status().code(), absl::StatusCode::kAlreadyExists);
}

}  // namespace
}  // namespace hk
