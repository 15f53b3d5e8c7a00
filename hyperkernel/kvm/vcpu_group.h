// All vCPUs of a guest on this node: run, held and woken together, and renewed together: saved, and made anew in a
// fresh VM over the same memory. One that moves leaves the group of one node and joins that of another; there may be
// none.
//
// Invariants:
//  1. A wake-up never meets a vCPU that is gone: it holds the slot's lock, and a vCPU leaves its slot before it ends.
//  2. No vCPU ever runs in two VMs: all of one are paused before a vCPU of the other is resumed.
//  3. A Renew that fails leaves the guest as it was: same VM, same vCPUs, running if it ran. So does a Leave or Join.
//  4. A vCPU that has left runs here no more, and its counts stay.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/irq/interrupt_controller.h"
#include "hyperkernel/kvm/vcpu.h"
#include "hyperkernel/kvm/vm.h"

namespace hk {

// What a vCPU of that state begins with if it joins after steps of so many ticks (VcpuGroup::StepTsc). Pure.
VcpuState AfterTscSteps(VcpuState state, uint64_t ticks);

// The vCPUs. Thread-safe; one of Start, Pause, Resume, Renew, Prepare, Leave, Join, StepTsc and Stop at a time, others
// wait for it. None but Wake may be called from a vCPU's thread.
class VcpuGroup final : public VcpuWaker {
 public:
  // What vCPU `id` talks to; asked again at each Renew, and when one joins.
  using EnvironmentOf = std::function<VcpuEnvironment(VcpuId id)>;

  // Of a guest with vCPUs 0 to count - 1, none of which is there yet. REQUIRES: count > 0.
  explicit VcpuGroup(uint32_t count);
  ~VcpuGroup() override;
  VcpuGroup(const VcpuGroup&) = delete;
  VcpuGroup& operator=(const VcpuGroup&) = delete;

  // Makes those of this node, paused. REQUIRES: called once; configs ascending by id. Errors: those of Vcpu::Create.
  absl::Status Create(std::unique_ptr<Vm> vm, const std::vector<VcpuConfig>& configs, EnvironmentOf environment);

  // Makes those of `states` instead, paused: each goes on from there with the next Resume. REQUIRES: called once;
  // instead of Create. Errors: those of Vcpu::CreateFrom; kInvalidArgument: not each of the guest's once.
  absl::Status CreateFrom(std::unique_ptr<Vm> vm, std::map<VcpuId, VcpuState> states, EnvironmentOf environment,
                          Monotonic deadline);

  // Boots vCPU 0; the others wait for SIPI. REQUIRES: vCPU 0 is one of them (a node without it calls Resume). Errors:
  // those of Vcpu::Start.
  absl::Status Start(const InitialCpuState& boot, Monotonic deadline);
  // Holds all. Errors: kDeadlineExceeded (all go on), kFailedPrecondition if stopped.
  absl::Status Pause(Monotonic deadline);
  absl::Status Resume();
  // Saves all, makes a VM with the same memory and vCPUs with that state, gives up the old ones, and goes on if the
  // guest ran. The state passes through its byte form, as in a move. `while_held` renews what else belongs to the
  // machine, with the new VM, and may fail only before it has changed anything; it is called once, while no vCPU runs,
  // before anything is given up. REQUIRES: created. Errors (invariant 3): its own; kDeadlineExceeded;
  // kFailedPrecondition if a vCPU has failed; what could not be made.
  absl::Status Renew(const std::function<absl::Status(Vm*)>& while_held, Monotonic deadline);
  // The states of all. REQUIRES: created, and paused (Pause) since. Errors: kFailedPrecondition if a vCPU has failed or
  // runs; kDeadlineExceeded; errno.
  absl::StatusOr<std::map<VcpuId, VcpuState>> Save(Monotonic deadline);
  // Makes the KVM vCPU and the thread of one that is to join, which takes some hosts milliseconds, if it is not here.
  // Not needed; another Prepare, or a Renew, takes it back. REQUIRES: created.
  // Errors: as Vm::TakeVcpu, WriteCpuid and Vcpu::CreateEmpty.
  absl::Status Prepare(const VcpuConfig& config);
  // Holds one vCPU, calls `take` with its state while it is held, for what else goes with it, and lets go of it: what
  // `take` has is all that is left of it, and may run elsewhere before this returns. Errors (invariant 3): kNotFound:
  // it is not here; kFailedPrecondition: it has failed; kDeadlineExceeded; those of `take`, which has taken nothing
  // then.
  absl::Status Leave(VcpuId id, const std::function<absl::Status(const VcpuState& state)>& take, Monotonic deadline);
  // A vCPU of this state is here from now on, and runs if the others do. `put`: as `take`, the other way. Its TSC
  // offset is as the group was made with; what StepTsc has added since is added. REQUIRES: created. Errors (invariant
  // 3): kAlreadyExists; those of Vcpu::CreateFrom and `put`.
  absl::Status Join(VcpuId id, VcpuState state, const std::function<absl::Status()>& put, Monotonic deadline);
  // The TSC of all, and of all that join later, is `ticks` further, and no vCPU sees another one's of before: all are
  // held meanwhile. Errors: kDeadlineExceeded if they are not held by `deadline` (nothing has changed);
  // kFailedPrecondition if stopped; errno: KVM refuses, and their TSCs may differ.
  absl::Status StepTsc(uint64_t ticks, Monotonic deadline);
  // Ends all, for good. Errors: kDeadlineExceeded; may be called again.
  absl::Status Stop(Monotonic deadline);
  // Ends and destroys all, and the VM: what they talked to may go then. Blocks until KVM_RUN has returned in all. Where
  // that needs help, Stop() first. Idempotent; the destructor does it too.
  void Clear();

