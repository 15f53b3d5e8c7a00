#include "hyperkernel/node/kvm_machine.h"

#include <x86intrin.h>

#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/boot/acpi_tables.h"
#include "hyperkernel/boot/linux_loader.h"
#include "hyperkernel/irq/interrupt_controller.h"
#include "hyperkernel/kvm/cpu_model.h"
#include "hyperkernel/kvm/vcpu_group.h"
#include "hyperkernel/memory/guest_memory.h"
#include "hyperkernel/node/machine_backends.h"
#include "hyperkernel/node/machine_devices.h"
#include "hyperkernel/node/machine_virtio.h"
#include "hyperkernel/node/machine_voice.h"

namespace hk {
namespace {

// A vCPU leaves KVM_RUN within microseconds of a kick; one that waits for a page of a slow disk or peer, within its
// time-out.
constexpr std::chrono::seconds kPauseDeadline(5);
constexpr std::chrono::seconds kStopDeadline(10);
// A disk answers or fails within this, unless it is a network's; hkctl waits for its answer longer.
constexpr std::chrono::seconds kIoDeadline(5);

LinuxBootSpec BootSpecOf(const v1::VmSpec& spec, const KernelCache& kernels) {
  return {.kernel_path = spec.kernel(),
          .initrd_path = spec.initrd(),
          .command_line = spec.cmdline(),
          .ram_bytes = spec.memory_mib() << 20,
          .unpacked = spec.kernel_as_is() ? nullptr : &kernels};
}

CpuModelSpec CpuSpecOf(const v1::VmSpec& spec) {
  return {.profile = spec.cpu().profile(), .disable = {spec.cpu().disable().begin(), spec.cpu().disable().end()}};
}

InitialCpuState ToInitialCpuState(const BootState& boot) {
  return {.mode = boot.mode == BootMode::kLong64 ? InitialCpuState::Mode::kLong64 : InitialCpuState::Mode::kProtected32,
          .rip = boot.rip,
          .rsp = boot.rsp,
          .rsi = boot.rsi,
          .rbx = boot.rbx,
          .cr0 = boot.cr0,
          .cr3 = boot.cr3,
          .cr4 = boot.cr4,
          .efer = boot.efer,
          .gdt_base = boot.gdt.base,
          .gdt_limit = boot.gdt.limit};
}

// The loader's way into guest memory.
class MemoryWriter final : public GuestWriter {
 public:
  explicit MemoryWriter(GuestMemory* memory) : memory_(memory) {}
  absl::Status Write(Gpa to, std::span<const std::byte> bytes) override { return memory_->Write(to, bytes); }

 private:
  GuestMemory* const memory_;
};

// One running guest. Members are in the order they depend on one another; the destructor stops the vCPUs first.
class KvmMachine final : public Machine, public ExitHandler {
 public:
  KvmMachine(const v1::VmSpec& spec, MachineMemory memory, const KernelCache& kernels, const Clock& clock,
             MachineEvents* events)
      : spec_(spec),
        memory_source_(std::move(memory)),
        kernels_(kernels),
        clock_(clock),
        voice_(std::make_shared<MachineVoice>(events)),
        vcpus_(std::make_unique<VcpuGroup>(spec.vcpus())) {}
  ~KvmMachine() override;

  absl::Status Build(MachineBackends backends);
  absl::Status Run();

  size_t Input(Channel channel, std::string_view bytes) override {
    return channel == Channel::kSerial ? devices_->ConsoleInput(bytes) : virtio_->Input(channel, bytes);
  }
  void ResizeConsole(uint16_t columns, uint16_t rows) override { virtio_->ResizeConsole(columns, rows); }
  void PressPowerButton() override { devices_->PressPowerButton(); }
  absl::Status Pause() override { return vcpus_->Pause(clock_.Now() + kPauseDeadline); }
  absl::Status Unpause() override { return vcpus_->Resume(); }
  absl::Status Renew(Monotonic deadline) override;
  uint64_t frame_bytes() const override { return memory_->frame_bytes(); }
  SpaceStatistics memory_statistics() const override { return memory_->Statistics(); }
  std::vector<ExtentUse> memory_uses(uint64_t first, size_t most) const override { return memory_->Uses(first, most); }
  uint64_t memory_end() const override {
    const GuestMemory::Slot& last = memory_->slots().back();
    return last.start.value() + last.bytes;
  }
  uint64_t exits() const override { return vcpus_->exits(); }
  std::map<std::string, uint64_t> exits_by_kind() const override;
  std::vector<std::string> broken_devices() const override { return virtio_->Broken(); }

 private:
  absl::Status BuildMemory(Vm* vm);
  absl::Status BuildDevices(MachineBackends backends, Vm* vm);
  void EndDevices();
  absl::Status BuildVcpus(std::unique_ptr<Vm> vm, const CpuModel& model);
  absl::StatusOr<BootState> LoadKernel();

