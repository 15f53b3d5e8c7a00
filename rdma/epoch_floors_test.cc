#include "rdma/epoch_floors.h"

#include "gtest/gtest.h"

namespace hk {
namespace {

constexpr MessageClass kFault = MessageClass::kFault;
constexpr GuestId kGuest(7);
constexpr NodeId kA(1), kB(2);

Message Of(GuestId guest, uint32_t generation, uint64_t epoch, MessageClass message_class = kFault) {
  Message message;
  message.message_class = message_class;
  message.guest = guest;
  message.generation = generation;
  message.epoch = Epoch(epoch);
  return message;
}

TEST(EpochFloorsTest, OlderIsOldAndFloorsOnlyRise) {
  EpochFloors floors;
  bool raised = false;
  EXPECT_FALSE(floors.IsOld(Of(kGuest, 0, 0)));
  ASSERT_TRUE(floors.Raise(kGuest, 2, Epoch(5), &raised).ok());
  EXPECT_TRUE(raised);
  EXPECT_TRUE(floors.IsOld(Of(kGuest, 2, 4)));
  EXPECT_TRUE(floors.IsOld(Of(kGuest, 1, 9)));
  EXPECT_FALSE(floors.IsOld(Of(kGuest, 2, 5)));
  EXPECT_FALSE(floors.IsOld(Of(kGuest, 3, 6)));
  EXPECT_FALSE(floors.IsOld(Of(GuestId(8), 0, 0)));
  EXPECT_FALSE(floors.IsOld(Of(GuestId(0), 0, 0)));

  ASSERT_TRUE(floors.Raise(kGuest, 1, Epoch(4), &raised).ok());
  EXPECT_FALSE(raised);
  ASSERT_TRUE(floors.Raise(kGuest, 1, Epoch(6), &raised).ok());
  EXPECT_TRUE(raised);
  EXPECT_TRUE(floors.IsOld(Of(kGuest, 1, 6))) << "the generation stays";
  ASSERT_EQ(floors.All().size(), 1u);
  EXPECT_EQ(floors.All()[0].floor.generation, 2u);
  EXPECT_EQ(floors.All()[0].floor.epoch, Epoch(6));

  floors.Forget(kGuest);
  EXPECT_FALSE(floors.IsOld(Of(kGuest, 0, 0)));
}

TEST(EpochFloorsTest, GuestsAreBounded) {
  EpochFloors floors;
  bool raised = false;
  EXPECT_EQ(floors.Raise(GuestId(0), 1, Epoch(1), &raised).code(), absl::StatusCode::kInvalidArgument);
  for (uint64_t guest = 1; guest <= kMaxFloors; ++guest) {
    ASSERT_TRUE(floors.Raise(GuestId(guest), 1, Epoch(1), &raised).ok());
    floors.PeerRaised(kA, kFault, GuestId(guest), 1, Epoch(1));
  }
  EXPECT_EQ(floors.Raise(GuestId(kMaxFloors + 1), 1, Epoch(1), &raised).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(floors.Raise(GuestId(1), 2, Epoch(1), &raised).ok());
  floors.PeerRaised(kA, kFault, GuestId(kMaxFloors + 1), 1, Epoch(1));
  EXPECT_TRUE(floors.WithoutPassed(NodeSet::Of(kA), Of(GuestId(kMaxFloors + 1), 0, 0)).Contains(kA));
}

TEST(EpochFloorsTest, GuestsThatAreGoneMakeRoomForOthers) {
  EpochFloors floors;
  bool raised = false;
  ASSERT_TRUE(floors.Raise(GuestId(1), 1, Epoch(1), &raised).ok());
  for (uint64_t guest = 1; guest <= 3 * kMaxFloors; ++guest) floors.PeerRaised(kA, kFault, GuestId(guest), 1, Epoch(5));
  EXPECT_TRUE(floors.WithoutPassed(NodeSet::Of(kA), Of(GuestId(1), 1, 4)).empty()) << "it is here";
  EXPECT_TRUE(floors.WithoutPassed(NodeSet::Of(kA), Of(GuestId(3 * kMaxFloors), 1, 4)).empty()) << "the last";
  EXPECT_FALSE(floors.WithoutPassed(NodeSet::Of(kA), Of(GuestId(2), 1, 4)).empty());
}

TEST(EpochFloorsTest, PeersThatPassedAreNoWriters) {
  EpochFloors floors;
  NodeSet both = NodeSet::Of(kA);
  both.Add(kB);
  floors.PeerRaised(kA, kFault, kGuest, 1, Epoch(3));
  EXPECT_EQ(floors.WithoutPassed(both, Of(kGuest, 1, 2)), NodeSet::Of(kB));
  EXPECT_EQ(floors.WithoutPassed(both, Of(kGuest, 1, 3)), both);
  EXPECT_EQ(floors.WithoutPassed(both, Of(kGuest, 1, 2, MessageClass::kBulk)), both) << "another class";
  EXPECT_EQ(floors.WithoutPassed(both, Of(GuestId(8), 1, 2)), both) << "another guest";
  floors.PeerReset(kA);
  EXPECT_EQ(floors.WithoutPassed(both, Of(kGuest, 1, 2)), both);
}

}  // namespace
}  // namespace hk
