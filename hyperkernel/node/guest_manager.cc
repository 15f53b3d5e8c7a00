#include "hyperkernel/node/guest_manager.h"

#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/membership.h"
#include "hyperkernel/node/vm_spec.h"
#include "proto/state.pb.h"

namespace hk {
namespace {

constexpr char kKeyPrefix[] = "vm/";
// More machines than this on one node is a script gone wrong.
constexpr size_t kMaxGuests = 1024;
// The manager's thread looks up at least this often; events wake it earlier.
constexpr std::chrono::seconds kIdleWait(60);
// An operator who orders something while the guest's own end is being handled waits this long for it.
constexpr std::chrono::seconds kBusyWait(5);

absl::Status NotFound(const std::string& name) {
  return absl::NotFoundError(fmt::format("no vm '{}' on this node; see hkctl vm list", name));
}

const char* NameOf(v1::VmState state) {
  switch (state) {
    case v1::VM_STATE_STOPPED:
      return "stopped";
    case v1::VM_STATE_STARTING:
      return "starting";
    case v1::VM_STATE_RUNNING:
      return "running";
    case v1::VM_STATE_PAUSED:
      return "paused";
    case v1::VM_STATE_STOPPING:
      return "stopping";
    case v1::VM_STATE_CRASHED:
      return "crashed";
    default:
      return "unknown";
  }
}

bool IsLive(v1::VmState state) {
  return state == v1::VM_STATE_RUNNING || state == v1::VM_STATE_PAUSED || state == v1::VM_STATE_STOPPING;
}

}  // namespace

// Hands a machine's events on; one per run, so that an event knows its generation.
class GuestManager::Events final : public MachineEvents {
 public:
  Events(GuestManager* manager, std::string name, uint64_t generation, std::shared_ptr<ConsoleLog> console)
      : manager_(manager), name_(std::move(name)), generation_(generation), console_(std::move(console)) {}
  void OnConsoleOutput(std::string_view bytes) override { console_->Append(bytes); }
  void OnEnd(MachineEnd end, const std::string& reason) override {
    manager_->Report({name_, generation_, end, reason});
  }

 private:
  GuestManager* const manager_;
  const std::string name_;
  const uint64_t generation_;
  const std::shared_ptr<ConsoleLog> console_;
};

struct GuestManager::Guest {
  v1::VmRecord record;
  v1::VmState state = v1::VM_STATE_STOPPED;
  std::string reason;
  WallTime since;
  bool busy = false;  // an operation is under way without the lock: its owner alone touches events and machine
  std::shared_ptr<ConsoleLog> console;
  std::unique_ptr<Events> events;
  std::unique_ptr<Machine> machine;  // after events: it uses them
};

GuestManager::GuestManager(StateStore* store, std::string node, MachineChecker check, MachineFactory make,
                           const Clock& clock)
    : store_(store), node_(std::move(node)), check_(std::move(check)), make_(std::move(make)), clock_(clock) {}

absl::StatusOr<std::unique_ptr<GuestManager>> GuestManager::Open(StateStore* store, std::string node,
                                                                 MachineChecker check, MachineFactory make,
                                                                 const Clock& clock) {
  std::unique_ptr<GuestManager> manager(
      new GuestManager(store, std::move(node), std::move(check), std::move(make), clock));
  HK_ASSIGN_OR_RETURN(const auto entries, store->List(kKeyPrefix));
  {
    MutexLock lock(&manager->mutex_);
    for (const auto& [key, value] : entries) {
      auto guest = std::make_unique<Guest>();
      if (!guest->record.ParseFromString(value))
        return absl::DataLossError(fmt::format("state store: {} is damaged", key));
      guest->since = clock.Wall();
      if (guest->record.running())
        guest->reason = "its daemon ended without stopping it (killed, or the host went down)";
      const std::string name = guest->record.spec().name();
      manager->guests_[name] = std::move(guest);
    }
  }
  manager->thread_ = std::thread(&GuestManager::Run, manager.get());
  return manager;
}

GuestManager::~GuestManager() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
  }
  changed_.SignalAll();
  if (thread_.joinable()) thread_.join();
  std::map<std::string, std::unique_ptr<Guest>> doomed;
  {
    MutexLock lock(&mutex_);
    doomed.swap(guests_);
  }
  for (auto& [name, guest] : doomed) {
    const bool ran = guest->machine != nullptr;
    guest->machine.reset();  // its last events take the lock
    if (ran) RecordStopped(guest.get());
    if (guest->console != nullptr) guest->console->End();
  }
}

