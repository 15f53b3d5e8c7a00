// A model of what rdma/transport.h promises, beside every node of a simulated cluster: it sees all calls and all
// handler calls, remembers what was sent, and says what broke a promise. Whoever simulates a cluster puts it between
// its protocol and the transports.
//
// What it holds a cluster to:
//   1. Within a session of a pair and class, what is delivered is a prefix of what was sent, in order and once. Left
//   out
//      is only what is of an old epoch at the receiver, and of several answers to one request all but one. A session's
//      messages are delivered in one session of the receiver, never in a later one.
//   2. Nothing is delivered from a peer that is not up, nor between ResetPeer and the failure it causes. Ups and
//      failures alternate. A peer that was fenced is up again only with the epoch that lets it in.
//   3. Messages of an old epoch or generation are neither taken nor delivered.
//   4. A slot's memory is written only while its request is in flight or quarantined, and only for its present use. A
//      SlotId is given out once, a slot to one owner at a time. A delivered page is what was sent, and stays so until
//      it is released. None is refused while one is free.
//   5. A request ends once: answered by a writer with its own fields, expired, or cancelled, at its deadline at the
//      latest; at once if no node is left to answer it. `late` is said exactly when it had ended before.
//   6. OnWritable and OnSlotsFree follow a refusal, once each.
//   7. No peer is ever malformed, unless AllowMalformed.
//   8. CheckQuiet: when all is healed and has come to rest, everything that was sent has arrived, the transport's
//      counts of slots and its statistics are the model's, and no slot is quarantined that nobody could write to.
//
// REQUIRES of its user: a transaction, type and class together are sent at most once from one node to another; a
// request is answered at most once.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "rdma/sim_network.h"
#include "rdma/transport.h"

namespace hk {

class CheckedTransport;

// What is known of the whole cluster. Not thread-safe: the simulation's thread.
class ContractChecker final : public SimObserver {
 public:
  // `slack`: how long handlers of a class may be busy, so by how much its calls may be late.
  ContractChecker(Simulation* simulation, Simulation::Duration slack) : simulation_(simulation), slack_(slack) {}

  // Bytes may have been changed on the way, or a node answers what it was not asked.
  void AllowMalformed() { malformed_ = true; }
  // Answers of these types and above are sent although another answers, or without being asked: they may be dropped.
  void ExpectSuperfluous(uint16_t first_type) { first_superfluous_ = first_type; }
  // Something else was found to be wrong.
  void Report(const std::string& what) { Violation(what); }
  // What was broken, in order; empty: nothing.
  const std::vector<std::string>& violations() const { return violations_; }
  // The trace's last lines before the first of them.
  const std::string& before_violation() const { return before_violation_; }
  // To be called when nothing fails any more and all has had time to arrive.
  void CheckQuiet();
  uint64_t delivered() const { return delivered_; }
  uint64_t pages() const { return pages_; }
  // Messages that came before one of another class that their sender had sent earlier.
  uint64_t overtaken() const { return overtaken_; }
  // Replays that transports dropped, as far as CheckQuiet saw.
  uint64_t duplicates() const { return duplicates_; }

  // SimObserver.
  void OnSlotWrite(NodeId node, SlotId slot, std::span<const std::byte> bytes) override;
  void OnOverrun(NodeId node, NodeId from, MessageClass message_class) override;

 private:
  friend class CheckedTransport;

  // A message that was taken by Send.
  struct Sent {
    Message message;
    std::string body, payload;
    uint64_t order = 0;  // of all classes
  };
  // What one node sent to another from its OnPeerUp to its OnPeerFailed.
  struct SendSession {
    uint64_t number = 0;  // of the pair, from 1
    std::array<std::vector<Sent>, kMessageClasses> sent;
  };
  // What one node was sent by another from its OnPeerUp to its OnPeerFailed.
  struct ReceiveSession {
    std::shared_ptr<const SendSession> from;  // null: nothing was delivered yet
    std::array<size_t, kMessageClasses> next{};
    uint64_t last_order = 0;
  };
  // From, to.
  struct Pair {
    uint64_t sessions = 0;  // SendSessions begun
    uint64_t received = 0;  // number of the last one of which something was delivered
    // Where a message is: class, type, transaction.
    std::map<std::tuple<MessageClass, uint16_t, uint64_t>, std::pair<std::shared_ptr<SendSession>, size_t>> where;
  };

  void Violation(const std::string& what);

  Simulation* const simulation_;
  const Simulation::Duration slack_;
  bool malformed_ = false;
  uint32_t first_superfluous_ = 0x10000;
  std::vector<std::string> violations_;
  std::string before_violation_;
  std::map<NodeId, CheckedTransport*> nodes_;
  std::map<std::pair<NodeId, NodeId>, Pair> pairs_;
  std::map<std::pair<NodeId, SlotId>, uint64_t> answers_;  // that were taken by Send
  uint64_t delivered_ = 0, pages_ = 0, overtaken_ = 0, duplicates_ = 0, next_order_ = 1;
};

// One life of one node: stands between its user and its transport, in both directions. Not thread-safe.
class CheckedTransport final : public Transport, public TransportHandler {
 public:
  // The transport is made with this as its handler, and then given to it.
  CheckedTransport(ContractChecker* checker, const TransportSettings& settings, TransportHandler* user);
  ~CheckedTransport() override;
  void Use(std::unique_ptr<Transport> transport) { transport_ = std::move(transport); }

