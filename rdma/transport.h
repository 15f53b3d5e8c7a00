// The contract between those who exchange pages and short messages and what carries them between nodes: RDMA verbs, TCP
// or the simulator (made by the factories of verbs_transport.h, tcp_transport.h, sim_transport.h). Bytes, resume and
// slot rules, failure table: rdma/README.md. Knows nothing of the page protocol.
//
// Delivery. Each peer has three classes. Within (peer, class) messages arrive in the order of their Sends, each exactly
// once while the peer is up, across broken connections too; between classes and peers there is no order, and none waits
// for another. After OnPeerFailed: of the messages not yet delivered, a prefix per class was delivered to the peer,
// unknown how long. Nothing of before arrives after the next OnPeerUp.
//
// Slots. A payload travels only from a send slot of the sender into a receive slot of the receiver, named beforehand by
// the receiver in a message (its *request*). The request may be forwarded; exactly one message with `answer` set, from
// any of `writers`, on the slot's class, with the request's guest, generation and epoch, with or without payload, ends
// it. So slots are the credits: no slot, no request; no request, no payload. An upgrade that may become a fetch, and a
// push that the receiver invites, are requests too.
//
// Threads. Every method may be called from any thread, also inside handlers, and never blocks (Start and Stop excepted:
// not in handlers). Handlers run on the transport's own threads, never inside a call of its methods, and no lock is
// held then. They must not block or wait for a message: a handler delays its own class only. Messages of one class are
// serial, whoever sent them; classes run in parallel (the simulator: one thread, virtual time).
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/node_set.h"
#include "hyperkernel/base/types.h"

