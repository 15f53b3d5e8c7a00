#include "rdma/slots.h"

#include <cstdlib>
#include <map>
#include <random>
#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hk {
namespace {

using State = SlotTable::State;

constexpr MessageClass kFault = MessageClass::kFault;
constexpr MessageClass kBulk = MessageClass::kBulk;
constexpr SlotUse kReceive = SlotUse::kReceive;
constexpr SlotUse kSend = SlotUse::kSend;
constexpr GuestId kGuest(7);
constexpr NodeId kHome(1), kOwner(2), kStranger(3);

Monotonic At(int ms) {
  return Monotonic(std::chrono::milliseconds(ms));
}

// A request to the home that home and owner may answer.
SlotTable::Request ToHome(int deadline_ms = 10) {
  SlotTable::Request request;
  request.asked = kHome;
  request.writers = NodeSet::Of(kHome);
  request.writers.Add(kOwner);
  request.guest = kGuest;
  request.generation = 1;
  request.epoch = Epoch(4);
  request.transaction = 99;
  request.deadline = At(deadline_ms);
  return request;
}

Message AnswerTo(SlotId slot, MessageClass message_class = kFault) {
  Message message;
  message.message_class = message_class;
  message.answer = true;
  message.guest = kGuest;
  message.generation = 1;
  message.epoch = Epoch(4);
  message.slot = slot;
  return message;
}

// One slot of each kind, so that each reuse shows.
class SlotTableTest : public ::testing::Test {
 protected:
  SlotId Acquire(MessageClass message_class = kFault, SlotUse use = kReceive) {
    auto slot = table_.Acquire(message_class, use);
    EXPECT_TRUE(slot.ok());
    return slot.ok() ? *slot : SlotId();
  }
  SlotId Asked(MessageClass message_class = kFault) {
    const SlotId slot = Acquire(message_class);
    EXPECT_TRUE(table_.Ask(slot, ToHome()).ok());
    return slot;
  }
  bool IsFree(MessageClass message_class = kFault, SlotUse use = kReceive) {
    auto slot = table_.Acquire(message_class, use);
    return slot.ok() && table_.Release(*slot);
  }

