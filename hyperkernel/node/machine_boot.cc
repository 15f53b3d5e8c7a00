#include "hyperkernel/node/machine_boot.h"

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "hyperkernel/base/status.h"
#include "hyperkernel/boot/acpi_tables.h"
#include "hyperkernel/boot/address_map.h"
#include "hyperkernel/node/vm_spec.h"

namespace hk {
namespace {

// A node's distance to another. Pages come nearer when they are used, so it is not the distance of an access; but a
// thread that goes to another node takes its pages along, one fault after another. Beyond 30 (its RECLAIM_DISTANCE)
// Linux neither starts programs in another domain to balance load, nor moves threads to where they are woken from.
constexpr uint8_t kOtherNodeDistance = 40;
// Where domains meet.
constexpr uint64_t kDomainUnit = uint64_t{128} << 20, kSmallDomainUnit = uint64_t{2} << 20;

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

// A proximity domain for each node: its vCPUs, and its share of the memory, by what it may hold; pages that its vCPUs
// touch first are there from then on. All of a machine of one node is one domain.
void AddDomains(const v1::VmSpec& spec, AcpiInput* input) {
  const auto count = static_cast<uint64_t>(spec.placement_size());
  // Linux keeps its free memory in blocks of 2 MiB and looks at 128 MiB at a time: a block has one domain.
  const uint64_t unit = input->ram_bytes / count >= kDomainUnit ? kDomainUnit : kSmallDomainUnit;
  const uint64_t all = input->ram_bytes / unit;
  std::vector<uint64_t> bytes;
  for (uint64_t i = 0; i < count; i++) bytes.push_back((all * (i + 1) / count - all * i / count) * unit);
  bytes.back() += input->ram_bytes - all * unit;
  const std::vector<std::vector<RamPiece>> memory = RamLayoutOfNodes(bytes);
  const std::vector<std::string> nodes = VcpuNodes(spec);
  for (size_t i = 0; i < count; i++) {
    const std::string& name = spec.placement(static_cast<int>(i)).node();
    AcpiNode domain;
    domain.memory = memory[i];
    for (uint32_t vcpu = 0; vcpu < nodes.size(); vcpu++) {
      if (nodes[vcpu] == name) domain.vcpus.push_back(VcpuId(vcpu));
    }
    if (name == spec.io_node()) input->io_node = static_cast<uint32_t>(i);
    input->nodes.push_back(std::move(domain));
    input->distances.emplace_back(count, kOtherNodeDistance);
    input->distances.back()[i] = kAcpiLocalDistance;
  }
}

}  // namespace

LinuxBootSpec BootSpecOf(const v1::VmSpec& spec, const KernelCache& kernels) {
  return {.kernel_path = spec.kernel(),
          .initrd_path = spec.initrd(),
          .command_line = spec.cmdline(),
          .ram_bytes = spec.memory_mib() << 20,
          .unpacked = spec.kernel_as_is() ? nullptr : &kernels};
}

absl::StatusOr<InitialCpuState> LoadMachine(const v1::VmSpec& spec, const KernelCache& kernels, bool pm_timer,
                                            GuestMemory* memory) {
  HK_ASSIGN_OR_RETURN(const LinuxBoot boot, LinuxBoot::Plan(BootSpecOf(spec, kernels)));
  AcpiInput input;
  input.ram_bytes = spec.memory_mib() << 20;
  for (uint32_t i = 0; i < spec.vcpus(); i++) input.apic_ids.push_back(i);
  input.pm_timer = pm_timer;
  if (spec.topology() == v1::TOPOLOGY_NUMA) AddDomains(spec, &input);
  HK_ASSIGN_OR_RETURN(const AcpiTables tables, BuildAcpiTables(input));
  HK_RETURN_IF_ERROR(memory->Write(tables.start, tables.bytes));
  MemoryWriter writer(memory);
  HK_ASSIGN_OR_RETURN(const BootState state, boot.Load(writer, tables.rsdp));
  return ToInitialCpuState(state);
}

}  // namespace hk
