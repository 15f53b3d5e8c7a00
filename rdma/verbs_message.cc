#include "rdma/verbs_message.h"

#include <algorithm>
#include <cstring>

#include "fmt/format.h"
#include "hyperkernel/base/mutant.h"
#include "rdma/slots.h"

namespace hk {

namespace {

// The part of a SlotId that an immediate carries: class, use and index.
constexpr uint64_t kImmediateMask = 0xffff;

void Copy(std::byte* to, std::span<const std::byte> from) {
  if (!from.empty()) std::memcpy(to, from.data(), from.size());
}

}  // namespace

std::span<const std::byte> EncodeSend(const Header& header, std::span<const std::byte> body, std::byte* room) {
  Copy(room, EncodeHeader(header));
  Copy(room + kHeaderBytes, body);
  return {room, kHeaderBytes + body.size()};
}

std::span<const std::byte> EncodeBeforePayload(const Header& header, std::span<const std::byte> body, std::byte* room) {
  Copy(room, body);
  Copy(room + body.size(), EncodeHeader(header));
  return {room, body.size() + kHeaderBytes};
}

SlotWrite WriteInto(const SetupBody& receiver, SlotId slot, size_t control_bytes) {
  const uint64_t payload =
      receiver.slots_address + uint64_t{SlotName::Decode(slot).index} * uint64_t{receiver.slot_stride};
  return {.address = payload - control_bytes,
          .key = receiver.slots_key,
          .immediate = static_cast<uint32_t>(slot.value() & kImmediateMask)};
}

std::string VerbsMessage::ReadSend(MessageClass message_class, const std::byte* buffer, size_t size) {
  const size_t copied = std::min(size, control_.size());
  Copy(control_.data(), {buffer, copied});
  const std::span<const std::byte> bytes = std::span<const std::byte>(control_).first(copied);
  const WireError error = DecodeHeader(bytes, message_class, &header_);
  if (error != WireError::kNone) return fmt::format("header: {}", WireErrorName(error));
  const bool right = header_.payload_bytes == 0 && size == kHeaderBytes + header_.body_bytes;
  if (!right && !HK_MUTANT(send_length_unchecked)) return fmt::format("a send of {} bytes that says otherwise", size);
  body_ = std::span<const std::byte>(control_).subspan(kHeaderBytes, header_.body_bytes);
  payload_ = {};
  return CheckCrc();
}

std::string VerbsMessage::ReadWrite(MessageClass message_class, const SlotMemory& memory, uint32_t slots,
                                    uint32_t immediate, size_t size) {
  const SlotId where(immediate & kImmediateMask);
  const SlotName name = SlotName::Decode(where);
  if (immediate > kImmediateMask || name.message_class != message_class || name.use != SlotUse::kReceive ||
      name.index >= slots) {
    return fmt::format("a write into slot {:#x}, which there is not", immediate);
  }
  const std::span<const std::byte> slot = memory.Bytes(where);
  Copy(control_.data() + kMaxBodyBytes, {slot.data() - kHeaderBytes, kHeaderBytes});
  const std::span<const std::byte> control(control_);
  const WireError error = DecodeHeader(control.subspan(kMaxBodyBytes), message_class, &header_);
  if (error != WireError::kNone) return fmt::format("header in slot {:#x}: {}", immediate, WireErrorName(error));
  const bool same_slot = (header_.message.slot.value() & kImmediateMask) == immediate || HK_MUTANT(immediate_unchecked);
  if (header_.payload_bytes == 0 || !same_slot || size != kHeaderBytes + header_.body_bytes + header_.payload_bytes) {
    return fmt::format("a write of {} bytes into slot {:#x} that says otherwise", size, immediate);
  }
  Copy(control_.data(), {slot.data() - kHeaderBytes - header_.body_bytes, header_.body_bytes});
  body_ = control.first(header_.body_bytes);
  payload_ = slot.first(header_.payload_bytes);
  return CheckCrc();
}

// Verbs need none: the wire has its own, and a page is not read for it alone. One that is there is right.
std::string VerbsMessage::CheckCrc() const {
  if (!header_.has_payload_crc || CheckPayload(header_, body_, payload_) == WireError::kNone) return {};
  return "body: payload-crc";
}

}  // namespace hk