  SlotTable table_{SlotCounts{1, 1, 1, 1}};
};

TEST_F(SlotTableTest, NamesSayWhatTheyAre) {
  const SlotName name{kBulk, kSend, kMaxSlots - 1, (uint64_t{1} << 48) - 1};
  EXPECT_EQ(name.Encode().value(), ~uint64_t{0});
  const SlotName read = SlotName::Decode(SlotName{kBulk, kReceive, 77, 5}.Encode());
  EXPECT_EQ(read.message_class, kBulk);
  EXPECT_EQ(read.use, kReceive);
  EXPECT_EQ(read.index, 77u);
  EXPECT_EQ(read.counter, 5u);
  EXPECT_NE(Acquire(), SlotId()) << "0 is none";
}

TEST_F(SlotTableTest, NamesOfALifeAreAboveThoseOfLivesBefore) {
  const WallTime then = WallTime(std::chrono::sys_days(std::chrono::year(2026) / 2 / 3));
  const uint64_t before = FirstSlotCounter(then);
  // A hundred thousand slots a second for a minute, then a restart.
  EXPECT_LT(before + 60 * 100'000, FirstSlotCounter(then + std::chrono::minutes(1)));
  EXPECT_LT(FirstSlotCounter(WallTime(std::chrono::sys_days(std::chrono::year(2090) / 1 / 1))), uint64_t{1} << 48);
  EXPECT_EQ(FirstSlotCounter(WallTime()), 1u) << "a clock that was never set";
  SlotTable table(SlotCounts{1, 1, 1, 1}, before);
  const auto slot = table.Acquire(kFault, kReceive);
  ASSERT_TRUE(slot.ok());
  EXPECT_EQ(SlotName::Decode(*slot).counter, before);
  EXPECT_EQ(table.FirstCounterFor(kHome), before) << "what is older is refused from the first session on";
}

TEST_F(SlotTableTest, SlotsAreCountedAndNamedOnce) {
  const SlotId slot = Acquire();
  EXPECT_EQ(table_.StateOf(slot), State::kLent);
  EXPECT_EQ(table_.Acquire(kFault, kReceive).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(table_.Acquire(MessageClass::kInvalidate, kSend).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(table_.TakeSlotsFree(kFault, kReceive));
  EXPECT_TRUE(table_.Release(slot));
  EXPECT_FALSE(table_.Release(slot)) << "released already";
  EXPECT_TRUE(table_.TakeSlotsFree(kFault, kReceive));
  EXPECT_FALSE(table_.TakeSlotsFree(kFault, kReceive));
  EXPECT_FALSE(table_.TakeSlotsFree(kBulk, kReceive));
  const SlotId again = Acquire();
  EXPECT_NE(again, slot);
  EXPECT_FALSE(table_.Release(slot)) << "the name of the past";
  EXPECT_EQ(table_.Count(State::kLent), 1u);
  EXPECT_EQ(table_.Count(State::kFree), 3u);
}

TEST_F(SlotTableTest, RequestIsAnsweredByAnyWriter) {
  for (const NodeId from : {kHome, kOwner}) {
    const SlotId slot = Asked();
    EXPECT_EQ(table_.StateOf(slot), State::kInFlight);
    EXPECT_FALSE(table_.IsOwners(slot));
    EXPECT_FALSE(table_.Release(slot)) << "others write to it";
    SlotTable::Request request;
    EXPECT_EQ(table_.Answer(from, AnswerTo(slot), true, &request), AnswerFate::kDelivered);
    EXPECT_EQ(request.transaction, 99u);
    EXPECT_TRUE(table_.IsOwners(slot));
    EXPECT_EQ(table_.Answer(from, AnswerTo(slot), true, nullptr), AnswerFate::kStale) << "answered already";
    EXPECT_TRUE(table_.Release(slot));
    EXPECT_EQ(table_.Answer(from, AnswerTo(slot), true, nullptr), AnswerFate::kStale);
  }
}

TEST_F(SlotTableTest, AnswersThatCannotBeAreForeign) {
  const SlotId slot = Asked();
  const SlotName name = SlotName::Decode(slot);
  EXPECT_EQ(table_.Answer(kStranger, AnswerTo(slot), true, nullptr), AnswerFate::kForeign);
  EXPECT_EQ(table_.Answer(kHome, AnswerTo(slot, kBulk), true, nullptr), AnswerFate::kForeign);
  for (const SlotName& wrong :
       {SlotName{kFault, kReceive, name.index, name.counter + 1}, SlotName{kFault, kReceive, name.index, 0},
        SlotName{kFault, kReceive, 1, name.counter}, SlotName{kFault, kSend, name.index, name.counter}}) {
    EXPECT_EQ(table_.Answer(kHome, AnswerTo(wrong.Encode()), true, nullptr), AnswerFate::kForeign);
  }
  Message message = AnswerTo(slot);
  message.epoch = Epoch(5);
  EXPECT_EQ(table_.Answer(kHome, message, true, nullptr), AnswerFate::kForeign)
      << "an answer is of its request's epoch";
  message = AnswerTo(slot);
  message.generation = 2;
  EXPECT_EQ(table_.Answer(kHome, message, true, nullptr), AnswerFate::kForeign);
  message = AnswerTo(slot);
  message.guest = GuestId(8);
  EXPECT_EQ(table_.Answer(kHome, message, true, nullptr), AnswerFate::kForeign);
  EXPECT_EQ(table_.StateOf(slot), State::kInFlight) << "nothing changed";
}

TEST_F(SlotTableTest, ALateAnswerOfTheLastUseDoesNotEndTheNext) {
  const SlotId first = Asked();
  EXPECT_EQ(table_.Answer(kHome, AnswerTo(first), true, nullptr), AnswerFate::kDelivered);
  EXPECT_TRUE(table_.Release(first));
  const SlotId second = Asked();
  EXPECT_EQ(table_.Answer(kHome, AnswerTo(first), true, nullptr), AnswerFate::kStale);
  EXPECT_EQ(table_.StateOf(second), State::kInFlight);
}

TEST_F(SlotTableTest, AfterTheDeadlineTheSlotWaitsForItsAnswer) {
  const SlotId slot = Asked();
  EXPECT_EQ(table_.NextDeadline(), At(10));
  EXPECT_TRUE(table_.Expire(At(9)).empty());
  const auto expired = table_.Expire(At(10));
  ASSERT_EQ(expired.size(), 1u);
  EXPECT_EQ(expired[0].asked, kHome);
  EXPECT_EQ(expired[0].message_class, kFault);
  EXPECT_EQ(expired[0].transaction, 99u);
  EXPECT_EQ(expired[0].slot, slot);
  EXPECT_EQ(expired[0].why, RequestFailure::kDeadline);
  EXPECT_TRUE(table_.Expire(At(1000)).empty()) << "told once";
  EXPECT_EQ(table_.NextDeadline(), std::nullopt);
  EXPECT_EQ(table_.StateOf(slot), State::kQuarantined);
  EXPECT_FALSE(IsFree());
  EXPECT_FALSE(table_.Release(slot));
  EXPECT_EQ(table_.Answer(kOwner, AnswerTo(slot), true, nullptr), AnswerFate::kLate);
  EXPECT_TRUE(table_.IsOwners(slot)) << "the late page is given to the caller all the same";
  EXPECT_TRUE(table_.Release(slot));
  EXPECT_TRUE(IsFree());
}

TEST_F(SlotTableTest, CancelQuarantines) {
  const SlotId slot = Asked();
  EXPECT_TRUE(table_.Cancel(slot).ok());
  EXPECT_EQ(table_.Cancel(slot).code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(table_.Expire(At(1000)).empty());
  EXPECT_FALSE(IsFree());
}

TEST_F(SlotTableTest, ResetOfEveryWriterFreesTheQuarantined) {
  const SlotId slot = Asked();
  table_.Expire(At(10));
  EXPECT_TRUE(table_.PeerReset(kHome).empty());
  EXPECT_FALSE(IsFree()) << "the owner may still write";
  EXPECT_TRUE(table_.PeerReset(kStranger).empty());
  EXPECT_FALSE(IsFree());
  EXPECT_TRUE(table_.PeerReset(kOwner).empty()) << "it was told as expired already";
  EXPECT_TRUE(IsFree());
  EXPECT_EQ(table_.Answer(kOwner, AnswerTo(slot), true, nullptr), AnswerFate::kStale);
}

TEST_F(SlotTableTest, ARequestThatNobodyCanAnswerEnds) {
  const SlotId slot = Asked();
  EXPECT_TRUE(table_.PeerReset(kHome).empty());
  EXPECT_EQ(table_.Answer(kHome, AnswerTo(slot), true, nullptr), AnswerFate::kForeign) << "home is reset";
  const auto expired = table_.PeerReset(kOwner);
  ASSERT_EQ(expired.size(), 1u);
  EXPECT_EQ(expired[0].why, RequestFailure::kNobodyLeft);
  EXPECT_TRUE(IsFree());
}

TEST_F(SlotTableTest, ASlotOfBeforeAResetIsNotNamedAfterIt) {
  const SlotId slot = Acquire();
  EXPECT_EQ(table_.FirstCounterFor(kOwner), 1u);
  table_.PeerReset(kOwner);
  EXPECT_EQ(table_.Ask(slot, ToHome()).code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(table_.IsOwners(slot));
  EXPECT_LT(SlotName::Decode(slot).counter, table_.FirstCounterFor(kOwner));
  EXPECT_EQ(table_.FirstCounterFor(kHome), 1u);
  EXPECT_TRUE(table_.Release(slot));
  EXPECT_GE(SlotName::Decode(Asked()).counter, table_.FirstCounterFor(kOwner));
}

TEST_F(SlotTableTest, BarriersOfEveryWriterFreeWhatIsOlder) {
  Asked();
  const SlotId bulk = Asked(kBulk);
  EXPECT_TRUE(table_.EpochRaised(kGuest, 1, Epoch(4)).empty()) << "not older";
  EXPECT_TRUE(table_.EpochRaised(GuestId(8), 9, Epoch(9)).empty());
  const auto expired = table_.EpochRaised(kGuest, 1, Epoch(5));
  ASSERT_EQ(expired.size(), 2u);
  EXPECT_EQ(expired[0].why, RequestFailure::kOldEpoch);
  table_.PeerPassed(kHome, kFault, kGuest, 1, Epoch(5));
  table_.PeerPassed(kHome, kFault, kGuest, 1, Epoch(5));
  EXPECT_FALSE(IsFree()) << "the owner has not said so";
  table_.PeerPassed(kOwner, kFault, GuestId(8), 9, Epoch(9));
  table_.PeerPassed(kOwner, kFault, kGuest, 1, Epoch(4));
  table_.PeerPassed(kOwner, kBulk, kGuest, 1, Epoch(5));
  EXPECT_FALSE(IsFree());
  table_.PeerPassed(kOwner, kFault, kGuest, 1, Epoch(5));
  EXPECT_TRUE(IsFree());
  EXPECT_EQ(table_.StateOf(bulk), State::kQuarantined);
}

TEST_F(SlotTableTest, BarriersMayComeBeforeOurOwn) {
  Asked();
  EXPECT_TRUE(table_.PeerPassed(kHome, kFault, kGuest, 2, Epoch(4)).empty());
  const auto expired = table_.PeerPassed(kOwner, kFault, kGuest, 2, Epoch(4));
  ASSERT_EQ(expired.size(), 1u);
  EXPECT_EQ(expired[0].why, RequestFailure::kOldEpoch);
  EXPECT_TRUE(IsFree());
}

TEST_F(SlotTableTest, AnAnswerOfAnOldEpochFreesWithoutDelivery) {
  const SlotId slot = Asked();
  table_.EpochRaised(kGuest, 1, Epoch(5));
  EXPECT_EQ(table_.Answer(kHome, AnswerTo(slot), false, nullptr), AnswerFate::kLate);
  EXPECT_FALSE(table_.IsOwners(slot));
  EXPECT_TRUE(IsFree());
}

TEST_F(SlotTableTest, OnlyTheOwnersReceiveSlotIsNamed) {
  const SlotId send = Acquire(kFault, kSend);
  EXPECT_EQ(table_.Ask(send, ToHome()).code(), absl::StatusCode::kFailedPrecondition);
  const SlotId slot = Acquire();
  SlotTable::Request nobody = ToHome();
  nobody.writers = NodeSet();
  EXPECT_EQ(table_.Ask(slot, nobody).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(table_.Ask(slot, ToHome()).ok());
  EXPECT_EQ(table_.Ask(slot, ToHome()).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(table_.SendStarted(slot).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(SlotTableTest, ASendSlotIsFreeWhenAllAreDone) {
  SlotId slot = Acquire(kFault, kSend);
  ASSERT_TRUE(table_.SendStarted(slot).ok());
  ASSERT_TRUE(table_.SendStarted(slot).ok()) << "the same page to another peer";
  EXPECT_TRUE(table_.Release(slot));
  EXPECT_EQ(table_.SendStarted(slot).code(), absl::StatusCode::kFailedPrecondition) << "released";
  table_.SendDone(slot);
  EXPECT_FALSE(IsFree(kFault, kSend));
  EXPECT_EQ(table_.StateOf(slot), State::kSending);
  table_.SendDone(slot);
  EXPECT_TRUE(IsFree(kFault, kSend));

  slot = Acquire(kFault, kSend);
  ASSERT_TRUE(table_.SendStarted(slot).ok());
  table_.SendDone(slot);
  EXPECT_EQ(table_.StateOf(slot), State::kLent) << "kept by its owner";
  EXPECT_TRUE(table_.Release(slot));
  EXPECT_TRUE(IsFree(kFault, kSend));
}

// Any order of calls; a model on the side knows for each slot who may still write to it.
void AnyOrder(uint32_t seed) {
  SCOPED_TRACE("HK_SEED=" + std::to_string(seed));
  std::mt19937 random(seed);
  SlotTable table({4, 0, 0, 0});
  struct Named {
    NodeSet writers;
  };
  std::map<SlotId, Named> named;  // requests whose answer may still come
  std::set<SlotId> lent;
  auto lose = [&](NodeId node) {
    for (auto it = named.begin(); it != named.end();) {
      it->second.writers.Remove(node);
      it = it->second.writers.empty() ? named.erase(it) : std::next(it);
    }
  };
  for (int now = 0; now < 2000; ++now) {
    const NodeId node(random() % 4);
    switch (random() % 6) {
      case 0:
        if (auto slot = table.Acquire(kFault, kReceive); slot.ok()) {
          const uint32_t index = SlotName::Decode(*slot).index;
          for (const auto& [other, state] : named) {
            ASSERT_NE(SlotName::Decode(other).index, index) << "somebody may still write to it";
          }
          lent.insert(*slot);
        } else {
          ASSERT_EQ(named.size() + lent.size(), 4u);
        }
        break;
      case 1:
        if (!lent.empty()) {
          auto request = ToHome(now + random() % 20);
          request.writers = NodeSet(1 + random() % 15);
          const absl::Status asked = table.Ask(*lent.begin(), request);
          if (asked.ok()) {
            named[*lent.begin()] = {request.writers};
          } else {
            ASSERT_EQ(asked.code(), absl::StatusCode::kAborted);
            ASSERT_TRUE(table.Release(*lent.begin()));
          }
          lent.erase(lent.begin());
        }
        break;
      case 2:
        if (!lent.empty()) {
          ASSERT_TRUE(table.Release(*lent.begin()));
          lent.erase(lent.begin());
        }
        break;
      case 3:
        if (!named.empty()) {
          const auto it = named.begin();
          const AnswerFate fate = table.Answer(node, AnswerTo(it->first), true, nullptr);
          ASSERT_EQ(fate == AnswerFate::kDelivered || fate == AnswerFate::kLate, it->second.writers.Contains(node));
          if (fate == AnswerFate::kForeign) break;
          lent.insert(it->first);
          named.erase(it);
        }
        break;
      case 4:
        for (const ExpiredRequest& expired : table.Expire(At(now))) ASSERT_TRUE(named.contains(expired.slot));
        break;
      default:
        if (random() % 4 == 0) {
          table.PeerReset(node);
          lose(node);
        }
    }
    ASSERT_EQ(table.Count(State::kInFlight) + table.Count(State::kQuarantined), named.size());
    ASSERT_EQ(table.Count(State::kLent), lent.size());
  }
}

TEST(SlotsTest, NoSlotIsReusedWhileSomebodyMayWriteToIt) {
  if (const char* seed = std::getenv("HK_SEED")) return AnyOrder(std::stoul(seed));
  for (uint32_t seed = 1; seed <= 100 && !::testing::Test::HasFailure(); ++seed) AnyOrder(seed);
}

}  // namespace
}  // namespace hk
