// The fault engine between a transport, frames, timers and a clock that do what the test says: what it sends, in which
// order, and what it does when something fails. Whole clusters: tests/sim/space_sim_test.cc.
#include "hyperkernel/memory/space_engine.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/memory/page_batch.h"
#include "hyperkernel/memory/page_wire.h"

namespace hk {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Type = PageMessageType;

// What happened, in order.
using Log = std::vector<std::string>;

class FakeClock final : public Clock {
 public:
  Monotonic Now() const override { return now; }
  WallTime Wall() const override { return {}; }
  Monotonic now{std::chrono::seconds(1000)};
};

class FakeTimers final : public Timers {
 public:
  explicit FakeTimers(FakeClock* clock) : clock_(clock) {}
  void After(Monotonic::duration delay, std::function<void()> run) override {
    timers_.emplace(clock_->now + delay, std::move(run));
  }
  void Advance(Monotonic::duration by) {
    const Monotonic end = clock_->now + by;
    while (!timers_.empty() && timers_.begin()->first <= end) {
      clock_->now = std::max(clock_->now, timers_.begin()->first);
      const std::function<void()> run = std::move(timers_.begin()->second);
      timers_.erase(timers_.begin());
      run();
    }
    clock_->now = end;
  }
  void Clear() { timers_.clear(); }
  size_t DueWithin(Monotonic::duration time) const {
    return static_cast<size_t>(std::count_if(timers_.begin(), timers_.end(),
                                             [&](const auto& timer) { return timer.first <= clock_->now + time; }));
  }

 private:
  FakeClock* const clock_;
  std::multimap<Monotonic, std::function<void()>> timers_;
};

class FakeFrames final : public PageFrames {
 public:
  explicit FakeFrames(Log* log) : log_(log) {}
  absl::Status Install(Gfn page, std::span<const std::byte> bytes, PageAccess access) override {
    if (!failure.ok()) return failure;
    if (pages.contains(page.value())) return absl::AlreadyExistsError("the page is here");
    pages[page.value()] = {access, bytes.empty() ? '\0' : static_cast<char>(bytes[0])};
    installed = pages[page.value()].second;
    log_->push_back(fmt::format("install {} {}", page.value(), static_cast<int>(access)));
    return absl::OkStatus();
  }
  absl::Status SetAccess(Gfn page, PageAccess access) override {
    pages.at(page.value()).first = access;
    log_->push_back(fmt::format("access {} {}", page.value(), static_cast<int>(access)));
    return absl::OkStatus();
  }
  absl::Status Remove(Gfn page, std::span<std::byte> keep) override {
    if (!keep.empty()) keep[0] = static_cast<std::byte>(pages.at(page.value()).second);
    pages.erase(page.value());
    log_->push_back(fmt::format("remove {}", page.value()));
    return absl::OkStatus();
  }
  absl::Status Read(Gfn page, size_t, std::span<std::byte> to) override {
    to[0] = static_cast<std::byte>(pages.at(page.value()).second);
    return absl::OkStatus();
  }
  absl::Status Write(Gfn page, size_t, std::span<const std::byte> from) override {
    ++writes;
    pages.at(page.value()).second = static_cast<char>(from[0]);
    return absl::OkStatus();
  }
  void Wake(Gfn page) override { log_->push_back(fmt::format("wake {}", page.value())); }
  void Fail(Gfn page) override { log_->push_back(fmt::format("fail {}", page.value())); }

  std::map<uint64_t, std::pair<PageAccess, char>> pages;  // access, first byte
  absl::Status failure;
  char installed = '?';  // first byte of the last Install
  int writes = 0;

 private:
  Log* const log_;
};

// Sends to nobody.
class FakeTransport final : public Transport {
 public:
  explicit FakeTransport(Log* log) : log_(log) {}
  std::vector<std::string> told;     // that the space has stopped
  std::vector<std::string> hurried;  // whose transaction
  std::vector<uint64_t> rooms;       // what was said of it
  struct Sent {
    NodeId to;
    Message message;
    PageMessage page;
    SendOptions options;
    char payload = 0;  // its first byte
    PageBatch batch;   // if there are pages in it, and not `page`
  };

