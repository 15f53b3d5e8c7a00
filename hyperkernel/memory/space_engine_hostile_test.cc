// The fault engine and what it should never be given: messages that no correct node sends, pages that are none,
// configurations that are none.
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/memory/space_engine.h"
#include "hyperkernel/memory/space_engine_fixture.h"

namespace hk {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using testing::HasSubstr;
using testing::IsEmpty;

TEST_F(SpaceEngineTest, WhatNoCorrectNodeSendsStopsTheSpace) {
  const auto stops = [this](NodeId from, Gfn page, const PageMessage& m, const std::string& why,
                            NodeId slot_node = {}) {
    Make({kSelf, kPeer, kThird});
    stops_.clear();
    const bool slot = m.type == Type::kForward || m.type == Type::kRequest;
    Receive(from, page, m, slot ? SlotId(1 << 16) : SlotId(), slot_node);
    ExpectStopped(why);
  };
  PageMessage forward = Of(Type::kForward);
  forward.requester = kThird;
  stops(kPeer, kThere, forward, "coherence violation: ForwardRead from node 1 in state Absent", kThird);
  stops(kThird, kThere, forward, "the page's home is node 1", kThird);
  stops(kPeer, Gfn(config_.pages), forward, "not in the space", kThird);
  stops(kPeer, Gfn(~uint64_t{0}), forward, "not in the space", kThird);
  forward.acks.Add(NodeId(9));
  stops(kPeer, kThere, forward, "cannot acknowledge", kThird);
  forward.acks = {};
  forward.requester = NodeId(9);
  stops(kPeer, kThere, forward, "for node 9", NodeId(9));
  forward.requester = kSelf;
  stops(kPeer, kThere, forward, "a slot that it has not", kSelf);
  PageMessage request = Of(Type::kRequest);
  stops(kThird, kThere, request, "the page's home is node 1", kThird);
  stops(kThird, kHere, request, "a slot that it has not", kPeer);
  PageMessage evict = Of(Type::kEvict);
  stops(kThird, kHere, evict, "coherence violation: Evict");
  PageMessage invalidate = Of(Type::kInvalidate);
  invalidate.requester = kSelf;
  stops(kPeer, kThere, invalidate, "for node 0");
}

TEST_F(SpaceEngineTest, AMalformedBodyStopsTheSpaceAndKeepsNoSlot) {
  Wish read;
  Want(kThere, PageAccess::kRead, &read);
  Message message;
  message.type = kFirstUserType + 2;
  message.answer = true;
  message.gfn = kThere;
  message.slot = transport_.sent[0].message.slot;
  message.slot_node = kSelf;
  transport_.lent.insert(message.slot.value());
  engine_->OnMessage(kPeer, message, {}, false);
  ExpectStopped("node 1 sent a malformed Answer");
}

TEST_F(SpaceEngineTest, AStrangersMessagesAreDropped) {
  Wish write;
  Want(kHere, PageAccess::kWrite, &write);
  ReceiveRequest(NodeId(9), kHere, RequestKind::kWrite, 3);
  Receive(NodeId(9), kHere, Of(Type::kNack), SlotId(77), kSelf);
  EXPECT_THAT(stops_, IsEmpty());
  EXPECT_EQ(engine_->Residue().busy_entries, 0u);
}

TEST_F(SpaceEngineTest, AShortPageStopsTheSpace) {
  Wish read;
  Want(kThere, PageAccess::kRead, &read);
  transport_.memory[transport_.sent[0].message.slot.value()].resize(100);
  Grant(kThere, PageRight::kShared, PageSource::kPayload);
  ExpectStopped("a page of 100 bytes");
}

TEST_F(SpaceEngineTest, OutOfTheSpace) {
  Wish read;
  Want(Gfn(config_.pages), PageAccess::kRead, &read);
  EXPECT_TRUE(absl::IsOutOfRange(read.status));
  engine_->OnFault(Gfn(config_.pages), false);
  EXPECT_EQ(log_.back(), fmt::format("wake {}", config_.pages));
}

TEST_F(SpaceEngineTest, AConfigurationThatIsNoneIsRefused) {
  const auto refused = [this](const std::string& field, const std::function<void(SpaceConfig*)>& change) {
    SpaceConfig config = config_;
    change(&config);
    const auto made = SpaceEngine::Create(config, &transport_, &frames_, &timers_, clock_, {});
    EXPECT_TRUE(absl::IsInvalidArgument(made.status()));
    EXPECT_THAT(std::string(made.status().message()), HasSubstr(field));
  };
  refused("guest", [](SpaceConfig* c) { c->guest = GuestId(0); });
  refused("pages", [](SpaceConfig* c) { c->pages = 0; });
  refused("pages", [](SpaceConfig* c) { c->pages = kMaxSpacePages + 1; });
  refused("nodes", [](SpaceConfig* c) { c->nodes = {}; });
  refused("nodes", [](SpaceConfig* c) { c->nodes = {kPeer}; });
  refused("nodes", [](SpaceConfig* c) { c->nodes = {kSelf, kSelf}; });
  refused("nodes", [](SpaceConfig* c) { c->nodes = {kSelf, NodeId(64)}; });
  refused("max_pages", [](SpaceConfig* c) { c->max_pages = kLeastFrames - 1; });
  refused("max_pages", [](SpaceConfig* c) {
    c->max_pages = 4 * kLeastFrames - 1;
    c->vcpus = 4;
  });
  refused("hold", [](SpaceConfig* c) { c->hold = microseconds(-1); });
  refused("retry", [](SpaceConfig* c) { c->retry = std::chrono::seconds(2); });
  refused("request_limit", [](SpaceConfig* c) { c->request_limit = milliseconds(0); });
}

// Whatever a peer says: the engine goes on or stops, and keeps no slot. (Sanitizers and HK_CHECK look on.)
TEST_F(SpaceEngineTest, NothingThatPeersSayBreaksIt) {
  uint64_t seed = 1;
  const auto below = [&seed](uint64_t limit) {
    seed = seed * 6364136223846793005U + 1442695040888963407U;
    return (seed >> 33) % limit;
  };
  uint64_t stops = 0, sent = 0;
  std::vector<Wish> wishes(100'000);
  size_t next_wish = 0;
  for (int life = 0; life < 2000; ++life) {
    config_.max_pages = life % 3 == 0 ? kLeastFrames : 0;
    Make({kSelf, kPeer, kThird});
    stops_.clear();
    frames_.pages.clear();
    transport_.sent.clear();
    transport_.receive_slots = transport_.send_slots = below(4) == 0 ? 2 : 1000;
    for (int step = 0; step < 50 && stops_.empty(); ++step) {
      const Gfn page(below(3) * kExtentPages + below(4));
      switch (below(8)) {
        case 0:
          Want(page, below(2) == 0 ? PageAccess::kRead : PageAccess::kWrite, &wishes[next_wish++], below(4) == 0);
          continue;
        case 1:
          engine_->OnFault(page, below(2) == 0);
          continue;
        case 2:
          timers_.Advance(microseconds(below(300)));
          continue;
        case 3:
          engine_->OnSlotsFree(MessageClass::kFault, below(2) == 0 ? SlotUse::kSend : SlotUse::kReceive);
          continue;
        default:
          break;
      }
      PageMessage m = Of(static_cast<Type>(below(13)));
      m.requester = NodeId(static_cast<uint16_t>(below(3)));
      m.kind = static_cast<RequestKind>(below(4));
      m.has_copy = below(2) == 0;
      m.right = static_cast<PageRight>(below(4));
      m.source = static_cast<PageSource>(below(4));
      m.reason = static_cast<NackReason>(below(4));
      m.acks = NodeSet(below(3) == 0 ? below(8) : 0);
      m.serial = (uint64_t{3} << 40) + below(4);
      m.transaction = below(100);
      NodeId from(static_cast<uint16_t>(1 + below(2)));
      Gfn about = page;
      if (below(10) != 0) {
        // Nearly what a correct node says, so that something is under way when it is not.
        const bool for_home = m.type == Type::kRequest || m.type == Type::kDone || m.type == Type::kReleased;
        if (for_home) about = Gfn(below(2));
        if (!for_home && m.type != Type::kAck && m.type != Type::kAnswer) {
          about = Gfn(from.value() * kExtentPages + below(2));
        }
        m.requester = m.type == Type::kRequest ? from : NodeId(static_cast<uint16_t>(3 - from.value()));
        m.acks.Remove(m.type == Type::kAnswer ? kSelf : m.requester);
        const PageRight right = engine_->RightOf(about);
        if (m.type == Type::kForward && right < PageRight::kOwner) continue;
        if (m.type == Type::kEvict) continue;
      }
      SlotId slot;
      NodeId slot_node = from;
      if (m.type == Type::kForward) slot_node = m.requester;
      if (m.type == Type::kForward || m.type == Type::kRequest) slot = SlotId(below(1000) << 16 | 1);
      if (m.type == Type::kAnswer || m.type == Type::kNack) {
        // What may be answered is what was asked; the transport drops the rest.
        std::vector<FakeTransport::Sent> asked;
        for (const FakeTransport::Sent& one : transport_.sent) {
          if (one.message.slot != SlotId() && one.message.slot_node == kSelf && !one.message.answer &&
              !transport_.lent.contains(one.message.slot.value())) {
            asked.push_back(one);
          }
        }
        if (asked.empty()) continue;
        const FakeTransport::Sent& one = asked[below(asked.size())];
        slot = one.message.slot;
        slot_node = kSelf;
        if (below(10) != 0) m.transaction = one.message.transaction;
        if (below(10) != 0) about = one.message.gfn;
        if (below(10) != 0) {
          // An answer that can be taken.
          const bool write = one.page.kind != RequestKind::kRead;
          m.kind = one.page.kind;
          m.right = write ? PageRight::kExclusive : PageRight::kShared;
          m.source = write && one.page.has_copy && engine_->RightOf(about) != PageRight::kNone ? PageSource::kNone
                     : below(2) == 0                                                           ? PageSource::kZero
                                                                                               : PageSource::kPayload;
          if (!write) m.acks = {};
          if (m.type == Type::kNack) from = engine_->HomeOf(about);
        }
        std::erase_if(transport_.sent, [&](const FakeTransport::Sent& other) { return other.message.slot == slot; });
      } else if (m.type == Type::kDone || m.type == Type::kAck) {
        for (const FakeTransport::Sent& one : transport_.sent) {
          if (one.message.gfn == page && below(2) == 0)
            m.serial = one.page.serial, m.transaction = one.page.transaction;
        }
      }
      if (below(50) == 0) about = Gfn(config_.pages + below(2));
      ++sent;
      Receive(from, about, m, slot, slot_node, 'f');
    }
    stops += stops_.size();
    engine_->Stop(absl::CancelledError("the end"));
    EXPECT_EQ(engine_->Residue().active_pages + engine_->Residue().busy_entries, 0u);
    engine_.reset();
    ASSERT_THAT(transport_.lent, IsEmpty()) << "life " << life;
  }
  for (size_t i = 0; i < next_wish; ++i) ASSERT_EQ(wishes[i].ends, 1);
  EXPECT_GT(stops, 500u);
  EXPECT_GT(sent, 5'000u);
}

}  // namespace
// Batches: streams of faults, and batches of any kind about pages near to them.
TEST_F(SpaceEngineTest, NoBatchThatPeersSendBreaksIt) {
  uint64_t seed = 2;
  const auto below = [&seed](uint64_t limit) {
    seed = seed * 6364136223846793005U + 1442695040888963407U;
    return (seed >> 33) % limit;
  };
  uint64_t stops = 0, came = 0;
  for (int life = 0; life < 3000; ++life) {
    Make({kSelf, kPeer, kThird});
    stops_.clear();
    frames_.pages.clear();
    transport_.sent.clear();
    transport_.receive_slots = transport_.send_slots = below(4) == 0 ? 3 : 1000;
    const uint64_t base = below(3) * kExtentPages;
    for (int step = 0; step < 40 && stops_.empty(); ++step) {
      const uint64_t what = below(10);
      if (what < 3) {
        engine_->OnFault(Gfn(base + static_cast<uint64_t>(step)), below(8) == 0);
        continue;
      }
      if (what == 3) {
        timers_.Advance(microseconds(below(300)));
        continue;
      }
      if (what == 4) {
        ReceiveEmpty(Gfn(base + below(40)), below(2000));
        continue;
      }
      if (what < 8) {  // an answer to what was asked for, or nearly
        std::vector<size_t> asked;
        for (size_t i = 0; i < transport_.sent.size(); ++i) {
          const FakeTransport::Sent& one = transport_.sent[i];
          if (one.batch.count > 0 && one.batch.type != PageBatchType::kDone && !one.message.answer &&
              one.message.slot_node == kSelf && !transport_.lent.contains(one.message.slot.value())) {
            asked.push_back(i);
          }
        }
        if (asked.empty()) continue;
        const size_t at = asked[below(asked.size())];
        std::vector<BatchFate> fates;
        for (size_t i = 0; i < transport_.sent[at].batch.count; ++i) fates.push_back(static_cast<BatchFate>(below(4)));
        if (below(20) == 0) ++transport_.sent[at].message.transaction, ++transport_.sent[at].batch.transaction;
        AnswerBatch(at, fates);
        transport_.sent.erase(transport_.sent.begin() + static_cast<ptrdiff_t>(at));
        ++came;
        continue;
      }
      PageBatch batch;
      batch.type = static_cast<PageBatchType>(below(2) == 0 ? 0 : below(2) == 0 ? 1 : 3);
      batch.requester = batch.type == PageBatchType::kForward ? kThird : kPeer;
      batch.transaction = below(1000);
      const uint64_t extent = batch.type == PageBatchType::kForward ? kExtentPages : 0;
      for (size_t i = 0, index = below(4); i < 2 + below(15) && i < kMostBatchPages; ++i, index += 1 + below(2)) {
        batch.Add(
            {.index = static_cast<uint16_t>(index),
             .fate = batch.type == PageBatchType::kForward ? static_cast<BatchFate>(below(3)) : BatchFate::kDeclined,
             .serial = (uint64_t{3} << 40) + below(8)});
      }
      Message message;
      SetBatchHeader(batch, &message);
      if (batch.type != PageBatchType::kDone) {
        message.slot = SlotId(below(1000) << 16 | 1);
        message.slot_node = batch.requester;
      }
      Deliver(Gfn(extent + batch.pages[0].index), message, EncodeBatchBody(batch), {});
    }
    stops += stops_.size();
    engine_->Stop(absl::CancelledError("enough"));
    ASSERT_EQ(engine_->Residue().active_pages + engine_->Residue().busy_entries, 0u);
  }
  EXPECT_GT(stops, 100u);
  EXPECT_GT(came, 1000u);
}

}  // namespace hk
