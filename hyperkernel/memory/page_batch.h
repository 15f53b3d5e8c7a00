// Several pages of one extent in one message: a node asks ahead for all of them with one receive slot of the bulk
// class, and one answer brings as many as the answering node can give at once. Only messages are joined: each page
// takes its own steps in page_protocol.h and page_directory.h. README.md, "Batches". Bytes: README.md, "Bytes".
//
// Pure, thread-safe. Input of a peer is never an invariant here: what no correct node sends is an absl::Status.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/page_wire.h"
#include "rdma/transport.h"

namespace hk {

// Pages of a batch: as many as a bulk slot holds.
inline constexpr size_t kMostBatchPages = kBulkSlotBytes / kPageSize;
// A single page is an ordinary request.
inline constexpr size_t kLeastBatchPages = 2;

// What a message about several pages is. Numbers are part of the wire format (kFirstBatchType is added).
enum class PageBatchType : uint8_t { kRequest, kForward, kAnswer, kDone };
inline constexpr uint16_t kFirstBatchType = kFirstUserType + 21;
inline constexpr size_t kPageBatchTypes = 4;
constexpr bool IsBatchType(uint16_t type) {
  return type >= kFirstBatchType && type < kFirstBatchType + kPageBatchTypes;
}
// Owner to requester, bulk, no slot: a page of a batch was granted after the batch's answer had left, and without its
// bytes. Body: the serial, 8 bytes.
inline constexpr uint16_t kSpaceEmptyType = kFirstUserType + 25;

// What becomes of a page of a batch. Forward: declined, zero, taken (to be answered by whom this goes to). Answer:
// declined (nothing has begun: ask again), zero, taken (its bytes are in the payload), later (kSpaceEmptyType follows).
enum class BatchFate : uint8_t { kDeclined, kZero, kTaken, kLater };

// One page of a batch. Plain value.
struct BatchPage {
  uint16_t index = 0;  // within the extent
  BatchFate fate = BatchFate::kDeclined;
  uint64_t serial = 0;  // the home's of the page's transaction; 0 if nothing has begun
  friend bool operator==(const BatchPage&, const BatchPage&) = default;
};

// A message about several pages of the extent of the header's GFN, which is the first of them. Plain value.
struct PageBatch {
  PageBatchType type = PageBatchType::kRequest;
  NodeId from, to, requester;
  uint64_t transaction = 0;  // the requester's, of all pages
  size_t count = 0;
  std::array<BatchPage, kMostBatchPages> pages{};  // ascending by index

  std::span<BatchPage> all() { return std::span(pages).first(count); }
  std::span<const BatchPage> all() const { return std::span(pages).first(count); }
  void Add(const BatchPage& page) { pages[count++] = page; }
};

PageBody EncodeBatchBody(const PageBatch& batch);
// Sets type, class, transaction and whether it is an answer; the rest of the header is the caller's.
void SetBatchHeader(const PageBatch& batch, Message* header);
// The message that `from` sent to this node, of a space of `pages` pages. kInvalidArgument: length, a field, a page
// that is not in the space or not above the one before, or a class, slot or payload that such a message has not.
absl::StatusOr<PageBatch> DecodeBatch(NodeId from, NodeId self, uint64_t pages, const Message& message,
                                      size_t payload_bytes);

Message SpaceEmptyMessage(uint64_t transaction, uint64_t serial, PageBody* body);
// The serial.
absl::StatusOr<uint64_t> SerialInEmpty(NodeId from, const Message& message);

const char* Name(PageBatchType type);

}  // namespace hk
