// What a kind of virtio device is to its transport, and the transport to it (virtio 1.2: 2 and 3).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/device/io_handler.h"
#include "hyperkernel/device/virtqueue.h"
#include "hyperkernel/device/work_loop.h"

namespace hk {

// Feature bits of the transport's making (virtio 1.2: 6), as masks.
inline constexpr uint64_t kVirtioIndirect = uint64_t{1} << 28;
inline constexpr uint64_t kVirtioEventIndex = uint64_t{1} << 29;
inline constexpr uint64_t kVirtioVersion1 = uint64_t{1} << 32;

// Queues of one device: their doorbells are one 64-bit word.
inline constexpr size_t kMaxVirtioQueues = 64;

// What a running device may ask of its transport. Thread-safe, except what says otherwise.
class VirtioTransport {
 public:
  virtual ~VirtioTransport() = default;
  // The queue has used buffers the driver wants to hear of.
  virtual void InterruptQueue(uint16_t queue) = 0;
  // The configuration space changed.
  virtual void ConfigChanged() = 0;
  // The driver broke the protocol: sets DEVICE_NEEDS_RESET (2.1.2), tells the driver, and no queue is looked at until
  // it resets the device.
  virtual void MarkBroken(const absl::Status& reason) = 0;
  virtual bool broken() const = 0;
  // Rings the device's own doorbell of a queue: OnDoorbell soon.
  virtual void Ring(uint16_t queue) = 0;
};

// A device in use by its driver. Lives from Activate to Stop. Belongs to the worker.
struct VirtioRun {
  uint64_t features = 0;        // negotiated
  std::span<Virtqueue> queues;  // those the driver enabled are enabled()
  VirtioTransport* transport = nullptr;
  WorkLoop* loop = nullptr;
  bool has(uint64_t feature) const { return (features & feature) != 0; }
};

// One kind of device. Its worker calls Activate, OnDoorbell, OnWake and Stop, one at a time; the rest is called by any
// thread.
class VirtioDevice {
 public:
  virtual ~VirtioDevice() = default;

  virtual uint16_t type() const = 0;      // virtio 1.2: 5, table of device types
  virtual uint64_t features() const = 0;  // offered, beyond the transport's
  virtual std::span<const uint16_t> queue_sizes() const = 0;
  // Whether its driver rings often enough for doorbells of its own kind (see doorbells.h); each takes the host's memory
  // and time at every start of the driver.
  virtual bool rings_often() const { return false; }
  // PCI class code: what lspci shows.
  virtual uint32_t class_code() const { return 0xff0000; }
  // Device configuration (within the device's own layout; beyond it reads are zero).
  virtual void ReadConfig(uint64_t offset, std::span<std::byte> data) { StoreLe(data, 0), static_cast<void>(offset); }
  virtual void WriteConfig(uint64_t offset, std::span<const std::byte> data) {
    static_cast<void>(offset), static_cast<void>(data);
  }

  // The driver is ready. `run` stays valid until Stop returns.
  virtual void Activate(VirtioRun* run) = 0;
  // The driver added requests, or the device asked for it (Ring), or memory was unblocked.
  virtual void OnDoorbell(uint16_t queue) = 0;
  // The loop was woken; also by things that are no doorbell. Called only while active.
  virtual void OnWake() {}
  // The driver resets the device. On return no chain is open, and `run` is not used any more. Waits for I/O in flight.
  virtual void Stop() = 0;

  // For a machine that is saved. All but RestoreState while active. The loop does not run: the caller is the worker.
  //
  // I/O in flight ends and is answered; nothing is begun. Errors: kDeadlineExceeded and others; the device goes on as
  // if nothing had been asked.
  virtual absl::Status Drain(Monotonic deadline) { return static_cast<void>(deadline), absl::OkStatus(); }
  // Of an active one that is drained: what is neither in its options nor in its queues (README.md, "Saved state").
  virtual std::vector<std::byte> SaveState() { return {}; }
  // After Activate. Errors: kInvalidArgument in one line; the machine is not to be used.
  virtual absl::Status RestoreState(std::span<const std::byte> bytes) {
    return bytes.empty() ? absl::OkStatus() : absl::InvalidArgumentError("bytes where there are none");
  }

 protected:
  // Serves a queue in a session: calls `serve` until there is nothing left, publishes, interrupts. `serve` pops and
  // adds used requests; it returns true if it took all there was, false if it stopped for want of something else and
  // will look again by itself (the driver is then asked for no doorbells). A guest's fault marks the device broken;
  // blocked memory puts the work off.
  template <typename Serve>
  void ServeQueue(VirtioRun* run, uint16_t index, Serve serve) {
    Virtqueue& queue = run->queues[index];
    if (run->transport->broken() || !queue.enabled()) return;
    if (absl::Status status = queue.Open(); !status.ok()) return Fail(run, index, status);
    bool interrupt = false;
    const absl::Status status = [&]() -> absl::Status {
      for (;;) {
        queue.DisableDoorbell();
        const absl::StatusOr<bool> all = serve(queue);
        interrupt |= queue.Publish();
        if (!all.ok() || !*all) return all.status();
        const absl::StatusOr<bool> more = queue.EnableDoorbell();
        if (!more.ok() || !*more) return more.status();
      }
    }();
    queue.Close();
    if (interrupt) run->transport->InterruptQueue(index);
    if (!status.ok()) Fail(run, index, status);
  }
  // Adds used requests that were finished elsewhere, in a session of its own; `add` returns nothing. False if memory is
  // blocked or the device broken: nothing was done.
  template <typename Add>
  bool ReturnUsed(VirtioRun* run, uint16_t index, Add add) {
    Virtqueue& queue = run->queues[index];
    if (run->transport->broken() || !queue.enabled()) return false;
    if (absl::Status status = queue.Open(); !status.ok()) {
      Fail(run, index, status);
      return false;
    }
    add(queue);
    const bool interrupt = queue.Publish();
    queue.Close();
    if (interrupt) run->transport->InterruptQueue(index);
    return true;
  }

 private:
  // Memory that cannot be had now (GuestMemory::Pin: kAborted) is asked for again, after what else the worker has to
  // do.
  static void Fail(VirtioRun* run, uint16_t index, const absl::Status& status) {
    if (status.code() == absl::StatusCode::kAborted) return run->transport->Ring(index);
    if (status.code() != absl::StatusCode::kUnavailable) run->transport->MarkBroken(status);
  }
};

}  // namespace hk