  // ExitHandler
  void PortRead(uint16_t port, std::span<std::byte> data) override { devices_->ports().Read(port, data); }
  void PortWrite(uint16_t port, std::span<const std::byte> data) override { devices_->ports().Write(port, data); }
  void MmioRead(Gpa address, std::span<std::byte> data) override { devices_->mmio().Read(address.value(), data); }
  void MmioWrite(Gpa address, std::span<const std::byte> data) override {
    devices_->mmio().Write(address.value(), data);
  }
  void OnGuestFailure(VcpuId vcpu, const std::string& reason) override {
    if (!memory_->state().ok()) return;  // which is told with its own reason
    voice_->End(MachineEnd::kCrash, fmt::format("vCPU {}: {}", vcpu.value(), reason));
  }

  const v1::VmSpec spec_;
  MachineMemory memory_source_;
  const KernelCache& kernels_;
  const Clock& clock_;
  const std::shared_ptr<MachineVoice> voice_;
  bool pm_timer_ = false;  // only for guests that have no clock of ours: see boot/README.md
  std::unique_ptr<GuestMemory> memory_;
  std::unique_ptr<PvClock> pv_clock_;
  std::unique_ptr<VcpuGroup> vcpus_;  // the VM too; emptied first, and there as long as what follows may wake someone
  std::unique_ptr<InterruptController> interrupts_;
  std::unique_ptr<MachineDevices> devices_;
  std::unique_ptr<MachineVirtio> virtio_;
};

KvmMachine::~KvmMachine() {
  voice_->ForgetEnd();
  if (memory_ != nullptr) memory_->Abandon();  // a vCPU that waits for a page does not stop before it has it
  if (const absl::Status status = vcpus_->Stop(clock_.Now() + kStopDeadline); !status.ok()) {
    log::Error("guest", "a vCPU does not stop", {{"guest", spec_.name()}, {"error", MessageOf(status)}});
  }
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
  const absl::Status status = virtio_->Quiesce(clock_.Now() + kIoDeadline);
  if (status.ok()) return virtio_.reset();
  log::Error("guest", "I/O of a device does not end; its memory and images are kept until it does",
             {{"guest", spec_.name()}, {"error", MessageOf(status)}});
  struct Remains {
    std::unique_ptr<GuestMemory> memory;
    std::unique_ptr<VcpuGroup> vcpus;
    std::unique_ptr<InterruptController> interrupts;
    std::unique_ptr<MachineDevices> devices;
    std::unique_ptr<MachineVirtio> virtio;
    std::function<void()> ended;
  };
  virtio_->MoveDoorbellsTo(nullptr);
  vcpus_->Clear();  // and the VM, before the memory it maps
  auto remains = std::make_unique<Remains>(Remains{std::move(memory_), std::move(vcpus_), std::move(interrupts_),
                                                   std::move(devices_), std::move(virtio_),
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
                                                     &devices_->interrupts(), output));
  HK_RETURN_IF_ERROR(virtio_->AttachTo(vm));
  return virtio_->Start();
}

absl::Status KvmMachine::BuildVcpus(std::unique_ptr<Vm> vm, const CpuModel& model) {
  // The guest's TSC begins at about 0, the same on all its vCPUs, and its kvmclock with it.
  const uint64_t offset = uint64_t{0} - __rdtsc();
  if (vm->facts().tsc_khz != 0) {
    const auto wall = std::chrono::duration_cast<std::chrono::nanoseconds>(clock_.Wall().time_since_epoch());
    pv_clock_ = std::make_unique<PvClock>(
        PvClockOrigin{.wall_ns = static_cast<uint64_t>(wall.count()), .tsc_khz = vm->facts().tsc_khz}, spec_.vcpus(),
        [this](Gpa to, std::span<const std::byte> bytes) { return memory_->Write(to, bytes); });
  }
  std::vector<VcpuConfig> configs;
  for (uint32_t i = 0; i < spec_.vcpus(); i++) {
    configs.push_back({.id = VcpuId(i), .cpuid = model.Cpuid(i, spec_.vcpus()), .tsc_offset = offset});
  }
  PvEoi::WordAt guest_word;
  if (memory_->most_pinned_bytes() == 0) {
    guest_word = [this](Gpa at) { return memory_->Pin(at, sizeof(uint32_t), PageAccess::kWrite, nullptr); };
  }
  return vcpus_->Create(std::move(vm), configs, [this, guest_word](VcpuId id) {
    return VcpuEnvironment{
        .devices = this, .interrupts = &interrupts_->vcpu(id), .clock = pv_clock_.get(), .guest_word = guest_word};
  });
}

absl::Status KvmMachine::Build(MachineBackends backends) {
  HK_ASSIGN_OR_RETURN(std::unique_ptr<Vm> vm, Vm::Create(spec_.vcpus()));
  pm_timer_ = vm->facts().tsc_khz == 0;
  HK_RETURN_IF_ERROR(BuildMemory(vm.get()));
  CpuModelSpec cpu = CpuSpecOf(spec_);
  cpu.pv_eoi = memory_->most_pinned_bytes() == 0;  // its words would have to stay here for ever
  HK_ASSIGN_OR_RETURN(const CpuModel model, CpuModel::Create(vm->facts().cpuid, ReadHostCpu(), cpu));
  interrupts_ = std::make_unique<InterruptController>(
      InterruptControllerOptions{.vcpus = spec_.vcpus(), .x2apic = model.has_x2apic()}, &clock_, vcpus_.get());
  HK_RETURN_IF_ERROR(BuildDevices(std::move(backends), vm.get()));
  return BuildVcpus(std::move(vm), model);
}

absl::StatusOr<BootState> KvmMachine::LoadKernel() {
  HK_ASSIGN_OR_RETURN(const LinuxBoot boot, LinuxBoot::Plan(BootSpecOf(spec_, kernels_)));
  AcpiInput input;
  input.ram_bytes = spec_.memory_mib() << 20;
  for (uint32_t i = 0; i < spec_.vcpus(); i++) input.apic_ids.push_back(i);
  input.pm_timer = pm_timer_;
  if (spec_.topology() == v1::TOPOLOGY_NUMA) {  // one node: one domain with everything
    AcpiNode node;
    node.memory = RamLayout(input.ram_bytes);
    for (uint32_t i = 0; i < spec_.vcpus(); i++) node.vcpus.push_back(VcpuId(i));
    input.nodes.push_back(std::move(node));
    input.distances = {{kAcpiLocalDistance}};
  }
  HK_ASSIGN_OR_RETURN(const AcpiTables tables, BuildAcpiTables(input));
  HK_RETURN_IF_ERROR(memory_->Write(tables.start, tables.bytes));
  MemoryWriter writer(memory_.get());
  return boot.Load(writer, tables.rsdp);
}

absl::Status KvmMachine::Run() {
  HK_ASSIGN_OR_RETURN(const BootState boot, LoadKernel());
  return vcpus_->Start(ToInitialCpuState(boot), clock_.Now() + kPauseDeadline);
}

// Guest memory and devices stay: of the VM they know nothing but who takes doorbells.
absl::Status KvmMachine::Renew(Monotonic deadline) {
  return vcpus_->Renew(
      [this](Vm* vm) -> absl::Status {
        HK_RETURN_IF_ERROR(interrupts_->Renew());
        virtio_->MoveDoorbellsTo(vm);
        return absl::OkStatus();
      },
      deadline);
}

std::map<std::string, uint64_t> KvmMachine::exits_by_kind() const {
  const VcpuCounters sum = vcpus_->counters();
  std::map<std::string, uint64_t> kinds;
  for (size_t i = 0; i < kVcpuExits; i++) {
    if (sum.exits[i] != 0) kinds[std::string(NameOf(static_cast<VcpuExit>(i)))] = sum.exits[i];
  }
  if (sum.interrupts != 0) kinds["injected"] = sum.interrupts;
  return kinds;
}

}  // namespace

absl::Status CheckKvmMachine(const v1::VmSpec& spec, const FrameStore& frames, const KernelCache& kernels) {
  HK_RETURN_IF_ERROR(LinuxBoot::Plan(BootSpecOf(spec, kernels)).status());
  // Of a machine over several nodes: what this one has of it.
  const uint64_t placed_mib = spec.placement_size() > 0 ? spec.placement(0).memory_mib() : 0;
  const uint64_t here_mib = placed_mib == 0 ? spec.memory_mib() : placed_mib;
  if ((here_mib << 20) > frames.budget_bytes()) {
    return absl::ResourceExhaustedError(fmt::format("{}: {} is more than this node's frame_store.budget_mib {}",
                                                    placed_mib == 0 ? "memory_mib" : "placement[0].memory_mib",
                                                    here_mib, frames.budget_bytes() >> 20));
  }
  HK_ASSIGN_OR_RETURN(const std::unique_ptr<Vm> vm, Vm::Create(spec.vcpus()));
  HK_RETURN_IF_ERROR(CpuModel::Create(vm->facts().cpuid, ReadHostCpu(), CpuSpecOf(spec)).status());
  return MachineBackends::Open(spec).status();
}

MachineMemory LocalMemory(const v1::VmSpec& spec, uint64_t generation, const FrameStore& frames) {
  const auto make = [name = spec.name(), generation, &frames](std::vector<RamRange> ranges,
                                                              GuestMemory::FaultFailure failed) {
    absl::StatusOr<std::unique_ptr<GuestMemory>> memory =
        GuestMemory::Create(frames, name, generation, std::move(ranges), std::move(failed));
    if (!memory.ok()) memory = WithContext(memory.status(), "memory_mib");
    return memory;
  };
  return {.make = make, .ended = nullptr};
}

absl::StatusOr<std::unique_ptr<Machine>> MakeKvmMachine(const v1::VmSpec& spec, MachineMemory memory,
                                                        const KernelCache& kernels, const Clock& clock,
                                                        MachineEvents* events) {
  HK_ASSIGN_OR_RETURN(MachineBackends backends, MachineBackends::Open(spec));
  auto machine = std::make_unique<KvmMachine>(spec, std::move(memory), kernels, clock, events);
  HK_RETURN_IF_ERROR(machine->Build(std::move(backends)));
  HK_RETURN_IF_ERROR(machine->Run());
  return std::unique_ptr<Machine>(std::move(machine));
}

}  // namespace hk