void GuestManager::Autostart() {
  std::vector<std::string> names;
  {
    MutexLock lock(&mutex_);
    for (const auto& [name, guest] : guests_) {
      if (guest->record.spec().autostart()) names.push_back(name);
    }
  }
  for (const std::string& name : names) {
    if (const absl::Status status = Start(name, false); !status.ok()) {
      log::Error("guest", "autostart failed", {{"guest", name}, {"error", MessageOf(status)}});
    }
  }
}

absl::StatusOr<v1::Vm> GuestManager::Create(const v1::VmSpec& spec, bool dry_run) {
  HK_ASSIGN_OR_RETURN(const v1::VmSpec complete, CompleteVmSpec(spec));
  HK_RETURN_IF_ERROR(check_(complete));
  auto guest = std::make_unique<Guest>();
  *guest->record.mutable_spec() = complete;
  guest->since = clock_.Wall();
  MutexLock lock(&mutex_);
  if (guests_.count(complete.name()) != 0) {
    return absl::AlreadyExistsError(
        fmt::format("vm '{}' is defined already; see hkctl vm show {}", complete.name(), complete.name()));
  }
  if (guests_.size() >= kMaxGuests)
    return absl::ResourceExhaustedError(fmt::format("{} machines are defined, which is the most", kMaxGuests));
  if (dry_run) return View(*guest);
  HK_RETURN_IF_ERROR(store_->Put(kKeyPrefix + complete.name(), guest->record));
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
  if (guest.machine != nullptr && !guest.busy) {
    vm.set_frame_bytes(guest.machine->frame_bytes());
    for (const auto& [kind, count] : guest.machine->exits_by_kind()) (*vm.mutable_exits_by_kind())[kind] = count;
    vm.set_exits(guest.machine->exits());
  }
  return vm;
}

void GuestManager::SetState(Guest* guest, v1::VmState state, std::string reason) {
  if (guest->state != state) {
    log::Write(state == v1::VM_STATE_CRASHED ? log::Level::kError : log::Level::kInfo, "guest", NameOf(state),
               {{"guest", guest->record.spec().name()}, {"reason", reason}});
    guest->since = clock_.Wall();
  }
  guest->state = state;
  guest->reason = std::move(reason);
}

// A record that goes on saying "running" is only a wrong reason after the next start of the daemon.
void GuestManager::RecordStopped(Guest* guest) {
  guest->record.set_running(false);
  const std::string& name = guest->record.spec().name();
  if (const absl::Status status = store_->Put(kKeyPrefix + name, guest->record); !status.ok()) {
    log::Error("guest", "the end cannot be recorded", {{"guest", name}, {"error", MessageOf(status)}});
  }
}

absl::StatusOr<GuestManager::Guest*> GuestManager::FindIdle(const std::string& name) {
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
  MutexLock lock(&mutex_);
  HK_ASSIGN_OR_RETURN(Guest * guest, FindIdle(name));
  if (guest->machine != nullptr) {
    return absl::FailedPreconditionError(
        fmt::format("vm '{}' is {}; stop it first (hkctl vm stop {} --force)", name, NameOf(guest->state), name));
  }
  HK_RETURN_IF_ERROR(store_->Delete(kKeyPrefix + name));
  guests_.erase(name);
  log::Info("guest", "deleted", {{"guest", name}});
  return absl::OkStatus();
}

