#include "hyperkernel/node/guest_manager.h"

#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/machine_cpu.h"
#include "hyperkernel/node/membership.h"
#include "hyperkernel/node/vm_spec.h"

namespace hk {
namespace {

// More machines than this on one node is a script gone wrong.
constexpr size_t kMaxGuests = 1024;
// The manager's thread looks up this often, to see how fast guests exit; events wake it earlier.
constexpr std::chrono::seconds kSampleInterval(1);
// An operator who orders something while the guest's own end is being handled waits this long for it.
constexpr std::chrono::seconds kBusyWait(5);

absl::Status NotFound(const std::string& name) {
  return absl::NotFoundError(fmt::format("no vm '{}' on this node; see hkctl vm list", name));
}

}  // namespace

GuestManager::GuestManager(StateStore* store, std::string node, MachineChecker check, MachineFactory make,
                           const Clock& clock)
    : records_(store), node_(std::move(node)), check_(std::move(check)), make_(std::move(make)), clock_(clock) {}

absl::StatusOr<std::unique_ptr<GuestManager>> GuestManager::Open(StateStore* store, std::string node,
                                                                 MachineChecker check, MachineFactory make,
                                                                 const Clock& clock) {
  std::unique_ptr<GuestManager> manager(
      new GuestManager(store, std::move(node), std::move(check), std::move(make), clock));
  HK_ASSIGN_OR_RETURN(std::vector<v1::VmRecord> records, manager->records_.List());
  {
    MutexLock lock(&manager->mutex_);
    for (v1::VmRecord& record : records) {
      auto guest = std::make_unique<Guest>();
      guest->record = std::move(record);
      guest->since = clock.Wall();
      if (guest->record.running()) {
        guest->ran_when_killed = true;
        guest->reason = "its daemon ended without stopping it (killed, or the host went down)";
      }
      const std::string name = guest->record.spec().name();
      manager->guests_[name] = std::move(guest);
    }
  }
  manager->thread_ = std::thread(&GuestManager::Run, manager.get());
  return manager;
}

GuestManager::~GuestManager() {
  StopMachines();
}

void GuestManager::StopMachines() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
  }
  changed_.SignalAll();
  if (starter_.joinable()) starter_.join();
  if (thread_.joinable()) thread_.join();
  std::vector<std::string> names;
  {
    MutexLock lock(&mutex_);
    for (const auto& [name, guest] : guests_) names.push_back(name);
  }
  for (const std::string& name : names) {
    // Not if it does not run, or was deleted meanwhile.
    const absl::Status status = ForceStop(name, v1::VM_STATE_STOPPED, "its daemon ended");
    MutexLock lock(&mutex_);
    const auto found = guests_.find(name);
    if (found == guests_.end()) continue;
    if (found->second->channels != nullptr) found->second->channels->End();
    if (status.ok() || found->second->machine == nullptr) continue;
    log::Error("guest", "not stopped as the daemon ends", {{"guest", name}, {"error", MessageOf(status)}});
  }
}

absl::StatusOr<v1::Vm> GuestManager::Create(const v1::VmSpec& spec, bool dry_run) {
  HK_ASSIGN_OR_RETURN(const v1::VmSpec complete, CompleteVmSpec(spec, node_));
  HK_RETURN_IF_ERROR(check_(complete));
  auto guest = std::make_unique<Guest>();
  *guest->record.mutable_spec() = complete;
  guest->since = clock_.Wall();
  *guest->record.mutable_created() = ToTimestamp(guest->since);
  MutexLock lock(&mutex_);
  if (guests_.count(complete.name()) != 0) {
    return absl::AlreadyExistsError(
        fmt::format("vm '{}' is defined already; see hkctl vm show {}", complete.name(), complete.name()));
  }
  if (guests_.size() >= kMaxGuests)
    return absl::ResourceExhaustedError(fmt::format("{} machines are defined, which is the most", kMaxGuests));
  for (const auto& [name, other] : guests_) HK_RETURN_IF_ERROR(CheckBeside(complete, other->record.spec()));
  if (dry_run) return View(*guest);
  HK_RETURN_IF_ERROR(records_.Put(guest->record));
  const v1::Vm view = View(*guest);
  guests_[complete.name()] = std::move(guest);
  log::Info("guest", "created", {{"guest", complete.name()}});
  return view;
}

std::vector<v1::Vm> GuestManager::List() const {
  MutexLock lock(&mutex_);
  std::vector<v1::Vm> vms;
  for (const auto& [name, guest] : guests_) vms.push_back(View(*guest));
  return vms;
}

absl::StatusOr<v1::Vm> GuestManager::Get(const std::string& name) const {
  MutexLock lock(&mutex_);
  const auto found = guests_.find(name);
  if (found == guests_.end()) return NotFound(name);
  return View(*found->second);
}

