// The fault engine when what it needs is refused, comes late or never, and how it stops then.
#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/memory/space_engine.h"
#include "hyperkernel/memory/space_engine_fixture.h"

namespace hk {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST_F(SpaceEngineTest, AWishWaitsForAReceiveSlot) {
  transport_.receive_slots = 0;
  Wish read;
  Want(kThere, PageAccess::kRead, &read);
  engine_->OnFault(Gfn(kThere.value() + 1), false);
  EXPECT_THAT(transport_.sent, IsEmpty());
  EXPECT_EQ(engine_->Residue().waiting_for_slots, 2u);
  transport_.receive_slots = 1;
  engine_->OnSlotsFree(MessageClass::kFault, SlotUse::kReceive);
  ASSERT_EQ(transport_.sent.size(), 1u);
  EXPECT_EQ(transport_.sent[0].message.gfn, kThere);
  EXPECT_EQ(transport_.sent[0].options.deadline, config_.request_limit);
  transport_.receive_slots = 1;
  engine_->OnSlotsFree(MessageClass::kFault, SlotUse::kReceive);
  EXPECT_EQ(transport_.sent.size(), 2u);
  EXPECT_EQ(engine_->Residue().waiting_for_slots, 0u);
}

TEST_F(SpaceEngineTest, AForwardWaitsForASendSlot) {
  Wish write;
  Want(kThere, PageAccess::kWrite, &write);
  Grant(kThere, PageRight::kExclusive, PageSource::kZero);
  Make({kSelf, kPeer, kThird});
  frames_.pages.clear();
  Want(kThere, PageAccess::kWrite, &write);
  Grant(kThere, PageRight::kExclusive, PageSource::kZero);
  clock_.now += LongestHold();
  transport_.send_slots = 0;
  log_.clear();
  ReceiveForward(kThere, RequestKind::kRead, kThird, 4, 100);
  EXPECT_THAT(log_, IsEmpty());
  engine_->OnSlotsFree(MessageClass::kFault, SlotUse::kSend);  // somebody else was faster
  EXPECT_THAT(log_, IsEmpty());
  transport_.send_slots = 1;
  engine_->OnSlotsFree(MessageClass::kFault, SlotUse::kSend);
  EXPECT_THAT(log_, ElementsAre("access 519 1", "send Answer 2"));
  EXPECT_EQ(engine_->Residue().active_pages, 0u);
}

TEST_F(SpaceEngineTest, WhatIsRefusedWaitsInOrder) {
  transport_.refusal = absl::ResourceExhaustedError("full");
  Wish wishes[3];
  Want(kThere, PageAccess::kRead, &wishes[0]);
  Want(Gfn(kThere.value() + 1), PageAccess::kRead, &wishes[1]);
  EXPECT_EQ(engine_->Residue().unsent_messages, 2u);
  transport_.refusal = absl::OkStatus();
  Want(Gfn(kThere.value() + 2), PageAccess::kRead, &wishes[2]);
  EXPECT_THAT(transport_.sent, IsEmpty());
  engine_->OnWritable(kPeer, MessageClass::kFault);
  ASSERT_EQ(transport_.sent.size(), 3u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(transport_.sent[i].message.gfn, Gfn(kThere.value() + i));
  EXPECT_EQ(engine_->Residue().unsent_messages, 0u);
}

TEST_F(SpaceEngineTest, AfterNackTheWishIsTriedAgain) {
  Wish read;
  Want(kThere, PageAccess::kRead, &read);
  Refuse(transport_.sent[0]);
  EXPECT_EQ(transport_.sent.size(), 1u);
  timers_.Advance(config_.retry);
  ASSERT_EQ(transport_.sent.size(), 2u);
  EXPECT_NE(transport_.sent[1].message.transaction, transport_.sent[0].message.transaction);
  EXPECT_EQ(engine_->Statistics().retries, 1u);
  Grant(kThere, PageRight::kShared, PageSource::kZero);
  EXPECT_TRUE(read.status.ok());
}

TEST_F(SpaceEngineTest, AnOldAnswerIsDroppedAndItsSlotReleased) {
  Wish read;
  Want(kThere, PageAccess::kRead, &read);
  PageMessage old = Of(Type::kNack);
  old.transaction = transport_.sent[0].message.transaction + 64;
  Receive(kPeer, kThere, old, SlotId(5), kSelf);
  EXPECT_EQ(engine_->Statistics().stale_messages, 1u);
  EXPECT_EQ(read.ends, 0);
  EXPECT_THAT(stops_, IsEmpty());
}

TEST_F(SpaceEngineTest, AnExpiredRequestStopsTheSpace) {
  Wish read;
  Want(kThere, PageAccess::kRead, &read);
  engine_->OnFault(kThere, false);
  const FakeTransport::Sent& request = transport_.sent[0];
  // Another space's.
  engine_->OnRequestExpired(kPeer, MessageClass::kFault, request.message.transaction, SlotId(1),
                            RequestFailure::kDeadline);
  EXPECT_THAT(stops_, IsEmpty());
  log_.clear();
  engine_->OnRequestExpired(kPeer, MessageClass::kFault, request.message.transaction, request.message.slot,
                            RequestFailure::kDeadline);
  EXPECT_THAT(log_, ElementsAre("granted", "fail 519", "wake 519"));
  EXPECT_EQ(read.ends, 1);
  EXPECT_TRUE(absl::IsDeadlineExceeded(read.status));
  ExpectStopped("node 0, page at GPA 0x207000");
  log_.clear();
  engine_->OnFault(kHere, true);
  EXPECT_THAT(log_, ElementsAre("fail 7", "wake 7"));
}

TEST_F(SpaceEngineTest, AWishThatGetsNowhereStopsTheSpace) {
  transport_.receive_slots = 0;
  Wish read;
  Want(kThere, PageAccess::kRead, &read);
  timers_.Advance(config_.request_limit);
  EXPECT_THAT(stops_, IsEmpty());
  timers_.Advance(config_.request_limit / 2);
  EXPECT_TRUE(absl::IsDeadlineExceeded(read.status));
  ExpectStopped("could not be had");
}

TEST_F(SpaceEngineTest, APeerOfTheSpaceThatFailsStopsIt) {
  Wish read;
  Want(kThere, PageAccess::kRead, &read);
  engine_->OnPeerFailed(kThird, PeerFailure::kLeft, "it said so");
  EXPECT_THAT(stops_, IsEmpty());
  engine_->OnPeerFailed(kPeer, PeerFailure::kLeaseExpired, "not heard of for 2000 ms");
  EXPECT_EQ(read.ends, 1);
  ExpectStopped("node 1 failed: not heard of for 2000 ms");
  engine_->Stop(absl::InternalError("later"));
  EXPECT_EQ(stops_.size(), 1u);
}

TEST_F(SpaceEngineTest, APeerThatWasNeverThereStopsItToo) {
  transport_.refusal = absl::UnavailableError("the peer is not up");
  Wish read;
  Want(kThere, PageAccess::kRead, &read);
  EXPECT_THAT(stops_, IsEmpty());  // the transport may say why
  timers_.Advance(std::chrono::seconds(2));
  ExpectStopped("node 1 cannot be reached");
}

TEST_F(SpaceEngineTest, FramesThatFailStopTheSpace) {
  frames_.failure = absl::ResourceExhaustedError("frame store: no space left");
  Wish read;
  Want(kHere, PageAccess::kRead, &read);
  EXPECT_TRUE(absl::IsResourceExhausted(read.status));
  ExpectStopped("no space left");
}

TEST_F(SpaceEngineTest, WhoStopsTellsTheOthersAndWhoIsToldTellsNobody) {
  Make({kSelf, kPeer, kThird});
  Wish read;
  Want(kThere, PageAccess::kRead, &read);
  engine_->OnPeerFailed(kPeer, PeerFailure::kLeaseExpired, "silent");
  EXPECT_THAT(transport_.told, ElementsAre("1: node 1 failed: silent", "2: node 1 failed: silent"));
  transport_.told.clear();
  stops_.clear();
  Make({kSelf, kPeer, kThird});
  Want(kThere, PageAccess::kRead, &read);
  const std::string why = "node 2, page at GPA 0x1000: \x1b[31mbad";
  Message message = SpaceStoppedMessage(why);
  message.gfn = Gfn(~uint64_t{0});
  engine_->OnMessage(NodeId(9), message, {}, false);
  EXPECT_THAT(stops_, IsEmpty());
  engine_->OnMessage(kThird, message, {}, false);
  ExpectStopped("node 2 stopped: node 2, page at GPA 0x1000: ?[31mbad");
  EXPECT_TRUE(absl::IsAborted(read.status));
  Make({kSelf, kPeer});
  engine_->Stop(absl::CancelledError("deleted"));
  EXPECT_THAT(transport_.told, IsEmpty());
  EXPECT_EQ(ReasonIn(SpaceStoppedMessage(std::string(1000, 'x'))).size(), kMaxBodyBytes);
  EXPECT_EQ(ReasonIn(SpaceStoppedMessage("")), "it does not say why");
}

// Frames that many threads may use.
class CountingFrames final : public PageFrames {
 public:
  absl::Status Install(Gfn, std::span<const std::byte>, PageAccess) override { return Count(); }
  absl::Status SetAccess(Gfn, PageAccess) override { return Count(); }
  absl::Status Remove(Gfn, std::span<std::byte>) override { return Count(); }
  absl::Status Read(Gfn, size_t, std::span<std::byte>) override { return Count(); }
  absl::Status Write(Gfn, size_t, std::span<const std::byte>) override { return Count(); }
  void Wake(Gfn) override { calls.fetch_add(1); }
  void Fail(Gfn) override { calls.fetch_add(1); }
  std::atomic<uint64_t> calls{0};

 private:
  absl::Status Count() {
    calls.fetch_add(1);
    return absl::OkStatus();
  }
};

TEST_F(SpaceEngineTest, ManyThreadsAndAStop) {
  config_.nodes = {kSelf};
  CountingFrames frames;
  std::atomic<int> stopped{0}, ended{0};
  // The fake timers are one thread's; with one node none is needed but the watch.
  class NoTimers final : public Timers {
    void After(Monotonic::duration, std::function<void()>) override {}
  } timers;
  auto made = SpaceEngine::Create(config_, &transport_, &frames, &timers, RealClock(),
                                  [&](const absl::Status&) { stopped.fetch_add(1); });
  ASSERT_TRUE(made.ok());
  SpaceEngine& engine = **made;
  constexpr int kThreads = 4, kWishes = 3000;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kWishes; ++i) {
        const Gfn page(static_cast<uint64_t>(i * 37 + t) % config_.pages);
        engine.Want(page, i % 3 == 0 ? PageAccess::kWrite : PageAccess::kRead,
                    [&](const absl::Status&) { ended.fetch_add(1); });
        if (i % 5 == 0) engine.OnFault(page, true);
        if (i % 100 == 0) engine.Statistics(), engine.Uses(0, 10);
        if (t == 0 && i == kWishes / 2) engine.Stop(absl::CancelledError("enough"));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(stopped.load(), 1);
  EXPECT_EQ(ended.load(), kThreads * kWishes);
}

}  // namespace
}  // namespace hk
