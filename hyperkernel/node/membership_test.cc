#include "hyperkernel/node/membership.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hk {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

constexpr milliseconds kAfter(3000);

class MembershipTest : public testing::Test {
 protected:
  v1::NodeInfo Info(const std::string& name, const std::string& cluster = "c") {
    v1::NodeInfo info;
    info.set_name(name);
    info.set_cluster(cluster);
    info.set_number(name == "c" ? 2 : 1);
    return info;
  }
  Monotonic At(int ms) { return start_ + milliseconds(ms); }
  WallTime WallAt(int ms) { return WallTime(std::chrono::seconds(1000)) + milliseconds(ms); }
  void Answer(const std::string& name, int ms) {
    table_.OnAnswer(name, {kPeerProtocolVersion, 0, Info(name)}, std::chrono::microseconds(70), At(ms), WallAt(ms));
  }
  v1::Member B(int ms) { return table_.Snapshot(At(ms)).at(0); }

  const Monotonic start_ = Monotonic(std::chrono::hours(1));
  MembershipTable table_{{{"b", "unix:/b", NodeId(1)}, {"c", "unix:/c", NodeId(2)}},
                         "c",
                         NodeId(0),
                         kAfter,
                         start_,
                         WallTime(std::chrono::seconds(1000))};
};

TEST_F(MembershipTest, ConnectingThenUnreachableIfNeverHeardOf) {
  table_.OnFailure("b", "refused");
  EXPECT_EQ(B(3000).state(), v1::MEMBER_STATE_CONNECTING);
  EXPECT_EQ(B(3001).state(), v1::MEMBER_STATE_UNREACHABLE);
  EXPECT_EQ(B(3001).since().seconds(), 1000);
  EXPECT_EQ(B(3001).reason(), "never heard of: refused");
}

TEST_F(MembershipTest, UpUntilTheDeadlineAndNotLonger) {
  Answer("b", 1000);
  EXPECT_EQ(B(1000).state(), v1::MEMBER_STATE_UP);
  EXPECT_EQ(B(1000).round_trip_us(), 70u);
  EXPECT_EQ(B(4000).state(), v1::MEMBER_STATE_UP);
  EXPECT_EQ(B(4001).state(), v1::MEMBER_STATE_UNREACHABLE);
  EXPECT_EQ(B(4001).since().seconds(), 1001);
  EXPECT_EQ(B(4001).info().name(), "b") << "the last that was heard stays visible";
}

TEST_F(MembershipTest, AFailureAloneDoesNotMakeUnreachable) {
  Answer("b", 0);
  table_.OnFailure("b", "timeout");
  EXPECT_EQ(B(2999).state(), v1::MEMBER_STATE_UP);
  EXPECT_EQ(B(3001).reason(), "timeout");
  Answer("b", 3500);
  EXPECT_EQ(B(3500).state(), v1::MEMBER_STATE_UP);
}

TEST_F(MembershipTest, AnswersThatCannotBeWorkedWithAreRejectedWithTheReason) {
  table_.OnAnswer("b", {kPeerProtocolVersion, 0, Info("b", "other")}, {}, At(0), WallAt(0));
  EXPECT_EQ(B(0).state(), v1::MEMBER_STATE_REJECTED);
  EXPECT_THAT(B(0).reason(), HasSubstr("cluster 'other'"));
  EXPECT_FALSE(B(0).has_info());
  table_.OnAnswer("b", {kPeerProtocolVersion + 1, 0, Info("b")}, {}, At(1), WallAt(1));
  EXPECT_THAT(B(1).reason(), HasSubstr("control protocol 3, this node 2"));
  table_.OnAnswer("b", {kPeerProtocolVersion, 0, Info("z")}, {}, At(2), WallAt(2));
  EXPECT_THAT(B(2).reason(), HasSubstr("is node 'z', not 'b'"));
  table_.OnRefused("b", "not in the peer list", At(3), WallAt(3));
  EXPECT_EQ(B(3).reason(), "not in the peer list");
  Answer("b", 4);
  EXPECT_EQ(B(4).state(), v1::MEMBER_STATE_UP);
  table_.OnRefused("b", "no", At(5), WallAt(5));
  EXPECT_EQ(B(3006).state(), v1::MEMBER_STATE_UNREACHABLE);
}

TEST_F(MembershipTest, StrangersAreIgnoredAndPeersAreIndependent) {
  Answer("zz", 0);
  Answer("c", 0);
  EXPECT_EQ(table_.Snapshot(At(1)).size(), 2u);
  EXPECT_EQ(B(1).state(), v1::MEMBER_STATE_CONNECTING);
  EXPECT_EQ(table_.NumberOf("c"), NodeId(2));
  EXPECT_FALSE(table_.NumberOf("zz").has_value());
}

TEST_F(MembershipTest, NodesThatNumberTheClusterOtherwiseAreRejected) {
  v1::NodeInfo info = Info("b");
  info.set_number(5);
  table_.OnAnswer("b", {kPeerProtocolVersion, 0, info}, {}, At(0), WallAt(0));
  EXPECT_EQ(B(0).state(), v1::MEMBER_STATE_REJECTED);
  EXPECT_THAT(B(0).reason(), HasSubstr("number 5 to itself and 1 here"));
  EXPECT_FALSE(B(0).has_info());
  table_.OnAnswer("b", {kPeerProtocolVersion, 3, Info("b")}, {}, At(1), WallAt(1));
  EXPECT_EQ(B(1).state(), v1::MEMBER_STATE_REJECTED);
  EXPECT_THAT(B(1).reason(), HasSubstr("this node is number 3 to it and 0 here"));
  Answer("b", 2);
  EXPECT_EQ(B(2).state(), v1::MEMBER_STATE_UP);
}

}  // namespace
}  // namespace hk