  absl::Status Start() override { return absl::OkStatus(); }
  void Stop() override {}
  absl::Status AddPeer(NodeId, const std::string&) override { return absl::OkStatus(); }
  void RemovePeer(NodeId) override {}
  void ResetPeer(NodeId, Epoch) override {}
  void SetNodeEpoch(Epoch) override {}
  absl::Status SetEpoch(GuestId, uint32_t, Epoch) override { return absl::OkStatus(); }
  void ForgetGuest(GuestId) override {}
  absl::Status Send(NodeId to, const Message& message, const SendOptions& options) override {
    if (!refusal.ok()) return refusal;
    if (message.type == kSpaceStoppedType) {
      told.push_back(fmt::format("{}: {}", to.value(), ReasonIn(message)));
      return absl::OkStatus();
    }
    if (message.type == kSpaceHurryType) {
      hurried.push_back(fmt::format("{}: {}", to.value(), message.transaction));
      return absl::OkStatus();
    }
    if (message.type == kSpaceRoomType) {
      rooms.push_back(RoomIn(to, message).value_or(~uint64_t{0}));
      return absl::OkStatus();
    }
    if (IsBatchType(message.type)) return SendBatch(to, message, options);
    // As the receiver sees it.
    const absl::StatusOr<PageMessage> page = DecodePageMessage(NodeId(0), to, message);
    if (!page.ok()) {
      ADD_FAILURE() << page.status();
      return page.status();
    }
    Sent one{.to = to, .message = message, .page = *page, .options = options, .batch = {}};
    one.message.body = {};
    if (options.payload != SlotId()) one.payload = static_cast<char>(memory.at(options.payload.value())[0]);
    sent.push_back(one);
    log_->push_back(fmt::format("send {} {}", Name(page->type), to.value()));
    if (message.slot_node == NodeId(0) && !message.answer) lent.erase(message.slot.value());
    return absl::OkStatus();
  }
  absl::Status SendBatch(NodeId to, const Message& message, const SendOptions& options) {
    const absl::StatusOr<PageBatch> batch = DecodeBatch(NodeId(0), to, kMaxSpacePages, message, options.payload_bytes);
    if (!batch.ok()) {
      ADD_FAILURE() << batch.status();
      return batch.status();
    }
    sent.push_back({.to = to, .message = message, .page = {}, .options = options, .batch = *batch});
    sent.back().message.body = {};
    log_->push_back(fmt::format("send {} {}", Name(batch->type), to.value()));
    if (message.slot_node == NodeId(0) && !message.answer) lent.erase(message.slot.value());
    return absl::OkStatus();
  }
  absl::StatusOr<SlotId> AcquireSlot(MessageClass, SlotUse use) override {
    int& left = use == SlotUse::kSend ? send_slots : receive_slots;
    if (left == 0) return absl::ResourceExhaustedError("none");
    --left;
    const SlotId slot(next_slot_++);
    lent.insert(slot.value());
    memory[slot.value()].resize(kBulkSlotBytes);
    return slot;
  }
  std::span<std::byte> SlotBytes(SlotId slot) override {
    EXPECT_TRUE(lent.contains(slot.value()));
    return memory.at(slot.value());
  }
  void ReleaseSlot(SlotId slot) override { EXPECT_EQ(lent.erase(slot.value()), 1u) << "slot " << slot.value(); }
  absl::Status CancelRequest(SlotId) override { return absl::OkStatus(); }
  absl::StatusOr<PeerStatistics> Statistics(NodeId) const override { return PeerStatistics(); }
  TransportStatistics Statistics() const override { return {}; }

  std::vector<Sent> sent;
  std::set<uint64_t> lent;
  std::map<uint64_t, std::vector<std::byte>> memory;
  absl::Status refusal;
  int receive_slots = 100, send_slots = 100;

 private:
  Log* const log_;
  uint64_t next_slot_ = 100;
};

constexpr NodeId kSelf(0), kPeer(1), kThird(2);
// With two nodes: the home of even extents is this node, of odd ones the peer.
constexpr Gfn kHere(7), kThere(kExtentPages + 7);

class SpaceEngineTest : public testing::Test {
 protected:
  SpaceEngineTest() { Make({kSelf, kPeer}); }
  void Make(const std::vector<NodeId>& nodes) {
    engine_.reset();
    timers_.Clear();  // of an engine that is gone: the owner's duty
    config_.guest = GuestId(5);
    config_.generation = 2;
    config_.epoch = Epoch(3);
    config_.self = kSelf;
    config_.nodes = nodes;
    config_.pages = 4 * kExtentPages;
    absl::StatusOr<std::unique_ptr<SpaceEngine>> made =
        SpaceEngine::Create(config_, &transport_, &frames_, &timers_, clock_,
                            [this](const absl::Status& why) { stops_.emplace_back(why); });
    ASSERT_TRUE(made.ok()) << made.status();
    engine_ = *std::move(made);
  }
  ~SpaceEngineTest() override {
    engine_.reset();
    EXPECT_THAT(transport_.lent, IsEmpty());
  }

