// What the nodes of one guest that runs on several say to one another over the data plane: interrupts, exits that
// belong to the I/O node, and how their clocks differ. One for each node and run of the guest. Messages, bytes,
// invariants, failures: README.md, "Machines over several nodes: link".
//
// Thread-safe. Locks: one for each peer and class, held around the transport's Send and never around a call of the
// controller, the exits or `failed`.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/irq/interrupt_controller.h"
#include "hyperkernel/irq/interrupt_link.h"
#include "hyperkernel/memory/guest_receiver.h"
#include "hyperkernel/memory/space_router.h"
#include "hyperkernel/node/tsc_estimate.h"
#include "rdma/transport.h"

namespace hk {

// Doorbells that wait for room at a time, to one node: queues of a machine, beyond which writes to them wait as other
// accesses do.
inline constexpr size_t kMostKeptDoorbells = 64;

// A link's user for messages about exits: ForwardedExits at a node without the devices, ExitServer at the I/O node.
class ExitMessages {
 public:
  virtual ~ExitMessages() = default;
  // From the transport's handler: must not block. The header is checked (CheckMachineHeader). An error says what is
  // wrong with the message; the guest then fails.
  virtual absl::Status OnExitMessage(NodeId from, const Message& message) = 0;
  // After PostExit returned false: all to that node is sent.
  virtual void OnExitsSent(NodeId to) = 0;
};

// A link's user for messages about moves of vCPUs (machine_move.h).
class MoveMessages {
 public:
  virtual ~MoveMessages() = default;
  // As ExitMessages::OnExitMessage.
  virtual absl::Status OnMoveMessage(NodeId from, const Message& message) = 0;
};

// What a link is made of. Plain value.
struct MachineLinkOptions {
  GuestId guest;  // the link's own, random: never a space's, and no epoch is ever set for it
  uint32_t generation = 1;
  NodeId self;
  NodeId io_node;             // has the devices
  std::vector<NodeId> nodes;  // all that run vCPUs, and the I/O node; each once
  // This node's time-stamp counter. Empty: the processor's.
  std::function<uint64_t()> ticks{};
  // Called once at most, on the link's own thread with no lock held: the link is of no use any more, and the machine
  // has to end. `reason` says what is wrong with `peer`, and goes on after its name ("is lost: ..."). It must not
  // destroy or Close the link; after Close it is not called.
  std::function<void(NodeId peer, const std::string& reason)> failed;
};

// See above.
class MachineLink final : public GuestReceiver, public InterruptLink {
 public:
  // Both outlive this. REQUIRES: options as MachineLinkOptions says.
  MachineLink(Transport* transport, SpaceRouter* router, MachineLinkOptions options);
  // Closes. REQUIRES: no call of it is under way.
  ~MachineLink() override;

  // Once, before Open; all outlive the link's Close. REQUIRES: the controller's nodes are the link's, and nothing is
  // sent before Open. Without `moves`, who says anything of moves is not to be relied on.
  void Attach(InterruptController* interrupts, ExitMessages* exits, MoveMessages* moves = nullptr);
  // From now on messages are taken: those that come before are lost, so no other node sends before all are open.
  // kAlreadyExists: the guest's number is in use.
  absl::Status Open();
  // When it returns no handler of the link runs, nothing is sent and `failed` is not called. Not on a transport's
  // thread, nor in `failed`. More than once is allowed.
  void Close();

  // This node's counter against the I/O node's; the I/O node itself has no offset. Until `deadline`; by fewer than that
  // many exchanges if it passes. One at a time. Errors: kDeadlineExceeded, not one exchange;
  // kUnavailable, the link has failed or is closed; kFailedPrecondition, another call is under way.
  absl::StatusOr<TscOffset> MeasureTsc(Monotonic deadline, uint32_t exchanges = kClockExchanges);

  // InterruptLink.
  bool Send(NodeId to, std::span<const std::byte> bytes) override;

