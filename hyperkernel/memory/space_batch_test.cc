// Batches between engines: two or three of them, whose messages are delivered when the test says so. Single steps of
// one engine: space_engine_test.cc; whole clusters: tests/sim/space_sim_test.cc.
#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/memory/engine_testing.h"
#include "hyperkernel/memory/page_batch.h"
#include "hyperkernel/memory/space_engine.h"
#include "hyperkernel/memory/space_testing.h"

namespace hk {
namespace {

using testing::HasSubstr;

using Bytes = std::array<char, kPageSize>;

// Everything that was sent and has not arrived. In order for each class; classes as the test takes them.
struct Sent {
  NodeId from, to;
  Message message;
  std::vector<std::byte> body, payload;
};
using Network = std::deque<Sent>;

// A node's end of the network. Slots are checked: each is released once.
class TestTransport final : public NotingTransport {
 public:
  TestTransport(NodeId self, Network* network) : self_(self), network_(network) {}
  absl::Status Send(NodeId to, const Message& message, const SendOptions& options) override {
    Sent& sent = network_->emplace_back();
    sent.from = self_;
    sent.to = to;
    sent.message = message;
    sent.body.assign(message.body.begin(), message.body.end());
    if (options.payload_bytes != 0) {
      const std::span<std::byte> bytes = SlotBytes(options.payload).first(options.payload_bytes);
      sent.payload.assign(bytes.begin(), bytes.end());
    }
    if (!message.answer && message.slot != SlotId() && message.slot_node == self_) {
      asked.insert(lent.extract(message.slot.value()));
    }
    return absl::OkStatus();
  }
  absl::StatusOr<SlotId> AcquireSlot(MessageClass message_class, SlotUse use) override {
    if (use == SlotUse::kSend && message_class == MessageClass::kBulk && bulk_send_slots == 0) {
      return absl::ResourceExhaustedError("none");
    }
    const uint64_t slot = ++next_slot_ << 4 | self_.value();
    lent[slot].resize(message_class == MessageClass::kBulk ? kBulkSlotBytes : kFaultSlotBytes);
    return SlotId(slot);
  }
  std::span<std::byte> SlotBytes(SlotId slot) override { return lent.at(slot.value()); }
  void ReleaseSlot(SlotId slot) override { EXPECT_EQ(lent.erase(slot.value()), 1u); }

  std::map<uint64_t, std::vector<std::byte>> lent, asked;
  int bulk_send_slots = 100;

 private:
  const NodeId self_;
  Network* const network_;
  uint64_t next_slot_ = 0;
};

class SpaceBatchTest : public testing::Test {
 protected:
  struct Node {
    Node(NodeId id, Network* network, FakeClock* clock) : transport(id, network), timers(clock) {}
    FakeFrames frames;
    TestTransport transport;
    FakeTimers timers;
    std::unique_ptr<SpaceEngine> engine;
  };
  void Make(uint16_t count) {
    SpaceConfig config;
    config.guest = GuestId(5);
    config.pages = 8 * kExtentPages;
    for (uint16_t i = 0; i < count; ++i) config.nodes.push_back(NodeId(i));
    for (const NodeId id : config.nodes) {
      nodes_.push_back(std::make_unique<Node>(id, &network_, &clock_));
      Node& node = *nodes_.back();
      config.self = id;
      absl::StatusOr<std::unique_ptr<SpaceEngine>> made =
          SpaceEngine::Create(config, &node.transport, &node.frames, &node.timers, clock_,
                              [this](const absl::Status& why) { stops_.emplace_back(why.message()); });
      ASSERT_TRUE(made.ok()) << made.status();
      node.engine = *std::move(made);
    }
  }
  ~SpaceBatchTest() override {
    EXPECT_THAT(stops_, testing::IsEmpty());
    for (const auto& node : nodes_) {
      const SpaceResidue residue = node->engine->Residue();
      EXPECT_EQ(residue.active_pages + residue.busy_entries + residue.prefetches, 0u);
      EXPECT_EQ(node->engine->Statistics().stale_messages, 0u);
      EXPECT_TRUE(node->transport.lent.empty() && node->transport.asked.empty());
    }
  }

