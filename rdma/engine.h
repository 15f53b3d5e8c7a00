// What verbs and TCP share of a transport: sessions of peers, queues and windows per class, slots, epochs, timers,
// statistics, and the order of handler calls. It has no thread, no socket and no clock of its own: a back end (Wire and
// its Links, see link.h) calls it, and whoever calls it on virtual time gets the same results each time.
//
// Thread safety: everything may be called from any thread except where a thread is named: the *class's thread* is the
// one that the back end has for a class, the *control thread* the one that it has for all else.
//
// Invariants:
// 1. No lock of the engine is held while the handler is called.
// 2. Handler calls of a class are made on the class's thread; calls about a peer on the control thread, and only while
//    none of the peer's lanes is in a handler.
// 3. A lane's numbered messages are taken only from its present connection (ticket), in order.
// 4. Bytes from a peer reach a slot only between Claim and the link's Close.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "rdma/epoch_floors.h"
#include "rdma/lane.h"
#include "rdma/link.h"
#include "rdma/log_limit.h"
#include "rdma/slot_memory.h"
#include "rdma/slots.h"
#include "rdma/transport.h"

namespace hk {

// A transport but for the wire. Owns the wire.
class Engine final : public Transport {
 public:
  // `slot_room`: SlotMemory's. The handler and the clock outlive the engine. Errors: CheckSettings; no memory.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const TransportSettings& settings, TransportHandler* handler,
                                                        std::unique_ptr<Wire> wire, size_t slot_room,
                                                        const Clock& clock = RealClock());
  ~Engine() override;

  // Transport.
  absl::Status Start() override;
  void Stop() override;
  absl::Status AddPeer(NodeId peer, const std::string& address) override;
  void RemovePeer(NodeId peer) override;
  void ResetPeer(NodeId peer, Epoch admit_from) override;
  void SetNodeEpoch(Epoch epoch) override;
  absl::Status SetEpoch(GuestId guest, uint32_t generation, Epoch epoch) override;
  void ForgetGuest(GuestId guest) override;
  absl::Status Send(NodeId to, const Message& message, const SendOptions& options) override;
  void Flush(NodeId to, MessageClass message_class) override;
  absl::StatusOr<SlotId> AcquireSlot(MessageClass message_class, SlotUse use) override;
  std::span<std::byte> SlotBytes(SlotId slot) override;
  void ReleaseSlot(SlotId slot) override;
  absl::Status CancelRequest(SlotId slot) override;
  absl::StatusOr<PeerStatistics> Statistics(NodeId peer) const override;
  TransportStatistics Statistics() const override;

  const TransportSettings& settings() const { return settings_; }
  const SlotMemory& memory() const { return memory_; }
  const Clock& clock() const { return clock_; }

  // --- Handshake: control thread ---

  // The accepting end got a hello from the address `who`, for people. `reply` is to be said whatever comes of it. With
  // a ticket the connection is the class's: Attach its link, or OnBroken.
  struct Admission {
    Hello reply;
    std::optional<LinkTicket> ticket;
  };
  Admission OnHello(const Hello& hello, const std::string& who);
  // The dialling end got the reply to `attempt`. Without a ticket: close the connection.
  std::optional<LinkTicket> OnReply(NodeId peer, MessageClass message_class, uint64_t attempt, const Hello& reply);
  // No reply came, or none that can be read. `detail` is for people.
  void OnDialFailed(NodeId peer, MessageClass message_class, uint64_t attempt, const std::string& detail);
  // The connection can carry messages: the engine sends its Setup. False: it was overtaken by events; close it.
  bool Attach(const LinkTicket& ticket, std::shared_ptr<Link> link);
  // What is said to a hello of a version that we do not read.
  Hello RefuseVersion() const { return hk::RefuseVersion(Identity()); }
  // Something was wrong before a connection was anybody's: counted, and logged once per interval. `who`: an address.
  void CountStranger(StrangerEnd reason, const std::string& who, const std::string& detail);

  // --- Data: the class's thread (OnBroken: any) ---

