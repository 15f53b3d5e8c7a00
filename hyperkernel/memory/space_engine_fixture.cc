#include "hyperkernel/memory/space_engine_fixture.h"

#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "gmock/gmock.h"

namespace hk {

using testing::HasSubstr;
using testing::IsEmpty;

absl::Status FakeTransport::Send(NodeId to, const Message& message, const SendOptions& options) {
  if (!refusal.ok()) return refusal;
  if (message.type == kSpaceStoppedType) {
    told.push_back(fmt::format("{}: {}", to.value(), ReasonIn(message)));
    return absl::OkStatus();
  }
  if (message.type == kSpaceHurryType) {
    hurried.push_back(fmt::format("{}: {}", to.value(), message.transaction));
    return absl::OkStatus();
  }
  if (message.type == kSpacePingType || message.type == kSpacePongType) {
    pings.push_back(message.transaction);
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

absl::Status FakeTransport::SendBatch(NodeId to, const Message& message, const SendOptions& options) {
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

absl::StatusOr<SlotId> FakeTransport::AcquireSlot(MessageClass, SlotUse use) {
  int& left = use == SlotUse::kSend ? send_slots : receive_slots;
  if (left == 0) return absl::ResourceExhaustedError("none");
  --left;
  const SlotId slot(next_slot_++);
  lent.insert(slot.value());
  memory[slot.value()].resize(kBulkSlotBytes);
  return slot;
}

std::span<std::byte> FakeTransport::SlotBytes(SlotId slot) {
  EXPECT_TRUE(lent.contains(slot.value()));
  return memory.at(slot.value());
}

void FakeTransport::ReleaseSlot(SlotId slot) {
  EXPECT_EQ(lent.erase(slot.value()), 1u) << "slot " << slot.value();
}

SpaceEngineTest::~SpaceEngineTest() {
  engine_.reset();
  EXPECT_THAT(transport_.lent, IsEmpty());
}

void SpaceEngineTest::Make(const std::vector<NodeId>& nodes) {
  engine_.reset();
  timers_.Clear();  // of an engine that is gone: the owner's duty
  config_.guest = GuestId(5);
  config_.generation = 2;
  config_.epoch = Epoch(3);
  config_.self = kSelf;
  config_.nodes = nodes;
  config_.pages = 4 * kExtentPages;
  absl::StatusOr<std::unique_ptr<SpaceEngine>> made = SpaceEngine::Create(
      config_, &transport_, &frames_, &timers_, clock_, [this](const absl::Status& why) { stops_.emplace_back(why); });
  ASSERT_TRUE(made.ok()) << made.status();
  engine_ = *std::move(made);
}

void SpaceEngineTest::MakeOwnHomes(uint32_t fill_around) {
  config_.coordinator = kSelf;
  config_.homes_at_coordinator = true;
  config_.fill_around = fill_around;
  config_.max_pages = 64;
  Make({kSelf, kPeer});
}

void SpaceEngineTest::Want(Gfn page, PageAccess access, Wish* wish, bool overwrite) {
  const auto granted = [this, end = wish->End()](const absl::Status& status) {
    end(status);
    log_.push_back("granted");
  };
  if (overwrite && access == PageAccess::kWrite) {
    engine_->Replace(page, replacement_, granted);
  } else {
    engine_->Want(page, access, granted);
  }
}

PageMessage SpaceEngineTest::Of(Type type) {
  PageMessage m;
  m.type = type;
  return m;
}

void SpaceEngineTest::Receive(NodeId from, Gfn page, PageMessage m, SlotId slot, NodeId slot_node, char byte) {
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

void SpaceEngineTest::ReceiveRequest(NodeId from, Gfn page, RequestKind kind, uint64_t transaction) {
  PageMessage m = Of(Type::kRequest);
  m.kind = kind;
  m.transaction = transaction;
  Receive(from, page, m, SlotId(transaction << 16), from);
}

void SpaceEngineTest::ReceiveForward(Gfn page, RequestKind kind, NodeId requester, uint64_t transaction,
                                     uint64_t serial) {
  PageMessage m = Of(Type::kForward);
  m.kind = kind;
  m.requester = requester;
  m.transaction = transaction;
  m.serial = serial;
  Receive(kPeer, page, m, SlotId(transaction << 16), requester);
}

void SpaceEngineTest::ReceiveDone(Gfn page, uint64_t transaction) {
  PageMessage done = Of(Type::kDone);
  done.transaction = transaction;
  done.serial = transport_.sent.back().page.serial;
  Receive(kPeer, page, done);
}

void SpaceEngineTest::GrantTo(const FakeTransport::Sent& request, PageRight right, PageSource source, char byte,
                              NodeSet acks) {
  ASSERT_EQ(request.page.type, Type::kRequest);
  PageMessage m = Of(Type::kAnswer);
  m.transaction = request.message.transaction;
  m.serial = 77;
  m.kind = request.page.kind;
  m.right = right;
  m.source = source;
  m.acks = acks;
  Receive(kPeer, request.message.gfn, m, request.message.slot, kSelf, byte);
}

void SpaceEngineTest::Refuse(const FakeTransport::Sent& request) {
  PageMessage nack = Of(Type::kNack);
  nack.transaction = request.message.transaction;
  nack.reason = NackReason::kBusy;
  Receive(kPeer, request.message.gfn, nack, request.message.slot, kSelf);
}

void SpaceEngineTest::Grant(Gfn page, PageRight right, PageSource source, char byte, NodeSet acks) {
  ASSERT_EQ(transport_.sent.back().message.gfn, page);
  GrantTo(transport_.sent.back(), right, source, byte, acks);
}

void SpaceEngineTest::AnswerBatch(size_t sent, const std::vector<BatchFate>& fates) {
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

void SpaceEngineTest::ReceiveEmpty(Gfn page, uint64_t transaction) {
  PageBody body;
  const Message message = SpaceEmptyMessage(transaction, 77, &body);
  Deliver(page, message, body, {});
}

void SpaceEngineTest::Deliver(Gfn page, Message message, const PageBody& body, std::span<const std::byte> payload) {
  message.guest = config_.guest;
  message.generation = config_.generation;
  message.epoch = config_.epoch;
  message.gfn = page;
  message.body = body.span();
  engine_->OnMessage(kPeer, message, payload, false);
}

void SpaceEngineTest::ExpectStopped(const std::string& reason) {
  ASSERT_EQ(stops_.size(), 1u);
  EXPECT_THAT(std::string(stops_[0].message()), HasSubstr(reason));
  Wish after;
  Want(kThere, PageAccess::kRead, &after);
  EXPECT_EQ(after.ends, 1);
  EXPECT_EQ(after.status, stops_[0]);
  EXPECT_EQ(engine_->Residue().active_pages, 0u);
}

}  // namespace hk
