#include "hyperkernel/node/kvm_machine.h"

#include <x86intrin.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/boot/address_map.h"
#include "hyperkernel/boot/linux_loader.h"
#include "hyperkernel/irq/interrupt_controller.h"
#include "hyperkernel/kvm/cpu_model.h"
#include "hyperkernel/kvm/vcpu_group.h"
#include "hyperkernel/kvm/vcpu_mover.h"
#include "hyperkernel/memory/guest_memory.h"
#include "hyperkernel/node/machine_backends.h"
#include "hyperkernel/node/machine_boot.h"
#include "hyperkernel/node/machine_counters.h"
#include "hyperkernel/node/machine_cpu.h"
#include "hyperkernel/node/machine_devices.h"
#include "hyperkernel/node/machine_saving.h"
#include "hyperkernel/node/machine_virtio.h"
#include "hyperkernel/node/machine_voice.h"
#include "hyperkernel/node/move_steps.h"
#include "hyperkernel/node/vcpu_waits.h"
#include "hyperkernel/node/vm_spec.h"

namespace hk {
namespace {

// A vCPU leaves KVM_RUN within microseconds of a kick; one that waits for a page of a slow disk or peer, within its
// time-out.
constexpr std::chrono::seconds kPauseDeadline(5);
constexpr std::chrono::seconds kStopDeadline(10);
// Before it ends; whatever does not stop by then is stopped with its memory.
constexpr std::chrono::milliseconds kEndPause(500);
// A vCPU that waits for a page for longer than that does not keep the others from running: the next look steps.
constexpr std::chrono::milliseconds kClockStepDeadline(100);
// A disk answers or fails within this, unless it is a network's; hkctl waits for its answer longer.
constexpr std::chrono::seconds kIoDeadline(5);

constexpr char kDisksSection[] = "disks";

// One running guest. Members are in the order they depend on one another; the destructor stops the vCPUs first.
class KvmMachine final : public Machine, public ExitHandler {
 public:
  KvmMachine(const v1::VmSpec& spec, MachineMemory memory, std::unique_ptr<MachineSpread> spread,
             std::shared_ptr<MachinePolicy> policy, const KernelCache& kernels, const Clock& clock,
             MachineEvents* events)
      : spec_(spec),
        memory_source_(std::move(memory)),
        spread_(std::move(spread)),
        policy_(std::move(policy)),
        kernels_(kernels),
        clock_(clock),
        voice_(std::make_shared<MachineVoice>(events)),
        waits_(spec.vcpus()),
        vcpus_(std::make_unique<VcpuGroup>(spec.vcpus())) {}
  ~KvmMachine() override;

  absl::Status Build(MachineBackends backends);
  absl::Status Run();
  // Instead of both. Paused then.
  absl::Status BuildFrom(const MachineState& state, MachineBackends backends);

  size_t Input(Channel channel, std::string_view bytes) override {
    return channel == Channel::kSerial ? devices_->ConsoleInput(bytes) : virtio_->Input(channel, bytes);
  }
  void ResizeConsole(uint16_t columns, uint16_t rows) override { virtio_->ResizeConsole(columns, rows); }
  void PressPowerButton() override { devices_->PressPowerButton(); }
  absl::Status Pause() override;
  absl::Status Unpause() override;
  absl::Status Renew(Monotonic deadline) override;
  absl::StatusOr<VcpuMoved> MoveVcpu(VcpuId vcpu, const std::string& node) override;
  absl::StatusOr<MachineState> Save() override;
  absl::Status GoOn() override;
  void LeaveFrames() override;
  uint64_t frame_bytes() const override { return memory_->frame_bytes(); }
  SpaceStatistics memory_statistics() const override { return memory_->Statistics(); }
  std::vector<ExtentUse> memory_uses(uint64_t first, size_t most) const override { return memory_->Uses(first, most); }
  uint64_t memory_end() const override {
    const GuestMemory::Slot& last = memory_->slots().back();
    return last.start.value() + last.bytes;
  }
  uint64_t exits() const override;
  CpuidEntries cpu_model() const override { return spread_ == nullptr ? CpuidEntries() : spread_->cpu_model(); }
  bool tsc_unstable() const override { return spread_ != nullptr && !spread_->one_host(); }
  std::map<std::string, uint64_t> exits_by_kind() const override;
  std::vector<v1::VcpuTimes> vcpu_times() const override;
  std::vector<v1::NodeClock> clocks() const override {
    return spread_ == nullptr ? std::vector<v1::NodeClock>() : spread_->clocks();
  }
  uint64_t vcpu_moves() const override { return spread_ == nullptr ? 0 : spread_->vcpu_moves(); }
  std::shared_ptr<MachinePolicy> policy() const override { return policy_; }
  std::vector<std::string> broken_devices() const override { return virtio_->Broken(); }

