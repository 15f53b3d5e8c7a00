#include "hyperkernel/node/guest_manager.h"

#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <functional>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/machine_policy.h"
#include "hyperkernel/node/machine_testing.h"
#include "proto/state.pb.h"

namespace hk {
namespace {

using testing::HasSubstr;

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
        [this](const v1::VmRecord& record, MachineEvents* events) -> absl::StatusOr<std::unique_ptr<Machine>> {
          while (record.spec().name() == held_.load()) std::this_thread::yield();
          if (!fail_.ok()) return fail_;
          generation_ = record.generation();
          recorded_cpu_ = record.cpu_model();
          auto machine = std::make_unique<FakeMachine>(events, &alive_, &agent_);
          machine->placement = placement_;
          machine->cpu = cpu_;
          machine_ = machine.get();
          return machine;
        },
        RealClock());
  }
  void Reopen() {
    manager_.reset();
    store_.reset();
    Open();
  }
  void Create(v1::OnCrash on_crash = v1::ON_CRASH_STOP, bool autostart = false, const std::string& name = "g") {
    v1::VmSpec spec;
    spec.set_name(name);
    spec.set_memory_mib(64);
    spec.set_kernel("/k");
    spec.set_on_crash(on_crash);
    spec.set_autostart(autostart);
    ASSERT_TRUE(manager_->Create(spec, false).ok());
  }
  std::string Shown(Channel channel) {
    return (*manager_->Channels("g"))->console(channel).Read(0, 100, std::chrono::steady_clock::now()).bytes;
  }
  absl::StatusOr<GuestCommandResult> Exec() {
    return manager_->Exec("g", {.words = {"true"}, .input = ""}, std::chrono::seconds(60), [] { return false; });
  }
  absl::Status Do(v1::VmAction action) { return manager_->Control("g", action).status(); }
  v1::Vm Get(const std::string& name = "g") { return *manager_->Get(name); }
  void Await(const std::function<bool()>& condition) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!condition()) {
      ASSERT_LT(std::chrono::steady_clock::now(), deadline) << Get().ShortDebugString();
      std::this_thread::yield();
    }
  }
  // Ends and autostarts are handled on threads of the manager's.
  void AwaitState(v1::VmState state, uint64_t generation = 0) {
    Await([&] { return Get().state() == state && (generation == 0 || generation_ == generation); });
  }

  std::string directory_;
  std::unique_ptr<StateStore> store_;
  std::unique_ptr<GuestManager> manager_;
  std::atomic<int> alive_{0};
  std::atomic<uint64_t> generation_{0};
  CpuidEntries cpu_, recorded_cpu_;    // of the next machine; what the last one was made with
  std::atomic<const char*> held_{""};  // the machine whose making takes until this is another
  FakeMachine* machine_ = nullptr;
  std::shared_ptr<MachinePolicy> placement_;  // of machines made from now on
  FakeAgent agent_;
  absl::Status fail_;
};