  // After a stop: what is left on the way is nobody's.
  void Forget() {
    stops_.clear();
    nodes_.clear();
    network_.clear();
  }
  // Delivers the first message that `which` holds of.
  template <typename Which>
  bool DeliverOne(Which which) {
    for (auto at = network_.begin(); at != network_.end(); ++at) {
      if (!which(*at)) continue;
      Sent sent = std::move(*at);
      network_.erase(at);
      TestTransport& to = nodes_[sent.to.value()]->transport;
      sent.message.body = sent.body;
      std::span<const std::byte> payload;
      if (sent.message.answer) {
        auto slot = to.asked.extract(sent.message.slot.value());
        EXPECT_FALSE(slot.empty());
        std::copy(sent.payload.begin(), sent.payload.end(), slot.mapped().begin());
        payload = std::span(slot.mapped()).first(sent.payload.size());
        to.lent.insert(std::move(slot));
      }
      nodes_[sent.to.value()]->engine->OnMessage(sent.from, sent.message, payload, false);
      return true;
    }
    return false;
  }
  void DeliverAll() {
    while (DeliverOne([](const Sent&) { return true; })) {
    }
  }
  size_t Waiting(uint16_t type) const {
    return static_cast<size_t>(
        std::count_if(network_.begin(), network_.end(), [type](const Sent& s) { return s.message.type == type; }));
  }
  static constexpr uint16_t TypeOf(PageBatchType type) {
    return static_cast<uint16_t>(kFirstBatchType + static_cast<uint16_t>(type));
  }
  void Pass(Monotonic::duration time) {
    clock_.now += time;
    for (const auto& node : nodes_) node->timers.Advance({});
    DeliverAll();
  }
  static char ByteOf(uint64_t page) { return static_cast<char>('a' + page % 26); }
  // The node writes the pages, and holds none of them any more.
  void Write(size_t node, uint64_t first, uint64_t count) {
    for (uint64_t page = first; page < first + count; ++page) {
      const auto bytes = std::make_shared<Bytes>();  // until it is written
      bytes->fill(ByteOf(page));
      nodes_[node]->engine->Replace(Gfn(page), std::as_bytes(std::span(*bytes)),
                                    [bytes](const absl::Status& status) { EXPECT_TRUE(status.ok()); });
      DeliverAll();
    }
    Pass(std::chrono::milliseconds(1));
  }
  // A program reads in order, each page when it is there.
  void ReadInOrder(size_t node, uint64_t first, uint64_t count) {
    for (uint64_t page = first; page < first + count; ++page) {
      if (!nodes_[node]->frames.pages.contains(page)) nodes_[node]->engine->OnFault(Gfn(page), false);
      DeliverAll();
      Expect(node, page, ByteOf(page));
    }
  }
  void Expect(size_t node, uint64_t page, char byte) {
    const auto found = nodes_[node]->frames.pages.find(page);
    ASSERT_NE(found, nodes_[node]->frames.pages.end()) << page;
    EXPECT_EQ(std::to_integer<char>(found->second.second.front()), byte) << page;
    EXPECT_EQ(std::to_integer<char>(found->second.second.back()), byte) << page;
  }
  ptrdiff_t Woken(size_t node, uint64_t page) const {
    return std::count(nodes_[node]->frames.woken.begin(), nodes_[node]->frames.woken.end(), page);
  }
  SpaceStatistics Of(size_t node) const { return nodes_[node]->engine->Statistics(); }

