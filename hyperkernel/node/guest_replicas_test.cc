#include "hyperkernel/node/guest_replicas.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/memory/frame_store_testing.h"
#include "hyperkernel/node/metrics.h"
#include "hyperkernel/node/replica_collector.h"

namespace hk {
namespace {

using testing::HasSubstr;

class GuestReplicasTest : public OwnStoreTest {
 protected:
  void SetUp() override {
    OpenStore(64 << 20);
    auto site = FindReplicaSite(*frames_, RealClock(), "node");
    ASSERT_TRUE(site.ok()) << site.status();
    replicas_.emplace(*std::move(site));
  }
  static v1::VmRecord Record(uint64_t generation = 1) {
    v1::VmRecord record;
    record.mutable_spec()->set_name("g");
    record.mutable_spec()->set_memory_mib(32);
    record.mutable_spec()->add_disks()->set_path("/d");
    record.set_generation(generation);
    return record;
  }
  std::optional<GuestReplicas> replicas_;
};

TEST_F(GuestReplicasTest, StaysOverRunsUntilItIsDropped) {
  EXPECT_EQ(replicas_->Find("g"), nullptr);
  const auto first = replicas_->BeginRun(Record(1));
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(replicas_->Find("g"), first);
  EXPECT_EQ(replicas_->BeginRun(Record(2)), first);
  ASSERT_EQ(replicas_->Samples().size(), 1u);
  EXPECT_EQ(replicas_->Samples()[0].resets(), 1u);
  replicas_->Drop("g");
  replicas_->Drop("g");
  EXPECT_EQ(replicas_->Find("g"), nullptr);
  const auto other = replicas_->BeginRun(Record(3));
  ASSERT_NE(other, nullptr);
  EXPECT_NE(other, first);
}

TEST_F(GuestReplicasTest, ARunWhoseIoDoesNotEndIsLeftBehind) {
  const auto stuck = replicas_->BeginRun(Record(1));
  auto memory = GuestMemory::Create(*frames_, "g", 1, {{Gpa(0), 8 << 20}}, nullptr);
  ASSERT_TRUE(memory.ok()) << memory.status();
  ASSERT_TRUE(stuck->Attach(memory->get()));
  const auto next = replicas_->BeginRun(Record(2));
  ASSERT_NE(next, nullptr);
  EXPECT_NE(next, stuck);
  EXPECT_EQ(replicas_->Find("g"), next);
}

TEST_F(GuestReplicasTest, WhoHasNoneAndWhy) {
  v1::Vm vm;
  const auto why = [&vm] { return std::string(WhyNoReplica(vm).message()); };
  v1::VmRecord record = Record();
  record.mutable_spec()->set_no_replica(true);
  EXPECT_EQ(replicas_->BeginRun(record), nullptr);
  *vm.mutable_spec() = record.spec();
  vm.set_state(v1::VM_STATE_STOPPED);
  EXPECT_THAT(why(), HasSubstr("hkctl vm start g"));
  vm.set_state(v1::VM_STATE_RUNNING);
  EXPECT_THAT(why(), HasSubstr("no_replica"));

  record = Record();
  record.mutable_spec()->clear_disks();
  EXPECT_EQ(replicas_->BeginRun(record), nullptr);
  *vm.mutable_spec() = record.spec();
  EXPECT_THAT(why(), HasSubstr("no disks"));

  record = Record();
  record.mutable_spec()->add_placement()->set_node("a");
  record.mutable_spec()->add_placement()->set_node("b");
  EXPECT_EQ(replicas_->BeginRun(record), nullptr);
  *vm.mutable_spec() = record.spec();
  EXPECT_THAT(why(), HasSubstr("over several nodes"));
}

TEST_F(GuestReplicasTest, MetricsAreOfThoseThatAreThere) {
  Metrics metrics;
  metrics.DescribeReplicas([this] { return replicas_->Samples(); });
  EXPECT_THAT(metrics.Text(), testing::Not(HasSubstr("hyperkernel_replica")));
  const auto replica = replicas_->BeginRun(Record());
  for (const char* name :
       {"entries", "warm_bytes", "hits_total", "misses_total", "saved_bytes_total", "mismatched_total", "durable"}) {
    EXPECT_THAT(metrics.Text(), HasSubstr(std::string("hyperkernel_replica_") + name + "{vm=\"g\"} 0\n"));
  }
  metrics.ForgetReplicas();
  EXPECT_THAT(metrics.Text(), testing::Not(HasSubstr("hyperkernel_replica")));
}

}  // namespace
}  // namespace hk
