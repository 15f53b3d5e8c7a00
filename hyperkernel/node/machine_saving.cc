#include "hyperkernel/node/machine_saving.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/byte_archive.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/kvm/vcpu_state.h"

namespace hk {
namespace {

constexpr char kMachine[] = "machine", kClock[] = "clock", kIoApic[] = "ioapic";
constexpr uint16_t kVersion = 1;  // of the two sections that are written here

std::string VcpuSection(uint32_t vcpu) {
  return fmt::format("vcpu.{}", vcpu);
}
std::string ApicSection(uint32_t vcpu) {
  return fmt::format("apic.{}", vcpu);
}
std::string VirtioSection(const std::string& device) {
  return fmt::format("virtio.{}", device);
}

struct MachineFacts {
  uint32_t vcpu_count = 0;
  bool x2apic = false, pm_timer = false, clock = false;
};

template <typename Archive>
void Fields(Archive& a, Archived<Archive, MachineFacts>& facts) {
  a.Numbers(facts.vcpu_count, facts.x2apic, facts.pm_timer, facts.clock);
}

template <typename Archive>
void Fields(Archive& a, Archived<Archive, PvClockState>& clock) {
  a.Numbers(clock.origin.guest_tsc, clock.origin.system_ns, clock.origin.wall_ns, clock.origin.tsc_khz,
            clock.origin.stable, clock.wall_clock_msr, clock.wall_version);
}

}  // namespace

absl::StatusOr<std::vector<std::byte>> IdentifyDisks(const v1::VmSpec& spec) {
  ByteWriter writer;
  writer.Number(kVersion);
  for (const v1::DiskSpec& disk : spec.disks()) {
    struct stat info {};
    if (::stat(disk.path().c_str(), &info) != 0) return ErrnoStatus(errno, disk.path());
    // A device's node is not written to by writing to the device.
    const bool file = S_ISREG(info.st_mode);
    writer.Numbers(uint64_t{info.st_dev}, uint64_t{info.st_ino}, uint64_t{info.st_rdev},
                   file ? int64_t{info.st_size} : int64_t{0}, file ? int64_t{info.st_mtim.tv_sec} : int64_t{0},
                   file ? int64_t{info.st_mtim.tv_nsec} : int64_t{0});
  }
  return writer.Take();
}

absl::StatusOr<MachineSections> SaveInterior(const MachineInterior& machine, Monotonic deadline) {
  MachineSections sections;
  const MachineFacts facts{.vcpu_count = machine.vcpu_count,
                           .x2apic = machine.x2apic,
                           .pm_timer = machine.pm_timer,
                           .clock = machine.clock != nullptr};
  sections[kMachine] = WriteVersioned(kVersion, [&](auto& a) { Fields(a, facts); });
  using States = std::map<VcpuId, VcpuState>;
  HK_ASSIGN_OR_RETURN(const States states, machine.vcpus->Save(deadline));
  for (const auto& [id, state] : states) {
    sections[VcpuSection(id.value())] = EncodeVcpuState(state);
    LocalApicState apic = machine.interrupts->SaveVcpu(id);
    if (HK_MUTANT(saved_machine_forgets_interrupts)) apic.irr = {};
    sections[ApicSection(id.value())] = EncodeLocalApic(apic);
  }
  sections[kIoApic] = EncodeIoApic(machine.interrupts->SaveIoApic());
  if (machine.clock != nullptr) {
    const PvClockState clock = machine.clock->SaveAll();
    sections[kClock] = WriteVersioned(kVersion, [&](auto& a) { Fields(a, clock); });
  }
  machine.devices->SaveStates(&sections);
  machine.virtio->SaveStates([&](const std::string& device, std::vector<std::byte> bytes) {
    sections[VirtioSection(device)] = std::move(bytes);
  });
  return sections;
}

absl::StatusOr<MachineBeginning> ReadBeginning(SectionReader* sections, uint32_t vcpu_count,
                                               std::chrono::nanoseconds missed) {
  using Bytes = std::span<const std::byte>;
  MachineFacts facts;
  HK_ASSIGN_OR_RETURN(const Bytes machine, sections->Take(kMachine));
  HK_RETURN_IF_ERROR(ReadVersioned(kMachine, kVersion, machine, [&](auto& a) { Fields(a, facts); }));
  if (facts.vcpu_count != vcpu_count) {
    return absl::InvalidArgumentError(fmt::format("{} vCPUs, expected {}", facts.vcpu_count, vcpu_count));
  }
  MachineBeginning beginning{
      .x2apic = facts.x2apic, .pm_timer = facts.pm_timer, .clock = {}, .vcpus = {}, .apics = {}, .io_apic = {}};
  for (uint32_t i = 0; i < vcpu_count; ++i) {
    HK_ASSIGN_OR_RETURN(const Bytes vcpu, sections->Take(VcpuSection(i)));
    HK_ASSIGN_OR_RETURN(beginning.vcpus[VcpuId(i)], DecodeVcpuState(vcpu));
    HK_ASSIGN_OR_RETURN(const Bytes bytes, sections->Take(ApicSection(i)));
    HK_ASSIGN_OR_RETURN(LocalApicState apic, DecodeLocalApic(bytes));
    // Overdue by more than any timer runs is overdue all the same (LocalApic::Restore).
    if (apic.timer_running != 0) apic.timer_remaining_ns -= std::min<int64_t>(missed.count(), apic.timer_remaining_ns);
    beginning.apics.push_back(apic);
  }
  HK_ASSIGN_OR_RETURN(const Bytes io_apic, sections->Take(kIoApic));
  HK_ASSIGN_OR_RETURN(beginning.io_apic, DecodeIoApic(io_apic));
  if (!facts.clock) return beginning;
  HK_ASSIGN_OR_RETURN(const Bytes clock, sections->Take(kClock));
  HK_RETURN_IF_ERROR(ReadVersioned(kClock, kVersion, clock, [&](auto& a) { Fields(a, beginning.clock.emplace()); }));
  if (beginning.clock->origin.tsc_khz == 0) return absl::InvalidArgumentError("clock: a TSC that stands still");
  return beginning;
}

absl::Status RestoreDevices(const MachineBeginning& beginning, SectionReader* sections, std::chrono::nanoseconds missed,
                            const MachineInterior& machine) {
  HK_RETURN_IF_ERROR(machine.devices->RestoreStates(sections, missed));
  HK_RETURN_IF_ERROR(
      machine.virtio->RestoreStates([&](const std::string& device) { return sections->Take(VirtioSection(device)); }));
  HK_RETURN_IF_ERROR(sections->Done());
  HK_RETURN_IF_ERROR(machine.interrupts->RestoreIoApic(beginning.io_apic));
  for (uint32_t i = 0; i < machine.vcpu_count; ++i) {
    HK_RETURN_IF_ERROR(machine.interrupts->RestoreVcpu(VcpuId(i), beginning.apics[i]));
  }
  return absl::OkStatus();
}

}  // namespace hk
