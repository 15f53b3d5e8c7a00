// A running guest as the manager sees it: the seam between the life of a machine (states, orders) and what it is made
// of.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "google/protobuf/repeated_ptr_field.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/space_engine.h"
#include "hyperkernel/node/machine_state.h"
#include "proto/machine.pb.h"
#include "proto/state.pb.h"
#include "proto/vm.pb.h"

namespace hk {

class MachinePolicy;

using CpuidEntries = google::protobuf::RepeatedPtrField<v1::CpuidEntry>;

// How a guest ended by itself.
enum class MachineEnd { kPowerOff, kReset, kCrash };

// A byte stream between a guest and its host. Each has its own order; between channels there is none.
enum class Channel {
  kSerial,         // the 16550 at 0x3f8: ttyS0
  kVirtioConsole,  // port 0 of the virtio console: hvc0
  kAgent,          // the virtio console's port for the guest agent (org.qemu.guest_agent.0)
};

// What became of a vCPU that was to be on another node. Plain value.
struct VcpuMoved {
  std::string from, to;                // the same: it was there already
  std::chrono::nanoseconds stopped{};  // the guest has missed it for so long, at most
};

// What a machine tells, from any of its threads. Calls must not block, and must not destroy the machine.
class MachineEvents {
 public:
  virtual ~MachineEvents() = default;
  // The guest wrote to a channel.
  virtual void OnOutput(Channel channel, std::string_view bytes) = 0;
  // The guest ended; told once. `reason` is one line for kCrash.
  virtual void OnEnd(MachineEnd end, const std::string& reason) = 0;
};

// A guest whose vCPUs run. Thread-safe. Destroying it stops it at once.
class Machine {
 public:
  virtual ~Machine() = default;
  // Gives the guest bytes on a channel; never blocks. Returns how many of them, from the first on, were taken: the rest
  // found no room, or nobody in the guest has the channel open, and is dropped.
  virtual size_t Input(Channel channel, std::string_view bytes) = 0;
  // Tells the guest the size of the terminal on kVirtioConsole, in characters; 0 0 when there is none. (A serial line
  // has no such notion.)
  virtual void ResizeConsole(uint16_t columns, uint16_t rows) = 0;
  virtual void PressPowerButton() = 0;
  // Holds all vCPUs / lets them run. Errors: kDeadlineExceeded if one does not stop; then all go on.
  virtual absl::Status Pause() = 0;
  virtual absl::Status Unpause() = 0;
  // Saves the machine's vCPUs and interrupt controllers and makes them anew in a fresh VM, over the same memory and
  // devices, and goes on if it ran; the guest notices nothing. Errors: what could not be saved or made, or
  // kDeadlineExceeded; the machine is as before.
  virtual absl::Status Renew(Monotonic deadline) = 0;
  // Has a vCPU run on another of the machine's nodes from now on; one that is paused stays so. Errors: kNotFound,
  // kFailedPrecondition: there is no such vCPU, the node has none of the machine's, or either node refuses: it is where
  // it was; kDataLoss: nobody knows where it is, and the machine ends.
  virtual absl::StatusOr<VcpuMoved> MoveVcpu(VcpuId vcpu, const std::string& node) = 0;
  // For a machine that outlives its daemon: it stands still, and all of it but its memory is in the sections. Then
  // either GoOn, which has it run if it did, or LeaveFrames, after which its memory stays when it is destroyed, and
  // only that may follow. REQUIRES of all three: no other call is under way. Errors of Save: why it cannot be, or not
  // now; it goes on as it was.
  virtual absl::StatusOr<MachineState> Save() { return absl::UnimplementedError("this machine cannot be saved"); }
  virtual absl::Status GoOn() { return absl::OkStatus(); }
  virtual void LeaveFrames() {}
  virtual uint64_t frame_bytes() const = 0;
  // Its memory as a space's (guest_memory.h), and the first address after it.
  virtual SpaceStatistics memory_statistics() const = 0;
  virtual std::vector<ExtentUse> memory_uses(uint64_t first, size_t most) const = 0;
  virtual uint64_t memory_end() const = 0;
  // vCPU exits since the start.
  virtual uint64_t exits() const = 0;
  // The same by kind, and "injected": the interrupts given to vCPUs. Kinds that did not occur are left out.
  virtual std::map<std::string, uint64_t> exits_by_kind() const = 0;
  // What the time of each vCPU went to, if its memory is over several nodes; else nothing.
  virtual std::vector<v1::VcpuTimes> vcpu_times() const { return {}; }
  // How many moves of its vCPUs were made since the start.
  virtual uint64_t vcpu_moves() const { return 0; }
  // Of a machine with vCPUs on several nodes: how one the others' clocks are with this node's.
  virtual std::vector<v1::NodeClock> clocks() const { return {}; }
  // What decides where its vCPUs run, and has what they wait for; null: they wait for no other node.
  virtual std::shared_ptr<MachinePolicy> policy() const { return nullptr; }
  // The model of its CPUs, if they are on several nodes, as VmRecord has it; else nothing.
  virtual CpuidEntries cpu_model() const { return {}; }
  // Its vCPUs are on several hosts, and it is told not to trust its TSC.
  virtual bool tsc_unstable() const { return false; }
  // Devices whose driver broke the protocol and has not reset them since.
  virtual std::vector<std::string> broken_devices() const { return {}; }
};

// Checks that a machine could be made here now (files, memory) without making it. Errors: one line.
using MachineChecker = std::function<absl::Status(const v1::VmSpec& spec)>;
// Makes a machine, as it is recorded, and lets it run. `events` outlives it.
using MachineFactory =
    std::function<absl::StatusOr<std::unique_ptr<Machine>>(const v1::VmRecord& record, MachineEvents* events)>;

}  // namespace hk
