// The devices of one machine on their buses. Thread-safe once made.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string_view>

#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/device/bus.h"
#include "hyperkernel/device/interrupt_line.h"
#include "hyperkernel/device/pci.h"
#include "hyperkernel/device/power_ports.h"
#include "hyperkernel/irq/interrupt_controller.h"
#include "hyperkernel/node/machine_state.h"

namespace hk {

// What devices tell the machine; called from vCPU threads, must not block.
struct MachineDeviceEvents {
  std::function<void(std::string_view bytes)> console_output;
  std::function<void(GuestRequest request)> request;
};

// All devices of a machine.
class MachineDevices {
 public:
  // `interrupts` and `clock` outlive it. `pm_timer`: as the FADT says. Errors: addresses that collide, which is a
  // mistake of ours.
  static absl::StatusOr<std::unique_ptr<MachineDevices>> Create(InterruptController* interrupts, const Clock& clock,
                                                                bool pm_timer, MachineDeviceEvents events);
  virtual ~MachineDevices() = default;

  virtual Bus& ports() = 0;
  virtual Bus& mmio() = 0;
  // Where PCI devices go, and where their interrupts do.
  virtual PciRoot& pci() = 0;
  virtual InterruptSink& interrupts() = 0;
  virtual size_t ConsoleInput(std::string_view bytes) = 0;
  virtual void PressPowerButton() = 0;
  // A section for each device, of its name; and taking them. `missed`: time since it was saved. REQUIRES: vCPUs do not
  // run, and nobody else calls; of the latter: fresh. Errors: kInvalidArgument in one line.
  virtual void SaveStates(MachineSections* sections) = 0;
  virtual absl::Status RestoreStates(SectionReader* sections, std::chrono::nanoseconds missed) = 0;
};

}  // namespace hk
