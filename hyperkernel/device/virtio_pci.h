// The virtio-pci transport (virtio 1.2: 4.1), modern only: capabilities, common configuration, doorbells, ISR, device
// configuration, MSI-X with INTx as fallback.
//
// Threads: vCPUs access configuration and BAR; the device's worker (a WorkLoop) does everything with queues. A vCPU's
// write that starts or resets the device, or rings a doorbell, is a note to the worker; a reset is finished when the
// status register reads 0 (2.4: the driver waits for that). Common configuration is under one lock; nothing is called
// with it held.
//
// Invariants:
//  1. Virtqueues and the device's Activate, OnDoorbell, OnWake and Stop are touched by the worker only.
//  2. Status reads 0 after a reset only when the device has stopped: no chain of it is open.
//  3. The driver's features are frozen by FEATURES_OK, its queues by DRIVER_OK.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/device/dma_space.h"
#include "hyperkernel/device/interrupt_line.h"
#include "hyperkernel/device/msix.h"
#include "hyperkernel/device/pci.h"
#include "hyperkernel/device/virtio_device.h"
#include "hyperkernel/device/work_loop.h"

namespace hk {

// One virtio device on PCI.
class VirtioPci final : public PciDevice, public VirtioTransport {
 public:
  // Layout of BAR 0; each region is a page of its own, so that doorbells could be mapped apart.
  static constexpr uint32_t kCommonOffset = 0x0000;
  static constexpr uint32_t kIsrOffset = 0x1000;
  static constexpr uint32_t kDeviceOffset = 0x2000;
  static constexpr uint32_t kNotifyOffset = 0x3000;
  static constexpr uint32_t kTableOffset = 0x4000;
  static constexpr uint32_t kPendingOffset = 0x5000;
  static constexpr uint32_t kBarBytes = 0x8000;
  static constexpr uint32_t kRegionBytes = 0x1000;
  static constexpr uint32_t kNotifyMultiplier = 4;

  // `name` is for logs. All outlive the transport; the loop must be stopped before the transport goes. Sets the loop's
  // wake handler.
  VirtioPci(std::string name, VirtioDevice* device, DmaSpace* space, WorkLoop* loop, InterruptSink* interrupts);
  ~VirtioPci() override;

  // Makes the doorbells that a DoorbellRegistrar may take over. Errors: as WorkLoop::AddEvent. REQUIRES: not yet added
  // to a root, the loop not started.
  absl::Status MakeDoorbells();

  // PciDevice.
  void ReadConfig(uint32_t offset, std::span<std::byte> data) override;
  void WriteConfig(uint32_t offset, std::span<const std::byte> data) override;
  void ReadBar(int bar, uint64_t offset, std::span<std::byte> data) override;
  void WriteBar(int bar, uint64_t offset, std::span<const std::byte> data) override;
  std::span<const Doorbell> Doorbells(int) const override { return events_; }

  // VirtioTransport.
  void InterruptQueue(uint16_t queue) override;
  void ConfigChanged() override;
  void MarkBroken(const absl::Status& reason) override;
  bool broken() const override { return broken_.load(); }
  void Ring(uint16_t queue) override;

  // Rings all queues: memory was unblocked, or the worker should look again.
  void RingAll();
  // Begins the reset that ResetAndWait waits for, and returns at once.
  void RequestReset();
  // Resets device, transport and configuration registers (BARs keep their places, decoding is off), as a machine reset
  // does; waits until the worker has stopped the device. REQUIRES: vCPUs do not run. Errors: kDeadlineExceeded.
  absl::Status ResetAndWait(Monotonic deadline);
  // For a machine that is saved, or made from what was. REQUIRES of the three: vCPUs do not run, nor does the loop.
  // Drain: as VirtioDevice. SaveState: drained; registers, queues and the device's own. RestoreState: added to its
  // root, and to nothing that was used; begins to work when the loop starts. Errors: kInvalidArgument in one line; good
  // for nothing but its destructor then.
  absl::Status Drain(Monotonic deadline);
  std::vector<std::byte> SaveState();
  absl::Status RestoreState(std::span<const std::byte> bytes);
  // Whether a driver uses the device. For tests and listings.
  bool active() const { return driver_ok_.load(); }

