#include "hyperkernel/cli/output.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hk::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(Output, HumanNumbers) {
  EXPECT_EQ(HumanBytes(0), "0");
  EXPECT_EQ(HumanBytes(512), "512 B");
  EXPECT_EQ(HumanBytes(1536), "1.5 KiB");
  EXPECT_EQ(HumanBytes(uint64_t{24} << 30), "24 GiB");
  EXPECT_EQ(HumanBytes(~uint64_t{0}), "16 EiB");
  EXPECT_EQ(HumanDuration(std::chrono::milliseconds(250)), "250ms");
  EXPECT_EQ(HumanDuration(std::chrono::seconds(34)), "34s");
  EXPECT_EQ(HumanDuration(std::chrono::seconds(312)), "5m12s");
  EXPECT_EQ(HumanDuration(std::chrono::hours(52)), "2d4h");
}

TEST(Output, TableAlignsAndHasNoTrailingSpaces) {
  Table table({"A", "LONG", "C"});
  table.AddRow({"wide cell", "x", ""});
  EXPECT_EQ(table.ToString(), "A          LONG  C\nwide cell  x\n");
}

TEST(Output, NodeListShowsUnreachableSinceReasonAndWarnings) {
  v1::Member self, gone;
  self.set_name("a");
  self.set_state(v1::MEMBER_STATE_SELF);
  self.mutable_info()->set_version("1.2.3");
  self.mutable_info()->add_warnings("insecure: x");
  gone.set_name("b");
  gone.set_state(v1::MEMBER_STATE_UNREACHABLE);
  gone.mutable_since()->set_seconds(1000);
  gone.set_reason("no\nanswer");
  const std::string text = MemberTable({self, gone}, std::chrono::system_clock::time_point(std::chrono::seconds(1034)));
  EXPECT_THAT(text, HasSubstr("b     unreachable since 1970-01-01 00:16:40Z (34s)  -"));
  EXPECT_THAT(text, HasSubstr("b: no?answer\n"));
  EXPECT_THAT(text, HasSubstr("warning: a: insecure: x\n"));
}

TEST(Output, ReasonsLoseOnlyTheFraming) {
  EXPECT_EQ(PlainReason("node 'b': failed to connect to all addresses; last error: UNKNOWN: unix:/x: No such file"),
            "node 'b': unix:/x: No such file");
  EXPECT_EQ(PlainReason("failed to connect to all addresses; last error: ipv4:1.2.3.4:5: refused"),
            "ipv4:1.2.3.4:5: refused");
  EXPECT_EQ(PlainReason("no answer within 5 ms"), "no answer within 5 ms");
}

TEST(Output, ANodesBudgetsSayWhatIsUsedAndWhatIsReserved) {
  v1::Member member;
  member.set_name("b");
  v1::NodeInfo& info = *member.mutable_info();
  info.set_frames_used_bytes(3 << 20);
  info.set_frames_reserved_bytes(12 << 20);
  info.set_frame_budget_bytes(16 << 20);
  EXPECT_THAT(MemberText(member, {}), HasSubstr("Frames:            3 MiB of 16 MiB, 12 MiB reserved\n"
                                                "Swap:              none\n"));
  info.set_swap_used_bytes(8 << 20);
  info.set_swap_reserved_bytes(uint64_t{2} << 30);
  info.set_swap_budget_bytes(uint64_t{4} << 30);
  EXPECT_THAT(MemberText(member, {}), HasSubstr("Swap:              8 MiB of 4 GiB, 2 GiB reserved\n"));
}

TEST(Output, ForeignTextCannotSteerTheTerminal) {
  v1::Member member;
  member.set_name("b");
  member.mutable_info()->set_kernel("\x1b[2J6.1");
  EXPECT_THAT(MemberText(member, {}), Not(HasSubstr("\x1b")));
}

TEST(Output, ProbeTellsWhatANoCosts) {
  v1::ProbeReport report;
  report.set_node("a");
  v1::ProbeItem* yes = report.add_items();
  yes->set_group("kvm");
  yes->set_name("present");
  yes->set_verdict(v1::PROBE_VERDICT_YES);
  v1::ProbeItem* no = report.add_items();
  no->set_group("kvm");
  no->set_name("runs a stock kernel");
  no->set_verdict(v1::PROBE_VERDICT_NO);
  no->set_detail("too slow");
  no->set_lost("guests");
  no->set_fix("hardware");
  no->set_required(true);
  const std::string text = ProbeText(report);
  EXPECT_THAT(text, HasSubstr("runs a stock kernel  NO   too slow\n"));
  EXPECT_THAT(text, HasSubstr("lost: guests\n"));
  EXPECT_THAT(text, HasSubstr("fix:  hardware\n"));
  EXPECT_THAT(text, HasSubstr("a: 1 of 2 answers are yes; 1 of the no are required\n"));
}

TEST(Output, JsonHasProtoNamesAndDefaults) {
  v1::Member member;
  member.set_name("a");
  EXPECT_THAT(ToJson(member), HasSubstr("\"round_trip_us\": \"0\""));
  EXPECT_THAT(ToJson(member), HasSubstr("\"state\": \"MEMBER_STATE_UNSPECIFIED\""));
}

}  // namespace
}  // namespace hk::cli
