// A hostile peer or stranger: any bytes as header, body and payload, hello or setup. Nothing is read beyond the input,
// and what is accepted is within the limits and encodes to the same bytes.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "hyperkernel/base/check.h"
#include "rdma/slots.h"
#include "rdma/wire.h"

namespace hk {
namespace {

// Input: 1 byte of what to do (low 2 bits: class; 4: make the CRC right; rest: which form), then the bytes themselves.
constexpr uint8_t kClassBits = 3, kRepair = 4;

void Repair(std::vector<std::byte>* bytes, size_t size) {
  if (bytes->size() < size) return;
  const uint32_t crc = Crc32c(std::span(*bytes).first(size - 4));
  for (size_t i = 0; i < 4; ++i) (*bytes)[size - 4 + i] = static_cast<std::byte>(crc >> (8 * i));
}

void Same(std::span<const std::byte> encoded, std::span<const std::byte> input) {
  HK_CHECK(std::ranges::equal(encoded, input.first(encoded.size())));
}

void TryHeader(std::span<const std::byte> bytes, MessageClass message_class) {
  Header header;
  const WireError error = DecodeHeader(bytes, message_class, &header);
  HK_CHECK(WireErrorName(error) != "unknown");
  if (error != WireError::kNone) {
    Same(EncodeHeader(header), EncodeHeader(Header()));
    return;
  }
  Same(EncodeHeader(header), bytes);
  HK_CHECK(header.message.message_class == message_class);
  HK_CHECK(header.body_bytes <= kMaxBodyBytes && header.payload_bytes <= kBulkSlotBytes);
  HK_CHECK(header.payload_bytes == 0 || header.message.answer);
  HK_CHECK(!header.message.answer || header.message.slot != SlotId());
  HK_CHECK(header.message.slot_node.value() < kMaxNodes);

  // As the TCP back end does: lengths first, then the bytes, as far as they came.
  bytes = bytes.subspan(kHeaderBytes);
  const auto body = bytes.first(std::min<size_t>(bytes.size(), header.body_bytes));
  const auto payload =
      bytes.subspan(body.size()).first(std::min<size_t>(bytes.size() - body.size(), header.payload_bytes));
  const bool whole = body.size() == header.body_bytes && payload.size() == header.payload_bytes;
  HK_CHECK((CheckPayload(header, body, payload) == WireError::kLength) == !whole);
  if (whole) {
    SetPayloadCrc(body, payload, &header);
    HK_CHECK(CheckPayload(header, body, payload) == WireError::kNone);
  }
  if (header.message.type == static_cast<uint16_t>(OwnType::kSetup)) {
    SetupBody setup;
    if (DecodeSetup(body, &setup) == WireError::kNone) Same(EncodeSetup(setup), body);
  }

  // A slot that a peer names never breaks the table.
  SlotTable slots({2, 2, 2, 2});
  const AnswerFate fate = slots.Answer(NodeId(1), header.message, true, nullptr);
  HK_CHECK(fate == AnswerFate::kForeign);
}

void TryHello(std::span<const std::byte> bytes) {
  Hello hello;
  if (DecodeHello(bytes, &hello) != WireError::kNone) return;
  Same(EncodeHello(hello), bytes);
  HK_CHECK(hello.from.value() < kMaxNodes && hello.to.value() < kMaxNodes);
  HK_CHECK(HelloKindName(hello.kind) != "unknown");
}

void Run(std::span<const uint8_t> input) {
  if (input.empty()) return;
  const uint8_t what = input[0];
  // A copy of its own, so that the sanitizer sees the first byte read beyond it.
  std::vector<std::byte> bytes(input.size() - 1);
  std::ranges::copy(std::as_bytes(input.subspan(1)), bytes.begin());
  if ((what & kClassBits) == kMessageClasses) {
    if ((what & kRepair) != 0) Repair(&bytes, kHelloBytes);
    return TryHello(bytes);
  }
  if ((what & kRepair) != 0) Repair(&bytes, kHeaderBytes);
  TryHeader(bytes, static_cast<MessageClass>(what & kClassBits));
}

}  // namespace
}  // namespace hk

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  hk::Run(std::span(data, size));
  return 0;
}
