// How messages lie in memory over verbs (rdma/README.md, Verbs). Pure: no device.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "rdma/slot_memory.h"
#include "rdma/wire.h"

namespace hk {

// A control message as a send: header and body. `room` has kSlotRoomBytes; the part used is returned.
std::span<const std::byte> EncodeSend(const Header& header, std::span<const std::byte> body, std::byte* room);
// What stands before the payload of an answer: body and header.
std::span<const std::byte> EncodeBeforePayload(const Header& header, std::span<const std::byte> body, std::byte* room);

// Where an answer is written. Plain value.
struct SlotWrite {
  uint64_t address = 0;    // of its first byte: `control_bytes` before the payload
  uint32_t key = 0;        // the receiver's rkey
  uint32_t immediate = 0;  // which slot
};
SlotWrite WriteInto(const SetupBody& receiver, SlotId slot, size_t control_bytes);

// A message that arrived. Header and body are copied to here before anything of them is looked at: what the peer may
// write to later decides nothing. Not thread-safe.
class VerbsMessage {
 public:
  // A send of `size` bytes lies at `buffer`, which has kMaxControlBytes. Empty: read; else the rule that it breaks.
  std::string ReadSend(MessageClass message_class, const std::byte* buffer, size_t size);
  // A write of `size` bytes with `immediate` came on a connection of the class, which has `slots` receive slots. As
  // ReadSend.
  std::string ReadWrite(MessageClass message_class, const SlotMemory& memory, uint32_t slots, uint32_t immediate,
                        size_t size);

  const Header& header() const { return header_; }
  std::span<const std::byte> body() const { return body_; }        // here
  std::span<const std::byte> payload() const { return payload_; }  // in its slot

 private:
  std::string CheckCrc() const;

  Header header_;
  std::array<std::byte, kMaxControlBytes> control_;
  std::span<const std::byte> body_, payload_;
};

}  // namespace hk