  // A wish, and where its end is put.
  struct Wish {
    int ends = 0;
    absl::Status status = absl::UnknownError("not yet");
  };
  void Want(Gfn page, PageAccess access, Wish* wish, bool overwrite = false) {
    const auto granted = [this, wish](const absl::Status& status) {
      ++wish->ends;
      wish->status = status;
      log_.push_back("granted");
    };
    if (overwrite && access == PageAccess::kWrite) {
      engine_->Replace(page, replacement_, granted);
    } else {
      engine_->Want(page, access, granted);
    }
  }
  // A message of a peer about a page.
  void Receive(NodeId from, Gfn page, PageMessage m, SlotId slot = {}, NodeId slot_node = {}, char byte = 0) {
    Message message;
    SetPageHeader(m, &message);
    message.message_class = ClassOf(m.type);
    message.guest = config_.guest;
    message.generation = config_.generation;
    message.epoch = config_.epoch;
    message.gfn = page;
    message.slot = slot;
    message.slot_node = slot_node;
    const PageBody body = EncodePageBody(m);
    message.body = body.span();
    std::span<const std::byte> payload;
    if (message.answer) {
      transport_.lent.insert(slot.value());
      if (m.source == PageSource::kPayload) {
        transport_.memory[slot.value()][0] = static_cast<std::byte>(byte);
        std::vector<std::byte>& bytes = transport_.memory[slot.value()];
        payload = std::span(bytes).first(std::min(bytes.size(), kPageSize));
      }
    }
    engine_->OnMessage(from, message, payload, false);
  }
  static PageMessage Of(Type type) {
    PageMessage m;
    m.type = type;
    return m;
  }
  void ReceiveRequest(NodeId from, Gfn page, RequestKind kind, uint64_t transaction) {
    PageMessage m = Of(Type::kRequest);
    m.kind = kind;
    m.transaction = transaction;
    Receive(from, page, m, SlotId(transaction << 16), from);
  }
  void ReceiveForward(Gfn page, RequestKind kind, NodeId requester, uint64_t transaction, uint64_t serial) {
    PageMessage m = Of(Type::kForward);
    m.kind = kind;
    m.requester = requester;
    m.transaction = transaction;
    m.serial = serial;
    Receive(kPeer, page, m, SlotId(transaction << 16), requester);
  }
  // The peer, home of kThere, grants the last request.
  void Grant(Gfn page, PageRight right, PageSource source, char byte = 0, NodeSet acks = {}, NodeId from = kPeer) {
    const FakeTransport::Sent request = transport_.sent.back();
    ASSERT_EQ(request.page.type, Type::kRequest);
    PageMessage m = Of(Type::kAnswer);
    m.transaction = request.message.transaction;
    m.serial = 77;
    m.kind = request.page.kind;
    m.right = right;
    m.source = source;
    m.acks = acks;
    Receive(from, page, m, request.message.slot, kSelf, byte);
  }
  // The peer answers the batch that was sent then.
  void AnswerBatch(size_t sent, const std::vector<BatchFate>& fates) {
    const FakeTransport::Sent asked = transport_.sent[sent];
    PageBatch answer = asked.batch;
    answer.type = PageBatchType::kAnswer;
    size_t bytes = 0;
    for (size_t i = 0; i < fates.size(); ++i) {
      answer.pages[i].fate = fates[i];
      answer.pages[i].serial = 77;
      bytes += fates[i] == BatchFate::kTaken ? kPageSize : 0;
    }
    Message message;
    SetBatchHeader(answer, &message);
    message.slot = asked.message.slot;
    message.slot_node = kSelf;
    const PageBody body = EncodeBatchBody(answer);
    transport_.lent.insert(message.slot.value());
    Deliver(Gfn(asked.message.gfn.value()), message, body,
            std::span(transport_.memory[message.slot.value()]).first(bytes));
  }
  void ReceiveEmpty(Gfn page, uint64_t transaction) {
    PageBody body;
    const Message message = SpaceEmptyMessage(transaction, 77, &body);
    Deliver(page, message, body, {});
  }
  void Deliver(Gfn page, Message message, const PageBody& body, std::span<const std::byte> payload) {
    message.guest = config_.guest;
    message.generation = config_.generation;
    message.epoch = config_.epoch;
    message.gfn = page;
    message.body = body.span();
    engine_->OnMessage(kPeer, message, payload, false);
  }
  void ExpectStopped(const std::string& reason) {
    ASSERT_EQ(stops_.size(), 1u);
    EXPECT_THAT(std::string(stops_[0].message()), HasSubstr(reason));
    Wish after;
    Want(kThere, PageAccess::kRead, &after);
    EXPECT_EQ(after.ends, 1);
    EXPECT_EQ(after.status, stops_[0]);
    EXPECT_EQ(engine_->Residue().active_pages, 0u);
  }