absl::Status GuestManager::Start(const std::string& name, bool keep_console) {
  v1::VmSpec spec;
  uint64_t generation = 0;
  Guest* guest = nullptr;
  {
    MutexLock lock(&mutex_);
    HK_ASSIGN_OR_RETURN(guest, FindIdle(name));
    if (guest->machine != nullptr)
      return absl::FailedPreconditionError(fmt::format("vm '{}' is {} already", name, NameOf(guest->state)));
    guest->record.set_generation(guest->record.generation() + 1);
    guest->record.set_running(true);
    HK_RETURN_IF_ERROR(store_->Put(kKeyPrefix + name, guest->record));
    spec = guest->record.spec();
    generation = guest->record.generation();
    if (!keep_console || guest->console == nullptr) guest->console = std::make_shared<ConsoleLog>();
    guest->events = std::make_unique<Events>(this, name, generation, guest->console);
    guest->busy = true;
    SetState(guest, v1::VM_STATE_STARTING, "");
  }
  absl::StatusOr<std::unique_ptr<Machine>> machine = make_(spec, generation, guest->events.get());
  MutexLock lock(&mutex_);
  guest->busy = false;
  changed_.SignalAll();
  if (!machine.ok()) {
    guest->console->End();
    RecordStopped(guest);
    SetState(guest, v1::VM_STATE_STOPPED, fmt::format("start failed: {}", MessageOf(machine.status())));
    return machine.status();
  }
  guest->machine = *std::move(machine);
  SetState(guest, v1::VM_STATE_RUNNING, "");
  return absl::OkStatus();
}

absl::Status GuestManager::ForceStop(const std::string& name, v1::VmState state, const std::string& reason) {
  std::unique_ptr<Machine> machine;
  std::unique_ptr<Events> events;
  Guest* guest = nullptr;
  {
    MutexLock lock(&mutex_);
    HK_ASSIGN_OR_RETURN(guest, FindIdle(name));
    if (guest->machine == nullptr)
      return absl::FailedPreconditionError(fmt::format("vm '{}' is {}", name, NameOf(guest->state)));
    guest->busy = true;
    machine = std::move(guest->machine);
    events = std::move(guest->events);
    SetState(guest, v1::VM_STATE_STOPPING, reason);
  }
  machine.reset();
  MutexLock lock(&mutex_);
  guest->busy = false;
  changed_.SignalAll();
  RecordStopped(guest);
  SetState(guest, state, reason);
  return absl::OkStatus();
}

absl::Status GuestManager::PauseOrUnpause(const std::string& name, bool pause) {
  Guest* guest = nullptr;
  Machine* machine = nullptr;
  {
    MutexLock lock(&mutex_);
    HK_ASSIGN_OR_RETURN(guest, FindIdle(name));
    const v1::VmState from = pause ? v1::VM_STATE_RUNNING : v1::VM_STATE_PAUSED;
    if (guest->state != from) {
      return absl::FailedPreconditionError(
          fmt::format("vm '{}' is {}, not {}", name, NameOf(guest->state), NameOf(from)));
    }
    guest->busy = true;
    machine = guest->machine.get();
  }
  const absl::Status status = pause ? machine->Pause() : machine->Unpause();
  MutexLock lock(&mutex_);
  guest->busy = false;
  changed_.SignalAll();
  if (status.ok()) SetState(guest, pause ? v1::VM_STATE_PAUSED : v1::VM_STATE_RUNNING, "");
  return status;
}

absl::Status GuestManager::PressPowerButton(const std::string& name) {
  Guest* guest = nullptr;
  Machine* machine = nullptr;
  {
    MutexLock lock(&mutex_);
    HK_ASSIGN_OR_RETURN(guest, FindIdle(name));
    if (guest->state != v1::VM_STATE_RUNNING && guest->state != v1::VM_STATE_STOPPING) {
      return absl::FailedPreconditionError(fmt::format("vm '{}' is {}, not running", name, NameOf(guest->state)));
    }
    guest->busy = true;
    machine = guest->machine.get();
    SetState(guest, v1::VM_STATE_STOPPING, "power button pressed");
  }
  machine->PressPowerButton();  // without the lock: a machine may tell of its end at once
  MutexLock lock(&mutex_);
  guest->busy = false;
  changed_.SignalAll();
  return absl::OkStatus();
}

absl::Status GuestManager::Reset(const std::string& name) {
  {
    MutexLock lock(&mutex_);
    HK_ASSIGN_OR_RETURN(const Guest* guest, FindIdle(name));
    if (!IsLive(guest->state))
      return absl::FailedPreconditionError(fmt::format("vm '{}' is {}, not running", name, NameOf(guest->state)));
  }
  HK_RETURN_IF_ERROR(ForceStop(name, v1::VM_STATE_STOPPED, "reset"));
  return Start(name, true);
}