TEST_F(GuestManagerTest, AMachinesMemoryIsSeenAsASpaceOfItsNode) {
  EXPECT_EQ(manager_->MemoryMap("g", 0).status().code(), absl::StatusCode::kNotFound);
  Create();
  EXPECT_EQ(manager_->MemoryTop("g").status().code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  const auto map = manager_->MemoryMap("g", 0);
  ASSERT_TRUE(map.ok()) << map.status();
  ASSERT_EQ(map->extents_size(), 1);
  EXPECT_EQ(map->extents(0).extent(), 3u);
  EXPECT_EQ(map->extents(0).home(), "n");
  ASSERT_EQ(map->extents(0).holders_size(), 1);
  EXPECT_EQ(map->extents(0).holders(0).node(), "n");
  EXPECT_EQ(map->extents(0).holders(0).heat(), 2);
  EXPECT_EQ(map->next_extent(), 0u);
  EXPECT_EQ(map->space().memory_bytes(), 64u << 20);
  EXPECT_EQ(manager_->MemoryMap("g", 4)->extents_size(), 0);
  const auto top = manager_->MemoryTop("g");
  ASSERT_TRUE(top.ok()) << top.status();
  ASSERT_EQ(top->nodes_size(), 1);
  EXPECT_EQ(top->nodes(0).part().node(), "n");
  EXPECT_EQ(top->nodes(0).counters().write_faults(), 5u);
  EXPECT_GT(top->nodes(0).counters().counted_at_ns(), 0u);
  EXPECT_EQ(manager_->PolicyOf("g").status().code(), absl::StatusCode::kFailedPrecondition) << "it is on one node";
}

TEST_F(GuestManagerTest, TheCpuModelOfTheFirstStartIsKept) {
  Create();
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  EXPECT_FALSE(Get().has_cpu_model()) << "all its vCPUs are on one node";
  ASSERT_TRUE(Do(v1::VM_ACTION_FORCE_STOP).ok());
  v1::CpuidEntry* const leaf = cpu_.Add();
  leaf->set_ebx(0x756e6547);
  leaf->set_edx(0x49656e69);
  leaf->set_ecx(0x6c65746e);
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  EXPECT_EQ(recorded_cpu_.size(), 0);
  EXPECT_EQ(Get().cpu_model().signature(), "GenuineIntel 0-0-0");
  ASSERT_TRUE(Do(v1::VM_ACTION_FORCE_STOP).ok());
  Reopen();
  EXPECT_EQ(Get().cpu_model().signature(), "GenuineIntel 0-0-0");
  cpu_.Mutable(0)->set_eax(7);
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  ASSERT_EQ(recorded_cpu_.size(), 1);
  EXPECT_EQ(recorded_cpu_[0].ebx(), 0x756e6547u);
  ASSERT_TRUE(Do(v1::VM_ACTION_RESET).ok());
  EXPECT_EQ(recorded_cpu_[0].eax(), 0u) << "once";
}

TEST_F(GuestManagerTest, TheTableOfStatesHolds) {
  Create();
  EXPECT_EQ(Get().state(), v1::VM_STATE_STOPPED);
  for (const auto action : {v1::VM_ACTION_STOP, v1::VM_ACTION_FORCE_STOP, v1::VM_ACTION_RESET, v1::VM_ACTION_PAUSE,
                            v1::VM_ACTION_UNPAUSE, v1::VM_ACTION_RENEW}) {
    EXPECT_EQ(Do(action).code(), absl::StatusCode::kFailedPrecondition) << action;
  }
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  EXPECT_EQ(Get().state(), v1::VM_STATE_RUNNING);
  EXPECT_EQ(Get().exits(), 7u);
  EXPECT_EQ(Get().exits_by_kind().at("port"), 7u);
  EXPECT_FALSE(Do(v1::VM_ACTION_START).ok());
  EXPECT_FALSE(Do(v1::VM_ACTION_UNPAUSE).ok());
  EXPECT_FALSE(manager_->Delete("g").ok());
  ASSERT_TRUE(Do(v1::VM_ACTION_RENEW).ok());
  EXPECT_EQ(Get().state(), v1::VM_STATE_RUNNING);
  ASSERT_TRUE(Do(v1::VM_ACTION_PAUSE).ok());
  EXPECT_EQ(Get().state(), v1::VM_STATE_PAUSED);
  ASSERT_TRUE(Do(v1::VM_ACTION_RENEW).ok());
  EXPECT_EQ(Get().state(), v1::VM_STATE_PAUSED);
  EXPECT_EQ(machine_->renewals, 2);
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
  const auto ended = [&] {
    return (*manager_->Channels("g"))->console(Channel::kSerial).Read(0, 10, std::chrono::steady_clock::now()).ended;
  };
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!ended()) ASSERT_LT(std::chrono::steady_clock::now(), deadline);
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

TEST_F(GuestManagerTest, APauseOrRenewalThatFailsChangesNothing) {
  Create();
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  machine_->pause_status = absl::DeadlineExceededError("vCPU 0");
  EXPECT_FALSE(Do(v1::VM_ACTION_PAUSE).ok());
  EXPECT_EQ(Get().state(), v1::VM_STATE_RUNNING);
  machine_->renew_status = absl::InternalError("KVM_CREATE_VM");
  EXPECT_EQ(MessageOf(Do(v1::VM_ACTION_RENEW)), "KVM_CREATE_VM");
  EXPECT_EQ(Get().state(), v1::VM_STATE_RUNNING);
}

TEST_F(GuestManagerTest, AVcpuOfARunningOrPausedMachineMoves) {
  Create();
  const auto move = [this] { return manager_->MoveVcpu(Get().spec().name(), VcpuId(1), "b"); };
  EXPECT_THAT(MessageOf(move().status()), HasSubstr("is stopped, neither running nor paused"));
  EXPECT_TRUE(absl::IsNotFound(manager_->MoveVcpu("nobody", VcpuId(1), "b").status()));
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  const auto moved = move();
  ASSERT_TRUE(moved.ok()) << moved.status();
  EXPECT_EQ(moved->to, "b");
  ASSERT_TRUE(Do(v1::VM_ACTION_PAUSE).ok());
  EXPECT_TRUE(move().ok());
  EXPECT_EQ(Get().state(), v1::VM_STATE_PAUSED);
  EXPECT_EQ(machine_->moves.size(), 2u);
  machine_->move_status = absl::NotFoundError("there is no vCPU 1");
  EXPECT_EQ(MessageOf(move().status()), "there is no vCPU 1");
  EXPECT_EQ(Get().state(), v1::VM_STATE_PAUSED);
}

// Stands still.
class StillClock final : public Clock {
 public:
  Monotonic Now() const override { return now; }
  WallTime Wall() const override { return WallTime(); }
  Monotonic now{std::chrono::hours(10)};
};

// vCPU 1, at b, waits for pages of a all the time.
TEST_F(GuestManagerTest, WhatThePolicyWantsIsDoneWhileTheMachineRuns) {
  constexpr NodeId kA{1}, kB{2};
  StillClock clock;
  const std::vector<NodeId> where = {kA, kB};
  auto policy = MachinePolicy::Make({.machine = "g",
                                     .policy = "balance",
                                     .self = kA,
                                     .nodes = {{kA, "a", 4}, {kB, "b", 2}},
                                     .vcpus = where,
                                     .clock = &clock});
  ASSERT_TRUE(policy.ok()) << policy.status();
  placement_ = *std::move(policy);
  uint64_t page = 0;
  const auto pass_seconds = [&](int count) {
    for (int second = 0; second < count; ++second) {
      v1::MachineStalls told;
      told.set_now_ns(5'000'000'000);
      for (int i = 0; i < 800; ++i) {
        v1::Stall& stall = *told.add_stalls();
        stall.set_time_ns(4'500'000'000);
        stall.set_vcpu(1);
        stall.set_page(page++);
        stall.set_kind(v1::STALL_KIND_WRITE);
        stall.set_holder(kA.value());
        stall.set_waited_ns(1'000'000);
      }
      clock.now += std::chrono::seconds(1);
      placement_->Take(kB, told);
      placement_->Tick(where);
    }
  };
  Create();
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  ASSERT_TRUE(Do(v1::VM_ACTION_PAUSE).ok());
  pass_seconds(60);
  EXPECT_TRUE(machine_->moves.empty()) << "an operator holds it";
  ASSERT_TRUE(Do(v1::VM_ACTION_UNPAUSE).ok());
  pass_seconds(120);  // it was refused, and does not ask again for a minute
  ASSERT_FALSE(machine_->moves.empty());
  EXPECT_EQ(machine_->moves[0], std::pair(VcpuId(1), std::string("a")));
  ASSERT_TRUE(Do(v1::VM_ACTION_FORCE_STOP).ok());
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

TEST_F(GuestManagerTest, ConsolesEchoEachForItselfAndNeedARun) {
  Create();
  EXPECT_EQ(manager_->Channels("g").status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(manager_->Channels("h").status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(manager_->ConsoleInput("g", Channel::kSerial, "x").ok());
  manager_->ResizeConsole("g", 1, 1);
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  EXPECT_EQ(*manager_->ConsoleInput("g", Channel::kSerial, "x"), 1u);
  EXPECT_EQ(*manager_->ConsoleInput("g", Channel::kVirtioConsole, "yy"), 2u);
  EXPECT_EQ(Shown(Channel::kSerial), "echo x");
  EXPECT_EQ(Shown(Channel::kVirtioConsole), "echo yy");
  manager_->ResizeConsole("g", 132, 50);
  EXPECT_EQ(machine_->size, std::make_pair(132, 50));
  const v1::Vm vm = Get();
  ASSERT_EQ(vm.channels_size(), 3);
  EXPECT_EQ(vm.channels(0).output_bytes(), 6u);
  EXPECT_EQ(vm.channels(1).output_bytes(), 7u);
}

TEST_F(GuestManagerTest, ConsolesGoOnOverAResetAndBeginAnewAtAStart) {
  Create();
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  ASSERT_TRUE(manager_->ConsoleInput("g", Channel::kSerial, "1").ok());
  ASSERT_TRUE(Do(v1::VM_ACTION_RESET).ok());
  ASSERT_TRUE(manager_->ConsoleInput("g", Channel::kSerial, "2").ok());
  EXPECT_EQ(Shown(Channel::kSerial), "echo 1echo 2");
  ASSERT_TRUE(Do(v1::VM_ACTION_FORCE_STOP).ok());
  EXPECT_EQ(Shown(Channel::kSerial), "echo 1echo 2") << "the last run's words are kept";
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  EXPECT_EQ(Shown(Channel::kSerial), "");
}

TEST_F(GuestManagerTest, CommandsRunInRunningGuestsOnly) {
  Create();
  EXPECT_THAT(MessageOf(Exec().status()), HasSubstr("vm 'g' is stopped, not running; hkctl vm start g"));
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  agent_.statuses = {FakeAgent::Exited(3, "out")};
  const auto result = Exec();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->number, 3);
  EXPECT_EQ(result->output, "out");
  EXPECT_GT(Get().channels(2).output_bytes(), 0u);
  ASSERT_TRUE(Do(v1::VM_ACTION_PAUSE).ok());
  EXPECT_THAT(MessageOf(Exec().status()), HasSubstr("hkctl vm unpause g"));
  EXPECT_EQ(manager_->Exec("h", {.words = {"true"}, .input = ""}, {}, [] { return false; }).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(GuestManagerTest, AStopEndsACommand) {
  Create();
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  agent_.statuses = {R"({"return": {"exited": false}})"};
  std::atomic<bool> runs{false};
  std::thread stopper([&] {
    while (!runs) std::this_thread::yield();
    EXPECT_TRUE(Do(v1::VM_ACTION_FORCE_STOP).ok());
  });
  const auto result = manager_->Exec("g", {.words = {"sleep"}, .input = ""}, std::chrono::seconds(60), [&] {
    runs = true;
    return false;
  });
  stopper.join();
  EXPECT_EQ(result.status().code(), absl::StatusCode::kFailedPrecondition) << result.status();
}

TEST_F(GuestManagerTest, AGuestThatCrashesAgainAndAgainStaysCrashed) {
  Create(v1::ON_CRASH_RESET);
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  for (uint64_t crash = 1; crash < GuestEndRule::kMaxCrashes; crash++) {
    machine_->events()->OnEnd(MachineEnd::kCrash, "triple fault");
    AwaitState(v1::VM_STATE_RUNNING, crash + 1);
    EXPECT_EQ(Get().reason(), "reset after a crash: triple fault");
    EXPECT_EQ(Get().crashes(), crash);
  }
  machine_->events()->OnEnd(MachineEnd::kCrash, "triple fault");
  AwaitState(v1::VM_STATE_CRASHED);
  EXPECT_EQ(Get().reason(), "triple fault; not reset any more: 5 crashes within 5 minutes");
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  EXPECT_EQ(Get().crashes(), 0u) << "an operator has looked at it";
  machine_->events()->OnEnd(MachineEnd::kCrash, "triple fault");
  AwaitState(v1::VM_STATE_RUNNING, GuestEndRule::kMaxCrashes + 2);
}

TEST_F(GuestManagerTest, AGuestThatOnlyResetsItselfIsStopped) {
  Create();
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  for (uint64_t reset = 1; reset < GuestEndRule::kMaxOwnResets; reset++) {
    machine_->events()->OnEnd(MachineEnd::kReset, "");
    AwaitState(v1::VM_STATE_RUNNING, reset + 1);
  }
  machine_->events()->OnEnd(MachineEnd::kReset, "");
  AwaitState(v1::VM_STATE_CRASHED);
  EXPECT_THAT(Get().reason(), HasSubstr("resets itself again and again"));
}

TEST_F(GuestManagerTest, AutostartStartsWhatAskedForIt) {
  Create(v1::ON_CRASH_STOP, true);
  Create(v1::ON_CRASH_STOP, false, "by-hand");
  EXPECT_EQ(Get().state(), v1::VM_STATE_STOPPED) << "creating starts nothing";
  Reopen();
  manager_->Autostart();
  AwaitState(v1::VM_STATE_RUNNING);
  EXPECT_EQ(Get("by-hand").generation(), 0u);
  Reopen();
  fail_ = absl::ResourceExhaustedError("no room");
  manager_->Autostart();
  Await([&] { return Get().reason() == "start failed: no room"; });
}

TEST_F(GuestManagerTest, WhatWaitsForItsAutostartIsShownAndMayBeOrderedAbout) {
  for (const char* name : {"a", "b", "c", "d", "e", "g"}) Create(v1::ON_CRASH_STOP, true, name);
  Reopen();
  held_ = "a";
  manager_->Autostart();
  Await([&] { return Get("a").state() == v1::VM_STATE_STARTING; });
  for (const char* name : {"b", "c", "d", "e", "g"}) {
    EXPECT_EQ(Get(name).state(), v1::VM_STATE_STOPPED);
    EXPECT_EQ(Get(name).reason(), "autostart: waits for its turn");
  }
  ASSERT_TRUE(manager_->Control("b", v1::VM_ACTION_START).ok());
  ASSERT_TRUE(manager_->Control("b", v1::VM_ACTION_FORCE_STOP).ok());
  ASSERT_TRUE(manager_->Delete("c").ok());
  ASSERT_TRUE(manager_->Control("d", v1::VM_ACTION_STOP).ok());
  ASSERT_TRUE(manager_->Control("e", v1::VM_ACTION_FORCE_STOP).ok());
  EXPECT_FALSE(manager_->Control("e", v1::VM_ACTION_FORCE_STOP).ok()) << "it waits no more";
  held_ = "";
  AwaitState(v1::VM_STATE_RUNNING);
  for (const char* name : {"d", "e"}) {
    EXPECT_EQ(Get(name).state(), v1::VM_STATE_STOPPED);
    EXPECT_EQ(Get(name).reason(), "stopped before its autostart");
    EXPECT_EQ(Get(name).generation(), 0u);
  }
  EXPECT_EQ(Get("a").state(), v1::VM_STATE_RUNNING);
  EXPECT_EQ(Get("b").state(), v1::VM_STATE_STOPPED) << "an operator has decided since";
  EXPECT_EQ(Get("b").generation(), 1u);
}

TEST_F(GuestManagerTest, ADaemonMayEndWhileItsAutostartIsUnderWay) {
  Create(v1::ON_CRASH_STOP, true, "a");
  Create(v1::ON_CRASH_STOP, true);
  Reopen();
  held_ = "a";
  manager_->Autostart();
  Await([&] { return Get("a").state() == v1::VM_STATE_STARTING; });
  std::thread end([this] { manager_.reset(); });
  held_ = "";
  end.join();
  store_.reset();
  Open();
  EXPECT_EQ(Get("a").generation(), 1u);
  EXPECT_EQ(Get("a").reason(), "") << "it was stopped in good order";
}

TEST_F(GuestManagerTest, AMachineTellsWhenItWasMadeAndStarted) {
  Create();
  EXPECT_TRUE(Get().has_created());
  EXPECT_FALSE(Get().has_started());
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  EXPECT_TRUE(Get().has_started());
  EXPECT_EQ(Get().generation(), 1u);
  ASSERT_TRUE(Do(v1::VM_ACTION_FORCE_STOP).ok());
  EXPECT_FALSE(Get().has_started());
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

// What a run leaves for the next one goes with the machine's end, not with its resets.
TEST_F(GuestManagerTest, WhatIsKeptForTheNextRunGoesWithTheEnd) {
  std::atomic<int> forgotten{0};
  manager_->SetForget([&forgotten](const std::string& name) {
    EXPECT_EQ(name, "g");
    ++forgotten;
  });
  Create(v1::ON_CRASH_RESET);
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  ASSERT_TRUE(Do(v1::VM_ACTION_RESET).ok());
  EXPECT_EQ(forgotten, 0) << "an operator's reset";
  machine_->events()->OnEnd(MachineEnd::kReset, "");
  AwaitState(v1::VM_STATE_RUNNING, 3);
  machine_->events()->OnEnd(MachineEnd::kCrash, "triple fault");
  AwaitState(v1::VM_STATE_RUNNING, 4);
  EXPECT_EQ(forgotten, 0) << "the guest's own, and a crash that resets";
  EXPECT_TRUE(absl::IsInvalidArgument(manager_->Control("g", v1::VM_ACTION_PAUSE, true).status()));
  ASSERT_TRUE(manager_->Control("g", v1::VM_ACTION_RESET, true).ok());
  EXPECT_EQ(forgotten, 1) << "cold";
  fail_ = absl::ResourceExhaustedError("no memory");
  EXPECT_FALSE(Do(v1::VM_ACTION_RESET).ok());
  EXPECT_EQ(forgotten, 2) << "a reset that did not come to a run";
  fail_ = absl::OkStatus();
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  ASSERT_TRUE(Do(v1::VM_ACTION_FORCE_STOP).ok());
  EXPECT_EQ(forgotten, 3);
  ASSERT_TRUE(Do(v1::VM_ACTION_START).ok());
  machine_->events()->OnEnd(MachineEnd::kPowerOff, "");
  AwaitState(v1::VM_STATE_STOPPED);
  Await([&] { return forgotten == 4; });
  manager_.reset();
}

}  // namespace
}  // namespace hk