 private:
  absl::Status BuildMemory(Vm* vm);
  absl::Status BuildDevices(MachineBackends backends, Vm* vm);
  absl::Status StartDevices();
  void EndDevices();
  absl::StatusOr<CpuModel> ChooseCpu(const Vm& vm);
  absl::Status BuildInterrupts();
  absl::Status BuildVcpus(std::unique_ptr<Vm> vm, const CpuModel& model);
  // What each vCPU talks to.
  VcpuGroup::EnvironmentOf Environments();
  void MakeClock(const PvClockOrigin& origin);
  MachineInterior Interior();
  void Crash(const std::string& reason);
  absl::Status StepTsc(uint64_t ticks);

  // ExitHandler
  void PortRead(uint16_t port, std::span<std::byte> data) override { devices_->ports().Read(port, data); }
  void PortWrite(uint16_t port, std::span<const std::byte> data) override { devices_->ports().Write(port, data); }
  void MmioRead(Gpa address, std::span<std::byte> data) override { devices_->mmio().Read(address.value(), data); }
  void MmioWrite(Gpa address, std::span<const std::byte> data) override {
    devices_->mmio().Write(address.value(), data);
  }
  void OnGuestFailure(VcpuId vcpu, const std::string& reason) override {
    const std::string where = spread_ == nullptr ? "" : fmt::format(" (node '{}')", spread_->NodeOf(vcpu));
    Crash(fmt::format("vCPU {}{}: {}", vcpu.value(), where, reason));
  }

