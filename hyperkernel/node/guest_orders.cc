// What operators order, and starts and stops of the manager's own: one at a time for each machine.

#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/guest_manager.h"
#include "hyperkernel/node/machine_policy.h"
#include "hyperkernel/node/placed_memory.h"

namespace hk {
namespace {

// A machine that is not renewed by then goes on as it was. In the lab it takes 10 ms and more for each vCPU.
constexpr std::chrono::seconds kRenewLimit(10);
// Between two tries to start a machine whose nodes are not up: several hellos.
constexpr std::chrono::seconds kStartPause(2);
// So long after a daemon's start its predecessor's I/O may hold the locks of images.
constexpr std::chrono::seconds kLocksLinger(30);
// How long the starter sleeps when nobody wakes it: a wait has a deadline.
constexpr std::chrono::seconds kIdle(60);
// The reason beside "stopped" until its turn comes.
constexpr char kWaitsForAutostart[] = "autostart: waits for its turn";

}  // namespace

absl::StatusOr<Guest*> GuestManager::Take(const std::string& name, std::initializer_list<v1::VmState> from,
                                          std::string_view expected) {
  HK_ASSIGN_OR_RETURN(Guest* const guest, FindIdle(name));
  if (std::find(from.begin(), from.end(), guest->state) == from.end()) {
    return absl::FailedPreconditionError(fmt::format("vm '{}' is {}, {}", name, NameOf(guest->state), expected));
  }
  guest->busy = true;
  return guest;
}

void GuestManager::GiveBack(Guest* guest) {
  guest->busy = false;
  changed_.SignalAll();
}

void GuestManager::Autostart() {
  {
    MutexLock lock(&mutex_);
    for (auto& [name, guest] : guests_) {
      if (!guest->record.spec().autostart() || guest->machine != nullptr || guest->busy) continue;
      guest->start_due = true;
      guest->reason = kWaitsForAutostart;
    }
  }
  starter_ = std::thread(&GuestManager::StartDue, this);
}

bool GuestManager::MayBeLockedStill(const std::string& name, const absl::Status& status, Monotonic began) {
  if (!absl::IsFailedPrecondition(status) || std::chrono::steady_clock::now() > began + kLocksLinger) return false;
  MutexLock lock(&mutex_);
  const auto found = guests_.find(name);
  return found != guests_.end() && found->second->ran_when_killed;
}

bool GuestManager::ComesLater(const v1::VmSpec& spec, const absl::Status& status) {
  return IsPlaced(spec) &&
         (absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) || absl::IsAlreadyExists(status));
}

void GuestManager::StartLater(const std::string& name, const absl::Status& status) {
  MutexLock lock(&mutex_);
  const auto found = guests_.find(name);
  if (found == guests_.end() || found->second->machine != nullptr || found->second->busy) return;
  Guest* const guest = found->second.get();
  std::string reason = fmt::format("waits to start: {}", MessageOf(status));
  if (guest->reason != reason) log::Warning("guest", "is started later", {{"guest", name}, {"reason", reason}});
  guest->reason = std::move(reason);
  guest->start_due = true;
  guest->start_not_before = std::chrono::steady_clock::now() + kStartPause;
  changed_.SignalAll();
}

void GuestManager::StartDue() {
  const Monotonic began = std::chrono::steady_clock::now();
  while (true) {
    std::string name;
    v1::VmSpec spec;
    {
      MutexLock lock(&mutex_);
      while (!stopping_ && !keeping_) {
        const Monotonic now = std::chrono::steady_clock::now();
        Guest* next = nullptr;
        for (const auto& [key, guest] : guests_) {
          if (guest->start_due && (next == nullptr || guest->start_not_before < next->start_not_before)) {
            next = guest.get();
          }
        }
        if (next != nullptr && next->start_not_before <= now) {
          next->start_due = false;
          spec = next->record.spec();
          name = spec.name();
          break;
        }
        changed_.WaitUntil(&mutex_, next == nullptr ? now + kIdle : next->start_not_before);
      }
      if (stopping_ || keeping_) return;
    }
    const absl::Status status = Start(name, false, "");
    if (status.ok()) continue;
    if (ComesLater(spec, status) || MayBeLockedStill(name, status, began)) {
      StartLater(name, status);
      continue;
    }
    log::Error("guest", "autostart failed", {{"guest", name}, {"error", MessageOf(status)}});
    MutexLock lock(&mutex_);
    const auto found = guests_.find(name);
    if (found == guests_.end() || found->second->reason != kWaitsForAutostart) continue;
    found->second->reason = fmt::format("autostart failed: {}", MessageOf(status));
  }
}

