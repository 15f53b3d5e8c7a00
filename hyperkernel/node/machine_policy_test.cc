// The stall stream of a machine at its I/O node: what nodes tell, what the policy sees of it, what is moved, and what
// is recorded.
#include "hyperkernel/node/machine_policy.h"

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/hang_guard.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/stall_wire.h"
#include "proto/trace_file.h"

namespace hk {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using std::chrono::seconds;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr NodeId kA{1}, kB{2}, kC{3};

// Stands still.
class StillClock final : public Clock {
 public:
  Monotonic Now() const override { return now; }
  WallTime Wall() const override { return WallTime(seconds(1'700'000'000)); }
  Monotonic now{std::chrono::hours(10)};
};

// vCPU 0 is here, at a; 1 and 2 are at b.
class MachinePolicyTest : public testing::Test {
 protected:
  MachinePolicyTest() { Make("balance"); }

  void Make(const std::string& policy, uint32_t cores_of_a = 4) {
    absl::StatusOr<std::shared_ptr<MachinePolicy>> made =
        MachinePolicy::Make({.machine = "web",
                             .policy = policy,
                             .self = kA,
                             .nodes = {{kA, "a", cores_of_a}, {kB, "b", 2}},
                             .vcpus = where_,
                             .clock = &clock_});
    ASSERT_TRUE(made.ok()) << made.status();
    policy_ = *std::move(made);
  }
  void Move() {
    policy_->SetMover([this](VcpuId vcpu, NodeId to) {
      EXPECT_FALSE(std::exchange(moving_, true)) << "one at a time";
      moves_.emplace_back(vcpu, to);
      if (move_status_.ok()) where_[vcpu.value()] = to;
      moving_ = false;
      return move_status_;
    });
  }
  // What a node whose clock says something else tells: that a vCPU waited for so many pages of a, 1 ms for each.
  v1::MachineStalls Told(uint32_t vcpu, int stalls, NodeId holder = kA) {
    v1::MachineStalls told;
    told.set_now_ns(5'000'000'000);
    for (int i = 0; i < stalls; ++i) {
      v1::Stall& stall = *told.add_stalls();
      stall.set_time_ns(4'500'000'000);
      stall.set_vcpu(vcpu);
      stall.set_page(next_page_++);
      stall.set_kind(v1::STALL_KIND_WRITE);
      stall.set_holder(holder.value());
      stall.set_waited_ns(1'000'000);
    }
    return told;
  }
  void Second(uint32_t vcpu, int stalls) {
    clock_.now += seconds(1);
    if (stalls > 0) policy_->Take(kB, Told(vcpu, stalls));
    policy_->Tick(where_);
  }
  std::vector<v1::TraceRecord> Read(StallRecording* recording) { return recording->Read(clock_.now); }

  StillClock clock_;
  std::vector<NodeId> where_{kA, kB, kB};
  std::vector<std::pair<VcpuId, NodeId>> moves_;
  absl::Status move_status_;
  bool moving_ = false;
  uint64_t next_page_ = 0;
  std::shared_ptr<MachinePolicy> policy_;
};

TEST_F(MachinePolicyTest, NobodyKeepsWhatNobodyWants) {
  const auto meter = std::make_unique<FaultMeter>();
  policy_->SetLocal(meter.get());
  EXPECT_FALSE(policy_->wanted() || meter->listened_to()) << "nothing can be moved";
  {
    const auto recording = policy_->Record();
    ASSERT_TRUE(recording.ok());
    EXPECT_TRUE(policy_->wanted() && meter->listened_to());
  }
  EXPECT_FALSE(policy_->wanted());
  policy_->Tick(where_);
  EXPECT_FALSE(meter->listened_to());
  Move();
  EXPECT_TRUE(policy_->wanted() && meter->listened_to());
  policy_->End();
  EXPECT_FALSE(policy_->wanted() || meter->listened_to());
  Make("fetch");
  Move();
  EXPECT_FALSE(policy_->wanted());
}

TEST_F(MachinePolicyTest, WhoWaitsForANodeIsMovedThere) {
  Move();
  for (int i = 0; i < 10; ++i) Second(1, 900);
  EXPECT_THAT(moves_, ElementsAre(std::pair(VcpuId(1), kA)));
}

TEST_F(MachinePolicyTest, WhatIsSeenHereCountsToo) {
  const auto meter = std::make_unique<FaultMeter>();
  ASSERT_TRUE(meter->Watch(77, 0));
  policy_->SetLocal(meter.get());
  Move();
  for (int second = 0; second < 40; ++second) {  // long after one has come from there
    clock_.now += seconds(1);
    for (uint64_t i = 0; i < 900; ++i) {
      const uint64_t page = static_cast<uint64_t>(second) * 900 + i;  // data: none of them twice
      meter->Began(77, Gfn(page), FaultCause::kRead, clock_.now - milliseconds(1));
      meter->NoteHolder(Gfn(page), 1, kB);
      meter->Woken(Gfn(page), 1, clock_.now);
    }
    // b has room for two, and has two.
    if (second == 5) where_[2] = kA;
    policy_->Tick(where_);
    if (second < 5) {
      EXPECT_THAT(moves_, IsEmpty());
    }
  }
  EXPECT_THAT(moves_, ElementsAre(std::pair(VcpuId(0), kB)));
  policy_->SetLocal(nullptr);
}

// a has no core more than it has vCPUs of the machine.
TEST_F(MachinePolicyTest, WhoRunsIsTakenFromTheTimesOfVcpus) {
  std::vector<v1::VcpuTimes> times(3);
  for (uint32_t vcpu = 0; vcpu < 3; ++vcpu) times[vcpu].set_vcpu(vcpu);
  const auto second = [&](uint64_t running_ns) {
    for (v1::VcpuTimes& each : times) {
      each.set_running_ns(each.running_ns() + running_ns);
      each.set_ready_ns(each.ready_ns() + 1);
    }
    clock_.now += seconds(1);
    next_page_ = 0;
    policy_->Take(kB, Told(1, 450));
    next_page_ = 0;
    policy_->Take(kB, Told(1, 450));
    policy_->Tick(where_);
  };
  where_[2] = kA;
  Make("balance", 2);
  Move();
  policy_->SetTimes([&] { return times; });
  const auto recording = policy_->Record();
  for (int i = 0; i < 10; ++i) second(900'000'000);
  EXPECT_THAT(moves_, IsEmpty());
  size_t told = 0;
  for (const v1::TraceRecord& record : Read(recording->get())) {
    for (const v1::TraceRan& ran : record.tick().ran()) {
      EXPECT_EQ(ran.running_ns(), 900'000'000u);
      EXPECT_EQ(ran.ready_ns(), 1u);
      ++told;
    }
  }
  EXPECT_EQ(told, 9u * 3) << "the first time says where it begins";
  times[0].set_running_ns(0);  // told late by its node: it is not believed
  for (int i = 0; i < 10; ++i) second(100'000'000);
  EXPECT_THAT(moves_, ElementsAre(std::pair(VcpuId(1), kA)));
}

TEST_F(MachinePolicyTest, BetweenTwoMovesThereIsAPause) {
  Move();
  for (int second = 0; second < 12; ++second) {
    clock_.now += milliseconds(1000);
    policy_->Take(kB, Told(1, 450));
    policy_->Take(kB, Told(2, 450));
    const size_t before = moves_.size();
    policy_->Tick(where_);
    if (moves_.size() == before) continue;
    // Whatever it would say.
    clock_.now += MachinePolicy::kMovePause - milliseconds(1);
    const auto recording = policy_->Record();
    policy_->Tick(where_);
    for (const v1::TraceRecord& record : Read(recording->get())) EXPECT_FALSE(record.has_tick());
  }
  EXPECT_THAT(moves_, SizeIs(2));
}

TEST_F(MachinePolicyTest, WhoIsRefusedIsLeftAlone) {
  Move();
  move_status_ = absl::FailedPreconditionError("a device holds it");
  for (int i = 0; i < 30; ++i) Second(1, 900);
  EXPECT_THAT(moves_, SizeIs(1));
}

TEST_F(MachinePolicyTest, MovesOfOthersAreSeen) {
  const auto recording = policy_->Record();
  ASSERT_TRUE(recording.ok());
  where_[2] = kA;
  Second(0, 0);
  const std::vector<v1::TraceRecord> records = Read(recording->get());
  ASSERT_THAT(records, SizeIs(3));
  EXPECT_THAT(records[0].header().vcpu_nodes(), ElementsAre(1, 2, 2));
  EXPECT_EQ(records[1].move().vcpu(), 2u);
  EXPECT_EQ(records[1].move().to(), kA.value());
  EXPECT_EQ(records[2].tick().time_ns(), 1'000'000'000u);
}

TEST_F(MachinePolicyTest, ARecordingHasWhatNodesTellInItsOwnTime) {
  const auto recording = policy_->Record();
  ASSERT_TRUE(recording.ok());
  clock_.now += milliseconds(700);
  v1::MachineStalls told = Told(1, 2);
  told.mutable_stalls(1)->set_time_ns(4'200'000'000);  // before the recording began
  told.set_dropped(3);
  policy_->Take(kB, told);
  policy_->End();
  EXPECT_FALSE((*recording)->ended());
  const std::vector<v1::TraceRecord> records = Read(recording->get());
  EXPECT_TRUE((*recording)->ended());
  ASSERT_THAT(records, SizeIs(3));
  const v1::TraceHeader& header = records[0].header();
  EXPECT_EQ(header.version(), kTraceVersion);
  EXPECT_EQ(header.machine(), "web");
  EXPECT_EQ(header.policy(), "balance");
  EXPECT_EQ(header.nodes(1).name(), "b");
  ASSERT_EQ(records[1].stalls().stalls_size(), 1);
  const v1::Stall& stall = records[1].stalls().stalls(0);
  EXPECT_EQ(stall.time_ns(), 200'000'000u);
  EXPECT_EQ(stall.vcpu(), 1u);
  EXPECT_EQ(stall.node(), kB.value());
  EXPECT_EQ(stall.holder(), kA.value());
  EXPECT_EQ(stall.kind(), v1::STALL_KIND_WRITE);
  EXPECT_EQ(stall.waited_ns(), 1'000'000u);
  EXPECT_EQ(records[2].dropped().stalls(), 3u);
  EXPECT_EQ(records[2].dropped().node(), kB.value());
  EXPECT_FALSE(policy_->Record().ok());
}

TEST_F(MachinePolicyTest, ASlowReaderLosesStallsAndIsToldSo) {
  const auto recording = policy_->Record();
  ASSERT_TRUE(recording.ok());
  const int each = 8000, times = 12;
  for (int i = 0; i < times; ++i) policy_->Take(kB, Told(1, each));
  clock_.now += seconds(2);
  policy_->Collect();
  size_t stalls = 0, dropped = 0;
  for (const v1::TraceRecord& record : Read(recording->get())) {
    stalls += static_cast<size_t>(record.stalls().stalls_size());
    dropped += record.dropped().stalls();
    EXPECT_LE(record.ByteSizeLong(), kMostTraceRecordBytes);
  }
  // A stall that ended half a second before it was told is before the recording.
  EXPECT_EQ(stalls + dropped, 0u);
  for (int i = 0; i < times; ++i) policy_->Take(kB, Told(1, each));
  clock_.now += seconds(2);
  policy_->Collect();
  for (const v1::TraceRecord& record : Read(recording->get())) {
    stalls += static_cast<size_t>(record.stalls().stalls_size());
    dropped += record.dropped().stalls();
  }
  EXPECT_EQ(stalls, StallRecording::kMostWaiting);
  EXPECT_EQ(stalls + dropped, static_cast<size_t>(each * times));
}

TEST_F(MachinePolicyTest, RecordingsAreFew) {
  std::vector<std::shared_ptr<StallRecording>> recordings;
  for (size_t i = 0; i < MachinePolicy::kMostRecordings; ++i) recordings.push_back(*policy_->Record());
  EXPECT_THAT(MessageOf(policy_->Record().status()), HasSubstr("which is the most"));
  recordings.pop_back();
  EXPECT_TRUE(policy_->Record().ok());
}

TEST_F(MachinePolicyTest, AReaderIsWoken) {
  const std::shared_ptr<StallRecording> recording = *policy_->Record();
  EXPECT_THAT(recording->Read(std::chrono::steady_clock::now() + HangGuard()), SizeIs(1));
  std::thread other([this] { policy_->End(); });
  EXPECT_THAT(recording->Read(std::chrono::steady_clock::now() + HangGuard()), IsEmpty());
  EXPECT_TRUE(recording->ended());
  other.join();
}

TEST_F(MachinePolicyTest, PeersAreNotBelieved) {
  v1::MachineStalls told = Told(1, 6);
  told.mutable_stalls(0)->set_vcpu(3);
  told.mutable_stalls(1)->set_page(~uint64_t{0});
  told.mutable_stalls(2)->clear_kind();
  told.mutable_stalls(3)->set_holder(64);
  told.mutable_stalls(4)->set_waited_ns(~uint64_t{0});
  told.mutable_stalls(4)->set_time_ns(~uint64_t{0});
  told.mutable_stalls(5)->clear_holder();
  told.mutable_stalls(5)->set_time_ns(0);
  told.set_now_ns(~uint64_t{0});
  const std::vector<StallEvent> stalls = StallsIn(told, kB, 3, clock_.now);
  ASSERT_THAT(stalls, SizeIs(2));
  EXPECT_EQ(stalls[0].end, clock_.now);
  EXPECT_LE(stalls[0].waited, std::chrono::hours(1));
  EXPECT_EQ(stalls[0].node, kB);
  EXPECT_GE(stalls[1].end, clock_.now - std::chrono::minutes(2));
  EXPECT_EQ(stalls[1].holder, std::nullopt);
  EXPECT_THAT(StallsIn(Told(1, 20000), kB, 3, clock_.now), SizeIs(StallRing::kCapacity));
  // And what is recorded of them, a trace's reader takes.
  const std::shared_ptr<StallRecording> recording = *policy_->Record();
  clock_.now += seconds(1);
  policy_->Take(kB, told);
  policy_->Take(kB, Told(1, 40000));
  policy_->Take(kC, told);
  std::string file;
  for (const v1::TraceRecord& record : Read(recording.get())) file += TraceBytes(record);
  TraceReader reader([&file, at = size_t{0}](char* to, size_t most) mutable {
    const size_t bytes = file.copy(to, most, at);
    at += bytes;
    return bytes;
  });
  v1::TraceRecord record;
  while (reader.Next(&record)) {
  }
  EXPECT_EQ(reader.error(), "");
}

TEST(PolicyOptions, AreThoseOfTheSpecification) {
  v1::VmSpec spec;
  spec.set_name("web");
  spec.set_policy("balance");
  spec.set_io_node("b");
  for (const auto& [name, vcpus] : std::vector<std::pair<std::string, uint32_t>>{{"a", 1}, {"b", 3}, {"c", 0}}) {
    spec.add_placement()->set_node(name);
    spec.mutable_placement(spec.placement_size() - 1)->set_vcpus(vcpus);
  }
  std::vector<v1::Member> members(3);
  for (size_t i = 0; i < members.size(); ++i) {
    members[i].set_name(std::string(1, static_cast<char>('a' + i)));
    members[i].mutable_info()->set_cpus(2);
  }
  const auto number_of = [](const std::string& name) -> absl::StatusOr<NodeId> {
    return NodeId(static_cast<uint16_t>(name[0] - 'a' + 1));
  };
  const auto options = PolicyOptions(spec, "b", members, number_of, RealClock());
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->self, kB);
  EXPECT_THAT(options->vcpus, ElementsAre(kB, kB, kB, kA));
  std::map<std::string, uint32_t> most;
  for (const MachinePolicy::Node& node : options->nodes) most[node.name] = node.most_vcpus;
  EXPECT_THAT(most, ElementsAre(std::pair("a", 2), std::pair("b", 3), std::pair("c", 0)));
}

}  // namespace
}  // namespace hk
