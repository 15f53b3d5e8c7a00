// The vCPUs of a machine that are on other nodes than its I/O node, as the I/O node has them: what they are made of,
// and orders to all of them.
//
// Invariants:
//  1. A machine's vCPUs are made on all its nodes or on none: what was made when one failed is ended again.
//  2. An order goes to all nodes at the same time. If one cannot hold its vCPUs, those of all go on.
//  3. A node whose vCPUs have ended by themselves is noticed within a second or two, and ends the machine.
//  4. Who is a part stays so, also when its last vCPU has moved away. Each start begins with the specification's
//  places.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/node_set.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/irq/interrupt_controller.h"
#include "hyperkernel/kvm/exit_handler.h"
#include "hyperkernel/kvm/kvm_api.h"
#include "hyperkernel/memory/space_router.h"
#include "hyperkernel/node/exit_server.h"
#include "hyperkernel/node/machine.h"
#include "hyperkernel/node/machine_clocks.h"
#include "hyperkernel/node/machine_link.h"
#include "hyperkernel/node/machine_move.h"
#include "hyperkernel/node/machine_peers.h"
#include "hyperkernel/node/machine_policy.h"
#include "hyperkernel/node/metrics.h"
#include "hyperkernel/node/space_rules.h"
#include "proto/vm.pb.h"
#include "rdma/transport.h"

namespace hk {

// Between two questions how the others are.
inline constexpr std::chrono::milliseconds kWatchPause{1000};

// One machine's. Thread-safe, but for what says otherwise; one order at a time.
class MachineSpread {
 public:
  // All outlives it.
  struct Options {
    std::string self, boot_id;
    MachinePeers* peers = nullptr;
    Transport* transport = nullptr;
    SpaceRouter* router = nullptr;
    const Clock* clock = nullptr;
    std::shared_ptr<MachinePolicy> policy;  // null: none
    Metrics* metrics = nullptr;             // of the daemon; null: nobody counts moves
    std::chrono::milliseconds watch_pause = kWatchPause;
    CpuidEntries cpu_model;  // what the machine had before, which it has again; none: the first start
  };
  // Of the machine's run, for the other nodes.
  struct Run {
    uint64_t space_id = 0;
    std::vector<kvm_cpuid_entry2> cpuid;
    uint32_t tsc_khz = 0;
    uint64_t tsc_offset = 0;
    uint64_t wall_ns = 0;
  };

  // Null for a machine whose vCPUs are all here. REQUIRES: the specification is complete (CompleteVmSpec). Errors: a
  // node that nobody knows.
  static absl::StatusOr<std::unique_ptr<MachineSpread>> Plan(const v1::VmSpec& spec, const Options& options);
  // Ends what is left on other nodes, and the link.
  ~MachineSpread();

  // The model of all vCPUs: `ours` is what this node could have. Errors: AgreeOnCpu's or, if there is a model of
  // before, CheckRecordedCpu's; CheckTscRate's, a node that does not answer.
  absl::StatusOr<std::vector<kvm_cpuid_entry2>> AgreeOnHosts(const std::vector<kvm_cpuid_entry2>& ours,
                                                             uint32_t tsc_khz);
  // Known after AgreeOnHosts: that model, and whatever of it is hidden for this run's hosts alone.
  const CpuidEntries& cpu_model() const { return cpu_model_; }
  // What an InterruptController of this node is made with; the link is in it.
  InterruptNodes interrupt_nodes();
  // Null: no vCPU is elsewhere.
  MachineLink* link() { return link_.get(); }
  // The link serves. `moves` is null or outlives Close. `failed` is told why the machine cannot go on, with no lock
  // held: by the link and by who watches the others, once by each at most. It must not destroy this.
  // `step_tsc` adds so many ticks to the TSC of the vCPUs here, or nothing; asked by the thread that asks the others.
  absl::Status Open(InterruptController* interrupts, ExitHandler* devices, MoveMessages* moves,
                    std::function<void(const std::string& reason)> failed,
                    std::function<absl::Status(uint64_t ticks)> step_tsc);

