// The page protocol's messages as bytes: PageMessage to and from the transport's Message. Layout: README.md, "Bytes".
// Pure, thread-safe. Input of a peer is never an invariant here: what no correct node sends is an absl::Status.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/page_message.h"
#include "rdma/transport.h"

namespace hk {

// The longest body of a message about one page (Answer), and of one about several (page_batch.h).
inline constexpr size_t kMaxPageBodyBytes = 27, kMaxBatchBodyBytes = 178;

// A body with its memory, for Message::body. Plain value.
struct PageBody {
  std::array<std::byte, kMaxBatchBodyBytes> bytes;
  size_t size = 0;
  std::span<const std::byte> span() const { return std::span(bytes).first(size); }
};

// What the message has beside the header's fields.
PageBody EncodePageBody(const PageMessage& message);
// Sets type, transaction and whether it is an answer; the rest of the header is the caller's.
void SetPageHeader(const PageMessage& message, Message* header);
// The class of a message that belongs to no request; a request's messages go where the request went.
MessageClass ClassOf(PageMessageType type);
// The message that `from` sent to this node. kInvalidArgument: the type, the body's length or a field of it, or a slot
// that such a message has not.
absl::StatusOr<PageMessage> DecodePageMessage(NodeId from, NodeId self, const Message& message);

const char* Name(PageMessageType type);

// Home to requester, class fault, without body: others wait for the page, the Done of this transaction is urgent.
inline constexpr uint16_t kSpaceHurryType = kFirstUserType + 28;
Message SpaceHurryMessage(uint64_t transaction);

// About no page, class fault, without body: how long a peer's engine takes to answer when nothing is in the way. The
// Pong has the Ping's transaction, which is the sender's own business.
inline constexpr uint16_t kSpacePingType = kFirstUserType + 29;
inline constexpr uint16_t kSpacePongType = kFirstUserType + 30;
Message SpacePingMessage(bool pong, uint64_t transaction);

// About no page either: the sender's part of the space has stopped. Body: why, for people.
inline constexpr uint16_t kSpaceStoppedType = kFirstUserType + 13;
Message SpaceStoppedMessage(std::string_view why);
// What a peer says in it, fit to be printed.
std::string ReasonIn(const Message& message);

// About no page: how many pages the sender would take now. A hint. Body: 8 bytes, little-endian.
inline constexpr uint16_t kSpaceRoomType = kFirstUserType + 20;
// `body` has the message's bytes, and outlives it.
Message SpaceRoomMessage(uint64_t pages, PageBody* body);
absl::StatusOr<uint64_t> RoomIn(NodeId from, const Message& message);

}  // namespace hk
