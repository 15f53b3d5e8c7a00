// How machines come from one daemon to the next: the manager's side of a restart that keeps them.

#include <chrono>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/guest_manager.h"
#include "hyperkernel/node/placed_memory.h"

namespace hk {
namespace {

constexpr char kNotKept[] = "not kept over a restart of its daemon: ";

}  // namespace

void GuestManager::StopUnkept() {
  std::vector<std::string> names;
  {
    MutexLock lock(&mutex_);
    keeping_ = true;
    for (const auto& [name, guest] : guests_) {
      if (IsPlaced(guest->record.spec())) names.push_back(name);
    }
  }
  changed_.SignalAll();
  if (starter_.joinable()) starter_.join();
  // Not if it does not run.
  for (const std::string& name : names) {
    static_cast<void>(ForceStop(name, v1::VM_STATE_STOPPED, "its daemon ended"));
  }
}

// The guest is taken (busy): nobody else uses its machine, or its consoles but to read.
absl::StatusOr<MachineState> GuestManager::SaveMachine(Guest* guest) {
  HK_ASSIGN_OR_RETURN(MachineState state, guest->machine->Save());
  MutexLock lock(&mutex_);
  const v1::VmRecord& record = guest->record;
  state.name = record.spec().name();
  state.generation = record.generation();
  state.spec_hash = HashOf(record.spec().SerializeAsString());
  state.started_wall_ns = std::chrono::nanoseconds(guest->started.time_since_epoch()).count();
  state.paused = guest->state == v1::VM_STATE_PAUSED;
  state.stopping = guest->state == v1::VM_STATE_STOPPING;
  state.serial_log = guest->channels->console(Channel::kSerial).Kept();
  state.virtio_log = guest->channels->console(Channel::kVirtioConsole).Kept();
  return state;
}

int GuestManager::KeepMachines(const WriteState& write) {
  std::vector<std::string> names;
  {
    MutexLock lock(&mutex_);
    for (const auto& [name, guest] : guests_) names.push_back(name);
  }
  int kept = 0;
  for (const std::string& name : names) {
    Guest* guest = nullptr;
    MachineState none;
    {
      MutexLock lock(&mutex_);
      const absl::StatusOr<Guest*> found = FindIdle(name);
      if (!found.ok() || (*found)->machine == nullptr) continue;
      guest = *found;
      guest->busy = true;
      none.name = name;
      none.generation = guest->record.generation();
    }
    absl::StatusOr<MachineState> state = SaveMachine(guest);
    absl::Status status = state.status();
    if (status.ok()) {
      status = write(*state);
      if (!status.ok()) static_cast<void>(guest->machine->GoOn());  // until it is stopped
    }
    if (status.ok()) {
      guest->machine->LeaveFrames();
      kept++;
    } else {
      log::Error("guest", "is not kept", {{"guest", name}, {"error", MessageOf(status)}});
      none.failure = MessageOf(status);
      static_cast<void>(write(none));  // else the next daemon has no reason to show
    }
    MutexLock lock(&mutex_);
    if (status.ok()) kept_.emplace_back(std::move(guest->events), std::move(guest->machine));
    GiveBack(guest);
  }
  return kept;
}

void GuestManager::NotKept(const std::string& name, const std::string& reason) {
  MutexLock lock(&mutex_);
  const auto found = guests_.find(name);
  log::Error("guest", "is not kept", {{"guest", name}, {"reason", reason}});
  if (found == guests_.end() || found->second->machine != nullptr) return;
  found->second->reason = kNotKept + reason;
}

absl::StatusOr<Guest*> GuestManager::BeginTakeOver(const MachineState& state) {
  MutexLock lock(&mutex_);
  const auto found = guests_.find(state.name);
  if (found == guests_.end()) return absl::NotFoundError("there is no such machine");
  Guest* const guest = found->second.get();
  if (guest->machine != nullptr || guest->busy) return absl::FailedPreconditionError("it runs already");
  if (guest->record.generation() != state.generation || !guest->record.running()) {
    return absl::FailedPreconditionError("it is another run's");
  }
  if (HashOf(guest->record.spec().SerializeAsString()) != state.spec_hash) {
    return absl::FailedPreconditionError("its specification is another one now");
  }
  guest->channels = std::make_shared<GuestChannels>();
  guest->channels->BeginRun();
  guest->channels->Output(Channel::kSerial, state.serial_log);
  guest->channels->Output(Channel::kVirtioConsole, state.virtio_log);
  guest->events = std::make_unique<GuestEvents>(
      guest->channels,
      [this, name = state.name, generation = state.generation](MachineEnd end, const std::string& why) {
        Report({name, generation, end, why});
      });
  guest->busy = true;
  return guest;
}

absl::Status GuestManager::TakeOver(const MachineState& state, const RestoreMachine& restore) {
  const absl::StatusOr<Guest*> begun = BeginTakeOver(state);
  if (!begun.ok()) {
    NotKept(state.name, MessageOf(begun.status()));
    return begun.status();
  }
  Guest* const guest = *begun;
  absl::StatusOr<std::unique_ptr<Machine>> machine = restore(guest->record, guest->events.get());
  absl::Status status = machine.status();
  if (status.ok() && !state.paused) status = (*machine)->Unpause();
  const auto stood = std::chrono::duration_cast<std::chrono::milliseconds>(clock_.Now().time_since_epoch() -
                                                                           std::chrono::nanoseconds(state.held_ns));
  if (!status.ok()) machine = status;  // it ends here, with its memory
  MutexLock lock(&mutex_);
  GiveBack(guest);
  if (!status.ok()) {
    RecordStopped(guest);
    guest->channels->End();
    guest->channels = nullptr;
    guest->reason = kNotKept + MessageOf(status);
    log::Error("guest", "is not kept", {{"guest", state.name}, {"reason", MessageOf(status)}});
    return status;
  }
  guest->machine = *std::move(machine);
  guest->started =
      WallTime(std::chrono::duration_cast<WallTime::duration>(std::chrono::nanoseconds(state.started_wall_ns)));
  guest->exit_rate.Begin(clock_.Now());
  const v1::VmState running = state.stopping ? v1::VM_STATE_STOPPING : v1::VM_STATE_RUNNING;
  SetState(guest, state.paused ? v1::VM_STATE_PAUSED : running,
           fmt::format("kept over a restart of its daemon; stood still for {} ms", stood.count()));
  return absl::OkStatus();
}

}  // namespace hk
