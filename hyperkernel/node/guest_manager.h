// The machines of this node: what is defined, what runs, and what operators may do with each. Thread-safe.
//
// Invariants:
//  1. A machine's record is on disk before it is answered for, and before a new generation's frames exist.
//  2. One operation per machine at a time; a second one is refused, never queued.
//  3. A guest's end is handled on the manager's own thread: no vCPU thread takes its own machine apart.
//  4. An event of an earlier generation changes nothing.
//  5. A machine whose daemon was killed is stopped, with that as the reason.
//
// | state              | start   | stop     | force stop | reset   | pause  | unpause | delete |
// |--------------------|---------|----------|------------|---------|--------|---------|--------|
// | stopped, crashed   | running | no       | no         | no      | no     | no      | gone   |
// | running            | no      | stopping | stopped    | running | paused | no      | no     |
// | paused             | no      | no       | stopped    | running | no     | running | no     |
// | stopping           | no      | stopping | stopped    | running | no     | no      | no     |
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/node/console_log.h"
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

  // Starts what has autostart set; failures are logged and shown as reasons.
  void Autostart();

  absl::StatusOr<v1::Vm> Create(const v1::VmSpec& spec, bool dry_run);
  std::vector<v1::Vm> List() const;
  absl::StatusOr<v1::Vm> Get(const std::string& name) const;
  absl::Status Delete(const std::string& name);
  absl::StatusOr<v1::Vm> Control(const std::string& name, v1::VmAction action);
  // The console of a machine's present or last run. Errors: kNotFound, kFailedPrecondition if it never ran.
  absl::StatusOr<std::shared_ptr<const ConsoleLog>> Console(const std::string& name) const;
  // Types on a running machine's console. Errors: kNotFound, kFailedPrecondition.
  absl::Status ConsoleInput(const std::string& name, std::string_view bytes);

 private:
  struct Guest;
  class Events;
  struct Ended {
    std::string name;
    uint64_t generation;
    MachineEnd end;
    std::string reason;
  };

  GuestManager(StateStore* store, std::string node, MachineChecker check, MachineFactory make, const Clock& clock);
  absl::StatusOr<Guest*> FindIdle(const std::string& name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Start(const std::string& name, bool keep_console);
  absl::Status ForceStop(const std::string& name, v1::VmState state, const std::string& reason);
  absl::Status PauseOrUnpause(const std::string& name, bool pause);
  absl::Status PressPowerButton(const std::string& name);
  absl::Status Reset(const std::string& name);
  void SetState(Guest* guest, v1::VmState state, std::string reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // REQUIRES: nobody else uses the guest (the lock is held, or the manager is being destroyed).
  void RecordStopped(Guest* guest);
  v1::Vm View(const Guest& guest) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Report(Ended ended);
  void HandleEnd(const Ended& ended);
  void Run();

  StateStore* const store_;
  const std::string node_;
  const MachineChecker check_;
  const MachineFactory make_;
  const Clock& clock_;
  mutable Mutex mutex_;
  CondVar changed_;
  std::map<std::string, std::unique_ptr<Guest>> guests_ ABSL_GUARDED_BY(mutex_);
  std::deque<Ended> ended_ ABSL_GUARDED_BY(mutex_);  // at most one per machine and generation
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace hk
