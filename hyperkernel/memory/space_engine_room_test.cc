// The fault engine when frames are short: copies that go, pages that are offered to other nodes and taken from them.
// Swap: space_capacity_test.cc.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/memory/space_engine.h"
#include "hyperkernel/memory/space_engine_fixture.h"

namespace hk {
namespace {

using std::chrono::milliseconds;
using testing::ElementsAre;

TEST_F(SpaceEngineTest, WithoutFramesCopiesGoThenPagesAreOfferedThenTheSpaceStops) {
  config_.max_pages = kLeastFrames;
  Make({kSelf, kPeer});
  Wish wishes[2 * kLeastFrames];
  // Pages of zeroes would just be given up.
  for (uint64_t i = 0; i < kLeastFrames; ++i) {
    Want(Gfn(i), i == 3 ? PageAccess::kRead : PageAccess::kWrite, &wishes[i]);
    frames_.First(Gfn(i)) = 'x';
  }
  clock_.now += LongestHold();
  log_.clear();
  // The one copy goes.
  Want(Gfn(100), PageAccess::kWrite, &wishes[kLeastFrames]);
  EXPECT_THAT(log_, ElementsAre("remove 3", "install 100 2", "granted"));
  frames_.First(Gfn(100)) = 'x';
  EXPECT_EQ(engine_->Statistics().dropped, 1u);
  // Then pages are offered, again and again.
  Want(Gfn(101), PageAccess::kWrite, &wishes[kLeastFrames + 1]);
  ASSERT_FALSE(transport_.sent.empty());
  EXPECT_EQ(transport_.sent.back().page.type, Type::kOffer);
  const size_t offers = transport_.sent.size();
  timers_.Advance(milliseconds(3));
  EXPECT_GT(transport_.sent.size(), offers);
  // One is taken.
  ReceiveRequest(kPeer, Gfn(5), RequestKind::kAdopt, 4);
  EXPECT_EQ(wishes[kLeastFrames + 1].ends, 1);
  frames_.First(Gfn(101)) = 'x';
  EXPECT_FALSE(frames_.pages.contains(5));
  EXPECT_EQ(frames_.pages.size(), kLeastFrames);
  // And then nobody does.
  Want(Gfn(102), PageAccess::kWrite, &wishes[kLeastFrames + 2]);
  timers_.Advance(config_.request_limit * 2);
  EXPECT_TRUE(absl::IsResourceExhausted(wishes[kLeastFrames + 2].status));
  ExpectStopped("all 8 frames");
}

// A node that is full of what it wrote once reads the same few pages again and again, as a vCPU does that needs an
// instruction, its operands and the tables that lead to them.
TEST_F(SpaceEngineTest, PagesThatAreReadTogetherAllFindFrames) {
  config_.max_pages = 256;
  Make({kSelf, kPeer});
  std::vector<Wish> writes(config_.max_pages);
  uint64_t transaction = 0;
  size_t seen = 0;
  // The peer gives what is asked for, and takes what it is offered.
  const auto serve = [&] {
    for (; seen < transport_.sent.size(); ++seen) {
      const FakeTransport::Sent sent = transport_.sent[seen];
      if (sent.page.type == Type::kRequest) GrantTo(sent, PageRight::kShared, PageSource::kPayload, 'a');
      if (sent.page.type != Type::kOffer || engine_->RightOf(sent.message.gfn) != PageRight::kExclusive) continue;
      ReceiveRequest(kPeer, sent.message.gfn, RequestKind::kAdopt, ++transaction);
      ReceiveDone(sent.message.gfn, transaction);
    }
  };
  for (uint64_t i = 0; i < writes.size(); ++i) {
    Want(Gfn(i), PageAccess::kWrite, &writes[i]);
    frames_.First(Gfn(i)) = 'x';
    clock_.now += LongestHold();
    timers_.Advance(milliseconds(3));
    serve();
  }
  constexpr uint64_t kTogether = 16;
  int missed = 0;
  for (int round = 0; round < 20; ++round) {
    missed = 0;
    for (uint64_t i = 0; i < kTogether; ++i) {
      const Gfn page(kExtentPages + 13 * i + i * i);
      if (engine_->RightOf(page) != PageRight::kNone) continue;
      ++missed;
      Wish wish;
      Want(page, PageAccess::kRead, &wish);
      serve();
      timers_.Advance(milliseconds(3));
      serve();
      ASSERT_EQ(wish.ends, 1) << "round " << round << ", page " << i;
      clock_.now += LongestHold();
    }
  }
  EXPECT_EQ(missed, 0);
}

TEST_F(SpaceEngineTest, AnOfferIsTakenIfThereIsRoom) {
  config_.max_pages = kLeastFrames;
  Make({kSelf, kPeer});
  Receive(kPeer, kThere, Of(Type::kOffer));
  ASSERT_EQ(transport_.sent.size(), 1u);
  EXPECT_EQ(transport_.sent[0].page.kind, RequestKind::kAdopt);
  Grant(kThere, PageRight::kExclusive, PageSource::kPayload, 'a');
  EXPECT_EQ(engine_->RightOf(kThere), PageRight::kExclusive);
  Wish wishes[kLeastFrames];
  for (uint64_t i = 0; i < kLeastFrames - 2; ++i) Want(Gfn(i), PageAccess::kWrite, &wishes[i]);
  const size_t sent = transport_.sent.size();
  clock_.now += milliseconds(1);
  Receive(kPeer, Gfn(kThere.value() + 1), Of(Type::kOffer));
  EXPECT_EQ(transport_.sent.size(), sent);
  EXPECT_THAT(transport_.rooms, ElementsAre(6, 0));
}

TEST_F(SpaceEngineTest, WhoHasNoOtherWayFindsMoreRoom) {
  config_.max_pages = 512;
  Make({kSelf, kPeer});
  std::vector<Wish> wishes(512);
  uint64_t written = 0;
  const auto write_until = [&](uint64_t frames) {
    for (; written < frames; ++written) Want(Gfn(written), PageAccess::kWrite, &wishes[written]);
  };
  uint64_t offered = kExtentPages;
  const auto is_taken = [&](bool urgent) {
    const size_t sent = transport_.sent.size();
    clock_.now += milliseconds(1);
    PageMessage offer = Of(Type::kOffer);
    offer.urgent = urgent;
    Receive(kPeer, Gfn(offered++), offer);
    return transport_.sent.size() > sent;
  };
  write_until(512 - 512 / 8);
  EXPECT_FALSE(is_taken(false)) << "an eighth is for this node's copies";
  EXPECT_TRUE(is_taken(true));
  EXPECT_FALSE(is_taken(false));
  write_until(512 - FramesKept(512) - 1);
  EXPECT_FALSE(is_taken(true));
  EXPECT_THAT(transport_.rooms, ElementsAre(0, 512 / 8 - FramesKept(512) - 1, 0, 0));
}

TEST_F(SpaceEngineTest, OffersAreUrgentOnlyWithoutCopies) {
  config_.max_pages = 512;
  Make({kSelf, kPeer});
  std::vector<Wish> wishes(514);
  const uint64_t copies = 2 * FramesKept(512);
  for (uint64_t i = 0; i < copies; ++i) {
    const Gfn page(kExtentPages + i);
    Want(page, PageAccess::kRead, &wishes[i]);
    Grant(page, PageRight::kShared, PageSource::kPayload, 'a');
  }
  for (uint64_t i = 0; i < 512 - copies; ++i) {
    Want(Gfn(i), PageAccess::kWrite, &wishes[copies + i]);
    frames_.First(Gfn(i)) = 'x';
    clock_.now += LongestHold();
  }
  const auto last_offer = [this] {
    const auto offer = std::find_if(transport_.sent.rbegin(), transport_.sent.rend(),
                                    [](const FakeTransport::Sent& sent) { return sent.page.type == Type::kOffer; });
    return offer == transport_.sent.rend() ? std::optional<bool>() : offer->page.urgent;
  };
  Want(Gfn(512 - copies), PageAccess::kWrite, &wishes[512]);
  timers_.Advance(milliseconds(3));
  EXPECT_EQ(last_offer(), false) << "there are copies to drop";
}

TEST_F(SpaceEngineTest, ACopyMakesRoomForAnOffer) {
  config_.max_pages = kLeastFrames;
  Make({kSelf, kPeer});
  Wish wishes[kLeastFrames];
  for (uint64_t i = 0; i < kLeastFrames - 1; ++i) Want(Gfn(i), PageAccess::kRead, &wishes[i]);
  Want(kThere, PageAccess::kRead, &wishes[kLeastFrames - 1]);
  Grant(kThere, PageRight::kShared, PageSource::kZero);
  clock_.now += LongestHold();
  // Any copy goes, and the next offer finds room.
  const Gfn other(kThere.value() + 1);
  log_.clear();
  Receive(kPeer, other, Of(Type::kOffer));
  EXPECT_EQ(engine_->Statistics().dropped, 1u);
  Receive(kPeer, kThere, Of(Type::kOffer));
  EXPECT_EQ(engine_->RightOf(kThere), PageRight::kNone);
  EXPECT_EQ(engine_->Statistics().dropped, 2u);
  EXPECT_EQ(transport_.sent.back().page.kind, RequestKind::kAdopt);
  Grant(kThere, PageRight::kOwner, PageSource::kPayload, 'a');
  EXPECT_EQ(engine_->RightOf(kThere), PageRight::kOwner);
}

// Full of copies, of the offered page too.
TEST_F(SpaceEngineTest, ACopyOfThePageItselfDoesNotBlockItsOffer) {
  config_.max_pages = kLeastFrames;
  Make({kSelf, kPeer});
  Wish wishes[kLeastFrames];
  for (uint64_t i = 0; i < kLeastFrames; ++i) {
    const Gfn page(kExtentPages + 40 * i);
    Want(page, PageAccess::kRead, &wishes[i]);
    Grant(page, PageRight::kShared, PageSource::kPayload, 'a');
  }
  clock_.now += LongestHold();
  const Gfn offered(kExtentPages + 80);
  Receive(kPeer, offered, Of(Type::kOffer));
  EXPECT_EQ(engine_->Statistics().dropped, 1u) << "another one makes room";
  EXPECT_EQ(engine_->RightOf(offered), PageRight::kShared);
  Receive(kPeer, offered, Of(Type::kOffer));
  EXPECT_EQ(transport_.sent.back().page.kind, RequestKind::kAdopt);
  Grant(offered, PageRight::kOwner, PageSource::kPayload, 'a');
  EXPECT_EQ(engine_->RightOf(offered), PageRight::kOwner);
}

TEST_F(SpaceEngineTest, OffersGoWhereMostRoomIs) {
  config_.max_pages = kLeastFrames;
  Make({kSelf, kPeer, kThird});
  const auto room = [this](NodeId from, uint64_t pages) {
    PageBody body;
    Message message = SpaceRoomMessage(pages, &body);
    message.guest = config_.guest;
    engine_->OnMessage(from, message, {}, false);
  };
  Wish wishes[kLeastFrames + 1];
  // Of this node's own extents, and not zero.
  for (uint64_t i = 0; i < kLeastFrames; ++i) {
    Want(Gfn(i), PageAccess::kWrite, &wishes[i]);
    frames_.First(Gfn(i)) = 'x';
  }
  clock_.now += LongestHold();
  room(kPeer, 2);
  room(kThird, 5);
  Want(Gfn(100), PageAccess::kWrite, &wishes[kLeastFrames]);
  const auto offers = [this](NodeId to) {
    return std::count_if(transport_.sent.begin(), transport_.sent.end(), [to](const FakeTransport::Sent& sent) {
      return sent.page.type == Type::kOffer && sent.to == to;
    });
  };
  // No more than they said.
  EXPECT_EQ(offers(kPeer), 2);
  EXPECT_EQ(offers(kThird), 5);
  EXPECT_TRUE(transport_.sent.back().page.urgent);
  // Who refuses is not asked again for a while.
  room(kPeer, 0);
  room(kThird, 100);
  timers_.Advance(milliseconds(10));
  EXPECT_EQ(offers(kPeer), 2);
  EXPECT_GT(offers(kThird), 5);
  room(kThird, 0);
  timers_.Advance(milliseconds(40));
  EXPECT_GT(offers(kPeer), 2);
  EXPECT_EQ(wishes[kLeastFrames].ends, 0);
}

}  // namespace
}  // namespace hk
