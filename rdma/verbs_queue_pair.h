// One reliable queue pair with its two completion queues and its control buffers: posting and reaping, no meaning of
// messages.
//
// Queue relations: verbs_queues.h has the numbers, SendRing and Make check them, rdma/README.md proves that nothing
// overflows and nothing stands still.
#pragma once

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/mapping.h"
#include "rdma/send_ring.h"
#include "rdma/verbs_message.h"
#include "rdma/verbs_pool.h"
#include "rdma/verbs_queues.h"
#include "rdma/wire.h"

namespace hk {

// Thread safety: the sending half (Room to SendError) is one caller's at a time, the receiving half another's; what
// changes the pair's state may be called beside them. Created and destroyed on one thread.
class QueuePair {
 public:
  // A control message in memory: header and body, or body and header; a cache line's multiple.
  static constexpr size_t kBufferBytes = kSlotRoomBytes;

  // Makes the pair on `id` and posts all receives. `window`: numbered messages that the peer may have under way.
  // `key`: what completion events carry. `writable`: the peer may write to slots. Errors: kFailedPrecondition: the
  // device's queues are too short; errno, with the call. `id`, `domain` and `channel` outlive it.
  static absl::StatusOr<std::unique_ptr<QueuePair>> Create(rdma_cm_id* id, ibv_pd* domain, ibv_comp_channel* channel,
                                                           uint32_t window, uint64_t key, bool writable);
  ~QueuePair();
  // Completes what rdma_cm leaves at values for nobody. When the pair is connected.
  absl::Status Connected();

  // --- Sending ---

  // kBufferBytes for the next message, or null: the queue is full.
  std::byte* Room();
  // Sends `bytes` of Room. `more`: it may wait for the next one. `signalled`: its completion is waited for. False: the
  // pair is broken (SendError).
  bool PostControl(std::span<const std::byte> bytes, bool signalled, bool more);
  // Writes `control`, which is in Room, and `payload` behind it.
  bool PostWrite(std::span<const std::byte> control, std::span<const std::byte> payload, uint32_t payload_key,
                 const SlotWrite& to, bool more);
  // Puts on the wire what waited.
  bool Flush();
  // Takes the completions that are there. False: a send failed.
  bool Reap();
  // An event comes when a send that is under way now is completed.
  bool ArmSends();
  bool all_sent() const { return ring_.IsEmpty(); }
  // Why sends fail; empty if they do not. For people.
  const std::string& send_error() const { return send_error_; }

  // --- Receiving ---

  // Up to completions.size() completions; wr_id is the buffer's number. Negative: the queue is broken.
  int PollReceives(std::span<ibv_wc> completions);
  const std::byte* Buffer(uint64_t number) const;
  bool Repost(uint64_t number);
  bool ArmReceives();
  bool IsReceiveQueue(const ibv_cq* queue) const { return queue == receives_.get(); }

  // --- State ---

  // From now on the peer's writes are refused. False: the pair is not connected any more.
  bool ForbidWrites();
  // Nothing is sent or received any more, and nothing lands, when this returns.
  void Reset();
  // As an exhausted retry does.
  void Fail();
  // A receive failed with `status`: which of the sends before was the cause, or else the status; for people. The
  // sending half is over with it. Any thread.
  std::string WhyBroken(ibv_wc_status status);

 private:
  QueuePair(rdma_cm_id* id, QueueDepths depths);

  absl::Status Make(ibv_pd* domain, ibv_comp_channel* channel, uint64_t key, bool writable);
  ibv_send_wr& Next(bool signalled);
  bool Finish(bool more);

  rdma_cm_id* const id_;
  const QueueDepths depths_;
  uint32_t max_inline_ = 0;
  Mapping buffers_;  // of receives, then of sends
  VerbsObject<ibv_mr> region_;
  VerbsObject<ibv_cq> sends_, receives_;

  // Sending.
  SendRing ring_;
  uint32_t pending_ = 0;  // in chain_: counted, and not posted yet
  std::array<ibv_send_wr, SendRing::kSignalEvery> chain_{};
  std::array<std::array<ibv_sge, 2>, SendRing::kSignalEvery> parts_{};
  std::string send_error_;
};

}  // namespace hk