 private:
  // What the driver says of a queue (4.1.4.3).
  struct QueueConfig {
    uint16_t size = 0;
    uint16_t vector = 0xffff;
    bool enabled = false;
    uint64_t descriptors = 0;
    uint64_t available = 0;
    uint64_t used = 0;
  };

  template <typename Archive>
  void RegisterFields(Archive& a) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool RegistersAreLegal() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Virtqueue::Layout LayoutOf(const QueueConfig& config) const;
  absl::Status RunAgain(const std::vector<Virtqueue::Progress>& progress, std::span<const std::byte> device);

  void AddCapabilities();
  uint8_t AddVirtioCapability(uint8_t type, uint32_t offset, uint32_t bytes, bool with_extra, uint32_t extra)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(config_mutex_);
  void ReadCommon(uint64_t offset, std::span<std::byte> data);
  void WriteCommon(uint64_t offset, std::span<const std::byte> data);
  void WriteCommonField(uint64_t offset, uint64_t value, size_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WriteQueueField(uint64_t offset, uint64_t value, size_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WriteStatus(uint8_t value) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ForgetDriver() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  uint16_t Vector(uint16_t wanted) const;
  void SetIsr(uint8_t bit);
  void AfterConfigWrite();
  void UpdateIntx();
  bool AccessThroughConfig(uint32_t offset, size_t bytes, uint32_t* bar_offset, uint32_t* length);

  // Worker.
  void OnWake();
  void Start();
  void StopDevice();

  const std::string name_;
  VirtioDevice* const device_;
  DmaSpace* const space_;
  WorkLoop* const loop_;
  const uint64_t offered_;
  std::vector<Doorbell> events_;  // constant once added to a root
  MsixTable msix_;
  uint8_t config_access_ = 0;  // offset of the PCI configuration access capability
  uint8_t msix_capability_ = 0;

  // What follows from registers is worked out and applied under this lock, so that the newest state is applied last.
  // Taken before the other locks; the interrupt sink is called with it held.
  Mutex apply_mutex_;
  std::optional<uint64_t> decoded_ ABSL_GUARDED_BY(apply_mutex_);  // where the BAR answers
  Mutex mutex_;
  CondVar stopped_;  // a reset was finished
  uint8_t status_ ABSL_GUARDED_BY(mutex_) = 0;
  uint32_t device_feature_select_ ABSL_GUARDED_BY(mutex_) = 0;
  uint32_t driver_feature_select_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t driver_features_ ABSL_GUARDED_BY(mutex_) = 0;
  uint16_t queue_select_ ABSL_GUARDED_BY(mutex_) = 0;
  uint8_t generation_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<QueueConfig> queue_configs_ ABSL_GUARDED_BY(mutex_);
  bool start_wanted_ ABSL_GUARDED_BY(mutex_) = false;
  bool reset_wanted_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<Monotonic> last_complaint_ ABSL_GUARDED_BY(mutex_);
  bool started_ ABSL_GUARDED_BY(mutex_) = false;  // the worker was told to start and has not stopped

  std::atomic<uint16_t> config_vector_ = 0xffff;
  std::vector<std::atomic<uint16_t>> queue_vectors_;
  std::atomic<uint8_t> isr_ = 0;
  std::atomic<uint64_t> doorbells_ = 0;
  std::atomic<bool> broken_ = false;
  std::atomic<bool> driver_ok_ = false;
  std::atomic<bool> bus_master_ = false;

  // The worker's.
  std::vector<Virtqueue> queues_;
  VirtioRun run_;
  bool running_ = false;
};

}  // namespace hk