  // VcpuWaker. One that is not there yet, or any more, is left alone: it looks for work when it begins to run.
  void Wake(VcpuId vcpu) override;

  // Of one vCPU, over all renewals; all zero if it never was there.
  VcpuCounters counters(VcpuId vcpu) const;
  // Of all, and of those that were here before.
  VcpuCounters counters() const;
  // vCPU exits since the start, over all renewals.
  uint64_t exits() const;

 private:
  // Where a vCPU is found by those who wake it.
  struct Slot {
    mutable Mutex mutex;
    std::unique_ptr<Vcpu> vcpu ABSL_GUARDED_BY(mutex);
    VcpuCounters earlier ABSL_GUARDED_BY(mutex);  // of the vCPUs that were here before
  };

  // Takes a held vCPU out of its slot and parks what KVM has of it.
  void LetGo(Slot* slot, Monotonic deadline) ABSL_EXCLUSIVE_LOCKS_REQUIRED(operation_);
  // The vCPUs that are there: valid as long as operation_ is held, since only operations replace them.
  std::vector<Vcpu*> Present() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(operation_);
  // The pieces of Renew. What Copy returns has never run.
  absl::StatusOr<std::vector<std::unique_ptr<Vcpu>>> Copy(const std::vector<Vcpu*>& vcpus, Vm* vm, Monotonic deadline)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(operation_);
  void Exchange(std::vector<std::unique_ptr<Vcpu>>* copies, std::unique_ptr<Vm>* vm)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(operation_);
  void GoOn(const std::vector<Vcpu*>& vcpus) ABSL_EXCLUSIVE_LOCKS_REQUIRED(operation_);

  mutable Mutex operation_;  // held over each operation; the slots' locks are taken inside it
  bool running_ ABSL_GUARDED_BY(operation_) = false;
  uint64_t tsc_stepped_ ABSL_GUARDED_BY(operation_) = 0;
  EnvironmentOf environment_ ABSL_GUARDED_BY(operation_);
  std::unique_ptr<Vm> vm_ ABSL_GUARDED_BY(operation_);  // outlives the vCPUs in the slots
  // Have left: their threads end by themselves, and the next operation that uses vm_ sees that they have.
  std::vector<std::unique_ptr<Vcpu>> leavers_ ABSL_GUARDED_BY(operation_);
  // Prepared, and not here yet: it has neither state nor slot.
  struct Prepared {
    VcpuId id;
    std::unique_ptr<Vcpu> vcpu;
  };
  Prepared prepared_ ABSL_GUARDED_BY(operation_);
  const std::vector<std::unique_ptr<Slot>> slots_;
};

}  // namespace hk
