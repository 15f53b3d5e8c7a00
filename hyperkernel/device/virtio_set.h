// All virtio devices of one guest: each with its worker thread, its DMA space and its transport, in PCI slots.
//
// Thread-safe once started.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/device/dma_space.h"
#include "hyperkernel/device/interrupt_line.h"
#include "hyperkernel/device/pci.h"
#include "hyperkernel/device/virtio_device.h"
#include "hyperkernel/device/virtio_pci.h"
#include "hyperkernel/device/work_loop.h"

namespace hk {

// The devices and what each needs.
class VirtioSet {
 public:
  // All outlive the set, and vCPUs are stopped before it goes: the buses still name its devices. `guest` is for logs.
  static absl::StatusOr<std::unique_ptr<VirtioSet>> Create(GuestMemory* memory, PciRoot* root,
                                                           InterruptSink* interrupts, std::string guest = "");
  // Stops the workers; waits for I/O in flight.
  ~VirtioSet();

  // Puts a device into a PCI slot. `name` is for logs, listings and its thread. Devices are called through their own
  // pointers as long as the set lives. REQUIRES: not started. Errors: as PciRoot::Add; errno of epoll and eventfd.
  absl::Status Add(uint8_t slot, std::string name, std::unique_ptr<VirtioDevice> device);
  // Starts the workers, before the guest runs. Errors: kFailedPrecondition if they run.
  absl::Status Start();

  // A guest's reset or end: resets all devices, waits for their I/O in flight, and blocks their access to memory, which
  // may then be reused. All are asked before the first is waited for. REQUIRES: started; vCPUs are stopped. Errors:
  // kDeadlineExceeded with the first device that is not done; nothing may be reused then. May be called again.
  absl::Status ResetAndBlock(Monotonic deadline);
  // Lets devices access memory again.
  void Unblock();

  // For a machine that is saved: all stop working, and their I/O in flight ends and is answered; memory stays theirs.
  // REQUIRES: started; vCPUs are stopped. Errors: kDeadlineExceeded and others with the device; they work on then.
  absl::Status Hold(Monotonic deadline);
  // They work again. REQUIRES: held.
  absl::Status GoOn();
  // Calls `put` with the name and the state of each. REQUIRES: held.
  void SaveStates(const std::function<void(const std::string& name, std::vector<std::byte> bytes)>& put);
  // Each becomes what `find` has under its name. REQUIRES: not started, all devices added, vCPUs do not run. Errors:
  // those of `find`; kInvalidArgument with the device. The set is good for nothing but its destructor then.
  absl::Status RestoreStates(
      const std::function<absl::StatusOr<std::span<const std::byte>>(const std::string& name)>& find);

  // Names of the devices whose driver broke the protocol and has not reset them since.
  std::vector<std::string> Broken() const;

  const DmaPins& pins() const { return *pins_; }
  // Calls `page` for each page a device wrote since the last harvest; a page may come several times.
  void HarvestDirty(const std::function<void(Gfn)>& page);

 private:
  // In order of destruction from the last: transport, loop, space, device.
  struct Member {
    std::string name;
    std::unique_ptr<VirtioDevice> device;
    std::unique_ptr<DmaSpace> space;
    std::unique_ptr<WorkLoop> loop;
    std::unique_ptr<VirtioPci> transport;
  };
  VirtioSet(GuestMemory* memory, PciRoot* root, InterruptSink* interrupts, std::string guest)
      : memory_(memory), root_(root), interrupts_(interrupts), guest_(std::move(guest)) {}

  GuestMemory* const memory_;
  PciRoot* const root_;
  InterruptSink* const interrupts_;
  const std::string guest_;
  std::unique_ptr<DmaPins> pins_;
  std::vector<Member> members_;
};

}  // namespace hk
