#include "hyperkernel/memory/page_batch.h"

#include <algorithm>
#include <string>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/memory/space_engine.h"

namespace hk {
namespace {

// Bytes of one page in each message, and of what stands before the pages.
constexpr std::array<size_t, kPageBatchTypes> kPageBytes = {2, 11, 11, 10};
constexpr std::array<size_t, kPageBatchTypes> kFrontBytes = {0, 2, 0, 0};
static_assert(kMaxBatchBodyBytes == 2 + kMostBatchPages * 11 && kMaxBatchBodyBytes <= kMaxBodyBytes);

void Put(PageBody* body, uint64_t value, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) body->bytes[body->size++] = static_cast<std::byte>(value >> (8 * i));
}

// REQUIRES: so many bytes are left.
uint64_t Take(std::span<const std::byte>* from, size_t bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < bytes; ++i) value |= static_cast<uint64_t>((*from)[i]) << (8 * i);
  *from = from->subspan(bytes);
  return value;
}

bool HasFate(PageBatchType type) {
  return type == PageBatchType::kForward || type == PageBatchType::kAnswer;
}

absl::Status Malformed(NodeId from, const std::string& what) {
  return absl::InvalidArgumentError("node " + std::to_string(from.value()) + " sent " + what);
}

bool HasItsShape(const PageBatch& batch, NodeId self, const Message& message) {
  const bool bulk = message.message_class == MessageClass::kBulk;
  const bool slot = message.slot != SlotId();
  switch (batch.type) {
    case PageBatchType::kRequest:
      return bulk && slot && !message.answer && message.slot_node == batch.from;
    case PageBatchType::kForward:
      return bulk && slot && !message.answer && message.slot_node == batch.requester && batch.requester != self;
    case PageBatchType::kAnswer:
      return bulk && slot && message.answer;
    case PageBatchType::kDone:
      return message.message_class == MessageClass::kFault && !slot && !message.answer;
  }
  return false;
}

}  // namespace

const char* Name(PageBatchType type) {
  static constexpr const char* kNames[kPageBatchTypes] = {"BatchRequest", "BatchForward", "BatchAnswer", "BatchDone"};
  return kNames[static_cast<size_t>(type)];
}

PageBody EncodeBatchBody(const PageBatch& batch) {
  HK_CHECK(batch.count <= kMostBatchPages);
  PageBody body;
  if (batch.type == PageBatchType::kForward) Put(&body, batch.requester.value(), 2);
  for (const BatchPage& page : batch.all()) {
    Put(&body, page.index, 2);
    if (HasFate(batch.type)) Put(&body, static_cast<uint8_t>(page.fate), 1);
    if (batch.type != PageBatchType::kRequest) Put(&body, page.serial, 8);
  }
  return body;
}

void SetBatchHeader(const PageBatch& batch, Message* header) {
  header->type = static_cast<uint16_t>(kFirstBatchType + static_cast<uint16_t>(batch.type));
  header->transaction = batch.transaction;
  header->answer = batch.type == PageBatchType::kAnswer;
  header->message_class = batch.type == PageBatchType::kDone ? MessageClass::kFault : MessageClass::kBulk;
}

absl::StatusOr<PageBatch> DecodeBatch(NodeId from, NodeId self, uint64_t pages, const Message& message,
                                      size_t payload_bytes) {
  if (!IsBatchType(message.type)) {
    return Malformed(from, "a message of unknown type " + std::to_string(message.type));
  }
  PageBatch batch;
  batch.type = static_cast<PageBatchType>(message.type - kFirstBatchType);
  const auto type = static_cast<size_t>(batch.type);
  const auto malformed = [&](const char* why) {
    return Malformed(from, std::string("a malformed ") + Name(batch.type) + ": " + why);
  };
  batch.from = from;
  batch.to = self;
  batch.transaction = message.transaction;
  const bool asks = batch.type == PageBatchType::kRequest || batch.type == PageBatchType::kDone;
  batch.requester = asks ? from : self;
  std::span<const std::byte> body = message.body;
  if (body.size() < kFrontBytes[type]) return malformed("its length");
  const size_t count = (body.size() - kFrontBytes[type]) / kPageBytes[type];
  // A Done is of what was granted: of one page at least.
  const size_t least = batch.type == PageBatchType::kDone ? 1 : kLeastBatchPages;
  if (body.size() != kFrontBytes[type] + count * kPageBytes[type] || count < least ||
      (count > kMostBatchPages && !HK_MUTANT(batch_length_unchecked))) {
    return malformed("its length");
  }
  if (batch.type == PageBatchType::kForward) {
    batch.requester = NodeId(static_cast<uint16_t>(Take(&body, 2)));
    if (batch.requester.value() >= kMaxNodes) return malformed("its requester");
  }
  const uint64_t extent = message.gfn.value() / kExtentPages * kExtentPages;
  if (message.gfn.value() >= pages) return malformed("a page that is not in the space");
  size_t taken = 0;
  for (size_t i = 0; i < count; ++i) {
    BatchPage page;
    page.index = static_cast<uint16_t>(Take(&body, 2));
    // `extent` is below `pages`, which is below 2^40: the sum does not overflow.
    if (page.index >= kExtentPages || extent + page.index >= pages) return malformed("a page that is not in the space");
    if (i == 0 ? extent + page.index != message.gfn.value() : page.index <= batch.pages[i - 1].index) {
      return malformed("pages out of order");
    }
    if (HasFate(batch.type)) {
      const uint64_t fate = Take(&body, 1);
      const BatchFate most = batch.type == PageBatchType::kForward ? BatchFate::kTaken : BatchFate::kLater;
      if (fate > static_cast<uint8_t>(most)) return malformed("what becomes of a page");
      page.fate = static_cast<BatchFate>(fate);
    }
    if (batch.type != PageBatchType::kRequest) page.serial = Take(&body, 8);
    taken += page.fate == BatchFate::kTaken ? 1 : 0;
    batch.Add(page);
  }
  if (!HasItsShape(batch, self, message)) {
    return Malformed(from, std::string(Name(batch.type)) + " on a class or with a slot that it has not");
  }
  if (batch.type == PageBatchType::kForward && taken == 0) return malformed("it asks for nothing");
  if (payload_bytes != (batch.type == PageBatchType::kAnswer ? taken * kPageSize : 0)) return malformed("its payload");
  return batch;
}

Message SpaceEmptyMessage(uint64_t transaction, uint64_t serial, PageBody* body) {
  Put(body, serial, 8);
  Message message;
  message.message_class = MessageClass::kBulk;
  message.type = kSpaceEmptyType;
  message.transaction = transaction;
  message.body = body->span();
  return message;
}

absl::StatusOr<uint64_t> SerialInEmpty(NodeId from, const Message& message) {
  std::span<const std::byte> body = message.body;
  if (body.size() != 8 || message.answer || message.slot != SlotId() || message.message_class != MessageClass::kBulk) {
    return Malformed(from, "a malformed Empty");
  }
  return Take(&body, 8);
}

}  // namespace hk