  enum class Fate : uint8_t {
    kTaken,   // done with the message; so are body and payload
    kHold,    // not yet: keep it and what follows; Link::Resume says when to offer it again
    kClosed,  // the connection is over; drop it
  };
  // A whole message arrived: decoded, its CRCs checked. `payload`: its slot's memory (Destination).
  Fate Deliver(const LinkTicket& ticket, const Header& header, std::span<const std::byte> body,
               std::span<const std::byte> payload);
  // Where the payload of a message goes that arrives piece by piece: its slot, claimed until Deliver or the
  // connection's end. kTaken with nothing: read it, check it, drop it, and Deliver the message with an empty payload.
  Fate Destination(const LinkTicket& ticket, const Header& header, std::span<std::byte>* destination);
  // Bytes came that break a rule: the peer fails (kMalformed).
  void OnMalformed(const LinkTicket& ticket, const std::string& detail);
  // The connection broke; it is resumed. Any thread.
  void OnBroken(const LinkTicket& ticket, const std::string& detail);
  // The link said kFull and can take more, or has to go on with what it kept.
  void OnSendable(const LinkTicket& ticket);
  // Every connection is impossible for now (a device went): peers fail with kLocal. Control thread.
  void FailAll(const std::string& detail);

  // --- Time ---

  // What is due of a class: its events, acknowledgements. To be called after each batch of messages, when woken, and at
  // the time that it returned.
  Monotonic RunClass(MessageClass message_class);
  // What is due of peers: their events, heartbeats, leases, deadlines, connections. When woken, and at the time that it
  // returned.
  Monotonic RunControl();

 private:
  // Half of a queue is free.
  struct WritableEvent {
    NodeId peer;
    uint64_t session;
  };
  // A slot is free.
  struct SlotsFreeEvent {
    SlotUse use;
  };
  // A message may wait, and no acknowledgement that is due would take it along.
  struct UnhurriedEvent {
    NodeId peer;
  };
  using ClassEvent = std::variant<WritableEvent, SlotsFreeEvent, ExpiredRequest, UnhurriedEvent>;

  // What waits for a class's thread.
  struct ClassState {
    std::atomic<bool> pending{false};  // events is not empty
    Mutex mutex;
    std::deque<ClassEvent> events ABSL_GUARDED_BY(mutex);
    // The class's thread only: whose acknowledgements wait, and until when.
    NodeSet acks;
    Monotonic acks_due{};
  };

  Engine(const TransportSettings& settings, TransportHandler* handler, std::unique_ptr<Wire> wire, SlotMemory memory,
         const Clock& clock);

  NodeIdentity Identity() const;
  // Null: not a number of another node.
  Peer* Find(NodeId node) const;
  Lane& LaneOf(const LinkTicket& ticket) const;

  // engine_session.cc: the beginning and end of sessions and connections.
  void Fail(Peer* peer, uint64_t session, PeerFailure why, const std::string& detail);
  void FailLocked(Peer* peer, PeerFailure why, const std::string& detail, bool restart)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(peer->mutex);
  void EndLane(Lane* lane, PeerFailure why, uint64_t next_session);
  // Frees the payloads of links that are no more.
  void FreeRead() ABSL_EXCLUSIVE_LOCKS_REQUIRED(tables_);
  void BeginLocked(Peer* peer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(peer->mutex);
  // Gives the class's next connection its ticket, closing the present one. False: the peer's number is impossible.
  bool Connect(Peer* peer, Lane* lane, uint64_t resume_from, LinkTicket* ticket)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(peer->mutex);
  void Detach(Lane* lane, bool abort) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lane->mutex);
  void RedialLater(DialState* dial);
  // A Setup came: are they all there?
  void CheckUp(Peer* peer, uint64_t session, MessageClass message_class);
  void LogDial(Peer* peer, const std::string& detail) ABSL_EXCLUSIVE_LOCKS_REQUIRED(peer->mutex);

