#include "hyperkernel/memory/space_router.h"

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/memory/space_testing.h"

namespace hk {
namespace {

using testing::ElementsAre;

// Notes what it is told. Not thread-safe, but for `entered` and `leave`.
class NotingReceiver final : public GuestReceiver {
 public:
  void OnMessage(NodeId from, const Message& message, std::span<const std::byte>, bool) override {
    if (blocks) {
      entered = true;
      entered.notify_all();
      leave.wait(false);
    }
    told.push_back("message " + std::to_string(message.transaction) + " of " + std::to_string(from.value()));
  }
  void OnWritable(NodeId, MessageClass) override { told.push_back("writable"); }
  void OnSlotsFree(MessageClass, SlotUse) override { told.push_back("slots"); }
  void OnRequestExpired(NodeId, MessageClass, uint64_t, SlotId, RequestFailure) override { told.push_back("expired"); }
  void OnPeerFailed(NodeId, PeerFailure, const std::string& detail) override { told.push_back("failed: " + detail); }

  bool blocks = false;
  std::atomic<bool> entered{false}, leave{false};
  std::vector<std::string> told;
};

Message MessageFor(uint64_t guest, uint32_t generation, uint64_t transaction) {
  Message message;
  message.guest = GuestId(guest);
  message.generation = generation;
  message.transaction = transaction;
  return message;
}

class SpaceRouterTest : public testing::Test {
 protected:
  SpaceRouterTest() { router_.SetTransport(&transport_); }
  void Give(uint64_t guest, uint32_t generation, uint64_t transaction) {
    router_.OnMessage(NodeId(3), MessageFor(guest, generation, transaction), {}, false);
  }

  NotingTransport transport_;
  std::vector<std::string> watched_;
  SpaceRouter router_{
      {.up = [this](NodeId peer) { watched_.push_back("up " + std::to_string(peer.value())); },
       .failed = [this](NodeId, PeerFailure, const std::string& detail) { watched_.push_back("failed: " + detail); }}};
};

TEST_F(SpaceRouterTest, AMessageGoesToItsGuestAndGeneration) {
  NotingReceiver one, two, next;
  ASSERT_TRUE(router_.Add(GuestId(1), 1, &one).ok());
  ASSERT_TRUE(router_.Add(GuestId(2), 1, &two).ok());
  ASSERT_TRUE(router_.Add(GuestId(1), 2, &next).ok());
  EXPECT_EQ(router_.Add(GuestId(1), 2, &two).code(), absl::StatusCode::kAlreadyExists);
  Give(1, 1, 10);
  Give(2, 1, 20);
  Give(1, 2, 30);
  Give(1, 3, 40);
  Give(3, 1, 50);
  Give(0, 0, 60);
  EXPECT_THAT(one.told, ElementsAre("message 10 of 3"));
  EXPECT_THAT(two.told, ElementsAre("message 20 of 3"));
  EXPECT_THAT(next.told, ElementsAre("message 30 of 3"));
  router_.Remove(GuestId(1), 1);
  router_.Remove(GuestId(1), 7);
  Give(1, 1, 70);
  Give(1, 2, 80);
  EXPECT_EQ(one.told.size(), 1u);
  EXPECT_EQ(next.told.size(), 2u);
}

TEST_F(SpaceRouterTest, TheSlotOfAnAnswerThatNobodyTakesIsReleased) {
  NotingReceiver receiver;
  ASSERT_TRUE(router_.Add(GuestId(1), 1, &receiver).ok());
  for (const bool answer : {false, true}) {
    for (const uint32_t generation : {1U, 2U}) {
      Message message = MessageFor(1, generation, 0);
      message.slot = SlotId(100 + generation);
      message.answer = answer;
      router_.OnMessage(NodeId(3), message, {}, false);
    }
  }
  EXPECT_THAT(transport_.released, ElementsAre(102));
}

TEST_F(SpaceRouterTest, EventsGoToAll) {
  NotingReceiver one, two;
  ASSERT_TRUE(router_.Add(GuestId(1), 1, &one).ok());
  ASSERT_TRUE(router_.Add(GuestId(2), 1, &two).ok());
  router_.OnPeerUp(NodeId(3));
  router_.OnWritable(NodeId(3), MessageClass::kFault);
  router_.OnSlotsFree(MessageClass::kFault, SlotUse::kSend);
  router_.OnRequestExpired(NodeId(3), MessageClass::kFault, 1, SlotId(1), RequestFailure::kDeadline);
  router_.OnPeerFailed(NodeId(3), PeerFailure::kLeft, "left");
  for (const NotingReceiver* receiver : {&one, &two})
    EXPECT_THAT(receiver->told, ElementsAre("writable", "slots", "expired", "failed: left"));
  EXPECT_THAT(watched_, ElementsAre("up 3", "failed: left"));
}

TEST_F(SpaceRouterTest, RemoveWaitsForWhatIsUnderWayAndLetsNothingNewIn) {
  NotingReceiver receiver, other;
  receiver.blocks = true;
  ASSERT_TRUE(router_.Add(GuestId(1), 1, &receiver).ok());
  ASSERT_TRUE(router_.Add(GuestId(2), 1, &other).ok());
  std::thread handler([&] { Give(1, 1, 1); });
  receiver.entered.wait(false);
  std::atomic<bool> removed{false};
  std::thread remover([&] {
    router_.Remove(GuestId(1), 1);
    removed = true;
  });
  // Others go on meanwhile; new events reach the leaving one, or not, but not after Remove.
  Give(2, 1, 2);
  EXPECT_EQ(other.told.size(), 1u);
  EXPECT_FALSE(removed);
  receiver.leave = true;
  receiver.leave.notify_all();
  handler.join();
  remover.join();
  EXPECT_THAT(receiver.told, ElementsAre("message 1 of 3"));
  Give(1, 1, 3);
  router_.OnWritable(NodeId(3), MessageClass::kBulk);
  EXPECT_EQ(receiver.told.size(), 1u);
  EXPECT_TRUE(router_.Add(GuestId(1), 1, &receiver).ok());
}

}  // namespace
}  // namespace hk