absl::Status GuestManager::Start(const std::string& name, bool restart, const std::string& reason) {
  v1::VmRecord record;
  Guest* guest = nullptr;
  {
    MutexLock lock(&mutex_);
    HK_ASSIGN_OR_RETURN(guest, FindIdle(name));
    if (stopping_ || keeping_) return absl::UnavailableError("the daemon ends");
    if (guest->machine != nullptr)
      return absl::FailedPreconditionError(fmt::format("vm '{}' is {} already", name, NameOf(guest->state)));
    record = guest->record;
    record.set_generation(record.generation() + 1);
    record.set_running(true);
    HK_RETURN_IF_ERROR(records_.Put(record));
    guest->record = record;
    guest->start_due = false;
    if (!restart || guest->channels == nullptr) {
      guest->channels = std::make_shared<GuestChannels>();
      guest->end_rule.Forget();
    }
    guest->channels->BeginRun();
    guest->events = std::make_unique<GuestEvents>(
        guest->channels, [this, name, generation = record.generation()](MachineEnd end, const std::string& why) {
          Report({name, generation, end, why});
        });
    guest->busy = true;
    SetState(guest, v1::VM_STATE_STARTING, "");
  }
  absl::StatusOr<std::unique_ptr<Machine>> machine = make_(record, guest->events.get());
  MutexLock lock(&mutex_);
  GiveBack(guest);
  if (!machine.ok()) {
    RecordStopped(guest);
    guest->channels->End();
    SetState(guest, v1::VM_STATE_STOPPED, fmt::format("start failed: {}", MessageOf(machine.status())));
    return machine.status();
  }
  guest->machine = *std::move(machine);
  RecordCpu(guest);
  guest->started = clock_.Wall();
  guest->exit_rate.Begin(clock_.Now());
  if (const std::shared_ptr<MachinePolicy> policy = guest->machine->policy(); policy != nullptr) {
    // The policy is there as long as it calls this.
    policy->SetMover(
        [this, name, of = policy.get()](VcpuId vcpu, NodeId to) { return MoveForPolicy(name, vcpu, of->NameOf(to)); });
  }
  SetState(guest, v1::VM_STATE_RUNNING, reason);
  return absl::OkStatus();
}

void GuestManager::RecordCpu(Guest* guest) {
  if (guest->record.cpu_model_size() > 0) return;
  v1::VmRecord record = guest->record;
  *record.mutable_cpu_model() = guest->machine->cpu_model();
  if (record.cpu_model_size() == 0) return;
  if (const absl::Status status = records_.Put(record); !status.ok()) {
    // The next start does it.
    return log::Error("guest", "its CPU model is not recorded",
                      {{"guest", record.spec().name()}, {"error", MessageOf(status)}});
  }
  guest->record = std::move(record);
}

absl::Status GuestManager::ForceStop(const std::string& name, v1::VmState state, const std::string& reason,
                                     bool again) {
  std::unique_ptr<Machine> machine;
  std::unique_ptr<GuestEvents> events;
  Guest* guest = nullptr;
  {
    MutexLock lock(&mutex_);
    HK_ASSIGN_OR_RETURN(guest, FindIdle(name));
    if (guest->machine == nullptr)
      return absl::FailedPreconditionError(fmt::format("vm '{}' is {}", name, NameOf(guest->state)));
    guest->busy = true;
    machine = std::move(guest->machine);
    events = std::move(guest->events);
    guest->channels->EndRun();
    SetState(guest, v1::VM_STATE_STOPPING, reason);
  }
  machine.reset();
  if (!again) Forget(name);
  MutexLock lock(&mutex_);
  GiveBack(guest);
  RecordStopped(guest);
  SetState(guest, state, reason);
  return absl::OkStatus();
}

absl::Status GuestManager::PauseOrUnpause(const std::string& name, bool pause) {
  const v1::VmState from = pause ? v1::VM_STATE_RUNNING : v1::VM_STATE_PAUSED;
  Guest* guest = nullptr;
  {
    MutexLock lock(&mutex_);
    HK_ASSIGN_OR_RETURN(guest, Take(name, {from}, fmt::format("not {}", NameOf(from))));
  }
  const absl::Status status = pause ? guest->machine->Pause() : guest->machine->Unpause();
  MutexLock lock(&mutex_);
  GiveBack(guest);
  if (status.ok()) SetState(guest, pause ? v1::VM_STATE_PAUSED : v1::VM_STATE_RUNNING, "");
  return status;
}

absl::Status GuestManager::Renew(const std::string& name) {
  Guest* guest = nullptr;
  {
    MutexLock lock(&mutex_);
    HK_ASSIGN_OR_RETURN(guest, Take(name, {v1::VM_STATE_RUNNING, v1::VM_STATE_PAUSED}, "neither running nor paused"));
  }
  const Monotonic start = clock_.Now();
  const absl::Status status = guest->machine->Renew(start + kRenewLimit);
  const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(clock_.Now() - start);
  MutexLock lock(&mutex_);
  GiveBack(guest);
  if (status.ok()) {
    log::Info("guest", "renewed", {{"guest", name}, {"took_ms", fmt::to_string(took.count())}});
  } else {
    log::Error("guest", "not renewed, goes on as it was", {{"guest", name}, {"error", MessageOf(status)}});
  }
  return status;
}