v1::Vm GuestManager::View(const Guest& guest) const {
  v1::Vm vm;
  *vm.mutable_spec() = guest.record.spec();
  vm.set_state(guest.state);
  vm.set_reason(guest.reason);
  *vm.mutable_since() = ToTimestamp(guest.since);
  vm.set_node(node_);
  *vm.mutable_created() = guest.record.created();
  vm.set_generation(guest.record.generation());
  vm.set_crashes(guest.end_rule.crashes());
  if (guest.record.cpu_model_size() > 0) *vm.mutable_cpu_model() = DescribeCpu(guest.record.cpu_model());
  if (IsLive(guest.state)) *vm.mutable_started() = ToTimestamp(guest.started);
  if (guest.machine != nullptr && !guest.busy) {
    vm.set_frame_bytes(guest.machine->frame_bytes());
    for (const auto& [kind, count] : guest.machine->exits_by_kind()) (*vm.mutable_exits_by_kind())[kind] = count;
    vm.set_exits(guest.machine->exits());
    for (v1::VcpuTimes& times : guest.machine->vcpu_times()) *vm.add_vcpu_times() = std::move(times);
    vm.set_vcpu_moves(guest.machine->vcpu_moves());
    for (v1::NodeClock& clock : guest.machine->clocks()) *vm.add_clocks() = std::move(clock);
    vm.set_tsc_unstable(guest.machine->tsc_unstable());
    vm.set_exits_per_second(guest.exit_rate.per_second());
    for (std::string& device : guest.machine->broken_devices()) *vm.add_broken_devices() = std::move(device);
  }
  constexpr std::pair<const char*, Channel> kChannels[] = {
      {"serial", Channel::kSerial}, {"virtio", Channel::kVirtioConsole}, {"agent", Channel::kAgent}};
  for (const auto& [name, channel] : kChannels) {
    v1::VmChannel* view = vm.add_channels();
    view->set_name(name);
    if (guest.channels != nullptr) view->set_output_bytes(guest.channels->output_bytes(channel));
  }
  return vm;
}

void GuestManager::SetState(Guest* guest, v1::VmState state, std::string reason) {
  if (guest->state != state) {
    const v1::VmSpec& spec = guest->record.spec();
    log::Write(state == v1::VM_STATE_CRASHED ? log::Level::kError : log::Level::kInfo, "guest", NameOf(state),
               {{"guest", spec.name()},
                {"was", NameOf(guest->state)},
                {"reason", reason},
                {"generation", fmt::to_string(guest->record.generation())},
                {"vcpus", fmt::to_string(spec.vcpus())},
                {"memory_mib", fmt::to_string(spec.memory_mib())}});
    guest->since = clock_.Wall();
  }
  guest->state = state;
  guest->reason = std::move(reason);
}

// A record that goes on saying "running" is only a wrong reason after the next start of the daemon.
void GuestManager::RecordStopped(Guest* guest) {
  guest->record.set_running(false);
  if (const absl::Status status = records_.Put(guest->record); !status.ok()) {
    log::Error("guest", "the end cannot be recorded",
               {{"guest", guest->record.spec().name()}, {"error", MessageOf(status)}});
  }
}

absl::StatusOr<Guest*> GuestManager::FindIdle(const std::string& name) {
  const auto deadline = std::chrono::steady_clock::now() + kBusyWait;
  while (true) {
    const auto found = guests_.find(name);
    if (found == guests_.end()) return NotFound(name);
    if (!found->second->busy) return found->second.get();
    if (!changed_.WaitUntil(&mutex_, deadline)) {
      return absl::FailedPreconditionError(fmt::format("vm '{}': another operation is under way; try again", name));
    }
  }
}