  FakeClock clock_;
  Network network_;
  std::vector<std::unique_ptr<Node>> nodes_;
  std::vector<std::string> stops_;
};

// Extents whose home reads, and whose home owns; two ends of extents.
TEST_F(SpaceBatchTest, AScanComesInBatchesAndEveryPageIsRight) {
  Make(2);
  Write(1, 0, 2 * kExtentPages);
  ReadInOrder(0, 0, 2 * kExtentPages);
  const SpaceStatistics statistics = Of(0);
  EXPECT_GT(statistics.prefetched, 2 * kExtentPages * 9 / 10);
  EXPECT_LT(statistics.batches, statistics.prefetched / 10);
  EXPECT_EQ(statistics.empties, 0u);
  EXPECT_EQ(statistics.prefetch_wasted, 0u);
  EXPECT_EQ(Of(1).served, 2 * kExtentPages);
  // The owner writes again: every copy is taken away first.
  Write(1, 100, 4);
  for (uint64_t page = 100; page < 104; ++page) EXPECT_EQ(nodes_[0]->engine->RightOf(Gfn(page)), PageRight::kNone);
}

// The home is neither, pages of two owners lie side by side: each page comes, by a batch or by itself.
TEST_F(SpaceBatchTest, PagesOfOthersThanTheFirstOwnerAreDeclined) {
  Make(4);
  for (uint64_t page = 0; page < 120; ++page) Write(page % 3 == 0 ? 2 : 3, kExtentPages + page, 1);
  ReadInOrder(0, kExtentPages, 120);
  EXPECT_GT(Of(0).batches, 3u);
  EXPECT_GT(Of(0).prefetch_useful, 20u);
}

// Zeroes have no bytes on the way, also beside pages that have.
TEST_F(SpaceBatchTest, PagesThatNobodyWroteComeAsZeroes) {
  Make(3);
  for (uint64_t page = 1; page < 60; page += 2) Write(2, kExtentPages + page, 1);
  for (uint64_t page = 0; page < 60; ++page) {
    if (!nodes_[0]->frames.pages.contains(kExtentPages + page))
      nodes_[0]->engine->OnFault(Gfn(kExtentPages + page), false);
    DeliverAll();
    Expect(0, kExtentPages + page, page % 2 == 0 ? '\0' : ByteOf(kExtentPages + page));
  }
  EXPECT_GT(Of(0).batches, 2u);
  EXPECT_EQ(Of(2).served, 30u);
}

// Held and pinned pages of an owner that is not the home: the rest of the batch comes at once, these without bytes
// later.
TEST_F(SpaceBatchTest, WhatIsHeldOrPinnedDoesNotDelayTheRest) {
  Make(3);
  const uint64_t first = kExtentPages;  // at home at node 1
  Write(2, first, 12);
  nodes_[2]->engine->Pin(Gfn(first + 5), 1, [](const absl::Status& status) { EXPECT_TRUE(status.ok()); });
  ReadInOrder(0, first, 4);
  // The next ones: with the first four, named when page 4 is wanted.
  nodes_[0]->engine->OnFault(Gfn(first + 4), false);
  DeliverAll();
  EXPECT_FALSE(nodes_[0]->frames.pages.contains(first + 5));
  Expect(0, first + 6, ByteOf(first + 6));
  Expect(0, first + 7, ByteOf(first + 7));
  nodes_[0]->engine->OnFault(Gfn(first + 5), false);
  DeliverAll();
  EXPECT_FALSE(nodes_[0]->frames.pages.contains(first + 5));
  nodes_[2]->engine->Unpin(Gfn(first + 5), 1);
  Pass(std::chrono::milliseconds(1));
  Expect(0, first + 5, ByteOf(first + 5));
  EXPECT_EQ(Of(0).empties, 1u);
  EXPECT_GT(Woken(0, first + 5), 0);
}

// A program may come to a page that was put off when nobody else waits for anything: it waits no longer than others do.
TEST_F(SpaceBatchTest, WhoWaitsForAPageThatWasPutOffHasADeadline) {
  Make(3);
  const uint64_t first = kExtentPages;
  Write(2, first, 12);
  nodes_[2]->engine->Pin(Gfn(first + 5), 1, [](const absl::Status& status) { EXPECT_TRUE(status.ok()); });
  ReadInOrder(0, first, 5);
  const std::chrono::milliseconds limit = SpaceConfig().request_limit;
  for (int quarter = 0; quarter < 8; ++quarter) Pass(limit / 4);  // no look is on its way any more
  nodes_[0]->engine->OnFault(Gfn(first + 5), false);
  for (int quarter = 0; quarter < 6; ++quarter) Pass(limit / 4);
  ASSERT_FALSE(stops_.empty());
  EXPECT_THAT(stops_[0], HasSubstr("it could not be had within 30000 ms"));
  for (const auto& node : nodes_) node->engine->Stop(absl::CancelledError("enough"));
  Forget();
}

// What no correct owner says: Empty for a page that it gave or never put off; an answer for pages of another shard.
TEST_F(SpaceBatchTest, AnswersToWhatWasNotAskedStopTheSpace) {
  for (const bool empty : {true, false}) {
    Make(2);
    const uint64_t first = kExtentPages;
    Write(1, first, 12);
    ReadInOrder(0, first, 1);
    nodes_[0]->engine->OnFault(Gfn(first + 1), false);
    ASSERT_TRUE(DeliverOne([](const Sent& s) { return s.message.type == TypeOf(PageBatchType::kRequest); }));
    const auto answer = std::find_if(network_.begin(), network_.end(),
                                     [](const Sent& s) { return s.message.type == TypeOf(PageBatchType::kAnswer); });
    ASSERT_NE(answer, network_.end());
    if (empty) {
      PageBody body;
      Message message = SpaceEmptyMessage(answer->message.transaction, 1, &body);
      message.guest = answer->message.guest;
      message.generation = answer->message.generation;
      message.epoch = answer->message.epoch;
      message.gfn = Gfn(first + 2);
      nodes_[0]->engine->OnMessage(NodeId(1), message, {}, false);
    } else {
      answer->message.gfn = Gfn(answer->message.gfn.value() + 2 * kExtentPages);
      ASSERT_TRUE(DeliverOne([](const Sent& s) { return s.message.type == TypeOf(PageBatchType::kAnswer); }));
    }
    ASSERT_FALSE(stops_.empty());
    EXPECT_THAT(stops_[0], HasSubstr(empty ? "did not put off" : "asked of other pages"));
    for (const auto& node : nodes_) node->engine->Stop(absl::CancelledError("enough"));
    Forget();
  }
}

// The owner has no slot to send from: all are granted without bytes, and come when they are wanted.
TEST_F(SpaceBatchTest, WithoutASlotNothingWaits) {
  Make(3);
  Write(2, kExtentPages, 40);
  nodes_[2]->transport.bulk_send_slots = 0;
  ReadInOrder(0, kExtentPages, 40);
  EXPECT_GT(Of(0).empties, 10u);
}

// A program that waits for a page of a batch is woken by its installation, and a writer that wants one of the pages
// waits until all is done.
TEST_F(SpaceBatchTest, ProgramsAndWritersWaitForWhatIsUnderWay) {
  Make(2);
  const uint64_t first = kExtentPages;
  Write(1, first, 12);
  ReadInOrder(0, first, 1);
  nodes_[0]->engine->OnFault(Gfn(first + 1), false);
  const auto is = [](PageBatchType type) { return [type](const Sent& s) { return s.message.type == TypeOf(type); }; };
  ASSERT_TRUE(DeliverOne(is(PageBatchType::kRequest)));
  // The home, which is the owner, wants one of the pages that are on their way; a program waits for another.
  int written = 0;
  nodes_[1]->engine->Want(Gfn(first + 3), PageAccess::kWrite, [&](const absl::Status& status) {
    EXPECT_TRUE(status.ok());
    ++written;
  });
  nodes_[0]->engine->OnFault(Gfn(first + 2), false);
  EXPECT_EQ(written, 0);
  EXPECT_EQ(Woken(0, first + 2), 0);
  ASSERT_TRUE(DeliverOne(is(PageBatchType::kAnswer)));
  EXPECT_EQ(Woken(0, first + 2), 1);
  EXPECT_EQ(nodes_[1]->frames.pages[first + 3].first, PageAccess::kRead);
  EXPECT_EQ(written, 0);
  ASSERT_EQ(Waiting(TypeOf(PageBatchType::kDone)), 1u);
  DeliverAll();
  Pass(std::chrono::milliseconds(1));  // the reader's hold
  EXPECT_EQ(written, 1);
  EXPECT_FALSE(nodes_[0]->frames.pages.contains(first + 3));
  Pass(std::chrono::milliseconds(1));
}

}  // namespace
}  // namespace hk