namespace hk {

// Fault: requests, page answers, Done. Invalidate: invalidations, acks, heartbeats; never a slot. Bulk: prefetch,
// drain.
enum class MessageClass : uint8_t { kFault, kInvalidate, kBulk };
inline constexpr size_t kMessageClasses = 3;

inline constexpr size_t kMaxBodyBytes = 256;  // with the header 344: inline for every known device (rxe: 400)
inline constexpr size_t kFaultSlotBytes = kPageSize;
inline constexpr size_t kBulkSlotBytes = 16 * kPageSize;  // where one send's fixed cost has become small
inline constexpr uint16_t kFirstUserType = 16;            // lower message types are the transport's own

// Names one use of one slot: index below, use counter above; never repeats on a node. 0 is none.
using SlotId = StrongNumber<struct SlotIdTag, uint64_t>;
// kReceive: named in requests, filled by the peer. kSend: filled by us. Apart, so that requests never starve answers.
enum class SlotUse : uint8_t { kReceive, kSend };

// One message, as sent and as received. Plain value; the body is the sender's or the transport's memory.
struct Message {
  MessageClass message_class = MessageClass::kFault;
  uint16_t type = 0;        // >= kFirstUserType; meaning is the users'
  uint8_t flags = 0;        // the users'
  bool answer = false;      // ends the request that `slot` stands for; `slot_node` is the receiver
  GuestId guest;            // 0: the message is no guest's, and no epoch is checked
  uint32_t generation = 0;  // of the guest, raised at its reset
  Epoch epoch;
  uint64_t transaction = 0;
  Gfn gfn;
  NodeId slot_node;  // whose slot it is: an answer's receiver, never another message's; meaningless without slot
  SlotId slot;  // receive slot of slot_node. slot_node = sender: a request of the sender; else forwarded or answered
  std::span<const std::byte> body;  // <= kMaxBodyBytes; Send copies it; received: valid during the handler's call
};

// When a message has to leave. kWithNext: it may wait for the next message or acknowledgement to the peer on its class
// (1 ms at most), for Flush, or for the end of the handler's call for a message of the peer that is no answer: so it
// costs neither a write nor a wake-up of its own.
enum class SendWhen : uint8_t { kNow, kWithNext };

// How to send what is more than a body. A request is a message that names a slot of this node.
struct SendOptions {
  SlotId payload;                         // send slot with the payload; only with Message::answer
  uint32_t payload_bytes = 0;             // 1 to the slot's size; 0: no payload
  NodeSet writers;                        // request: the nodes that may answer; the addressee, if no other
  std::chrono::milliseconds deadline{0};  // request: when OnRequestExpired comes; 0: settings.request_ms
  SendWhen when = SendWhen::kNow;
};

// Why a peer failed. Numbers are part of the wire format (Goodbye) and of metrics; append only.
enum class PeerFailure : uint8_t {
  kLeaseExpired = 1,  // a connection could not be resumed, or nothing was heard, within lease_ms
  kMalformed = 2,     // it sent what no version of this format allows
  kRejected = 3,      // it refused us, or we it: cluster, version, node, epoch
  kFenced = 4,        // ResetPeer
  kRestarted = 5,     // it no longer knows the session
  kLeft = 6,          // it said so
  kLocal = 7,         // our device or resources failed
};
// Why a request ended without an answer. The slot is no longer the caller's.
enum class RequestFailure : uint8_t { kDeadline, kOldEpoch, kNobodyLeft };
// Why messages were dropped without harm; index into ClassStatistics::dropped.
enum class DropReason : uint8_t { kOldEpoch, kDuplicate, kStaleSlot, kPeerFailed };
inline constexpr size_t kDropReasons = 4;

// What the transport tells. Outlives it. See Threads above; events of a peer never run beside its messages.
class TransportHandler {
 public:
  virtual ~TransportHandler() = default;
  // `message.answer`: its slot is the caller's again, holding `payload` (empty: none); ReleaseSlot when done, from any
  // thread: UFFDIO_COPY may take the page straight from it. `late`: the request had expired or been cancelled before.
  virtual void OnMessage(NodeId from, const Message& message, std::span<const std::byte> payload, bool late) = 0;
  // All three classes are connected in a new session; Send works.
  virtual void OnPeerUp(NodeId peer) = 0;
  // Once per session that was up, after its last message. `detail` is for people.
  virtual void OnPeerFailed(NodeId peer, PeerFailure why, const std::string& detail) = 0;
  // Once after a Send was refused for a full queue: half of it is free.
  virtual void OnWritable(NodeId peer, MessageClass message_class) = 0;
  // Once after AcquireSlot was refused: a slot is free.
  virtual void OnSlotsFree(MessageClass message_class, SlotUse use) = 0;
  // The request that was sent to `asked` ended without answer. Not called for what CancelRequest returned OK for.
  virtual void OnRequestExpired(NodeId asked, MessageClass message_class, uint64_t transaction, SlotId slot,
                                RequestFailure why) = 0;
};

// How pollers wait. kBoundedSpin: spin_us, then sleep. With fewer than 2 CPUs a back end takes kBlocking.
enum class WaitMode : uint8_t { kBlocking, kBoundedSpin, kBusy };

// Limits and times of one transport. Plain value; slots.h and wire.h have the upper limits. Invalid combinations are
// refused by the factories (kInvalidArgument, naming the field).
struct TransportSettings {
  std::string cluster;  // nodes of other clusters are refused
  NodeId self;
  Epoch node_epoch;  // told in the handshake, see ResetPeer
  WaitMode wait = WaitMode::kBlocking;
  uint32_t spin_us = 50;
  uint32_t lease_ms = 2000;      // a peer not heard of, or a class not resumed, for so long has failed
  uint32_t heartbeat_ms = 200;   // on the invalidate class; at most lease_ms / 4
  uint32_t handshake_ms = 1000;  // a connection that has not said a whole hello by then is closed
  uint32_t request_ms = 2000;
  uint32_t backoff_ms = 10;  // first pause between connection attempts, doubled up to backoff_max_ms
  uint32_t backoff_max_ms = 1000;
  uint32_t window_messages = 256;  // per (peer, class): sent and not acknowledged
  uint32_t queue_messages = 4096;  // per (peer, class): accepted by Send and not acknowledged
  uint32_t strangers = 64;         // connections without a finished handshake; beyond, the oldest is closed
  uint32_t fault_receive_slots = 1024, fault_send_slots = 1024, bulk_receive_slots = 64, bulk_send_slots = 64;
};

// Counters of one class of one peer since AddPeer; messages are the users', each counted once: sent, when first put on
// the wire; received, when handed to OnMessage. Plain value.
struct ClassStatistics {
  static constexpr size_t kLatencyBuckets = 32;  // [i]: 2^i ns to 2^(i+1) ns from a request's Send to its OnMessage
  uint64_t sent_messages = 0, sent_bytes = 0, received_messages = 0, received_bytes = 0;  // bytes with headers
  uint64_t resent_messages = 0, reconnects = 0, refused_full = 0, expired_requests = 0;
  std::array<uint64_t, kDropReasons> dropped{};
  std::array<uint64_t, kLatencyBuckets> latency{};
};
// Plain value.
struct PeerStatistics {
  bool up = false;
  uint64_t sessions = 0;  // times OnPeerUp was called
  std::array<ClassStatistics, kMessageClasses> classes;
};
// Plain value. `slots_quarantined` that stays high means answers that never come.
struct TransportStatistics {
  uint64_t slots_lent = 0, slots_in_flight = 0, slots_sending = 0, slots_quarantined = 0;
  uint64_t handshakes_refused = 0, strangers_closed = 0, malformed = 0;
};

// One node's end. Destroying it stops it.
class Transport {
 public:
  virtual ~Transport() = default;