absl::StatusOr<v1::Vm> GuestManager::Control(const std::string& name, v1::VmAction action) {
  absl::Status status;
  switch (action) {
    case v1::VM_ACTION_START:
      status = Start(name, false);
      break;
    case v1::VM_ACTION_STOP:
      status = PressPowerButton(name);
      break;
    case v1::VM_ACTION_FORCE_STOP:
      status = ForceStop(name, v1::VM_STATE_STOPPED, "");
      if (status.ok()) {
        MutexLock lock(&mutex_);
        const auto found = guests_.find(name);
        if (found != guests_.end() && found->second->console != nullptr) found->second->console->End();
      }
      break;
    case v1::VM_ACTION_RESET:
      status = Reset(name);
      break;
    case v1::VM_ACTION_PAUSE:
    case v1::VM_ACTION_UNPAUSE:
      status = PauseOrUnpause(name, action == v1::VM_ACTION_PAUSE);
      break;
    default:
      status = absl::InvalidArgumentError("action: not one this daemon knows");
  }
  if (!status.ok()) return status;
  return Get(name);
}

absl::StatusOr<std::shared_ptr<const ConsoleLog>> GuestManager::Console(const std::string& name) const {
  MutexLock lock(&mutex_);
  const auto found = guests_.find(name);
  if (found == guests_.end()) return NotFound(name);
  if (found->second->console == nullptr)
    return absl::FailedPreconditionError(
        fmt::format("vm '{}' has not run since this daemon started; hkctl vm start {}", name, name));
  return std::shared_ptr<const ConsoleLog>(found->second->console);
}

absl::Status GuestManager::ConsoleInput(const std::string& name, std::string_view bytes) {
  MutexLock lock(&mutex_);
  const auto found = guests_.find(name);
  if (found == guests_.end()) return NotFound(name);
  if (found->second->machine == nullptr || found->second->busy) {
    return absl::FailedPreconditionError(fmt::format("vm '{}' is {}", name, NameOf(found->second->state)));
  }
  found->second->machine->ConsoleInput(bytes);
  return absl::OkStatus();
}

void GuestManager::Report(Ended ended) {
  {
    MutexLock lock(&mutex_);
    if (stopping_) return;
    ended_.push_back(std::move(ended));
  }
  changed_.SignalAll();
}

void GuestManager::Run() {
  while (true) {
    Ended ended;
    {
      MutexLock lock(&mutex_);
      while (!stopping_ && ended_.empty()) changed_.WaitUntil(&mutex_, std::chrono::steady_clock::now() + kIdleWait);
      if (stopping_) return;
      ended = std::move(ended_.front());
      ended_.pop_front();
    }
    HandleEnd(ended);
  }
}

void GuestManager::HandleEnd(const Ended& ended) {
  bool restart = ended.end == MachineEnd::kReset;
  {
    MutexLock lock(&mutex_);
    const absl::StatusOr<Guest*> guest = FindIdle(ended.name);
    if (!guest.ok() || (*guest)->machine == nullptr || (*guest)->record.generation() != ended.generation) return;
    restart = restart || (ended.end == MachineEnd::kCrash && (*guest)->record.spec().on_crash() == v1::ON_CRASH_RESET);
  }
  const v1::VmState state = ended.end == MachineEnd::kCrash ? v1::VM_STATE_CRASHED : v1::VM_STATE_STOPPED;
  const std::string reason = ended.end == MachineEnd::kCrash   ? ended.reason
                             : ended.end == MachineEnd::kReset ? "reset by the guest"
                                                               : "powered off by the guest";
  absl::Status status = ForceStop(ended.name, state, reason);
  if (status.ok() && restart) status = Start(ended.name, true);
  if (!status.ok()) log::Error("guest", "end of a guest", {{"guest", ended.name}, {"error", MessageOf(status)}});
  MutexLock lock(&mutex_);
  const auto found = guests_.find(ended.name);
  if (found != guests_.end() && found->second->machine == nullptr && !found->second->busy)
    found->second->console->End();
}

}  // namespace hk
