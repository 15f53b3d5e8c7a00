// Traces: their file, and what a policy would have made of them.
#include "migration/policy_replay.h"

#include <cstring>
#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "migration/policy_testing.h"
#include "proto/trace_file.h"

namespace hk {
namespace {

using std::chrono::seconds;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr NodeId kA{1}, kB{2};

// A file in memory, read in pieces of `piece` bytes.
TraceReader::Source From(const std::string& file, size_t piece = 1000) {
  return [&file, piece, at = size_t{0}](char* to, size_t most) mutable {
    const size_t bytes = std::min({most, piece, file.size() - at});
    std::memcpy(to, file.data() + at, bytes);
    at += bytes;
    return bytes;
  };
}

v1::TraceRecord Header(const std::vector<NodeId>& vcpus) {
  v1::TraceRecord record;
  v1::TraceHeader* const header = record.mutable_header();
  header->set_version(kTraceVersion);
  header->set_machine("web");
  header->set_policy("fetch");
  for (const auto& [name, number] : {std::pair("a", kA), std::pair("b", kB)}) {
    v1::TraceNode* const node = header->add_nodes();
    node->set_number(number.value());
    node->set_name(name);
    node->set_most_vcpus(4);
  }
  for (const NodeId node : vcpus) header->add_vcpu_nodes(node.value());
  return record;
}

v1::TraceRecord Tick(seconds time) {
  v1::TraceRecord record;
  record.mutable_tick()->set_time_ns(static_cast<uint64_t>(std::chrono::nanoseconds(time).count()));
  return record;
}

void Add(const StallEvent& event, Monotonic began, v1::TraceRecord* record) {
  v1::Stall* const stall = record->mutable_stalls()->add_stalls();
  stall->set_time_ns(static_cast<uint64_t>(std::chrono::nanoseconds(event.end - began).count()));
  stall->set_vcpu(event.vcpu.value());
  stall->set_node(event.node.value());
  stall->set_page(event.page.value());
  stall->set_kind(static_cast<v1::StallKind>(static_cast<int>(event.kind) + 1));
  if (event.holder.has_value()) stall->set_holder(event.holder->value());
  stall->set_waited_ns(static_cast<uint64_t>(event.waited.count()));
}

// The trace of a machine under `fetch`.
std::string Record(PolicyWorld* world, int length) {
  std::string file = TraceBytes(Header(world->where));
  const Monotonic began = world->now;
  v1::TraceRecord stalls;
  world->on_stall = [&](const StallEvent& stall) { Add(stall, began, &stalls); };
  for (int i = 1; i <= length; ++i) {
    world->Run(1);
    if (stalls.has_stalls()) file += TraceBytes(stalls);
    stalls.Clear();
    file += TraceBytes(Tick(seconds(i)));
  }
  return file;
}

absl::StatusOr<ReplayScore> ReplayOf(const std::string& file, std::string_view policy, size_t piece = 1000) {
  TraceReader reader(From(file, piece));
  return ReplayTrace(&reader, policy);
}

PolicyMachine Machine(std::vector<NodeId> vcpus) {
  return {.nodes = {{kA, 4}, {kB, 4}}, .vcpus = std::move(vcpus)};
}

// One thread at b whose data is at a.
std::string Stranger(int length) {
  PolicyWorld world("fetch", Machine({kA, kB}));
  world.Home(0, 1'000'000, kA);
  auto random = std::make_shared<TestRandom>(1);
  world.programs[1] = [random] { return PolicyWorld::Access{.page = random->Below(1'000'000), .write = true}; };
  return Record(&world, length);
}

TEST(PolicyReplay, FetchIsAsRecorded) {
  const absl::StatusOr<ReplayScore> score = ReplayOf(Stranger(5), "fetch");
  ASSERT_TRUE(score.ok()) << score.status();
  EXPECT_GT(score->recorded_s, 4);
  EXPECT_DOUBLE_EQ(score->policy_s, score->recorded_s);
  EXPECT_THAT(score->moves, IsEmpty());
  EXPECT_GE(score->length, seconds(5));
  EXPECT_LT(score->length, seconds(6));
  EXPECT_FALSE(score->torn);
}

TEST(PolicyReplay, BalanceSavesWhatAMoveSaves) {
  const absl::StatusOr<ReplayScore> score = ReplayOf(Stranger(20), "balance");
  ASSERT_TRUE(score.ok()) << score.status();
  ASSERT_THAT(score->moves, SizeIs(1));
  EXPECT_EQ(score->moves[0].vcpu, VcpuId(1));
  EXPECT_EQ(score->moves[0].from, "b");
  EXPECT_EQ(score->moves[0].to, "a");
  EXPECT_GT(score->recorded_s, 18);
  // The first four seconds, and the pages that it had by then.
  EXPECT_LT(score->policy_s, 10);
  EXPECT_GT(score->moves_s, 0.05 + 3);
  EXPECT_THAT(ScoreText(*score), HasSubstr("vCPU 1  b -> a"));
  EXPECT_THAT(ScoreJson(*score), HasSubstr(R"("vcpu":1,"from":"b","to":"a")"));
}

// A move saves the waits of both that share pages, and not of one alone.
TEST(PolicyReplay, WhoSharesWithOneThatWasMovedDoesNotWaitEither) {
  PolicyWorld world("fetch", Machine({kA, kB}));
  for (uint32_t vcpu = 0; vcpu < 2; ++vcpu) {
    auto random = std::make_shared<TestRandom>(vcpu + 1);
    world.programs[vcpu] = [random] { return PolicyWorld::Access{.page = random->Below(64), .write = true}; };
  }
  const absl::StatusOr<ReplayScore> score = ReplayOf(Record(&world, 30), "balance");
  ASSERT_TRUE(score.ok()) << score.status();
  EXPECT_THAT(score->moves, SizeIs(1));
  EXPECT_LT(score->policy_s, score->recorded_s / 4);
}

TEST(PolicyReplay, UnknownPoliciesAreRefused) {
  EXPECT_THAT(ReplayOf(Stranger(1), "guess").status().ToString(), HasSubstr("'guess'"));
}

TEST(TraceFile, ATornEndIsReadUpToTheLastWholeRecord) {
  const std::string header = TraceBytes(Header({kA})), file = header + TraceBytes(Tick(seconds(1)));
  for (size_t bytes = 0; bytes <= file.size(); ++bytes) {
    const absl::StatusOr<ReplayScore> score = ReplayOf(file.substr(0, bytes), "balance", 1);
    if (bytes < header.size()) {
      EXPECT_THAT(score.status().ToString(), HasSubstr("ends within its header")) << bytes;
      continue;
    }
    ASSERT_TRUE(score.ok()) << bytes << ": " << score.status();
    EXPECT_EQ(score->torn, bytes != header.size() && bytes != file.size()) << bytes;
    EXPECT_EQ(score->length, seconds(bytes == file.size() ? 1 : 0)) << bytes;
  }
}

TEST(TraceFile, GarbageIsRefusedInOneLine) {
  const std::string header = TraceBytes(Header({kA}));
  for (const std::string& bad :
       {std::string("\xff\xff\xff\xff\xff\xff"), std::string("\xff\xff\xff\x7f"), std::string("hello, world\n"),
        std::string(100, '\0'), header + header, header + "\x03xyz", header + std::string("\xff\xff\xff\xff\x01"),
        TraceBytes(Tick(seconds(1)))}) {
    const absl::Status status = ReplayOf(bad, "balance").status();
    EXPECT_FALSE(status.ok());
    EXPECT_EQ(status.message().find('\n'), std::string::npos) << status;
    EXPECT_FALSE(status.message().empty());
  }
}

// What no trace has, one thing at a time.
TEST(TraceFile, ImpossibleContentsAreRefused) {
  using Change = void (*)(v1::TraceHeader*);
  for (const Change change :
       {Change([](v1::TraceHeader* h) { h->set_version(2); }),
        Change([](v1::TraceHeader* h) { h->set_machine("a\nb"); }),
        Change([](v1::TraceHeader* h) { h->set_policy(std::string(1000, 'a')); }),
        Change([](v1::TraceHeader* h) { h->clear_nodes(); }),
        Change([](v1::TraceHeader* h) { h->mutable_nodes(0)->set_number(64); }),
        Change([](v1::TraceHeader* h) { h->mutable_nodes(0)->set_number(kB.value()); }),
        Change([](v1::TraceHeader* h) { h->mutable_nodes(0)->set_name("\x1b[2J"); }),
        Change([](v1::TraceHeader* h) { h->mutable_nodes(0)->set_name("b"); }),
        Change([](v1::TraceHeader* h) { h->clear_vcpu_nodes(); }),
        Change([](v1::TraceHeader* h) { h->set_io_node(9); }),
        Change([](v1::TraceHeader* h) { h->set_vcpu_nodes(0, 9); }), Change([](v1::TraceHeader* h) {
          for (int i = 0; i < 300; ++i) h->add_vcpu_nodes(kA.value());
        })}) {
    v1::TraceRecord record = Header({kA});
    change(record.mutable_header());
    EXPECT_THAT(ReplayOf(TraceBytes(record), "fetch").status().ToString(), HasSubstr("not a trace"));
  }
  using Ruin = void (*)(v1::TraceRecord*);
  for (const Ruin ruin :
       {Ruin([](v1::TraceRecord* r) { r->mutable_stalls()->mutable_stalls(0)->set_vcpu(1); }),
        Ruin([](v1::TraceRecord* r) { r->mutable_stalls()->mutable_stalls(0)->set_node(7); }),
        Ruin([](v1::TraceRecord* r) { r->mutable_stalls()->mutable_stalls(0)->set_holder(64); }),
        Ruin([](v1::TraceRecord* r) { r->mutable_stalls()->mutable_stalls(0)->set_page(~0ULL); }),
        Ruin([](v1::TraceRecord* r) { r->mutable_stalls()->mutable_stalls(0)->clear_kind(); }),
        Ruin([](v1::TraceRecord* r) { r->mutable_stalls()->mutable_stalls(0)->set_time_ns(~0ULL); }),
        Ruin([](v1::TraceRecord* r) { r->mutable_stalls()->mutable_stalls(0)->set_waited_ns(~0ULL); }),
        Ruin([](v1::TraceRecord* r) { r->mutable_move()->set_vcpu(1); }),
        Ruin([](v1::TraceRecord* r) { r->mutable_move()->set_to(7); }),
        Ruin([](v1::TraceRecord* r) { r->mutable_tick()->set_time_ns(~0ULL); }),
        Ruin([](v1::TraceRecord* r) { r->mutable_tick()->add_ran()->set_vcpu(1); }),
        Ruin([](v1::TraceRecord* r) { r->mutable_tick()->add_ran()->set_ready_ns(~0ULL); }),
        Ruin([](v1::TraceRecord* r) { r->mutable_dropped()->set_node(7); })}) {
    v1::TraceRecord record;
    Add({.end = Monotonic(), .vcpu = VcpuId(0), .node = kA, .holder = kB, .waited = seconds(1)}, Monotonic(), &record);
    ruin(&record);
    EXPECT_THAT(ReplayOf(TraceBytes(Header({kA})) + TraceBytes(record), "fetch").status().ToString(),
                HasSubstr("record 2: "));
  }
}

}  // namespace
}  // namespace hk