  const v1::VmSpec spec_;
  MachineMemory memory_source_;
  std::unique_ptr<MachineSpread> spread_;        // null: all vCPUs are here; before the controllers, which use its link
  const std::shared_ptr<MachinePolicy> policy_;  // null: no vCPU waits for another node
  const KernelCache& kernels_;
  const Clock& clock_;
  const std::shared_ptr<MachineVoice> voice_;
  bool pm_timer_ = false;          // only for guests that have no clock of ours: see boot/README.md
  bool x2apic_ = false;            // local APICs begin in that mode
  bool devices_work_ = false;      // they have threads, which a reset asks
  std::atomic<bool> runs_{false};  // or is about to: not paused by an operator
  std::unique_ptr<GuestMemory> memory_;
  std::unique_ptr<PvClock> pv_clock_;
  VcpuWaits waits_;                   // before the vCPUs, whose threads tell it of themselves
  std::unique_ptr<VcpuGroup> vcpus_;  // the VM too; emptied first, and there as long as what follows may wake someone
  std::unique_ptr<InterruptController> interrupts_;
  std::optional<VcpuMover> mover_;  // with spread_
  std::optional<MoveSteps> move_steps_;
  std::unique_ptr<MachineDevices> devices_;
  std::unique_ptr<MachineVirtio> virtio_;
};

KvmMachine::~KvmMachine() {
  voice_->ForgetEnd();
  if (policy_ != nullptr) policy_->End();
  if (spread_ != nullptr) {
    // All vCPUs end best while there is memory; those here first, since other nodes may be long in answering.
    static_cast<void>(vcpus_->Pause(clock_.Now() + kEndPause));
    spread_->End();
  }
  if (memory_ != nullptr) memory_->Abandon();  // a vCPU that waits for a page does not stop before it has it
  if (const absl::Status status = vcpus_->Stop(clock_.Now() + kStopDeadline); !status.ok()) {
    log::Error("guest", "a vCPU does not stop", {{"guest", spec_.name()}, {"error", MessageOf(status)}});
  }
  if (spread_ != nullptr) spread_->Close();  // no exit of another node's uses a device from here on
  if (move_steps_.has_value()) move_steps_->Stop();
  EndDevices();
  voice_->Silence();
  if (vcpus_ != nullptr) vcpus_->Clear();
  memory_.reset();
  if (memory_source_.ended) memory_source_.ended();
}

// vCPUs are stopped, but still there to be woken by an interrupt. If I/O does not end, what it reads and writes is kept
// until it has: on a thread of its own, since nobody may have to wait for that.
void KvmMachine::EndDevices() {
  if (virtio_ == nullptr) return;
  if (!devices_work_) return virtio_.reset();  // no I/O is in flight, and nothing of the guest's is touched
  const absl::Status status = virtio_->Quiesce(clock_.Now() + kIoDeadline);
  if (status.ok()) return virtio_.reset();
  log::Error("guest", "I/O of a device does not end; its memory and images are kept until it does",
             {{"guest", spec_.name()}, {"error", MessageOf(status)}});
  struct Remains {
    std::unique_ptr<GuestMemory> memory;
    std::unique_ptr<MachineSpread> spread;
    std::unique_ptr<VcpuGroup> vcpus;
    std::unique_ptr<InterruptController> interrupts;
    std::unique_ptr<MachineDevices> devices;
    std::unique_ptr<MachineVirtio> virtio;
    std::function<void()> ended;
  };
  virtio_->MoveDoorbellsTo(nullptr);
  vcpus_->Clear();  // and the VM, before the memory it maps
  auto remains = std::make_unique<Remains>(Remains{std::move(memory_), std::move(spread_), std::move(vcpus_),
                                                   std::move(interrupts_), std::move(devices_), std::move(virtio_),
                                                   std::exchange(memory_source_.ended, nullptr)});
  std::thread([remains = std::move(remains), name = spec_.name()]() mutable {
    const std::function<void()> ended = std::move(remains->ended);
    remains.reset();
    if (ended) ended();
    log::Info("guest", "the I/O has ended", {{"guest", name}});
  }).detach();
}

absl::Status KvmMachine::BuildMemory(Vm* vm) {
  std::vector<RamRange> ranges;
  for (const RamPiece& piece : RamLayout(spec_.memory_mib() << 20)) ranges.push_back({piece.start, piece.bytes});
  absl::StatusOr<std::unique_ptr<GuestMemory>> memory =
      memory_source_.make(std::move(ranges), [voice = voice_](const absl::Status& reason) {
        voice->End(MachineEnd::kCrash, fmt::format("guest memory: {}", MessageOf(reason)));
      });
  if (!memory.ok()) return memory.status();
  memory_ = *std::move(memory);
  // Before anything writes to it, or may come to.
  if (memory_source_.replica != nullptr && !memory_source_.replica->Attach(memory_.get())) {
    memory_source_.replica = nullptr;
  }
  for (const GuestMemory::Slot& slot : memory_->slots()) {
    HK_RETURN_IF_ERROR(vm->AddMemory({.start = slot.start, .bytes = slot.bytes, .host = slot.guest_view}).status());
  }
  return absl::OkStatus();
}

absl::Status KvmMachine::BuildDevices(MachineBackends backends, Vm* vm) {
  // Nothing here may hold the machine itself: devices may outlive it.
  const auto output = [voice = voice_](Channel channel, std::string_view bytes) { voice->Output(channel, bytes); };
  const auto request = [voice = voice_, name = spec_.name()](GuestRequest wish) {
    switch (wish) {
      case GuestRequest::kReset:
        return voice->End(MachineEnd::kReset, "");
      case GuestRequest::kPowerOff:
        return voice->End(MachineEnd::kPowerOff, "");
      case GuestRequest::kPanicked:
        return voice->End(MachineEnd::kCrash, "the guest's kernel panicked (pvpanic)");
      case GuestRequest::kCrashLoaded:
        return log::Warning("guest", "the guest's kernel panicked and runs its crash kernel", {{"guest", name}});
    }
  };
  HK_ASSIGN_OR_RETURN(
      devices_,
      MachineDevices::Create(interrupts_.get(), clock_, pm_timer_,
                             {.console_output = [output](std::string_view bytes) { output(Channel::kSerial, bytes); },
                              .request = request}));
  HK_ASSIGN_OR_RETURN(virtio_, MachineVirtio::Create(spec_, std::move(backends), memory_.get(), &devices_->pci(),
                                                     &devices_->interrupts(), output, memory_source_.replica.get()));
  return virtio_->AttachTo(vm);
}

absl::Status KvmMachine::StartDevices() {
  devices_work_ = true;
  return virtio_->Start();
}

void KvmMachine::MakeClock(const PvClockOrigin& origin) {
  pv_clock_ = std::make_unique<PvClock>(
      origin, spec_.vcpus(), [this](Gpa to, std::span<const std::byte> bytes) { return memory_->Write(to, bytes); });
}

VcpuGroup::EnvironmentOf KvmMachine::Environments() {
  PvEoi::WordAt guest_word;
  if (memory_->most_pinned_bytes() == 0) {
    guest_word = [this](Gpa at) { return memory_->Pin(at, sizeof(uint32_t), PageAccess::kWrite, nullptr); };
  }
  return [this, guest_word](VcpuId id) {
    return VcpuEnvironment{.devices = this,
                           .interrupts = &interrupts_->vcpu(id),
                           .clock = pv_clock_.get(),
                           .guest_word = guest_word,
                           .paced = memory_source_.space != nullptr,
                           .threads = &waits_};
  };
}

absl::Status KvmMachine::BuildVcpus(std::unique_ptr<Vm> vm, const CpuModel& model) {
  // The guest's TSC begins at about 0, the same on all its vCPUs, and its kvmclock with it.
  const uint64_t offset = uint64_t{0} - __rdtsc();
  const uint32_t tsc_khz = vm->facts().tsc_khz;
  const auto wall = static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(clock_.Wall().time_since_epoch()).count());
  if (tsc_khz != 0) MakeClock({.wall_ns = wall, .tsc_khz = tsc_khz, .stable = !tsc_unstable()});
  const std::vector<std::string> nodes = VcpuNodes(spec_);
  const uint32_t package = VcpusOfPackage<std::string>(nodes);
  const auto config = [model, count = spec_.vcpus(), package, offset](VcpuId id) {
    return VcpuConfig{.id = id, .cpuid = model.Cpuid(id.value(), count, package), .tsc_offset = offset};
  };
  std::vector<VcpuConfig> configs;
  for (uint32_t i = 0; i < spec_.vcpus(); i++) {
    if (spread_ == nullptr || spread_->Here(VcpuId(i))) configs.push_back(config(VcpuId(i)));
  }
  waits_.SetMeter(memory_->faults());
  if (policy_ != nullptr) {
    policy_->SetLocal(memory_->faults());
    policy_->SetTimes([this] { return vcpu_times(); });
  }
  HK_RETURN_IF_ERROR(vcpus_->Create(std::move(vm), configs, Environments()));
  if (spread_ == nullptr) return absl::OkStatus();
  mover_.emplace(vcpus_.get(), interrupts_.get(), config);
  move_steps_->Begin(&*mover_);
  return spread_->Attach({.space_id = memory_source_.space->id,
                          .cpuid = model.entries(),
                          .tsc_khz = tsc_khz,
                          .tsc_offset = offset,
                          .wall_ns = wall});
}

// All nodes' hosts agree before there is anything that would have to be taken back.
absl::StatusOr<CpuModel> KvmMachine::ChooseCpu(const Vm& vm) {
  // The words of a PV EOI would have to stay here for ever.
  const CpuModelSpec cpu = CpuSpecOf(spec_.cpu(), /*pv_eoi=*/memory_source_.space == nullptr);
  HK_ASSIGN_OR_RETURN(const CpuModel ours, CpuModel::Create(vm.facts().cpuid, ReadHostCpu(), cpu));
  if (spread_ == nullptr) return ours;
  HK_ASSIGN_OR_RETURN(std::vector<kvm_cpuid_entry2> all, spread_->AgreeOnHosts(ours.entries(), vm.facts().tsc_khz));
  return CpuModel::Of(std::move(all));
}

absl::Status KvmMachine::BuildInterrupts() {
  const InterruptControllerOptions options{.vcpus = spec_.vcpus(), .x2apic = x2apic_};
  if (spread_ == nullptr) {
    interrupts_ = std::make_unique<InterruptController>(options, &clock_, vcpus_.get());
    return absl::OkStatus();
  }
  interrupts_ = std::make_unique<InterruptController>(options, spread_->interrupt_nodes(), &clock_, vcpus_.get());
  return absl::OkStatus();
}

absl::Status KvmMachine::Build(MachineBackends backends) {
  HK_ASSIGN_OR_RETURN(std::unique_ptr<Vm> vm, Vm::Create(spec_.vcpus()));
  pm_timer_ = vm->facts().tsc_khz == 0;
  HK_ASSIGN_OR_RETURN(const CpuModel model, ChooseCpu(*vm));
  HK_RETURN_IF_ERROR(BuildMemory(vm.get()));
  x2apic_ = model.has_x2apic();
  HK_RETURN_IF_ERROR(BuildInterrupts());
  HK_RETURN_IF_ERROR(BuildDevices(std::move(backends), vm.get()));
  HK_RETURN_IF_ERROR(StartDevices());
  if (spread_ != nullptr) {
    move_steps_.emplace(spread_->link(), spec_.vcpus());
    HK_RETURN_IF_ERROR(spread_->Open(
        interrupts_.get(), this, &*move_steps_, [this](const std::string& reason) { Crash(reason); },
        [this](uint64_t ticks) { return StepTsc(ticks); }));
  }
  return BuildVcpus(std::move(vm), model);
}

absl::Status KvmMachine::StepTsc(uint64_t ticks) {
  const absl::Status status = vcpus_->StepTsc(ticks, clock_.Now() + kClockStepDeadline);
  // Held too late, or stopped: nothing has changed.
  if (!status.ok() && !absl::IsDeadlineExceeded(status) && !absl::IsFailedPrecondition(status)) {
    Crash(fmt::format("the TSC of its vCPUs cannot be set: {}", MessageOf(status)));
  }
  return status;
}

void KvmMachine::Crash(const std::string& reason) {
  if (!memory_->state().ok()) return;  // which is told with its own reason
  voice_->End(MachineEnd::kCrash, reason);
}

absl::Status KvmMachine::Run() {
  HK_ASSIGN_OR_RETURN(const InitialCpuState boot, LoadMachine(spec_, kernels_, pm_timer_, memory_.get()));
  if (spread_ != nullptr) HK_RETURN_IF_ERROR(spread_->Resume());
  runs_ = true;
  return vcpus_->Start(boot, clock_.Now() + kPauseDeadline);
}

absl::Status KvmMachine::Pause() {
  if (spread_ != nullptr) HK_RETURN_IF_ERROR(spread_->Hold());
  absl::Status status = vcpus_->Pause(clock_.Now() + kPauseDeadline);
  if (!status.ok() && spread_ != nullptr) static_cast<void>(spread_->Resume());
  if (status.ok()) runs_ = false;
  return status;
}

absl::Status KvmMachine::Unpause() {
  if (spread_ != nullptr) HK_RETURN_IF_ERROR(spread_->Resume());
  runs_ = true;
  return vcpus_->Resume();
}

// Guest memory and devices stay: of the VM they know nothing but who takes doorbells.
absl::Status KvmMachine::Renew(Monotonic deadline) {
  if (spread_ != nullptr) HK_RETURN_IF_ERROR(spread_->Renew());
  return vcpus_->Renew(
      [this](Vm* vm) -> absl::Status {
        HK_RETURN_IF_ERROR(interrupts_->Renew());
        virtio_->MoveDoorbellsTo(vm);
        return absl::OkStatus();
      },
      deadline);
}

MachineInterior KvmMachine::Interior() {
  return {.vcpu_count = spec_.vcpus(),
          .x2apic = x2apic_,
          .pm_timer = pm_timer_,
          .vcpus = vcpus_.get(),
          .interrupts = interrupts_.get(),
          .clock = pv_clock_.get(),
          .devices = devices_.get(),
          .virtio = virtio_.get()};
}

// vCPUs first: then nobody rings, and what devices have begun for the guest comes to its end.
absl::StatusOr<MachineState> KvmMachine::Save() {
  if (spread_ != nullptr || memory_source_.space != nullptr || memory_->frame_file() == nullptr) {
    return absl::FailedPreconditionError("its vCPUs or its memory are on several nodes");
  }
  MachineState state;
  const Monotonic deadline = clock_.Now() + kPauseDeadline;
  state.held_ns = std::chrono::nanoseconds(clock_.Now().time_since_epoch()).count();
  HK_RETURN_IF_ERROR(vcpus_->Pause(deadline));
  if (const absl::Status held = virtio_->Hold(deadline); !held.ok()) {
    if (runs_) HK_RETURN_IF_ERROR(vcpus_->Resume());
    return held;
  }
  const auto fill = [&]() -> absl::Status {
    // Its end is handled by this daemon.
    if (voice_->HasEnded()) return absl::FailedPreconditionError("it has just ended");
    HK_RETURN_IF_ERROR(memory_->state());
    state.frame_bytes = memory_->frame_file()->bytes();
    HK_ASSIGN_OR_RETURN(state.frame_inode, memory_->frame_file()->Inode());
    HK_ASSIGN_OR_RETURN(state.sections, SaveInterior(Interior(), deadline));
    HK_ASSIGN_OR_RETURN(state.sections[kDisksSection], IdentifyDisks(spec_));
    return absl::OkStatus();
  };
  if (absl::Status status = fill(); !status.ok()) {
    HK_RETURN_IF_ERROR(GoOn());
    return status;
  }
  return state;
}

absl::Status KvmMachine::GoOn() {
  HK_RETURN_IF_ERROR(virtio_->GoOn());
  return runs_ ? vcpus_->Resume() : absl::OkStatus();
}

void KvmMachine::LeaveFrames() {
  devices_work_ = false;
  memory_->frame_file()->Keep();
}

// What the bytes say is looked at first, as far as it can be; then the order is that of Build.
absl::Status KvmMachine::BuildFrom(const MachineState& state, MachineBackends backends) {
  const Monotonic now = clock_.Now();
  const auto missed = now.time_since_epoch() - std::chrono::nanoseconds(state.held_ns);
  if (missed < std::chrono::nanoseconds(0)) return absl::InvalidArgumentError("it was held in the future");
  SectionReader sections(&state.sections);
  HK_ASSIGN_OR_RETURN(const std::span<const std::byte> disks, sections.Take(kDisksSection));
  HK_ASSIGN_OR_RETURN(const std::vector<std::byte> disks_now, IdentifyDisks(spec_));
  if (!std::ranges::equal(disks, disks_now) && !HK_MUTANT(saved_machine_with_other_disks)) {
    return absl::FailedPreconditionError("an image of its disks was changed while it stood still");
  }
  HK_ASSIGN_OR_RETURN(MachineBeginning beginning, ReadBeginning(&sections, spec_.vcpus(), missed));
  x2apic_ = beginning.x2apic;
  pm_timer_ = beginning.pm_timer;
  HK_ASSIGN_OR_RETURN(std::unique_ptr<Vm> vm, Vm::Create(spec_.vcpus()));
  HK_RETURN_IF_ERROR(BuildMemory(vm.get()));
  HK_RETURN_IF_ERROR(BuildInterrupts());
  HK_RETURN_IF_ERROR(BuildDevices(std::move(backends), vm.get()));
  if (beginning.clock.has_value()) {
    MakeClock(beginning.clock->origin);
    pv_clock_->RestoreAll(*beginning.clock);
  }
  HK_RETURN_IF_ERROR(RestoreDevices(beginning, &sections, missed, Interior()));
  waits_.SetMeter(memory_->faults());
  HK_RETURN_IF_ERROR(
      vcpus_->CreateFrom(std::move(vm), std::move(beginning.vcpus), Environments(), now + kPauseDeadline));
  return StartDevices();
}

absl::StatusOr<VcpuMoved> KvmMachine::MoveVcpu(VcpuId vcpu, const std::string& node) {
  if (spread_ == nullptr) {
    return absl::FailedPreconditionError(
        fmt::format("all its vCPUs are on node '{}': only a machine whose placement gives vCPUs to several nodes can "
                    "have them moved",
                    spec_.io_node()));
  }
  return spread_->MoveVcpu(vcpu, node, &*move_steps_);
}

std::map<std::string, uint64_t> KvmMachine::exits_by_kind() const {
  std::map<std::string, uint64_t> kinds = ExitsByKind(vcpus_->counters());
  if (spread_ == nullptr) return kinds;
  for (const auto& [kind, count] : spread_->exits_by_kind()) kinds[kind] += count;
  return kinds;
}

std::vector<v1::VcpuTimes> KvmMachine::vcpu_times() const {
  if (memory_source_.space == nullptr) return {};
  std::vector<v1::VcpuTimes> all(spec_.vcpus());
  for (uint32_t i = 0; i < spec_.vcpus(); i++) {
    all[i].set_vcpu(i);
    all[i].set_node(spread_ == nullptr ? spec_.io_node() : spread_->NodeOf(VcpuId(i)));
  }
  for (const v1::VcpuTimes& here : waits_.Times(*vcpus_)) AddTimes(here, &all[here.vcpu()]);
  if (spread_ == nullptr) return all;
  for (auto& [vcpu, elsewhere] : spread_->vcpu_times()) {
    elsewhere.set_forwarded_ns(elsewhere.exits_ns());  // all devices are here
    AddTimes(elsewhere, &all[vcpu]);
  }
  return all;
}

uint64_t KvmMachine::exits() const {
  uint64_t sum = vcpus_->exits();
  if (spread_ == nullptr) return sum;
  for (const auto& [kind, count] : spread_->exits_by_kind()) sum += kind == kInjectedKind ? 0 : count;
  return sum;
}

}  // namespace

