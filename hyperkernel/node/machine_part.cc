#include "hyperkernel/node/machine_part.h"

#include <x86intrin.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/node_set.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/boot/address_map.h"
#include "hyperkernel/irq/interrupt_controller.h"
#include "hyperkernel/kvm/vcpu_group.h"
#include "hyperkernel/kvm/vcpu_mover.h"
#include "hyperkernel/memory/space_memory.h"
#include "hyperkernel/node/forwarded_exits.h"
#include "hyperkernel/node/machine_counters.h"
#include "hyperkernel/node/machine_cpu.h"
#include "hyperkernel/node/machine_link.h"
#include "hyperkernel/node/move_steps.h"
#include "hyperkernel/node/stall_wire.h"
#include "hyperkernel/node/vcpu_waits.h"
#include "hyperkernel/node/vm_spec.h"

namespace hk {
namespace {

// As the I/O node's own vCPUs (kvm_machine.cc).
constexpr std::chrono::seconds kPartPauseDeadline(5);
// A vCPU ends within microseconds, unless it waits for a page or an exit's answer.
constexpr std::chrono::seconds kPartStopDeadline(2);
// A vCPU that waits for a page for longer than that does not keep the others from running: the next look steps.
constexpr std::chrono::milliseconds kClockStepDeadline(100);

absl::Status Bad(const std::string& what) {
  return absl::InvalidArgumentError(what);
}

absl::Status CheckRequest(const MachinePart::Options& options) {
  const v1::AttachMachineRequest& request = options.request;
  if (request.id() == 0 || request.id() == request.space_id()) return Bad("id: 0, or the space's");
  if (request.memory_mib() < kMinVmMemoryMib || request.memory_mib() > kMaxVmMemoryMib)
    return Bad("memory_mib: no machine has so much");
  const int vcpus = request.vcpu_nodes_size();
  if (vcpus < 1 || vcpus > static_cast<int>(kMostGuestVcpus))
    return Bad("vcpu_nodes: no machine on several nodes has so many");
  NodeSet nodes;
  for (const uint32_t number : request.nodes()) {
    if (number >= kMaxNodes) return Bad(fmt::format("nodes: {} is no node's number", number));
    const NodeId node(static_cast<uint16_t>(number));
    if (nodes.Contains(node)) return Bad(fmt::format("nodes: {} is there twice", number));
    nodes.Add(node);
  }
  if (!nodes.Contains(options.self)) return Bad("nodes: this node is not among them");
  for (const uint32_t number : request.vcpu_nodes()) {
    if (number >= kMaxNodes || !nodes.Contains(NodeId(static_cast<uint16_t>(number))))
      return Bad(fmt::format("vcpu_nodes: {} is no node of the machine", number));
  }
  if (request.vcpu_nodes(0) != options.io_node.value()) return Bad("vcpu_nodes: vCPU 0 is not the sender's");
  return absl::OkStatus();
}

class KvmPart final : public MachinePart, public ExitHandler {
 public:
  explicit KvmPart(Options options)
      : options_(std::move(options)),
        waits_(static_cast<uint32_t>(options_.request.vcpu_nodes_size())),
        vcpus_(static_cast<uint32_t>(options_.request.vcpu_nodes_size())) {}
  ~KvmPart() override;

  absl::Status Build();
  absl::Status Run() override { return vcpus_.Resume(); }
  absl::Status Hold() override { return vcpus_.Pause(options_.clock->Now() + kPartPauseDeadline); }
  absl::Status Renew() override {
    return vcpus_.Renew([this](Vm*) { return interrupts_->Renew(); }, options_.clock->Now() + kPartPauseDeadline);
  }
  v1::MoveMachineVcpuResponse Move(const v1::MoveMachineVcpuRequest& request) override { return steps_->Do(request); }
  std::map<std::string, uint64_t> exits_by_kind() const override { return ExitsByKind(vcpus_.counters()); }
  std::vector<v1::VcpuTimes> vcpu_times() const override { return waits_.Times(vcpus_); }
  v1::MachineStalls Stalls(bool wanted) override {
    FaultMeter* const meter = memory_->faults();
    meter->Listen(wanted);
    return wanted ? TakeStalls(meter, options_.clock->Now()) : v1::MachineStalls();
  }
  uint64_t tsc_error_ns() const override { return clock_->first_error_ns(); }
  ClockWord LookAtClock(uint64_t machine) override { return clock_->Look(machine); }

