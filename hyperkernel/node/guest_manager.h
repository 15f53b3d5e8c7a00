// The machines of this node: what is defined, what runs, and what operators may do with each. Thread-safe.
//
// Invariants:
//  1. A machine's record is on disk before it is answered for, and before a new generation's frames exist.
//  2. One operation per machine at a time; a second one is refused, never queued.
//  3. A guest's end is handled on the manager's own thread: no vCPU thread takes its own machine apart. What follows is
//     for guest_end.h to say.
//  4. An event of an earlier generation changes nothing.
//  5. A machine whose daemon was killed is stopped, with that as the reason.
//
// | state              | start   | stop     | force stop | reset   | pause  | unpause | renew, move | delete |
// |--------------------|---------|----------|------------|---------|--------|---------|-------------|--------|
// | stopped, crashed   | running | no       | no         | no      | no     | no      | no          | gone   |
// | running            | no      | stopping | stopped    | running | paused | no      | running     | no     |
// | paused             | no      | no       | stopped    | running | no     | running | paused      | no     |
// | stopping           | no      | stopping | stopped    | running | no     | no      | no          | no     |
#pragma once

#include <deque>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/node/guest.h"
#include "hyperkernel/node/guest_channels.h"
#include "hyperkernel/node/guest_records.h"
#include "hyperkernel/node/machine.h"
#include "hyperkernel/node/state_store.h"
#include "proto/admin.pb.h"

namespace hk {

// All machines of one node.
class GuestManager {
 public:
  // Reads what is defined. `store` and `clock` outlive the manager.
  static absl::StatusOr<std::unique_ptr<GuestManager>> Open(StateStore* store, std::string node, MachineChecker check,
                                                            MachineFactory make, const Clock& clock);
  // Stops all machines at once.
  ~GuestManager();

  // The daemon ends: all machines are stopped at once, and none starts any more.
  void StopMachines();

  // For a restart that keeps guests; guest_keeping.cc. From now on no machine starts, and those that cannot be kept are
  // stopped.
  void StopUnkept();
  // Has all others stand still, one after another, and gives `write` the state of each: when that has succeeded it is
  // not run any more here, and its memory stays. What cannot be saved goes on, and `write` gets a state that says why.
  // Returns how many are kept. REQUIRES: after StopUnkept; nothing but StopMachines may follow.
  using WriteState = std::function<absl::Status(const MachineState& state)>;
  int KeepMachines(const WriteState& write);
  // A machine goes on where its last daemon left it; `restore` makes it, paused. Errors: one line, which is its reason
  // too: it is stopped then. REQUIRES: before Autostart.
  using RestoreMachine =
      std::function<absl::StatusOr<std::unique_ptr<Machine>>(const v1::VmRecord& record, MachineEvents* events)>;
  absl::Status TakeOver(const MachineState& state, const RestoreMachine& restore);
  // Of one that was to be kept and is not: why.
  void NotKept(const std::string& name, const std::string& reason);

  // Called when nothing that is kept of a machine's run for the next one is to be used: it has ended for good, or
  // begins cold. By any thread, without a lock; before the first machine runs, and at most once.
  void SetForget(std::function<void(const std::string& name)> forget) { forget_ = std::move(forget); }

  // Starts what has autostart set, on a thread of its own and returns: one machine after another, by name, so that it
  // does not depend on chance who gets the memory. What waits, and what failed, is shown as the machine's reason. Once
  // only.
  void Autostart();

  absl::StatusOr<v1::Vm> Create(const v1::VmSpec& spec, bool dry_run);
  std::vector<v1::Vm> List() const;
  absl::StatusOr<v1::Vm> Get(const std::string& name) const;
  absl::Status Delete(const std::string& name);
  // `cold`: of a reset: nothing that is kept of the run before is used.
  absl::StatusOr<v1::Vm> Control(const std::string& name, v1::VmAction action, bool cold = false);
  // As Machine has it. Errors: those, kNotFound, kFailedPrecondition if it is neither running nor paused.
  absl::StatusOr<VcpuMoved> MoveVcpu(const std::string& name, VcpuId vcpu, const std::string& node);
  // The channels of a machine's present or last run. Errors: kNotFound, kFailedPrecondition if it has not run since the
  // daemon started.
  absl::StatusOr<std::shared_ptr<const GuestChannels>> Channels(const std::string& name) const;
  // Types on a running machine's console; returns how many bytes were taken, which is none while an operation is under
  // way. Errors: kNotFound, kFailedPrecondition.
  absl::StatusOr<size_t> ConsoleInput(const std::string& name, Channel channel, std::string_view bytes);
  // Tells a running machine the size of the terminal on its virtio console; nothing if it does not run.
  void ResizeConsole(const std::string& name, uint16_t columns, uint16_t rows);
  // True: the machine runs, and its memory is a space of its name; false: it is this node's alone. Errors: kNotFound,
  // kFailedPrecondition.
  absl::StatusOr<bool> MemoryIsSpace(const std::string& name);
  // Who has what of a running machine's memory, and what was counted, as of a space that this node alone has. Errors:
  // kNotFound, kFailedPrecondition.
  absl::StatusOr<v1::SpaceMapResponse> MemoryMap(const std::string& name, uint64_t first_extent);
  absl::StatusOr<v1::SpaceTopResponse> MemoryTop(const std::string& name);
  // What a running machine's vCPUs wait for on other nodes. Errors: kNotFound; kFailedPrecondition, also if there are
  // none.
  absl::StatusOr<std::shared_ptr<MachinePolicy>> PolicyOf(const std::string& name);
  // Runs a command inside a running machine by its agent. Errors: kNotFound, kFailedPrecondition, and
  // RunGuestCommand's.
  absl::StatusOr<GuestCommandResult> Exec(const std::string& name, const GuestCommand& command,
                                          Monotonic::duration timeout, const std::function<bool()>& cancelled);