  bool IsUp(NodeId peer) const;
  Epoch node_epoch() const { return node_epoch_; }

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
  absl::StatusOr<SlotId> AcquireSlot(MessageClass message_class, SlotUse use) override;
  std::span<std::byte> SlotBytes(SlotId slot) override;
  void ReleaseSlot(SlotId slot) override;
  absl::Status CancelRequest(SlotId slot) override;
  absl::StatusOr<PeerStatistics> Statistics(NodeId peer) const override;
  TransportStatistics Statistics() const override;

  // TransportHandler.
  void OnMessage(NodeId from, const Message& message, std::span<const std::byte> payload, bool late) override;
  void OnPeerUp(NodeId peer) override;
  void OnPeerFailed(NodeId peer, PeerFailure why, const std::string& detail) override;
  void OnWritable(NodeId peer, MessageClass message_class) override;
  void OnSlotsFree(MessageClass message_class, SlotUse use) override;
  void OnRequestExpired(NodeId asked, MessageClass message_class, uint64_t transaction, SlotId slot,
                        RequestFailure why) override;

 private:
  friend class ContractChecker;

  enum class SlotState : uint8_t { kOwned, kAsked, kQuarantined, kGone };
  // The present use of a slot.
  struct Slot {
    SlotId id;
    SlotState state = SlotState::kGone;
    Message request;
    NodeSet writers;   // without those whose session ended since
    NodeSet untold;    // writers of whose last session's end before the request nothing was told yet
    std::string page;  // kOwned and answered: what it holds
  };
  // The oldest generation and epoch of a guest.
  struct Floor {
    uint32_t generation = 0;
    Epoch epoch;
  };
  // What was refused, and what was told after.
  struct Refusals {
    bool waits = false;    // since the last one nothing was told
    uint64_t refused = 0;  // in all
    uint64_t told = 0;
  };
  // What statistics of a class are to say, since AddPeer.
  struct Counts {
    uint64_t accepted = 0, received = 0, received_bytes = 0, answers = 0, refused = 0, expired = 0;
  };
  // A peer, as this life sees it.
  struct PeerState {
    bool up = false;
    bool reset = false;  // ResetPeer or RemovePeer was called, its failure has not been told yet
    Epoch admit_from;
    std::shared_ptr<ContractChecker::SendSession> sending;
    ContractChecker::ReceiveSession receiving;
    std::array<Refusals, kMessageClasses> refusals;
    uint64_t sessions = 0;  // since AddPeer
    bool removed = false;   // once: ends of requests to it may be told after AddPeer, which counts anew
    std::array<Counts, kMessageClasses> counts;
  };

  static uint64_t PlaceOf(SlotId slot) { return slot.value() & 0xffff; }
  std::string Name() const;
  void Violation(const std::string& what);
  static void NoteRefused(Refusals* refusals);
  void CheckTold(Refusals* refusals, const std::string& what);
  void Trace(const std::string& what);
  bool IsOld(const Message& message) const;
  // The message may be left out by this node.
  bool MayBeDropped(const Message& message) const;
  // Send was refused because the peer has failed, which the user was not told yet.
  void ExpectFailure(NodeId peer);
  void CheckRefusedSlot(MessageClass message_class, SlotUse use);
  void NoteSent(NodeId to, const Message& message, const SendOptions& options);
  // The message is the next of its session, or those between are old.
  void CheckOrder(NodeId from, const Message& message, std::span<const std::byte> payload);
  void CheckAnswer(NodeId from, const Message& message, std::span<const std::byte> payload, bool late);
  void CheckEnded(SlotId slot);
  void CheckPage(const Slot& slot);
  // The peer's session is over: it answers nothing of before any more.
  void RemoveWriter(NodeId peer);
  // Of a slot that is given up: somebody might still write to it.
  bool MayBeWritten(const Slot& slot) const;
  void CheckQuiet();
  void CheckArrived(NodeId id, const PeerState& peer);
  void CheckSlots();
  void CheckStatistics(NodeId id, const PeerState& peer);

  ContractChecker* const checker_;
  const TransportSettings settings_;
  TransportHandler* const user_;
  std::unique_ptr<Transport> transport_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  Epoch node_epoch_;
  uint64_t last_counter_ = 0;
  std::map<uint64_t, Slot> slots_;  // by place
  std::map<SlotId, Slot> lagging_;  // given out again before the end of their request was told
  std::map<std::pair<MessageClass, SlotUse>, Refusals> slot_refusals_;
  std::map<GuestId, Floor> floors_;
  std::map<GuestId, Floor> highest_;  // of all the time: what was old once may be missing, also after ForgetGuest
  std::map<NodeId, PeerState> peers_;
};

}  // namespace hk