absl::Status GuestManager::Delete(const std::string& name) {
  Guest* guest = nullptr;
  {
    MutexLock lock(&mutex_);
    HK_ASSIGN_OR_RETURN(guest, FindIdle(name));
    if (guest->machine != nullptr) {
      return absl::FailedPreconditionError(
          fmt::format("vm '{}' is {}; stop it first (hkctl vm stop {} --force)", name, NameOf(guest->state), name));
    }
    guest->busy = true;
  }
  // What a killed daemon left of it goes too, before there can be another of its name.
  Forget(name);
  MutexLock lock(&mutex_);
  GiveBack(guest);
  HK_RETURN_IF_ERROR(records_.Delete(name));
  guests_.erase(name);
  log::Info("guest", "deleted", {{"guest", name}});
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const GuestChannels>> GuestManager::Channels(const std::string& name) const {
  MutexLock lock(&mutex_);
  const auto found = guests_.find(name);
  if (found == guests_.end()) return NotFound(name);
  if (found->second->channels == nullptr) {
    return absl::FailedPreconditionError(
        fmt::format("vm '{}' has not run since this daemon started; hkctl vm start {}", name, name));
  }
  return std::shared_ptr<const GuestChannels>(found->second->channels);
}

absl::StatusOr<Machine*> GuestManager::FindRunning(const std::string& name, uint64_t generation) {
  const auto found = guests_.find(name);
  if (found == guests_.end()) return NotFound(name);
  const Guest& guest = *found->second;
  const bool same = generation == 0 || guest.record.generation() == generation;
  if (guest.busy && same) return nullptr;
  if (guest.machine == nullptr || !same) {
    return absl::FailedPreconditionError(
        fmt::format("vm '{}' is {}, not running", name, same ? NameOf(guest.state) : "another run already"));
  }
  return guest.machine.get();
}

absl::StatusOr<size_t> GuestManager::ConsoleInput(const std::string& name, Channel channel, std::string_view bytes) {
  MutexLock lock(&mutex_);
  HK_ASSIGN_OR_RETURN(Machine* const machine, FindRunning(name, 0));
  return machine == nullptr ? 0 : machine->Input(channel, bytes);
}

void GuestManager::ResizeConsole(const std::string& name, uint16_t columns, uint16_t rows) {
  MutexLock lock(&mutex_);
  const absl::StatusOr<Machine*> machine = FindRunning(name, 0);
  if (machine.ok() && *machine != nullptr) (*machine)->ResizeConsole(columns, rows);
}

absl::StatusOr<GuestCommandResult> GuestManager::Exec(const std::string& name, const GuestCommand& command,
                                                      Monotonic::duration timeout,
                                                      const std::function<bool()>& cancelled) {
  std::shared_ptr<GuestChannels> channels;
  uint64_t generation = 0;
  {
    MutexLock lock(&mutex_);
    HK_ASSIGN_OR_RETURN(const Guest* guest, FindIdle(name));
    if (guest->state != v1::VM_STATE_RUNNING && guest->state != v1::VM_STATE_STOPPING) {
      const bool paused = guest->state == v1::VM_STATE_PAUSED;
      return absl::FailedPreconditionError(fmt::format("vm '{}' is {}, not running; hkctl vm {} {}", name,
                                                       NameOf(guest->state), paused ? "unpause" : "start", name));
    }
    channels = guest->channels;
    generation = guest->record.generation();
  }
  const AgentSender send = [this, &name, generation](std::string_view bytes) -> absl::StatusOr<size_t> {
    MutexLock lock(&mutex_);
    HK_ASSIGN_OR_RETURN(Machine* const machine, FindRunning(name, generation));
    return machine == nullptr ? 0 : machine->Input(Channel::kAgent, bytes);
  };
  return RunGuestCommand(command, &channels->agent(), send, timeout, cancelled, clock_);
}

void GuestManager::Report(Ended ended) {
  {
    MutexLock lock(&mutex_);
    if (stopping_) return;
    ended_.push_back(std::move(ended));
  }
  changed_.SignalAll();
}

void GuestManager::SampleRates() {
  for (const auto& [name, guest] : guests_) {
    if (guest->machine != nullptr && !guest->busy) guest->exit_rate.Sample(guest->machine->exits(), clock_.Now());
  }
}

void GuestManager::Run() {
  while (true) {
    Ended ended;
    {
      MutexLock lock(&mutex_);
      auto next_sample = std::chrono::steady_clock::now() + kSampleInterval;
      while (!stopping_ && ended_.empty()) {
        if (changed_.WaitUntil(&mutex_, next_sample)) continue;
        SampleRates();
        next_sample = std::chrono::steady_clock::now() + kSampleInterval;
      }
      if (stopping_) return;
      ended = std::move(ended_.front());
      ended_.pop_front();
    }
    if (HandleEnd(ended)) continue;
    MutexLock lock(&mutex_);
    ended_.push_back(std::move(ended));  // FindIdle has waited: this does not spin
  }
}

bool GuestManager::HandleEnd(const Ended& ended) {
  AfterEnd after;
  v1::VmSpec spec;
  {
    MutexLock lock(&mutex_);
    const absl::StatusOr<Guest*> found = FindIdle(ended.name);
    if (absl::IsFailedPrecondition(found.status())) return false;
    if (!found.ok() || (*found)->machine == nullptr || (*found)->record.generation() != ended.generation) return true;
    Guest* const guest = *found;
    spec = guest->record.spec();
    after = guest->end_rule.Decide(ended.end, ended.reason, guest->record.spec().on_crash(), clock_.Now());
  }
  absl::Status status;
  if (after.restart) {
    status = Restart(ended.name, after.state, after.reason, *after.restart, false);
    if (!status.ok() && ComesLater(spec, status)) {
      StartLater(ended.name, absl::Status(status.code(), fmt::format("{} ({})", MessageOf(status), after.reason)));
    }
  } else {
    status = ForceStop(ended.name, after.state, after.reason);
  }
  if (!status.ok()) log::Error("guest", "end of a guest", {{"guest", ended.name}, {"error", MessageOf(status)}});
  MutexLock lock(&mutex_);
  const auto found = guests_.find(ended.name);
  if (found == guests_.end() || found->second->machine != nullptr || found->second->busy) return true;
  if (found->second->channels != nullptr) found->second->channels->End();
  return true;
}

}  // namespace hk