absl::Status CheckKvmMachine(const v1::VmSpec& spec, const FrameStore& frames, const SwapStore& swap,
                             const KernelCache& kernels) {
  HK_RETURN_IF_ERROR(CheckPagingOf(spec));
  HK_RETURN_IF_ERROR(LinuxBoot::Plan(BootSpecOf(spec, kernels)).status());
  // Of a machine over several nodes: what this one has of it.
  const uint64_t placed_mib = spec.placement_size() > 0 ? spec.placement(0).memory_mib() : 0;
  const uint64_t here_mib = placed_mib == 0 ? spec.memory_mib() : placed_mib;
  if ((here_mib << 20) > frames.budget_bytes()) {
    return absl::ResourceExhaustedError(fmt::format("{}: {} is more than this node's frame_store.budget_mib {}",
                                                    placed_mib == 0 ? "memory_mib" : "placement[0].memory_mib",
                                                    here_mib, frames.budget_bytes() >> 20));
  }
  const uint64_t swap_mib = spec.placement_size() > 0 ? spec.placement(0).swap_mib() : 0;
  if ((swap_mib << 20) > swap.budget_bytes()) {
    return absl::ResourceExhaustedError(fmt::format("placement[0].swap_mib: {} is more than this node's swap_mib {}",
                                                    swap_mib, swap.budget_bytes() >> 20));
  }
  HK_ASSIGN_OR_RETURN(const std::unique_ptr<Vm> vm, Vm::Create(spec.vcpus()));
  HK_RETURN_IF_ERROR(CpuModel::Create(vm->facts().cpuid, ReadHostCpu(), CpuSpecOf(spec.cpu(), true)).status());
  return MachineBackends::Open(spec).status();
}

