// What the engine knows of one class of one peer, and of the peer: plain state, with the rules in engine*.cc.
//
// Lock order: Peer::mutex, Lane::mutex, Engine's tables, Engine's class events. Two lanes are never locked at once.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "rdma/epoch_floors.h"
#include "rdma/link.h"
#include "rdma/log_limit.h"
#include "rdma/sequence.h"
#include "rdma/session.h"
#include "rdma/transport.h"

namespace hk {

// A message that was accepted and is kept until the peer has it.
struct Outgoing {
  Message message;   // its body is empty: the bytes are here
  std::string body;  // short ones need no memory of their own
  SlotId payload;
  uint32_t payload_bytes = 0;
};

// One class of one peer. A lane is *joined* while a session lasts, *up* from OnPeerUp on (Send works), *open* when
// OnPeerUp has returned (messages are delivered).
struct Lane {
  // Room for Barriers in the queue: one for each guest; what does not fit is owed.
  static constexpr size_t kBarrierReserve = kMaxFloors;

  Lane(NodeId peer_number, MessageClass the_class, const TransportSettings& settings)
      : peer(peer_number),
        message_class(the_class),
        window(settings.queue_messages, settings.window_messages, kBarrierReserve) {}

  const NodeId peer;
  const MessageClass message_class;
  Mutex mutex;

  uint64_t session ABSL_GUARDED_BY(mutex) = 0;  // Peer::session_count; what is of another session is over
  bool joined ABSL_GUARDED_BY(mutex) = false;
  bool connected_before ABSL_GUARDED_BY(mutex) = false;  // in this session
  bool up ABSL_GUARDED_BY(mutex) = false;
  bool open ABSL_GUARDED_BY(mutex) = false;
  uint64_t ticket ABSL_GUARDED_BY(mutex) = 0;  // of the present connection, also before it has a link; 0: none
  std::shared_ptr<Link> link ABSL_GUARDED_BY(mutex);
  bool setup_received ABSL_GUARDED_BY(mutex) = false;  // on this connection
  bool link_full ABSL_GUARDED_BY(mutex) = false;       // Engine::OnSendable follows
  bool ack_due ABSL_GUARDED_BY(mutex) = false;
  bool heartbeat_due ABSL_GUARDED_BY(mutex) = false;
  // All that waits in the window may wait (SendWhen::kWithNext). Then the class's thread has, or will have when its
  // handler returns or its event runs, an acknowledgement due that takes it along.
  bool unhurried ABSL_GUARDED_BY(mutex) = false;
  SetupBody peer_setup ABSL_GUARDED_BY(mutex);
  std::optional<Monotonic> broken_since ABSL_GUARDED_BY(mutex);  // joined and not ready
  std::string broken_why ABSL_GUARDED_BY(mutex);                 // of the last connection; for people

  SendWindow<Outgoing> window ABSL_GUARDED_BY(mutex);
  ReceiveSequence received ABSL_GUARDED_BY(mutex);
  SlotId claimed ABSL_GUARDED_BY(mutex);                 // receive slot that a payload is arriving in
  std::vector<SlotId> delivered ABSL_GUARDED_BY(mutex);  // payloads that the peer has, until they are told to the slots
  std::set<GuestId> owed_barriers ABSL_GUARDED_BY(mutex);
  // Floors that the peer was told in this session. It may have given slots to others since, so they hold for answers
  // also after ForgetGuest.
  std::map<GuestId, EpochFloor> told ABSL_GUARDED_BY(mutex);
  // Calls of the handler that are under way; who waits for their end sets `ended` first, who ends one looks at it last.
  std::atomic<uint32_t> handlers{0};
  std::atomic<bool> ended{true};
  // Something was received and no acknowledgement sent since; written under the lock.
  std::atomic<bool> owes_ack{false};
  ClassStatistics statistics ABSL_GUARDED_BY(mutex);  // but for what others count
  std::atomic<uint64_t> expired_requests{0};
};

// When to dial a class next; the control thread's and Peer::mutex's.
struct DialState {
  uint64_t attempt = 0;  // under way; 0: none
  Monotonic next{};
  std::chrono::milliseconds pause{0};  // before the attempt after the next
};

// One node that may be, is or was a peer.
struct Peer {
  Peer(NodeId self, NodeId number, const TransportSettings& settings)
      : id(number),
        lanes{Lane(number, MessageClass::kFault, settings), Lane(number, MessageClass::kInvalidate, settings),
              Lane(number, MessageClass::kBulk, settings)},
        session(self, number) {}

  Lane& LaneOf(MessageClass message_class) { return lanes[static_cast<size_t>(message_class)]; }

  const NodeId id;
  std::array<Lane, kMessageClasses> lanes;
  std::atomic<Monotonic> heard{};  // when its last message came

  Mutex mutex;
  bool added ABSL_GUARDED_BY(mutex) = false;
  std::string address ABSL_GUARDED_BY(mutex);
  PeerSession session ABSL_GUARDED_BY(mutex);
  uint64_t session_count ABSL_GUARDED_BY(mutex) = 1;  // raised when a session ends
  bool begun ABSL_GUARDED_BY(mutex) = false;          // a lane is joined
  bool up ABSL_GUARDED_BY(mutex) = false;             // OnPeerUp was called, or is being
  Monotonic up_since ABSL_GUARDED_BY(mutex){};
  bool up_due ABSL_GUARDED_BY(mutex) = false;  // all Setups are there
  std::optional<std::pair<PeerFailure, std::string>> failed_due ABSL_GUARDED_BY(mutex);
  uint64_t sessions_up ABSL_GUARDED_BY(mutex) = 0;
  std::array<DialState, kMessageClasses> dials ABSL_GUARDED_BY(mutex);
  LogLimit dial_log ABSL_GUARDED_BY(mutex);
  LogLimit failure_log ABSL_GUARDED_BY(mutex);
  // A failure that was held back from the log: said when the limit allows it, if the peer is not up again by then.
  std::optional<std::pair<PeerFailure, std::string>> unlogged ABSL_GUARDED_BY(mutex);
  bool failure_logged ABSL_GUARDED_BY(mutex) = true;          // the latest; then the next up is logged too
  std::chrono::milliseconds pause ABSL_GUARDED_BY(mutex){0};  // before dialling again after the next failure
};

}  // namespace hk