  Log log_;
  std::array<std::byte, kPageSize> replacement_{};
  FakeClock clock_;
  FakeTimers timers_{&clock_};
  FakeFrames frames_{&log_};
  FakeTransport transport_{&log_};
  SpaceConfig config_;
  std::vector<absl::Status> stops_;
  std::unique_ptr<SpaceEngine> engine_;
};

TEST_F(SpaceEngineTest, AFirstTouchAtHomeAsksNobody) {
  transport_.receive_slots = transport_.send_slots = 0;
  Wish read, write;
  Want(kHere, PageAccess::kRead, &read);
  Want(kHere, PageAccess::kWrite, &write);
  EXPECT_EQ(read.ends + write.ends, 2);
  EXPECT_TRUE(read.status.ok());
  EXPECT_THAT(log_, ElementsAre("install 7 1", "granted", "access 7 2", "granted"));
  EXPECT_EQ(engine_->RightOf(kHere), PageRight::kExclusive);
  engine_->OnFault(kHere, true);
  EXPECT_EQ(log_.back(), "wake 7");
  EXPECT_EQ(engine_->Residue().active_pages + engine_->Residue().busy_entries, 0u);
  EXPECT_THAT(engine_->Uses(0, 10), testing::SizeIs(1));
}

// For operators: where a space is busy, and which pages change hands.
TEST_F(SpaceEngineTest, LossesToOthersAreNoticedAndExtentsHeated) {
  Wish write;
  Want(kHere, PageAccess::kWrite, &write);
  Want(Gfn(9), PageAccess::kWrite, &write);
  clock_.now += config_.hold;
  ReceiveRequest(kPeer, kHere, RequestKind::kWrite, 11);
  std::vector<HotPage> lost = engine_->MostLost(10);
  ASSERT_EQ(lost.size(), 1u);
  EXPECT_EQ(lost[0].page, kHere);
  EXPECT_EQ(lost[0].losses, 1u);
  EXPECT_EQ(lost[0].owner_losses, 1u);
  EXPECT_EQ(lost[0].taker, kPeer);
  // One that waits for the end of the hold, and leaves the right to read.
  Want(Gfn(11), PageAccess::kWrite, &write);
  ReceiveRequest(kPeer, Gfn(11), RequestKind::kRead, 12);
  EXPECT_EQ(engine_->MostLost(10).size(), 1u);
  timers_.Advance(config_.hold);
  lost = engine_->MostLost(10);
  ASSERT_EQ(lost.size(), 2u);
  EXPECT_EQ(lost[1].page, Gfn(11));
  EXPECT_EQ(lost[1].owner_losses, 0u);
  EXPECT_EQ(lost[1].taker, kPeer);
  EXPECT_EQ(engine_->MostLost(1).size(), 1u);
  // Three pages came, one went, one became read-only.
  const std::vector<ExtentUse> uses = engine_->Uses(0, 1);
  ASSERT_EQ(uses.size(), 1u);
  EXPECT_EQ(uses[0].heat, 5);
  clock_.now += 2 * DecayedCount::kHalfLife;
  EXPECT_NEAR(engine_->Uses(0, 1)[0].heat, 1.25, 0.02);
}

TEST_F(SpaceEngineTest, AFaultRunsOnBeforeItsHomeIsTold) {
  engine_->OnFault(kThere, false);
  Grant(kThere, PageRight::kShared, PageSource::kPayload, 'x');
  EXPECT_THAT(log_, ElementsAre("send Request 1", "install 519 1", "wake 519", "send Done 1"));
  EXPECT_EQ(frames_.pages[kThere.value()].second, 'x');
  EXPECT_EQ(transport_.sent[1].page.serial, 77u);
  // An upgrade: no data, no second installation.
  engine_->OnFault(kThere, true);
  EXPECT_TRUE(transport_.sent.back().page.has_copy);
  Grant(kThere, PageRight::kExclusive, PageSource::kNone);
  EXPECT_EQ(log_[5], "access 519 2");
  const SpaceStatistics statistics = engine_->Statistics();
  EXPECT_EQ(statistics.read_faults, 1u);
  EXPECT_EQ(statistics.write_faults, 1u);
  EXPECT_EQ(statistics.upgrades, 1u);
  EXPECT_EQ(statistics.pages_exclusive, 1u);
}

TEST_F(SpaceEngineTest, APageIsWrittenAfterTheLastAcknowledgementFromTheSlotThatWasKept) {
  Make({kSelf, kPeer, kThird});
  Wish write;
  Want(kThere, PageAccess::kWrite, &write);
  NodeSet acks;
  acks.Add(kThird);
  Grant(kThere, PageRight::kExclusive, PageSource::kPayload, 'y', acks);
  EXPECT_EQ(write.ends, 0);
  EXPECT_EQ(transport_.lent.size(), 1u);
  PageMessage ack = Of(Type::kAck);
  ack.transaction = transport_.sent[0].message.transaction;
  Receive(kThird, kThere, ack);
  EXPECT_EQ(write.ends, 1);
  EXPECT_EQ(frames_.pages[kThere.value()].second, 'y');
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

// Programs of this node see the old bytes or the new ones, and what they store then stays.
TEST_F(SpaceEngineTest, APageThatIsReplacedIsInstalledWithItsNewBytesAndWrittenOnce) {
  replacement_.fill(std::byte{'n'});
  Wish here;
  Want(kHere, PageAccess::kWrite, &here, true);
  EXPECT_EQ(here.ends, 1);
  EXPECT_EQ(frames_.installed, 'n');
  Wish there;
  Want(kThere, PageAccess::kWrite, &there, true);
  EXPECT_EQ(transport_.sent[0].page.kind, RequestKind::kOverwrite);
  frames_.installed = '?';
  Grant(kThere, PageRight::kExclusive, PageSource::kNone);
  EXPECT_EQ(there.ends, 1);
  EXPECT_EQ(frames_.installed, 'n');
  EXPECT_EQ(frames_.writes, 0);
  replacement_.fill(std::byte{'m'});
  Want(kThere, PageAccess::kWrite, &there, true);  // it is here
  EXPECT_EQ(frames_.pages[kThere.value()].second, 'm');
  EXPECT_EQ(frames_.writes, 1);
}

TEST_F(SpaceEngineTest, AGrantedPageIsHeld) {
  Wish write;
  Want(kHere, PageAccess::kWrite, &write);
  frames_.pages[kHere.value()].second = 'h';
  EXPECT_EQ(timers_.DueWithin(config_.hold), 0u);  // nothing waits for it yet
  log_.clear();
  ReceiveRequest(kPeer, kHere, RequestKind::kWrite, 9);
  EXPECT_THAT(log_, IsEmpty());
  timers_.Advance(config_.hold - microseconds(1));
  EXPECT_THAT(log_, IsEmpty());
  timers_.Advance(microseconds(1));
  EXPECT_THAT(log_, ElementsAre("remove 7", "send Answer 1"));
  EXPECT_EQ(transport_.sent.back().payload, 'h');
  EXPECT_EQ(transport_.sent.back().message.slot, SlotId(9 << 16));
  EXPECT_EQ(transport_.lent.size(), 1u);  // kept until it is confirmed
  PageMessage done = Of(Type::kDone);
  done.transaction = 9;
  done.serial = transport_.sent.back().page.serial;
  Receive(kPeer, kHere, done);
  EXPECT_THAT(transport_.lent, IsEmpty());
  EXPECT_EQ(engine_->Residue().active_pages + engine_->Residue().busy_entries, 0u);
}

TEST_F(SpaceEngineTest, AHoldThatIsOverNeedsNoTimer) {
  Wish write;
  Want(kHere, PageAccess::kWrite, &write);
  clock_.now += config_.hold;
  log_.clear();
  ReceiveRequest(kPeer, kHere, RequestKind::kRead, 9);
  EXPECT_THAT(log_, ElementsAre("access 7 1", "send Answer 1"));
}

TEST_F(SpaceEngineTest, ACopyIsGoneBeforeItIsSaidToBe) {
  Wish read;
  Want(kThere, PageAccess::kRead, &read);
  Grant(kThere, PageRight::kShared, PageSource::kZero);
  Make({kSelf, kPeer, kThird});
  Want(kThere, PageAccess::kRead, &read);
  frames_.pages.clear();
  Grant(kThere, PageRight::kShared, PageSource::kZero);
  clock_.now += config_.hold;
  log_.clear();
  PageMessage invalidate = Of(Type::kInvalidate);
  invalidate.requester = kThird;
  invalidate.transaction = 4;
  Receive(kPeer, kThere, invalidate);
  EXPECT_THAT(log_, ElementsAre("remove 519", "send Ack 2"));
}

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
  clock_.now += config_.hold;
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
  PageMessage nack = Of(Type::kNack);
  nack.transaction = transport_.sent[0].message.transaction;
  nack.reason = NackReason::kBusy;
  Receive(kPeer, kThere, nack, transport_.sent[0].message.slot, kSelf);
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

TEST_F(SpaceEngineTest, ASparseSpaceOfATebibyteTakesNothing) {
  config_.nodes = {kSelf, kPeer};
  config_.pages = uint64_t{1} << 28;
  auto made = SpaceEngine::Create(config_, &transport_, &frames_, &timers_, clock_, {});
  ASSERT_TRUE(made.ok());
  for (uint64_t i = 0; i < 1000; ++i) {
    (*made)->Want(Gfn(i * 2 * kExtentPages), PageAccess::kWrite, [](const absl::Status& s) { EXPECT_TRUE(s.ok()); });
  }
  EXPECT_LT((*made)->Residue().table_bytes, 1000u * 2048);
  EXPECT_EQ((*made)->Uses(600, 5).size(), 5u);
  EXPECT_EQ((*made)->Uses(600, 5)[0].extent, 600u);
}

// Whatever a peer says: the engine goes on or stops, and keeps no slot. (Sanitizers and HK_CHECK look on.)
TEST_F(SpaceEngineTest, DoneTakesItsTimeUnlessOthersWait) {
  const auto hurry = [this](Gfn page, uint64_t transaction) {
    Message message = SpaceHurryMessage(transaction);
    message.guest = config_.guest;
    message.generation = config_.generation;
    message.epoch = config_.epoch;
    message.gfn = page;
    engine_->OnMessage(kPeer, message, {}, false);
  };
  engine_->OnFault(kThere, false);
  Grant(kThere, PageRight::kShared, PageSource::kPayload, 'x');
  EXPECT_EQ(transport_.sent.back().page.type, Type::kDone);
  EXPECT_EQ(transport_.sent.back().options.when, SendWhen::kWithNext);
  // Of a page of which nothing is under way, and of another transaction: nothing to do but what the transport does.
  hurry(kThere, 1);
  engine_->OnFault(kThere, true);
  const uint64_t transaction = transport_.sent.back().message.transaction;
  hurry(kThere, transaction + 1);
  Grant(kThere, PageRight::kExclusive, PageSource::kNone);
  EXPECT_EQ(transport_.sent.back().options.when, SendWhen::kWithNext);
  // Others wait already when the answer comes.
  const Gfn other(kThere.value() + 1);
  engine_->OnFault(other, true);
  hurry(other, transport_.sent.back().message.transaction);
  Grant(other, PageRight::kExclusive, PageSource::kZero);
  EXPECT_EQ(transport_.sent.back().page.type, Type::kDone);
  EXPECT_EQ(transport_.sent.back().options.when, SendWhen::kNow);
}

TEST_F(SpaceEngineTest, WhoeverIsWaitedForIsToldOnce) {
  Make({kSelf, kPeer, kThird});
  ReceiveRequest(kPeer, kHere, RequestKind::kRead, 5);
  EXPECT_THAT(transport_.hurried, IsEmpty());
  ReceiveRequest(kThird, kHere, RequestKind::kRead, 6);
  EXPECT_THAT(transport_.hurried, ElementsAre("1: 5"));
  Wish wish;
  Want(kHere, PageAccess::kWrite, &wish);
  EXPECT_THAT(transport_.hurried, ElementsAre("1: 5"));
  // The next transaction has somebody behind it from the beginning.
  PageMessage done = Of(Type::kDone);
  done.transaction = 5;
  done.serial = transport_.sent.back().page.serial;
  Receive(kPeer, kHere, done);
  EXPECT_THAT(transport_.hurried, ElementsAre("1: 5", "2: 6"));
  engine_->Stop(absl::CancelledError("enough"));
}

TEST_F(SpaceEngineTest, TheHomesOwnAcknowledgementIsInItsAnswer) {
  Wish wish;
  Want(kHere, PageAccess::kWrite, &wish);
  timers_.Advance(config_.hold);
  ReceiveRequest(kPeer, kHere, RequestKind::kRead, 5);
  PageMessage done = Of(Type::kDone);
  done.transaction = 5;
  done.serial = transport_.sent.back().page.serial;
  Receive(kPeer, kHere, done);
  log_.clear();
  PageMessage upgrade = Of(Type::kRequest);
  upgrade.kind = RequestKind::kWrite;
  upgrade.has_copy = true;
  upgrade.transaction = 6;
  Receive(kPeer, kHere, upgrade, SlotId(6 << 16), kPeer);
  EXPECT_THAT(log_, ElementsAre("remove 7", "send Answer 1"));
  EXPECT_TRUE(transport_.sent.back().page.acks.empty());
  EXPECT_EQ(transport_.sent.back().page.right, PageRight::kExclusive);
  engine_->Stop(absl::CancelledError("enough"));
}

TEST_F(SpaceEngineTest, TheHomesAcknowledgementFollowsItsAnswerIfThePageIsHeld) {
  Wish wish;
  Want(kHere, PageAccess::kRead, &wish);
  ReceiveRequest(kPeer, kHere, RequestKind::kWrite, 7);
  ASSERT_EQ(transport_.sent.back().page.type, Type::kAnswer);
  EXPECT_EQ(transport_.sent.back().page.acks, NodeSet::Of(kSelf));
  timers_.Advance(config_.hold);
  EXPECT_EQ(transport_.sent.back().page.type, Type::kAck);
  engine_->Stop(absl::CancelledError("enough"));
}

TEST_F(SpaceEngineTest, AStreamIsFetchedAheadOnTheBulkClass) {
  const uint64_t first = kThere.value();
  engine_->OnFault(Gfn(first), false);
  engine_->OnFault(Gfn(first + 1), false);
  ASSERT_EQ(transport_.sent.size(), 3u);
  EXPECT_EQ(transport_.sent[1].message.message_class, MessageClass::kFault);
  EXPECT_EQ(transport_.sent[1].options.when, SendWhen::kNow);
  // One message for all of them.
  const FakeTransport::Sent& asked = transport_.sent[2];
  EXPECT_EQ(asked.message.message_class, MessageClass::kBulk);
  EXPECT_EQ(asked.options.when, SendWhen::kWithNext);
  EXPECT_EQ(asked.message.gfn, Gfn(first + 2));
  ASSERT_EQ(asked.batch.count, 3u);  // the one in the middle shows that the program came there
  EXPECT_EQ(asked.batch.pages[0].index, 9);
  EXPECT_EQ(asked.batch.pages[1].index, 10);
  EXPECT_EQ(asked.batch.pages[2].index, 12);
  // Who comes to a page that is on its way waits for it, and asks nobody.
  engine_->OnFault(Gfn(first + 2), false);
  EXPECT_EQ(transport_.sent.size(), 3u);
  log_.clear();
  AnswerBatch(2, {BatchFate::kTaken, BatchFate::kTaken, BatchFate::kZero});
  EXPECT_THAT(
      log_, ElementsAre("install 521 1", "wake 521", "install 522 1", "wake 522", "install 524 1", "send BatchDone 1"));
  SpaceStatistics statistics = engine_->Statistics();
  EXPECT_EQ(statistics.read_faults, 2u);
  EXPECT_EQ(statistics.prefetched, 3u);
  EXPECT_EQ(statistics.prefetch_useful, 1u);
  EXPECT_EQ(statistics.batches, 1u);
}

// Declined pages are as if nobody had asked; a program that waits for one asks itself, at once.
TEST_F(SpaceEngineTest, PagesThatABatchDoesNotBringAreAskedForWhenTheyAreWanted) {
  const uint64_t first = kThere.value();
  engine_->OnFault(Gfn(first), false);
  engine_->OnFault(Gfn(first + 1), false);
  engine_->OnFault(Gfn(first + 3), false);
  ASSERT_EQ(transport_.sent.size(), 3u);
  AnswerBatch(2, {BatchFate::kDeclined, BatchFate::kDeclined, BatchFate::kLater});
  ASSERT_EQ(transport_.sent.size(), 4u);
  EXPECT_EQ(transport_.sent[3].page.type, Type::kRequest);
  EXPECT_EQ(transport_.sent[3].message.gfn, Gfn(first + 3));
  EXPECT_EQ(transport_.sent[3].message.message_class, MessageClass::kFault);
  // The last one is granted later, without bytes: home and owner are told that all is done, and nobody sees a page.
  engine_->OnFault(Gfn(first + 5), false);
  const size_t sent = transport_.sent.size();
  const uint64_t transaction = transport_.sent[2].message.transaction;
  ReceiveEmpty(Gfn(first + 5), transaction + 1);
  EXPECT_EQ(transport_.sent.size(), sent);
  EXPECT_EQ(engine_->Statistics().stale_messages, 1u);
  log_.clear();
  ReceiveEmpty(Gfn(first + 5), transaction);
  EXPECT_THAT(log_, ElementsAre("send Done 1", "send Request 1"));
  EXPECT_EQ(transport_.sent.back().message.gfn, Gfn(first + 5));
  EXPECT_EQ(engine_->Statistics().prefetch_wasted, 0u);
  engine_->Stop(absl::CancelledError("enough"));
}

TEST_F(SpaceEngineTest, AnAnswerToOtherPagesThanABatchAskedForStopsTheSpace) {
  engine_->OnFault(kThere, false);
  engine_->OnFault(Gfn(kThere.value() + 1), false);
  transport_.sent[2].batch.pages[1].index = 11;
  AnswerBatch(2, {BatchFate::kTaken, BatchFate::kTaken, BatchFate::kTaken});
  ExpectStopped("answers other pages than were asked for");
}

TEST_F(SpaceEngineTest, PagesFetchedAheadAreBounded) {
  // Nothing is answered: each page under way stays so.
  for (uint64_t page = 0; page < 400; ++page) {
    for (uint64_t extent = 0; extent < 4; ++extent) engine_->OnFault(Gfn(extent * kExtentPages + page), false);
  }
  const auto bulk = [this] {
    return std::count_if(transport_.sent.begin(), transport_.sent.end(), [](const FakeTransport::Sent& one) {
      return one.message.message_class == MessageClass::kBulk;
    });
  };
  EXPECT_GT(bulk(), 10);
  EXPECT_LE(bulk(), 32);
  EXPECT_LE(engine_->Statistics().prefetched, 2 * 256u);
  // Without slots nothing is fetched ahead, and what is wanted is asked for as ever.
  Make({kSelf, kPeer});
  transport_.sent.clear();
  transport_.receive_slots = 2;
  engine_->OnFault(kThere, false);
  engine_->OnFault(Gfn(kThere.value() + 1), false);
  EXPECT_EQ(transport_.sent.size(), 2u);
  EXPECT_EQ(bulk(), 0);
}

TEST_F(SpaceEngineTest, APageFetchedAheadAndTakenAwayIsCounted) {
  Make({kSelf, kPeer, kThird});
  const uint64_t first = kThere.value();
  engine_->OnFault(Gfn(first), false);
  engine_->OnFault(Gfn(first + 1), false);
  AnswerBatch(2, {BatchFate::kTaken, BatchFate::kTaken, BatchFate::kTaken});
  timers_.Advance(config_.hold);
  PageMessage gone = Of(Type::kInvalidate);
  gone.requester = kThird;
  gone.serial = 78;
  Receive(kPeer, Gfn(first + 2), gone);
  EXPECT_EQ(engine_->Statistics().prefetch_wasted, 1u);
  engine_->Stop(absl::CancelledError("enough"));
}

// The same of batches: streams of faults, and batches of any kind about pages near to them.
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

TEST_F(SpaceEngineTest, WithoutFramesCopiesGoThenPagesAreOfferedThenTheSpaceStops) {
  config_.max_pages = kLeastFrames;
  Make({kSelf, kPeer});
  Wish wishes[2 * kLeastFrames];
  for (uint64_t i = 0; i < kLeastFrames; ++i) Want(Gfn(i), i == 3 ? PageAccess::kRead : PageAccess::kWrite, &wishes[i]);
  clock_.now += config_.hold;
  log_.clear();
  // The one copy goes.
  Want(Gfn(100), PageAccess::kWrite, &wishes[kLeastFrames]);
  EXPECT_THAT(log_, ElementsAre("remove 3", "install 100 2", "granted"));
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
  EXPECT_FALSE(frames_.pages.contains(5));
  EXPECT_EQ(frames_.pages.size(), kLeastFrames);
  // And then nobody does.
  Want(Gfn(102), PageAccess::kWrite, &wishes[kLeastFrames + 2]);
  timers_.Advance(config_.request_limit * 2);
  EXPECT_TRUE(absl::IsResourceExhausted(wishes[kLeastFrames + 2].status));
  ExpectStopped("all 8 frames");
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

TEST_F(SpaceEngineTest, ACopyMakesRoomForAnOffer) {
  config_.max_pages = kLeastFrames;
  Make({kSelf, kPeer});
  Wish wishes[kLeastFrames];
  for (uint64_t i = 0; i < kLeastFrames - 1; ++i) Want(Gfn(i), PageAccess::kRead, &wishes[i]);
  Want(kThere, PageAccess::kRead, &wishes[kLeastFrames - 1]);
  Grant(kThere, PageRight::kShared, PageSource::kZero);
  clock_.now += config_.hold;
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
    frames_.pages.at(i).second = 'x';
  }
  clock_.now += config_.hold;
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

TEST_F(SpaceEngineTest, APinnedPageGoesWhenItIsUnpinned) {
  Make({kSelf, kPeer});
  Wish pin;
  engine_->Pin(kThere, 1, [&pin](const absl::Status& status) {
    ++pin.ends;
    pin.status = status;
  });
  EXPECT_EQ(pin.ends, 0);
  Grant(kThere, PageRight::kExclusive, PageSource::kPayload, 'a');
  ASSERT_EQ(pin.ends, 1);
  engine_->Pin(kThere, 1, [](const absl::Status& status) { EXPECT_TRUE(status.ok()); });
  ReceiveForward(kThere, RequestKind::kWrite, kPeer, 9, 80);
  timers_.Advance(milliseconds(10));
  EXPECT_TRUE(frames_.pages.contains(kThere.value())) << "a hold is over, a pin is not";
  // Somebody waits: no new pin before he had it.
  Wish late;
  engine_->Pin(kThere, 1, [&late](const absl::Status& status) {
    ++late.ends;
    late.status = status;
  });
  EXPECT_EQ(late.ends, 0);
  engine_->Unpin(kThere, 1);
  EXPECT_TRUE(frames_.pages.contains(kThere.value()));
  // Without a send slot it stays a little longer.
  transport_.send_slots = 0;
  engine_->Unpin(kThere, 1);
  EXPECT_TRUE(frames_.pages.contains(kThere.value()));
  transport_.send_slots = 1;
  engine_->OnSlotsFree(MessageClass::kFault, SlotUse::kSend);
  EXPECT_FALSE(frames_.pages.contains(kThere.value()));
  // And the late one asks for it anew.
  ASSERT_EQ(transport_.sent.back().page.type, Type::kRequest);
  Grant(kThere, PageRight::kExclusive, PageSource::kPayload, 'b');
  EXPECT_EQ(late.ends, 1);
  engine_->Unpin(kThere, 1);
  PageMessage release = Of(Type::kRelease);
  release.serial = 80;
  Receive(kPeer, kThere, release);
  EXPECT_EQ(engine_->Residue().active_pages, 0u);
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
