// The I/O node's end of other nodes' exits: makes the accesses that their ForwardedExits ask for. A device may take
// seconds, and a transport's handler must not block: each node has a thread here. README.md, "Machines over several
// nodes: link".
//
// Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/irq/vcpu_set.h"
#include "hyperkernel/kvm/exit_handler.h"
#include "hyperkernel/node/machine_link.h"
#include "hyperkernel/node/machine_wire.h"

namespace hk {

// See above.
class ExitServer final : public ExitMessages {
 public:
  // `link`, which is the I/O node's, and `local` outlive this. `vcpus`: of the guest. `local` is called on one thread
  // for each other node, OnGuestFailure too; for doorbells in the transport's handler: a write to one must not block.
  ExitServer(MachineLink* link, ExitHandler* local, uint32_t vcpus);
  ~ExitServer() override;
  ExitServer(const ExitServer&) = delete;
  ExitServer& operator=(const ExitServer&) = delete;

  // When it returns, `local` is not called any more. Waits for accesses under way; what is queued is dropped. Not on
  // one of its threads, nor a transport's. More than once is allowed.
  void Stop();

  // ExitMessages.
  absl::Status OnExitMessage(NodeId from, const Message& message) override;
  void OnExitsSent(NodeId to) override;

 private:
  // An access that is to be made.
  struct Access {
    uint64_t transaction = 0;
    ExitRequest request;
  };
  // Another node and its thread.
  struct Peer {
    explicit Peer(NodeId which, size_t vcpus) : node(which), accesses(vcpus) {}
    const NodeId node;
    Mutex mutex;
    CondVar changed;
    std::vector<Access> accesses ABSL_GUARDED_BY(mutex);  // a ring of as many as the guest has vCPUs
    size_t first ABSL_GUARDED_BY(mutex) = 0, count ABSL_GUARDED_BY(mutex) = 0;
    std::vector<VcpuFailure> failures ABSL_GUARDED_BY(mutex);  // to be told
    VcpuSet failed ABSL_GUARDED_BY(mutex);                     // of which it has told
    bool sent ABSL_GUARDED_BY(mutex) = true;                   // the last answer is with the transport
    bool ringing ABSL_GUARDED_BY(mutex) = false;               // a doorbell, in the transport's handler
    bool stopping ABSL_GUARDED_BY(mutex) = false;
    std::thread thread;
  };

  Peer* Find(NodeId node);
  void Ring(Peer* peer, Gpa address);
  void Run(Peer* peer);
  ExitAnswer Make(const ExitRequest& request);

  MachineLink* const link_;
  ExitHandler* const local_;
  const uint32_t vcpus_;
  std::vector<std::unique_ptr<Peer>> peers_;
};

}  // namespace hk