MachineMemory LocalMemory(const v1::VmSpec& spec, uint64_t generation, const FrameStore& frames,
                          std::shared_ptr<GuestReplica> replica) {
  const auto make = [name = spec.name(), generation, &frames](std::vector<RamRange> ranges,
                                                              GuestMemory::FaultFailure failed) {
    absl::StatusOr<std::unique_ptr<GuestMemory>> memory =
        GuestMemory::Create(frames, name, generation, std::move(ranges), std::move(failed));
    if (!memory.ok()) memory = WithContext(memory.status(), "memory_mib");
    return memory;
  };
  return {.make = make, .ended = nullptr, .space = nullptr, .replica = std::move(replica)};
}

MachineMemory LeftMemory(const v1::VmSpec& spec, const MachineState& state, const FrameStore& frames) {
  const auto make = [name = spec.name(), generation = state.generation, inode = state.frame_inode, &frames](
                        std::vector<RamRange> ranges, GuestMemory::FaultFailure failed) {
    return GuestMemory::Reopen(frames, name, generation, inode, std::move(ranges), std::move(failed));
  };
  return {.make = make, .ended = nullptr, .space = nullptr, .replica = nullptr};
}

absl::StatusOr<std::unique_ptr<Machine>> RestoreKvmMachine(const v1::VmSpec& spec, const MachineState& state,
                                                           MachineMemory memory, const KernelCache& kernels,
                                                           const Clock& clock, MachineEvents* events) {
  HK_ASSIGN_OR_RETURN(MachineBackends backends, MachineBackends::Open(spec));
  auto machine = std::make_unique<KvmMachine>(spec, std::move(memory), nullptr, nullptr, kernels, clock, events);
  HK_RETURN_IF_ERROR(machine->BuildFrom(state, std::move(backends)));
  return std::unique_ptr<Machine>(std::move(machine));
}

absl::StatusOr<std::unique_ptr<Machine>> MakeKvmMachine(const v1::VmSpec& spec, MachineMemory memory,
                                                        std::unique_ptr<MachineSpread> spread,
                                                        std::shared_ptr<MachinePolicy> policy,
                                                        const KernelCache& kernels, const Clock& clock,
                                                        MachineEvents* events) {
  HK_RETURN_IF_ERROR(CheckPagingOf(spec));
  HK_ASSIGN_OR_RETURN(MachineBackends backends, MachineBackends::Open(spec));
  auto machine = std::make_unique<KvmMachine>(spec, std::move(memory), std::move(spread), std::move(policy), kernels,
                                              clock, events);
  HK_RETURN_IF_ERROR(machine->Build(std::move(backends)));
  HK_RETURN_IF_ERROR(machine->Run());
  return std::unique_ptr<Machine>(std::move(machine));
}

}  // namespace hk