  // REQUIRES of all that follow: Open. Makes the others' vCPUs, held. Errors: the first that is told of, and all are
  // gone again.
  absl::Status Attach(const Run& run);
  // Errors: of the first node that could not; all are held then.
  absl::Status Resume();
  // Errors: kDeadlineExceeded and others, of the first node that could not; all go on then.
  absl::Status Hold();
  // Ends them, as far as the nodes answer; what does not, ends with the machine's memory.
  void End();
  // The link takes nothing any more. REQUIRES: End was called.
  void Close();

  // Moves a vCPU to another of the nodes, whether it runs or is held; `here` is this node's part of it. Beside no
  // order and no other move. Errors: as Machine::MoveVcpu; one that is lost is told as a failure too.
  absl::StatusOr<VcpuMoved> MoveVcpu(VcpuId vcpu, const std::string& to, LocalMoves* here);

  // vCPUs of the others go on in VMs made anew. Errors: the first, saying which node; there they are as they were.
  absl::Status Renew();

  // How one the others' clocks are with this node's, as of about a second ago.
  std::vector<v1::NodeClock> clocks() const;
  // That were made since the start.
  uint64_t vcpu_moves() const;
  bool Here(VcpuId vcpu) const;
  // Of all other nodes together, as of about a second ago. Never blocks for long.
  std::map<std::string, uint64_t> exits_by_kind() const;
  // By vCPU, those that are or were on other nodes, while they were; with the node that they are on now.
  std::map<uint32_t, v1::VcpuTimes> vcpu_times() const;
  std::string NodeOf(VcpuId vcpu) const;
  // Known after AgreeOnHosts: all nodes are on one host.
  bool one_host() const { return one_host_; }

 private:
  // Another node that has vCPUs, or may get some.
  struct Other {
    std::string name;
    NodeId number;
    bool attached = false;
  };

  MachineSpread(const v1::VmSpec& spec, const Options& options) : spec_(spec), options_(options) {}
  void BeginPlaces();
  // At all others that are attached, at the same time; the first error.
  absl::Status AtAll(const std::function<absl::Status(Other*)>& call);
  absl::Status Tell(Other* other, v1::MachineOrder order, uint64_t number = 0);
  absl::Status Order(v1::MachineOrder order);
  // One that does not run, or runs, against the last order is told again: an order may be lost on its way.
  absl::Status LookAt(Other* other);
  void Watch();
  // This node's vCPUs step, if others' clocks are ahead of theirs.
  void FollowClocks();
  void EndWatch();
  std::string NameOf(NodeId node) const;
  std::vector<SpaceMemberId> Members() const;

  const v1::VmSpec spec_;
  const Options options_;
  NodeId self_number_;
  uint64_t id_ = 0;
  std::vector<NodeId> first_nodes_;  // by vCPU, at the start
  uint64_t move_numbers_ = 0;        // the last one
  bool one_host_ = true;
  MachineClocks clocks_;
  CpuidEntries cpu_model_;
  std::vector<Other> others_;
  std::unique_ptr<MachineLink> link_;
  std::unique_ptr<ExitServer> server_;
  std::function<void(const std::string&)> failed_;
  std::function<absl::Status(uint64_t)> step_tsc_;
  mutable Mutex mutex_;
  CondVar changed_;
  bool watching_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<NodeId> nodes_ ABSL_GUARDED_BY(mutex_);  // by vCPU, now
  uint64_t moves_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<NodeSet> seen_ ABSL_GUARDED_BY(mutex_);  // by vCPU: where it is or was
  // The last order to all, and its number.
  v1::MachineOrder wanted_ ABSL_GUARDED_BY(mutex_) = v1::MACHINE_ORDER_HOLD;
  uint64_t orders_ ABSL_GUARDED_BY(mutex_) = 0;
  bool ordering_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<NodeId, bool> running_ ABSL_GUARDED_BY(mutex_);
  std::map<NodeId, std::map<std::string, uint64_t>> exits_ ABSL_GUARDED_BY(mutex_);     // by node
  std::map<std::pair<uint32_t, NodeId>, v1::VcpuTimes> times_ ABSL_GUARDED_BY(mutex_);  // by vCPU and node
  std::thread watcher_;
};

}  // namespace hk