 private:
  // ExitHandler
  void PortRead(uint16_t port, std::span<std::byte> data) override { exits_->PortRead(port, data); }
  void PortWrite(uint16_t port, std::span<const std::byte> data) override { exits_->PortWrite(port, data); }
  void MmioRead(Gpa address, std::span<std::byte> data) override { exits_->MmioRead(address, data); }
  void MmioWrite(Gpa address, std::span<const std::byte> data) override { exits_->MmioWrite(address, data); }
  void OnGuestFailure(VcpuId vcpu, const std::string& reason) override {
    // A vCPU that meets memory which has stopped has failed for that reason, and not for what KVM makes of it.
    const absl::Status memory = memory_->state();
    exits_->OnGuestFailure(vcpu, memory.ok() ? reason : fmt::format("memory: {}", MessageOf(memory)));
  }

  absl::Status BuildMemory(Vm* vm);
  absl::Status BuildInterrupts(bool x2apic);
  // The machine's TSC less this host's.
  absl::StatusOr<uint64_t> OffsetOfTsc(uint32_t tsc_khz);
  absl::Status StepTsc(uint64_t ticks);
  absl::Status BuildVcpus(std::unique_ptr<Vm> vm, const CpuModel& model, uint64_t tsc_offset);

  const Options options_;
  std::unique_ptr<GuestMemory> memory_;
  std::unique_ptr<PvClock> pv_clock_;
  VcpuWaits waits_;
  VcpuGroup vcpus_;                    // the VM too; emptied first, and there as long as what follows may wake someone
  std::unique_ptr<MachineLink> link_;  // before who uses it
  std::unique_ptr<ForwardedExits> exits_;
  std::unique_ptr<InterruptController> interrupts_;
  std::optional<VcpuMover> mover_;
  std::optional<MoveSteps> steps_;
  std::optional<PartClock> clock_;
};

KvmPart::~KvmPart() {
  if (exits_ != nullptr) exits_->Abandon();
  absl::Status status = vcpus_.Stop(options_.clock->Now() + kPartStopDeadline);
  if (!status.ok() && memory_ != nullptr) {
    // It waits for a page. With the machine's end in sight nobody misses the memory, and if it is not the machine's
    // end, a vCPU that cannot be stopped is.
    memory_->Abandon();
    status = vcpus_.Stop(options_.clock->Now() + kPartStopDeadline);
  }
  if (!status.ok()) {
    log::Error("guest", "a vCPU does not stop", {{"guest", options_.request.name()}, {"error", MessageOf(status)}});
  }
  if (link_ != nullptr) link_->Close();
  if (steps_.has_value()) steps_->Stop();
  vcpus_.Clear();
}

absl::Status KvmPart::BuildMemory(Vm* vm) {
  HK_ASSIGN_OR_RETURN(std::shared_ptr<GuestSpace> space,
                      options_.hold([ended = options_.ended](const absl::Status& why) {
                        ended(fmt::format("memory: {}", MessageOf(why)));
                      }));
  std::vector<RamRange> ranges;
  for (const RamPiece& piece : RamLayout(options_.request.memory_mib() << 20))
    ranges.push_back({piece.start, piece.bytes});
  HK_ASSIGN_OR_RETURN(memory_, MakeSpaceMemory(std::move(space), ranges, *options_.clock));
  for (const GuestMemory::Slot& slot : memory_->slots()) {
    HK_RETURN_IF_ERROR(vm->AddMemory({.start = slot.start, .bytes = slot.bytes, .host = slot.guest_view}).status());
  }
  return absl::OkStatus();
}

absl::Status KvmPart::BuildInterrupts(bool x2apic) {
  const v1::AttachMachineRequest& request = options_.request;
  InterruptNodes nodes{.self = options_.self, .io_node = options_.io_node, .nodes = {}, .vcpus = {}};
  for (const uint32_t number : request.nodes()) nodes.nodes.push_back(NodeId(static_cast<uint16_t>(number)));
  for (const uint32_t number : request.vcpu_nodes()) nodes.vcpus.push_back(NodeId(static_cast<uint16_t>(number)));
  const auto vcpus = static_cast<uint32_t>(nodes.vcpus.size());
  const auto failed = [this](NodeId peer, const std::string& reason) {
    options_.ended(fmt::format("node {}: {}", peer.value(), reason));
  };
  link_ = std::make_unique<MachineLink>(options_.transport, options_.router,
                                        MachineLinkOptions{.guest = GuestId(request.id()),
                                                           .self = options_.self,
                                                           .io_node = options_.io_node,
                                                           .nodes = nodes.nodes,
                                                           .failed = failed});
  exits_ = std::make_unique<ForwardedExits>(link_.get(), vcpus);
  nodes.link = link_.get();
  interrupts_ = std::make_unique<InterruptController>(InterruptControllerOptions{.vcpus = vcpus, .x2apic = x2apic},
                                                      nodes, options_.clock, &vcpus_);
  steps_.emplace(link_.get(), vcpus);
  link_->Attach(interrupts_.get(), exits_.get(), &*steps_);
  return link_->Open();
}

absl::StatusOr<uint64_t> KvmPart::OffsetOfTsc(uint32_t tsc_khz) {
  clock_.emplace(PartClock::Host{
      .one_host = !options_.boot_id.empty() && options_.boot_id == options_.request.boot_id(),
      .tsc_khz = tsc_khz,
      .ticks = [] { return static_cast<uint64_t>(__rdtsc()); },
      .measure = [this](uint32_t exchanges, Monotonic deadline) { return link_->MeasureTsc(deadline, exchanges); },
      .step = [this](uint64_t ticks) { return StepTsc(ticks); },
      .clock = options_.clock});
  return clock_->Begin(options_.request.tsc_offset());
}

absl::Status KvmPart::StepTsc(uint64_t ticks) {
  const absl::Status status = vcpus_.StepTsc(ticks, options_.clock->Now() + kClockStepDeadline);
  // Held too late, or stopped: nothing has changed.
  if (!status.ok() && !absl::IsDeadlineExceeded(status) && !absl::IsFailedPrecondition(status)) {
    options_.ended(fmt::format("the TSC of its vCPUs cannot be set: {}", MessageOf(status)));
  }
  return status;
}

absl::Status KvmPart::BuildVcpus(std::unique_ptr<Vm> vm, const CpuModel& model, uint64_t tsc_offset) {
  const v1::AttachMachineRequest& request = options_.request;
  const auto count = static_cast<uint32_t>(request.vcpu_nodes_size());
  if (request.tsc_khz() != 0) {
    pv_clock_ = std::make_unique<PvClock>(
        PvClockOrigin{.wall_ns = request.wall_ns(), .tsc_khz = request.tsc_khz(), .stable = request.tsc_stable()},
        count, [this](Gpa to, std::span<const std::byte> bytes) { return memory_->Write(to, bytes); });
  }
  waits_.SetMeter(memory_->faults());
  const std::vector<uint32_t> nodes(request.vcpu_nodes().begin(), request.vcpu_nodes().end());
  const uint32_t package = VcpusOfPackage<uint32_t>(nodes);
  const auto config = [model, count, package, tsc_offset](VcpuId id) {
    return VcpuConfig{.id = id, .cpuid = model.Cpuid(id.value(), count, package), .tsc_offset = tsc_offset};
  };
  std::vector<VcpuConfig> configs;
  for (uint32_t i = 0; i < count; i++) {
    if (request.vcpu_nodes(static_cast<int>(i)) == options_.self.value()) configs.push_back(config(VcpuId(i)));
  }
  HK_RETURN_IF_ERROR(vcpus_.Create(std::move(vm), configs, [this](VcpuId id) {
    return VcpuEnvironment{.devices = this,
                           .interrupts = &interrupts_->vcpu(id),
                           .clock = pv_clock_.get(),
                           .paced = true,
                           .threads = &waits_};
  }));
  mover_.emplace(&vcpus_, interrupts_.get(), config);
  steps_->Begin(&*mover_);
  return absl::OkStatus();
}

absl::Status KvmPart::Build() {
  HK_ASSIGN_OR_RETURN(std::vector<kvm_cpuid_entry2> cpuid, CpuidOf(options_.request.cpuid()));
  const CpuModel model = CpuModel::Of(std::move(cpuid));
  HK_ASSIGN_OR_RETURN(std::unique_ptr<Vm> vm, Vm::Create(static_cast<uint32_t>(options_.request.vcpu_nodes_size())));
  HK_RETURN_IF_ERROR(BuildMemory(vm.get()));
  HK_RETURN_IF_ERROR(BuildInterrupts(model.has_x2apic()));
  HK_ASSIGN_OR_RETURN(const uint64_t tsc_offset, OffsetOfTsc(vm->facts().tsc_khz));
  return BuildVcpus(std::move(vm), model, tsc_offset);
}

}  // namespace

absl::StatusOr<std::unique_ptr<MachinePart>> MachinePart::Make(Options options) {
  HK_RETURN_IF_ERROR(CheckRequest(options));
  auto part = std::make_unique<KvmPart>(std::move(options));
  HK_RETURN_IF_ERROR(part->Build());
  return std::unique_ptr<MachinePart>(std::move(part));
}

}  // namespace hk