absl::StatusOr<VcpuMoved> GuestManager::MoveVcpu(const std::string& name, VcpuId vcpu, const std::string& node) {
  Guest* guest = nullptr;
  {
    MutexLock lock(&mutex_);
    HK_ASSIGN_OR_RETURN(guest, Take(name, {v1::VM_STATE_RUNNING, v1::VM_STATE_PAUSED}, "neither running nor paused"));
  }
  absl::StatusOr<VcpuMoved> moved = guest->machine->MoveVcpu(vcpu, node);
  MutexLock lock(&mutex_);
  GiveBack(guest);
  if (!moved.ok()) {
    log::Warning(
        "guest", "a vCPU was not moved",
        {{"guest", name}, {"vcpu", fmt::to_string(vcpu.value())}, {"to", node}, {"error", MessageOf(moved.status())}});
  }
  return moved;
}

absl::Status GuestManager::MoveForPolicy(const std::string& name, VcpuId vcpu, const std::string& node) {
  {
    MutexLock lock(&mutex_);
    const auto guest = guests_.find(name);
    if (guest == guests_.end() || guest->second->busy || guest->second->state != v1::VM_STATE_RUNNING)
      return absl::UnavailableError("an operator's order is under way");
  }
  return MoveVcpu(name, vcpu, node).status();
}

absl::Status GuestManager::PressPowerButton(const std::string& name) {
  Guest* guest = nullptr;
  {
    MutexLock lock(&mutex_);
    HK_ASSIGN_OR_RETURN(guest, Take(name, {v1::VM_STATE_RUNNING, v1::VM_STATE_STOPPING}, "not running"));
    SetState(guest, v1::VM_STATE_STOPPING, "power button pressed");
  }
  guest->machine->PressPowerButton();  // without the lock: a machine may tell of its end at once
  MutexLock lock(&mutex_);
  GiveBack(guest);
  return absl::OkStatus();
}

void GuestManager::ForgetUnlessLive(const std::string& name) {
  {
    MutexLock lock(&mutex_);
    const auto found = guests_.find(name);
    if (found != guests_.end() && (found->second->machine != nullptr || found->second->busy)) return;
  }
  Forget(name);
}

absl::Status GuestManager::Restart(const std::string& name, v1::VmState state, const std::string& stop_reason,
                                   const std::string& start_reason, bool cold) {
  HK_RETURN_IF_ERROR(ForceStop(name, state, stop_reason, true));
  if (cold && !HK_MUTANT(reset_forgets_nothing_cold)) Forget(name);
  const absl::Status status = Start(name, true, start_reason);
  if (!status.ok()) ForgetUnlessLive(name);
  return status;
}

absl::Status GuestManager::Reset(const std::string& name, bool cold) {
  {
    MutexLock lock(&mutex_);
    HK_ASSIGN_OR_RETURN(const Guest* guest, FindIdle(name));
    if (!IsLive(guest->state))
      return absl::FailedPreconditionError(fmt::format("vm '{}' is {}, not running", name, NameOf(guest->state)));
  }
  return Restart(name, v1::VM_STATE_STOPPED, "reset", "reset by an operator", cold);
}

bool GuestManager::CancelAutostart(const std::string& name) {
  MutexLock lock(&mutex_);
  const auto found = guests_.find(name);
  if (found == guests_.end() || !found->second->start_due) return false;
  found->second->start_due = false;
  found->second->reason = "stopped before its autostart";
  return true;
}

absl::StatusOr<v1::Vm> GuestManager::Control(const std::string& name, v1::VmAction action, bool cold) {
  if (cold && action != v1::VM_ACTION_RESET) return absl::InvalidArgumentError("cold: is for a reset only");
  absl::Status status;
  switch (action) {
    case v1::VM_ACTION_START:
      status = Start(name, false, "");
      break;
    case v1::VM_ACTION_STOP:
      if (!CancelAutostart(name)) status = PressPowerButton(name);
      break;
    case v1::VM_ACTION_FORCE_STOP:
      if (CancelAutostart(name)) break;
      status = ForceStop(name, v1::VM_STATE_STOPPED, "");
      if (status.ok()) {
        MutexLock lock(&mutex_);
        const auto found = guests_.find(name);
        if (found != guests_.end() && found->second->channels != nullptr) found->second->channels->End();
      }
      break;
    case v1::VM_ACTION_RESET:
      status = Reset(name, cold);
      break;
    case v1::VM_ACTION_PAUSE:
    case v1::VM_ACTION_UNPAUSE:
      status = PauseOrUnpause(name, action == v1::VM_ACTION_PAUSE);
      break;
    case v1::VM_ACTION_RENEW:
      status = Renew(name);
      break;
    default:
      status = absl::InvalidArgumentError("action: not one this daemon knows");
  }
  if (!status.ok()) return status;
  return Get(name);
}

}  // namespace hk
