// What a machine of one node is made of, into sections and out of them: vCPUs, interrupt controllers, clock, devices
// (README.md, "Saved state"). Not thread-safe: the machine stands still.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/irq/interrupt_controller.h"
#include "hyperkernel/kvm/pv_clock.h"
#include "hyperkernel/kvm/vcpu_group.h"
#include "hyperkernel/node/machine_devices.h"
#include "hyperkernel/node/machine_state.h"
#include "hyperkernel/node/machine_virtio.h"
#include "proto/vm.pb.h"

namespace hk {

// The parts that have a state. Plain value; owns nothing.
struct MachineInterior {
  uint32_t vcpu_count = 0;
  bool x2apic = false;    // its local APICs began in that mode
  bool pm_timer = false;  // its tables declare one
  VcpuGroup* vcpus = nullptr;
  InterruptController* interrupts = nullptr;
  PvClock* clock = nullptr;  // may be null
  MachineDevices* devices = nullptr;
  MachineVirtio* virtio = nullptr;
};

// REQUIRES: vCPUs are paused, devices held. Errors: those of VcpuGroup::Save.
absl::StatusOr<MachineSections> SaveInterior(const MachineInterior& machine, Monotonic deadline);

// What shows whether an image was changed by somebody else meanwhile: of each disk, the file, its size and when it was
// last written to. Errors: errno with the path.
absl::StatusOr<std::vector<std::byte>> IdentifyDisks(const v1::VmSpec& spec);

// What must be known before the parts are made, or is put into them when they are. Plain value.
struct MachineBeginning {
  bool x2apic = false, pm_timer = false;
  std::optional<PvClockState> clock;
  std::map<VcpuId, VcpuState> vcpus;
  std::vector<LocalApicState> apics;  // by vCPU
  IoApicState io_apic;
};

// `missed`: time since the machine was held, which its timers have run on for. Takes its sections. Errors:
// kInvalidArgument in one line.
absl::StatusOr<MachineBeginning> ReadBeginning(SectionReader* sections, uint32_t vcpu_count,
                                               std::chrono::nanoseconds missed);

// The devices first, whose interrupts then go into controllers that have no entry for any, and then the controllers,
// where these interrupts are already. Takes the rest of the sections. REQUIRES: fresh, no device started, `vcpus` is
// not used. Errors: kInvalidArgument in one line; all of it is good for nothing but its destructor then.
absl::Status RestoreDevices(const MachineBeginning& beginning, SectionReader* sections, std::chrono::nanoseconds missed,
                            const MachineInterior& machine);

}  // namespace hk