  // Listens, and connects to peers as they are added. Errors: address in use, device missing. Stop: says goodbye to
  // all; no handler runs after it returned; then only destruction is allowed.
  virtual absl::Status Start() = 0;
  virtual void Stop() = 0;

  // `address`: HOST:PORT. A failed peer is connected to again until removed. RemovePeer reports kLeft if it was up.
  virtual absl::Status AddPeer(NodeId peer, const std::string& address) = 0;
  virtual void RemovePeer(NodeId peer) = 0;
  // Fences: all connections of the peer are reset when this returns, and nothing of it is delivered after, calls in
  // progress apart; OnPeerFailed(kFenced) follows. It is let in again only with a node_epoch >= admit_from, which it
  // sets by SetNodeEpoch when it was readmitted.
  virtual void ResetPeer(NodeId peer, Epoch admit_from) = 0;
  virtual void SetNodeEpoch(Epoch epoch) = 0;
  // From now on messages of the guest with an older generation or epoch are neither sent (kAborted) nor delivered
  // (kOldEpoch); its older requests expire (kOldEpoch). Every peer is told by a Barrier per class. Never goes back:
  // lower values change nothing. Error: kResourceExhausted, too many guests. ForgetGuest ends the check, but for
  // answers to peers that were told in this session: they rely on it.
  virtual absl::Status SetEpoch(GuestId guest, uint32_t generation, Epoch epoch) = 0;
  virtual void ForgetGuest(GuestId guest) = 0;

  // Queues the message; the order of returns is the order of arrival. Errors, nothing sent, slots unchanged:
  // kUnavailable: the peer is not up. kResourceExhausted: queue full, OnWritable follows. kAborted: an old epoch; or a
  // slot (ours or the answer's) from before a session of the answering node, or none: take another, drop the answer.
  // kInvalidArgument, kFailedPrecondition: the caller broke a rule above.
  // On OK a request's slot is the transport's until answered or expired, a payload's is shared until the peer has it.
  virtual absl::Status Send(NodeId to, const Message& message, const SendOptions& options = {}) = 0;
  // What may wait to the peer on this class leaves now (SendWhen::kWithNext). An unknown peer: nothing.
  virtual void Flush(NodeId to, MessageClass message_class) {
    static_cast<void>(to);
    static_cast<void>(message_class);
  }
  // A free slot, the caller's until released or named in a request. kResourceExhausted: none; OnSlotsFree follows.
  virtual absl::StatusOr<SlotId> AcquireSlot(MessageClass message_class, SlotUse use) = 0;
  // The slot's memory, 64-byte aligned. REQUIRES: the caller's slot. After it was sent as payload: read only.
  virtual std::span<std::byte> SlotBytes(SlotId slot) = 0;
  // Ends the caller's use. A payload's slot may be kept and sent again, or released at once: reused when all is done.
  virtual void ReleaseSlot(SlotId slot) = 0;
  // Gives up a request; its slot is quarantined as after a deadline. kNotFound: it was answered or expired already.
  virtual absl::Status CancelRequest(SlotId slot) = 0;

  virtual absl::StatusOr<PeerStatistics> Statistics(NodeId peer) const = 0;  // kNotFound: no such peer
  virtual TransportStatistics Statistics() const = 0;
};

}  // namespace hk
