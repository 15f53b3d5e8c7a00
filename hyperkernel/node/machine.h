// A running guest as the manager sees it: the seam between the life of a machine (states, orders) and what it is made
// of.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "proto/vm.pb.h"

namespace hk {

// How a guest ended by itself.
enum class MachineEnd { kPowerOff, kReset, kCrash };

// What a machine tells, from any of its threads. Calls must not block, and must not destroy the machine.
class MachineEvents {
 public:
  virtual ~MachineEvents() = default;
  // The guest wrote to its console.
  virtual void OnConsoleOutput(std::string_view bytes) = 0;
  // The guest ended; told once. `reason` is one line for kCrash.
  virtual void OnEnd(MachineEnd end, const std::string& reason) = 0;
};

// A guest whose vCPUs run. Thread-safe. Destroying it stops it at once.
class Machine {
 public:
  virtual ~Machine() = default;
  // Types on the console. What the guest does not take in time is dropped, and the count returned is less.
  virtual size_t ConsoleInput(std::string_view bytes) = 0;
  virtual void PressPowerButton() = 0;
  // Holds all vCPUs / lets them run. Errors: kDeadlineExceeded if one does not stop.
  virtual absl::Status Pause() = 0;
  virtual absl::Status Unpause() = 0;
  virtual uint64_t frame_bytes() const = 0;
  // vCPU exits since the start.
  virtual uint64_t exits() const = 0;
  // The same by kind, and "injected": the interrupts given to vCPUs. Kinds that did not occur are left out.
  virtual std::map<std::string, uint64_t> exits_by_kind() const = 0;
};

// Checks that a machine could be made here now (files, memory) without making it. Errors: one line.
using MachineChecker = std::function<absl::Status(const v1::VmSpec& spec)>;
// Makes a machine and lets it run. `events` outlives it.
using MachineFactory = std::function<absl::StatusOr<std::unique_ptr<Machine>>(
    const v1::VmSpec& spec, uint64_t generation, MachineEvents* events)>;

}  // namespace hk