  // For ExitMessages. Takes the message in any case; false: it waits for room, and OnExitsSent(to) follows. Any thread,
  // no lock that OnExitMessage or OnExitsSent takes held.
  bool PostExit(NodeId to, uint16_t type, uint64_t transaction, std::span<const std::byte> body);
  // Takes a doorbell's message; one that waits for room is as good as a second one of the same doorbell. False:
  // kMostKeptDoorbells others wait, and this one is not taken. Any thread, as PostExit.
  bool PostDoorbell(NodeId to, std::span<const std::byte> body);
  // For MoveMessages: takes the message, or all of them, in their order. Any thread.
  void PostMove(NodeId to, uint16_t type, uint64_t transaction, std::span<const std::byte> body);
  void PostPieces(NodeId to, uint64_t transaction, VcpuId vcpu, std::span<const std::byte> bytes);
  // The first one counts. Any thread, any lock held.
  void Fail(NodeId peer, std::string reason);

  // It has failed, or is closed.
  bool ended() const { return ended_; }

  NodeId self() const { return options_.self; }
  NodeId io_node() const { return options_.io_node; }
  const std::vector<NodeId>& nodes() const { return options_.nodes; }

  // GuestReceiver.
  void OnMessage(NodeId from, const Message& message, std::span<const std::byte> payload, bool late) override;
  void OnWritable(NodeId peer, MessageClass message_class) override;
  void OnSlotsFree(MessageClass, SlotUse) override {}
  void OnRequestExpired(NodeId, MessageClass, uint64_t, SlotId, RequestFailure) override {}
  void OnPeerFailed(NodeId peer, PeerFailure why, const std::string& detail) override;

 private:
  // What the transport did not take. Users bound how many there are: interrupts one, exits by vCPUs, moves by one
  // vCPU's bytes; doorbells are bounded here.
  struct Kept {
    uint16_t type = 0;
    uint64_t transaction = 0;
    std::vector<std::byte> body;
  };
  // To one node on one class.
  struct Lane {
    Mutex mutex;
    std::deque<Kept> kept ABSL_GUARDED_BY(mutex);
  };
  // Another node of the guest.
  struct Peer {
    Lane fault, invalidate;
  };
  // The exchange of clocks under way.
  struct Exchange {
    bool measuring = false;
    uint64_t last = 0;     // transaction of the newest ping
    bool awaited = false;  // its pong has not come
    uint64_t remote = 0, received = 0;
  };
  struct Failure {
    NodeId peer;
    std::string reason;
  };

  Peer* Find(NodeId node) const;
  Message Header(uint16_t type, uint64_t transaction, std::span<const std::byte> body) const;
  // Takes the message; false: kept, as there is no room.
  bool Post(NodeId to, Lane* lane, uint16_t type, uint64_t transaction, std::span<const std::byte> body,
            SendWhen when = SendWhen::kNow) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lane->mutex);
  // Sends it now or not at all.
  void Offer(NodeId to, Lane* lane, uint16_t type, uint64_t transaction, std::span<const std::byte> body);
  // The transport has not taken it, and there is room.
  void NotSent(NodeId to, const absl::Status& why);
  // True: something was kept, and all of it is sent.
  bool Drain(NodeId to, Lane* lane);
  absl::Status Take(NodeId from, const Message& message, std::span<const std::byte> payload);
  absl::Status OnPong(NodeId from, const Message& message, uint64_t received);
  void Report();

  Transport* const transport_;
  SpaceRouter* const router_;
  const MachineLinkOptions options_;
  std::vector<std::unique_ptr<Peer>> peers_;  // by number; null: no part in the guest, or this node
  InterruptController* interrupts_ = nullptr;
  ExitMessages* exits_ = nullptr;
  MoveMessages* moves_ = nullptr;
  bool open_ = false;
  std::atomic<bool> ended_{false};  // failed or closed: nothing is sent or taken any more

  Mutex clock_mutex_;
  CondVar clock_changed_;
  Exchange exchange_ ABSL_GUARDED_BY(clock_mutex_);

  Mutex end_mutex_;  // taken under any other
  CondVar end_changed_;
  std::optional<Failure> failure_ ABSL_GUARDED_BY(end_mutex_);
  bool closing_ ABSL_GUARDED_BY(end_mutex_) = false;
  std::thread reporter_;  // since Fail may be called where `failed` may not
};

}  // namespace hk
