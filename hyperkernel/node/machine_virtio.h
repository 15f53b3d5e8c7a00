// The virtio devices of one machine: made from its specification, put into slots of its PCI bus, and connected to a KVM
// VM where that saves exits.
//
// Thread-safe once started.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/device/doorbells.h"
#include "hyperkernel/device/interrupt_line.h"
#include "hyperkernel/device/pci.h"
#include "hyperkernel/device/virtio_console.h"
#include "hyperkernel/device/virtio_set.h"
#include "hyperkernel/kvm/vm.h"
#include "hyperkernel/memory/guest_memory.h"
#include "hyperkernel/node/guest_replica.h"
#include "hyperkernel/node/machine.h"
#include "hyperkernel/node/machine_backends.h"
#include "proto/vm.pb.h"

namespace hk {

// The slots of the PCI bus, fixed by kind, so that a disk more does not rename the guest's network interfaces.
inline constexpr uint8_t kConsoleSlot = 1;
inline constexpr uint8_t kRngSlot = 2;
inline constexpr uint8_t kFirstNetSlot = 3;    // kMaxNets of them
inline constexpr uint8_t kFirstDiskSlot = 11;  // kMaxDisks of them

// The doorbells that KVM has taken over, in whichever VM the machine's vCPUs run. Thread-safe.
class KvmDoorbells final : public DoorbellRegistrar {
 public:
  bool Add(Gpa address, int event) override;
  void Remove(Gpa address, int event) override;
  // From now on `vm` has them, those that there are included; nullptr: none does. The VM of before is gone or its vCPUs
  // do not run again. One that the new VM does not take exits from then on.
  void MoveTo(Vm* vm);

 private:
  Mutex mutex_;
  Vm* vm_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::set<std::pair<Gpa, int>> taken_ ABSL_GUARDED_BY(mutex_);
};

// All virtio devices of a machine.
class MachineVirtio {
 public:
  // What the guest wrote to the console or the agent's port; called by the console's worker, must not block.
  using Output = std::function<void(Channel channel, std::string_view bytes)>;

  // `memory`, `root` and `interrupts` outlive it. `replica`: attached to the memory; null: none. REQUIRES: `backends`
  // are those of `spec`.
  static absl::StatusOr<std::unique_ptr<MachineVirtio>> Create(const v1::VmSpec& spec, MachineBackends backends,
                                                               GuestMemory* memory, PciRoot* root,
                                                               InterruptSink* interrupts, Output output,
                                                               GuestReplica* replica = nullptr);

  // Adds to a VM what makes these devices cheap: empty PCI slots as memory, doorbells as eventfds. Before its vCPUs
  // run; `vm` lives until MoveDoorbellsTo. Errors: as Vm::AddMemory.
  absl::Status AttachTo(Vm* vm);
  // The machine goes on in a VM with the same memory (Vm::CreateLike), or in none (nullptr). No vCPU runs.
  void MoveDoorbellsTo(Vm* vm) { doorbells_.MoveTo(vm); }
  // Starts the workers. Before vCPUs run.
  absl::Status Start();
  // The machine ends: resets all devices and waits for their I/O in flight; then nothing of them touches memory, and
  // they may be destroyed without a wait. REQUIRES: vCPUs are stopped. Errors: kDeadlineExceeded with the device:
  // memory must be kept, images stay locked.
  absl::Status Quiesce(Monotonic deadline) { return set_->ResetAndBlock(deadline); }

  // As VirtioSet's.
  absl::Status Hold(Monotonic deadline) { return set_->Hold(deadline); }
  absl::Status GoOn() { return set_->GoOn(); }
  void SaveStates(const std::function<void(const std::string& name, std::vector<std::byte> bytes)>& put) {
    set_->SaveStates(put);
  }
  absl::Status RestoreStates(
      const std::function<absl::StatusOr<std::span<const std::byte>>(const std::string& name)>& find) {
    return set_->RestoreStates(find);
  }

  // As Machine's, for the console's two channels.
  size_t Input(Channel channel, std::string_view bytes);
  void ResizeConsole(uint16_t columns, uint16_t rows) { console_->Resize(columns, rows); }
  // Devices that wait for their driver to reset them.
  std::vector<std::string> Broken() const { return set_->Broken(); }

 private:
  explicit MachineVirtio(PciRoot* root) : root_(root) {}
  // `most_pinned`: of the memory (GuestMemory::most_pinned_bytes).
  absl::Status Add(const v1::VmSpec& spec, MachineBackends backends, uint64_t most_pinned, Output output,
                   GuestReplica* replica);

  PciRoot* const root_;
  KvmDoorbells doorbells_;
  std::unique_ptr<VirtioSet> set_;
  VirtioConsole* console_ = nullptr;  // in the set
};

}  // namespace hk