  // engine_send.cc
  // `only_peer`: the message is a request that nobody else may answer.
  absl::Status Admit(Lane* lane, const Message& message, const SendOptions& options, bool* only_peer)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lane->mutex);
  void PushBarrier(Lane* lane, GuestId guest, const EpochFloor& floor) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lane->mutex);
  // No older answers are sent in this session.
  void NoteTold(Lane* lane, GuestId guest, const EpochFloor& floor) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lane->mutex);
  void PayOwedBarriers(Lane* lane) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lane->mutex);
  void Pump(Lane* lane) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lane->mutex);
  bool SendOwn(Lane* lane, OwnType type, uint8_t flags, std::span<const std::byte> body)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lane->mutex);
  // False: the link takes no more now.
  bool Handed(Lane* lane, Link::Sent result) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lane->mutex);

  // engine_receive.cc
  // A message on its way to the handler.
  struct Arrived {
    const Header& header;
    std::span<const std::byte> body, payload;
    Monotonic now;
    bool late = false;
    std::string detail;  // of kMalformed
  };
  // What is to be done with it.
  enum class Verdict : uint8_t { kDone, kSetup, kDeliver, kHold, kMalformed, kGoodbye };
  Verdict Take(Lane* lane, Arrived* arrived) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lane->mutex);
  Verdict TakeOwn(Lane* lane, Arrived* arrived) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lane->mutex);
  Verdict TakeNumbered(Lane* lane, Arrived* arrived) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lane->mutex);
  Verdict TakeMessage(Lane* lane, Arrived* arrived) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lane->mutex, tables_);
  Verdict TakeAnswer(Lane* lane, bool old, Arrived* arrived) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lane->mutex, tables_);
  // The window moves and lane->delivered grows: FreeDelivered and WindowMoved follow. False: it acknowledges what was
  // never sent.
  static bool Acknowledge(Lane* lane, uint64_t through) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lane->mutex);
  // Frees the slots of lane->delivered.
  void FreeDelivered(Lane* lane) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lane->mutex, tables_);
  // What is due when the window has moved.
  void WindowMoved(Lane* lane) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lane->mutex);
  // Messages were received: acknowledges them now or soon.
  void NoteAck(Lane* lane, Monotonic now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lane->mutex);
  // The lane's handler call is over.
  void Leave(Lane* lane);

  // engine_events.cc
  void Post(MessageClass message_class, ClassEvent event);
  // Under the lock under which they expired: a late answer finds the event posted, and it is told first.
  void PostExpired(const std::vector<ExpiredRequest>& expired) ABSL_EXCLUSIVE_LOCKS_REQUIRED(tables_);
  void PostFreeSlots() ABSL_EXCLUSIVE_LOCKS_REQUIRED(tables_);
  void RunEvents(MessageClass message_class);
  void RunEvent(MessageClass message_class, const ClassEvent& event);
  // False: there is none now.
  bool RunPeerEvent(Peer* peer);
  // The log of a peer's ups and failures, which a peer can cause at will: one failure per interval, and the up after
  // it, so that the last line says what is.
  void LogUp(Peer* peer);
  void LogFailure(Peer* peer, PeerFailure why, const std::string& detail);
  void LogHeldBack(Peer* peer, Monotonic now);
  Monotonic RunTimers(Peer* peer, Monotonic now);
  void Heartbeat(Peer* peer);
  // Says something on the classes that are idle: of a connection that the other end has lost, and could not say so, an
  // end that only waits would never learn, and not dial it again within the lease.
  void Probe(Peer* peer);
  void Dial(Peer* peer, Monotonic now);
  Monotonic DialTime(const Lane& lane, const DialState& dial) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(lane.mutex);

  // README, Sequence 4: long enough for an answer to carry it, short beside any lease.
  static constexpr std::chrono::milliseconds kAckDelay{1};
  // Messages that may wait go out together, at the latest when there are so many: what one write takes.
  static constexpr size_t kMostUnhurried = 16;

  const TransportSettings settings_;
  TransportHandler* const handler_;
  const Clock& clock_;
  const SlotMemory memory_;
  const std::unique_ptr<Wire> wire_;
  const uint64_t cluster_;
  std::atomic<uint64_t> node_epoch_;
  std::atomic<bool> stopped_{false};
  std::atomic<uint64_t> next_ticket_{1}, next_attempt_{1};
  std::array<std::unique_ptr<Peer>, kMaxNodes> peers_;  // all nodes but this one, from the start
  std::array<ClassState, kMessageClasses> classes_;
  uint64_t heartbeats_ = 0;                                 // the control thread's
  Monotonic next_heartbeat_;                                // the control thread's
  std::atomic<Monotonic> control_wakes_{Monotonic::max()};  // when RunControl is called next
  std::atomic<uint64_t> malformed_{0};

  mutable Mutex tables_;
  SlotTable slots_ ABSL_GUARDED_BY(tables_);
  EpochFloors floors_ ABSL_GUARDED_BY(tables_);
  std::array<NodeSet, kMessageClasses> joined_ ABSL_GUARDED_BY(tables_);  // nodes that may answer: their session began
  Monotonic next_deadline_ ABSL_GUARDED_BY(tables_) = Monotonic::max();   // of requests; none is earlier
  // Payloads of sessions that are over, which their closed links may still read (Link::ReadsPayloads).
  std::vector<std::pair<std::weak_ptr<Link>, std::vector<SlotId>>> still_read_ ABSL_GUARDED_BY(tables_);
  StrangerLog strangers_;
};

}  // namespace hk