 private:
  // A guest's end, to be handled.
  struct Ended {
    std::string name;
    uint64_t generation;
    MachineEnd end;
    std::string reason;
  };

  GuestManager(StateStore* store, std::string node, MachineChecker check, MachineFactory make, const Clock& clock);
  // Waits for an operation under way. Errors: kNotFound, kFailedPrecondition.
  absl::StatusOr<Guest*> FindIdle(const std::string& name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // FindIdle, and takes the guest for an operation without the lock if it is in one of the states; else the error says
  // that it is not `expected`.
  absl::StatusOr<Guest*> Take(const std::string& name, std::initializer_list<v1::VmState> from,
                              std::string_view expected) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void GiveBack(Guest* guest) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // MoveVcpu, but refuses where it would wait for an operator's order: that may wait for the calling thread.
  absl::Status MoveForPolicy(const std::string& name, VcpuId vcpu, const std::string& node) ABSL_LOCKS_EXCLUDED(mutex_);
  void StartDue();
  // Errors of a start that may succeed later without anybody's doing: a node of its placement is not up yet, or has not
  // dropped what it had of the run before.
  static bool ComesLater(const v1::VmSpec& spec, const absl::Status& status);
  // Whether the start failed for what a killed daemon's I/O may hold still; `began`: this daemon's starts.
  bool MayBeLockedStill(const std::string& name, const absl::Status& status, Monotonic began)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Has it started again later.
  void StartLater(const std::string& name, const absl::Status& status);
  // True if the guest waited for its autostart: it does so no more.
  bool CancelAutostart(const std::string& name);
  // `reason` is shown beside the state "running"; a `restart` goes on with the channels there are.
  absl::Status Start(const std::string& name, bool restart, const std::string& reason);
  // `again`: it is started again at once, and what is kept for that stays.
  absl::Status ForceStop(const std::string& name, v1::VmState state, const std::string& reason, bool again = false);
  // ForceStop, and Start as a restart; what is kept goes if it is not started.
  absl::Status Restart(const std::string& name, v1::VmState state, const std::string& stop_reason,
                       const std::string& start_reason, bool cold);
  void Forget(const std::string& name) ABSL_LOCKS_EXCLUDED(mutex_) {
    if (forget_) forget_(name);
  }
  // Unless somebody else has started it meanwhile.
  void ForgetUnlessLive(const std::string& name) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status PauseOrUnpause(const std::string& name, bool pause);
  absl::Status Renew(const std::string& name);
  absl::Status PressPowerButton(const std::string& name);
  absl::Status Reset(const std::string& name, bool cold);
  absl::StatusOr<Guest*> BeginTakeOver(const MachineState& state) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<MachineState> SaveMachine(Guest* guest) ABSL_LOCKS_EXCLUDED(mutex_);
  void SetState(Guest* guest, v1::VmState state, std::string reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // REQUIRES: nobody else uses the guest (the lock is held, or the manager is being destroyed).
  void RecordStopped(Guest* guest);
  // What the nodes of its machine agreed on, if it is the first time. REQUIRES: the machine is there.
  void RecordCpu(Guest* guest) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  v1::Vm View(const Guest& guest) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Report(Ended ended) ABSL_LOCKS_EXCLUDED(mutex_);
  // False: an operation is under way; to be tried again.
  bool HandleEnd(const Ended& ended);
  // The machine, if it runs still (with this generation, unless that is 0); null while an operation is under way.
  absl::StatusOr<Machine*> FindRunning(const std::string& name, uint64_t generation)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // FindIdle, of a guest that has a machine.
  absl::StatusOr<const Guest*> FindWithMemory(const std::string& name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status LookAtMemory(const std::string& name, v1::Space* space, v1::SpacePart* part,
                            const std::function<void(const Machine&)>& look);
  void SampleRates() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Run();

  GuestRecords records_;
  const std::string node_;
  const MachineChecker check_;
  const MachineFactory make_;
  const Clock& clock_;
  std::function<void(const std::string& name)> forget_;
  mutable Mutex mutex_;
  CondVar changed_;
  std::map<std::string, std::unique_ptr<Guest>> guests_ ABSL_GUARDED_BY(mutex_);
  std::deque<Ended> ended_ ABSL_GUARDED_BY(mutex_);  // at most one per machine and generation
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool keeping_ ABSL_GUARDED_BY(mutex_) = false;  // nothing starts any more
  // Machines that are the next daemon's.
  std::vector<std::pair<std::unique_ptr<GuestEvents>, std::unique_ptr<Machine>>> kept_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
  std::thread starter_;  // see Autostart
};

}  // namespace hk
