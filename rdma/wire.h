// The bytes of the transport's messages and of its handshake: one form for all back ends, little-endian. The tables are
// in rdma/README.md. Everything read here comes from a peer or a stranger: every decoder is bounds-checked, changes
// nothing on failure, and says which rule was broken. Pure functions, thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "rdma/crc32c.h"
#include "rdma/transport.h"

namespace hk {

// The version written, and the oldest one read. A change of the bytes raises kWireVersion; N and N-1 are read.
inline constexpr uint8_t kWireVersion = 1;
// True if a node that writes `current` understands `version`. There is no version 0.
constexpr bool AcceptsVersion(uint8_t version, uint8_t current = kWireVersion) {
  return version != 0 && (version == current || version + 1 == current);
}

inline constexpr size_t kHeaderBytes = 88;
inline constexpr size_t kMaxControlBytes = kHeaderBytes + kMaxBodyBytes;  // header and body
// Verbs: room before the payload of each receive slot, for an answer's body and header; a multiple of 64 that holds
// both.
inline constexpr size_t kSlotRoomBytes = 384;
static_assert(kSlotRoomBytes >= kMaxControlBytes && kSlotRoomBytes % 64 == 0);
inline constexpr size_t kHelloBytes = 56;  // rdma_cm private data of a connect, RDMA_PS_TCP
inline constexpr size_t kSetupBytes = 40;
inline constexpr uint32_t kMaxWindow = 4096;  // messages; receive buffers of one class and peer
inline constexpr uint32_t kMinWindow = 4;     // a quarter of it is when an Ack is due

// The transport's own messages.
enum class OwnType : uint16_t {
  kSetup = 1,      // first on each connection, both ways; no sequence number
  kAck = 2,        // only the acknowledged number; no sequence number
  kHeartbeat = 3,  // the same, on the invalidate class only
  kGoodbye = 4,    // the session is over, `flags` is a PeerFailure; no sequence number
  kBarrier = 5,    // nothing of the guest older than (generation, epoch) follows on this class; numbered
};

// Which rule the bytes break. Index of counters and word in logs; append only.
enum class WireError : uint8_t {
  kNone,
  kTruncated,   // fewer bytes than the form has
  kMagic,       // something else than this protocol
  kVersion,     // neither N nor N-1
  kHeaderCrc,   // a flipped bit
  kClass,       // no such class, or not the one of the connection
  kType,        // a reserved type, or one that does not belong on this class
  kReserved,    // a bit that must be 0
  kLength,      // a body or payload beyond its limit, or where none may be
  kSlot,        // a slot without node, a node without slot, a slot of another class, an answer without slot
  kSequence,    // a number where none belongs, or none where one does
  kPayloadCrc,  // missing where it must be, or wrong
  kValue,       // a field of a hello or setup that is out of its range
};
inline constexpr size_t kWireErrors = 13;
std::string_view WireErrorName(WireError error);

// A message's header. `message.body` is not part of it.
struct Header {
  uint8_t version = kWireVersion;
  Message message;
  uint64_t sequence = 0;      // 0: not numbered
  uint64_t acknowledged = 0;  // the sender of this received everything of the class up to here
  uint16_t body_bytes = 0;
  uint32_t payload_bytes = 0;
  bool has_payload_crc = false;  // always over TCP; verbs has checks of its own
  uint32_t payload_crc = 0;      // of body and payload, 0 without has_payload_crc
};

// Writes the header with its CRC. REQUIRES: what DecodeHeader would accept.
std::array<std::byte, kHeaderBytes> EncodeHeader(const Header& header);
// Reads and checks the first kHeaderBytes of `bytes`, which came on a connection of class `expected`. `current` is
// kWireVersion but in tests.
WireError DecodeHeader(std::span<const std::byte> bytes, MessageClass expected, Header* header,
                       uint8_t current = kWireVersion);

// Fills has_payload_crc and payload_crc. REQUIRES: the header's lengths are those of body and payload.
void SetPayloadCrc(std::span<const std::byte> body, std::span<const std::byte> payload, Header* header);
// kPayloadCrc: the header has no CRC of body and payload, or another. kLength: other lengths than the header's.
WireError CheckPayload(const Header& header, std::span<const std::byte> body, std::span<const std::byte> payload);

// What a hello says. A connection begins with the dialler's kHello; the other end answers one of the others.
enum class HelloKind : uint8_t {
  kHello = 1,
  kAcceptFresh = 2,    // a first connection of this class in this session; numbers start at 1
  kAcceptResumed = 3,  // goes on after `received`
  // Rejects. The dialler waits its back-off and tries again, except where noted.
  kRejectVersion = 16,
  kRejectCluster = 17,
  kRejectNode = 18,     // from is no peer here, to is somebody else, or from is ourselves
  kRejectEpoch = 19,    // fenced: `node_epoch` is the least that is let in
  kRejectSession = 20,  // `peer_session` is not known (any more): the dialler fails the peer and starts a new session
  kRejectResume = 21,   // `received` is impossible: likewise
  kRejectBusy = 22,     // out of resources
  kRejectRole = 23,     // the node with the smaller number dials
};
std::string_view HelloKindName(HelloKind kind);

// The handshake of one connection: sent first on it over TCP, private data of connect, accept and reject in rdma_cm.
// Proves nothing: on networks with strangers it runs inside mutual TLS.
struct Hello {
  uint8_t version = kWireVersion;  // reject: the rejecter's
  HelloKind kind = HelloKind::kHello;
  MessageClass message_class = MessageClass::kFault;
  uint64_t cluster = 0;  // ClusterHash
  NodeId from;
  NodeId to;
  Epoch node_epoch;
  uint64_t session = 0;  // the speaker's number of this session: random, not 0, new for each session; reject: 0 allowed
  uint64_t peer_session = 0;  // the other's, as far as known; 0 in a session's first hellos
  uint64_t received = 0;      // everything of the class up to here was received in this session
};
// First 8 bytes of the name's SHA-256: tells clusters apart, keeps no secret.
uint64_t ClusterHash(std::string_view cluster);
std::array<std::byte, kHelloBytes> EncodeHello(const Hello& hello);
// More bytes than kHelloBytes are ignored: rdma_cm pads. Whether the values fit this node is the caller's to decide.
WireError DecodeHello(std::span<const std::byte> bytes, Hello* hello, uint8_t current = kWireVersion);

// The body of a Setup: what the other end must know to send on this connection.
struct SetupBody {
  uint32_t window_messages = 0;     // numbered messages that may be under way to the speaker; kMinWindow to kMaxWindow
  uint32_t heartbeat_ms = 0;        // the speaker's; informative
  uint64_t first_slot_counter = 1;  // SlotTable::FirstCounterFor: void are the speaker's slots below
  uint64_t slots_address = 0;       // verbs: where receive slot 0 of this class is; TCP: 0
  uint32_t slots_key = 0;           // verbs: rkey; TCP: 0
  uint32_t slot_stride = 0;         // verbs: bytes from slot to slot; TCP: 0
  uint32_t slot_count = 0;          // receive slots of this class; invalidate: 0
};
std::array<std::byte, kSetupBytes> EncodeSetup(const SetupBody& setup);
WireError DecodeSetup(std::span<const std::byte> bytes, SetupBody* setup);

}  // namespace hk
