#include "hyperkernel/node/kvm_machine.h"

#include <x86intrin.h>

#include <atomic>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/boot/acpi_tables.h"
#include "hyperkernel/boot/linux_loader.h"
#include "hyperkernel/irq/apic_timer_thread.h"
#include "hyperkernel/irq/interrupt_controller.h"
#include "hyperkernel/kvm/cpu_model.h"
#include "hyperkernel/kvm/vcpu.h"
#include "hyperkernel/memory/guest_memory.h"
#include "hyperkernel/node/machine_devices.h"

namespace hk {
namespace {

// A vCPU leaves KVM_RUN within microseconds of a kick; one that waits for a page of a slow disk or peer, within its
// time-out.
constexpr std::chrono::seconds kPauseDeadline(5);
constexpr std::chrono::seconds kStopDeadline(10);

LinuxBootSpec BootSpecOf(const v1::VmSpec& spec) {
  return {.kernel_path = spec.kernel(),
          .initrd_path = spec.initrd(),
          .command_line = spec.cmdline(),
          .ram_bytes = spec.memory_mib() << 20};
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
class KvmMachine final : public Machine, public ExitHandler, public VcpuWaker {
 public:
  KvmMachine(const v1::VmSpec& spec, const Clock& clock, MachineEvents* events)
      : spec_(spec), clock_(clock), events_(events) {}
  ~KvmMachine() override;

  absl::Status Build(uint64_t generation, const FrameStore& frames);
  absl::Status Run();

  size_t ConsoleInput(std::string_view bytes) override { return devices_->ConsoleInput(bytes); }
  void PressPowerButton() override { devices_->PressPowerButton(); }
  absl::Status Pause() override;
  absl::Status Unpause() override;
  uint64_t frame_bytes() const override { return memory_->frame_bytes(); }
  uint64_t exits() const override;
  std::map<std::string, uint64_t> exits_by_kind() const override;

 private:
  absl::Status BuildMemory(uint64_t generation, const FrameStore& frames);
  absl::Status BuildVcpus();
  absl::StatusOr<BootState> LoadKernel();
  void End(MachineEnd end, const std::string& reason);

  // ExitHandler
  void PortRead(uint16_t port, std::span<std::byte> data) override { devices_->ports().Read(port, data); }
  void PortWrite(uint16_t port, std::span<const std::byte> data) override { devices_->ports().Write(port, data); }
  void MmioRead(Gpa address, std::span<std::byte> data) override { devices_->mmio().Read(address.value(), data); }
  void MmioWrite(Gpa address, std::span<const std::byte> data) override {
    devices_->mmio().Write(address.value(), data);
  }
  void OnGuestFailure(VcpuId vcpu, const std::string& reason) override {
    End(MachineEnd::kCrash, fmt::format("vCPU {}: {}", vcpu.value(), reason));
  }
  // VcpuWaker
  void Wake(VcpuId vcpu) override {
    if (running_.load(std::memory_order_acquire)) vcpus_[vcpu.value()]->Wake();
  }

  const v1::VmSpec spec_;
  const Clock& clock_;
  MachineEvents* const events_;
  std::atomic<bool> ended_{false};
  std::atomic<bool> running_{false};  // vcpus_ is complete
  std::unique_ptr<GuestMemory> memory_;
  std::unique_ptr<Vm> vm_;
  std::unique_ptr<PvClock> pv_clock_;
  std::unique_ptr<InterruptController> interrupts_;
  std::unique_ptr<MachineDevices> devices_;
  std::vector<std::unique_ptr<Vcpu>> vcpus_;
  std::unique_ptr<ApicTimerThread> timers_;
};

KvmMachine::~KvmMachine() {
  // Whatever the guest still says is not news any more.
  ended_.store(true);
  for (const auto& vcpu : vcpus_) vcpu->RequestStop();
  for (const auto& vcpu : vcpus_) {
    if (const absl::Status status = vcpu->Stop(clock_.Now() + kStopDeadline); !status.ok()) {
      log::Error("guest", "a vCPU does not stop", {{"guest", spec_.name()}, {"error", MessageOf(status)}});
    }
  }
  timers_.reset();
}

void KvmMachine::End(MachineEnd end, const std::string& reason) {
  if (!ended_.exchange(true)) events_->OnEnd(end, reason);
}

absl::Status KvmMachine::BuildMemory(uint64_t generation, const FrameStore& frames) {
  std::vector<RamRange> ranges;
  for (const RamPiece& piece : RamLayout(spec_.memory_mib() << 20)) ranges.push_back({piece.start, piece.bytes});
  absl::StatusOr<std::unique_ptr<GuestMemory>> memory =
      GuestMemory::Create(frames, spec_.name(), generation, std::move(ranges), [this](const absl::Status& reason) {
        End(MachineEnd::kCrash, fmt::format("guest memory: {}", MessageOf(reason)));
      });
  if (!memory.ok()) return WithContext(memory.status(), "memory_mib");
  memory_ = *std::move(memory);
  for (const GuestMemory::Slot& slot : memory_->slots()) {
    HK_RETURN_IF_ERROR(vm_->AddMemory({.start = slot.start, .bytes = slot.bytes, .host = slot.guest_view}).status());
  }
  return absl::OkStatus();
}

absl::Status KvmMachine::BuildVcpus() {
  HK_ASSIGN_OR_RETURN(const CpuModel model, CpuModel::Create(vm_->facts().cpuid, ReadHostCpu(), CpuSpecOf(spec_)));
  // The guest's TSC begins at about 0, the same on all its vCPUs, and its kvmclock with it.
  const uint64_t offset = uint64_t{0} - __rdtsc();
  if (vm_->facts().tsc_khz != 0) {
    const auto wall = std::chrono::duration_cast<std::chrono::nanoseconds>(clock_.Wall().time_since_epoch());
    pv_clock_ = std::make_unique<PvClock>(
        PvClockOrigin{.wall_ns = static_cast<uint64_t>(wall.count()), .tsc_khz = vm_->facts().tsc_khz}, spec_.vcpus(),
        [this](Gpa to, std::span<const std::byte> bytes) { return memory_->Write(to, bytes); });
  }
  for (uint32_t i = 0; i < spec_.vcpus(); i++) {
    const VcpuId id(i);
    HK_ASSIGN_OR_RETURN(
        std::unique_ptr<Vcpu> vcpu,
        Vcpu::Create(vm_.get(), {.id = id, .cpuid = model.Cpuid(i, spec_.vcpus()), .tsc_offset = offset},
                     {.devices = this, .interrupts = interrupts_->vcpu(id), .clock = pv_clock_.get()}));
    vcpus_.push_back(std::move(vcpu));
  }
  running_.store(true, std::memory_order_release);
  return absl::OkStatus();
}

absl::Status KvmMachine::Build(uint64_t generation, const FrameStore& frames) {
  HK_ASSIGN_OR_RETURN(vm_, Vm::Create(spec_.vcpus()));
  HK_RETURN_IF_ERROR(BuildMemory(generation, frames));
  interrupts_ = std::make_unique<InterruptController>(spec_.vcpus(), this, clock_);
  HK_ASSIGN_OR_RETURN(
      devices_, MachineDevices::Create(
                    interrupts_.get(), clock_,
                    {.console_output = [this](std::string_view bytes) { events_->OnConsoleOutput(bytes); },
                     .request =
                         [this](GuestRequest request) {
                           switch (request) {
                             case GuestRequest::kReset:
                               return End(MachineEnd::kReset, "");
                             case GuestRequest::kPowerOff:
                               return End(MachineEnd::kPowerOff, "");
                             case GuestRequest::kPanicked:
                               return End(MachineEnd::kCrash, "the guest's kernel panicked (pvpanic)");
                             case GuestRequest::kCrashLoaded:
                               return log::Warning("guest", "the guest's kernel panicked and runs its crash kernel",
                                                   {{"guest", spec_.name()}});
                           }
                         }}));
  return BuildVcpus();
}

absl::StatusOr<BootState> KvmMachine::LoadKernel() {
  HK_ASSIGN_OR_RETURN(const LinuxBoot boot, LinuxBoot::Plan(BootSpecOf(spec_)));
  AcpiInput input;
  input.ram_bytes = spec_.memory_mib() << 20;
  for (uint32_t i = 0; i < spec_.vcpus(); i++) input.apic_ids.push_back(i);
  HK_ASSIGN_OR_RETURN(const AcpiTables tables, BuildAcpiTables(input));
  HK_RETURN_IF_ERROR(memory_->Write(tables.start, tables.bytes));
  MemoryWriter writer(memory_.get());
  return boot.Load(writer, tables.rsdp);
}

absl::Status KvmMachine::Run() {
  HK_ASSIGN_OR_RETURN(const BootState boot, LoadKernel());
  timers_ = std::make_unique<ApicTimerThread>(interrupts_.get(), clock_);
  for (size_t i = 1; i < vcpus_.size(); i++) HK_RETURN_IF_ERROR(vcpus_[i]->Resume());
  return vcpus_[0]->Start(ToInitialCpuState(boot), clock_.Now() + kPauseDeadline);
}

absl::Status KvmMachine::Pause() {
  for (const auto& vcpu : vcpus_) vcpu->RequestPause();
  const Monotonic deadline = clock_.Now() + kPauseDeadline;
  for (const auto& vcpu : vcpus_) HK_RETURN_IF_ERROR(vcpu->Pause(deadline));
  return absl::OkStatus();
}

absl::Status KvmMachine::Unpause() {
  for (const auto& vcpu : vcpus_) HK_RETURN_IF_ERROR(vcpu->Resume());
  return absl::OkStatus();
}

uint64_t KvmMachine::exits() const {
  uint64_t sum = 0;
  for (const auto& vcpu : vcpus_) {
    for (const uint64_t count : vcpu->counters().exits) sum += count;
  }
  return sum;
}

std::map<std::string, uint64_t> KvmMachine::exits_by_kind() const {
  std::map<std::string, uint64_t> sums;
  for (const auto& vcpu : vcpus_) {
    const VcpuCounters counters = vcpu->counters();
    for (size_t i = 0; i < kVcpuExits; i++) {
      if (counters.exits[i] != 0) sums[std::string(NameOf(static_cast<VcpuExit>(i)))] += counters.exits[i];
    }
    if (counters.interrupts != 0) sums["injected"] += counters.interrupts;
  }
  return sums;
}

}  // namespace

absl::Status CheckKvmMachine(const v1::VmSpec& spec, const FrameStore& frames) {
  // Refused rather than left out: a guest must not run without a disk its operator gave it.
  if (spec.disks_size() > 0) return absl::UnimplementedError("disks: this release attaches no disks yet; remove them");
  HK_RETURN_IF_ERROR(LinuxBoot::Plan(BootSpecOf(spec)).status());
  if ((spec.memory_mib() << 20) > frames.budget_bytes()) {
    return absl::ResourceExhaustedError(fmt::format("memory_mib: {} is more than this node's frame_store.budget_mib {}",
                                                    spec.memory_mib(), frames.budget_bytes() >> 20));
  }
  HK_ASSIGN_OR_RETURN(const std::unique_ptr<Vm> vm, Vm::Create(spec.vcpus()));
  return CpuModel::Create(vm->facts().cpuid, ReadHostCpu(), CpuSpecOf(spec)).status();
}

absl::StatusOr<std::unique_ptr<Machine>> MakeKvmMachine(const v1::VmSpec& spec, uint64_t generation,
                                                        const FrameStore& frames, const Clock& clock,
                                                        MachineEvents* events) {
  auto machine = std::make_unique<KvmMachine>(spec, clock, events);
  HK_RETURN_IF_ERROR(machine->Build(generation, frames));
  HK_RETURN_IF_ERROR(machine->Run());
  return std::unique_ptr<Machine>(std::move(machine));
}

}  // namespace hk
