// The console device (virtio 1.2: 5.3) with named ports: port 0 is the guest's console (hvc0), others are
// /dev/virtio-ports/NAME.
//
// Input, Resize and SetHostOpen are thread-safe; callbacks run in the device's worker (`room` too), without a lock, and
// must not block: a sink that is full drops or buffers.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "hyperkernel/base/mutex.h"
#include "hyperkernel/device/byte_queue.h"
#include "hyperkernel/device/virtio_device.h"

namespace hk {

// A console and its ports.
class VirtioConsole final : public VirtioDevice {
 public:
  static constexpr size_t kMaxPorts = 16;
  static constexpr size_t kInputLimit = 64 * 1024;  // per port
  static constexpr uint16_t kQueueSize = 64;

  // One port. Plain value; callbacks may be empty.
  struct Port {
    std::string name = {};                                        // shown to the guest's udev; empty: none
    bool host_open = true;                                        // at first; see SetHostOpen
    std::function<void(std::span<const std::byte>)> output = {};  // bytes from the guest
    std::function<void()> room = {};                              // there is room again after input was refused
    std::function<void(bool)> guest_open = {};                    // a program in the guest opened or closed the port
  };

  // Port 0 is the console. REQUIRES: 1 to kMaxPorts ports.
  explicit VirtioConsole(std::vector<Port> ports);

  // Queues input to a port; returns how many bytes were taken.
  size_t Input(size_t port, std::span<const std::byte> data);
  // Whether the guest has the port open: a program, or for the console its driver.
  bool GuestOpen(size_t port) const;
  // The console's size in characters.
  void Resize(uint16_t columns, uint16_t rows);
  // Tells the guest whether anybody is at the other end.
  void SetHostOpen(size_t port, bool open);

  uint16_t type() const override { return 3; }
  uint64_t features() const override;
  std::span<const uint16_t> queue_sizes() const override { return queue_sizes_; }
  uint32_t class_code() const override { return 0x078000; }  // communication controller
  void ReadConfig(uint64_t offset, std::span<std::byte> data) override;

  void Activate(VirtioRun* run) override;
  void OnDoorbell(uint16_t queue) override;
  void OnWake() override;
  void Stop() override;
  std::vector<std::byte> SaveState() override;
  absl::Status RestoreState(std::span<const std::byte> bytes) override;

 private:
  // Messages to the guest that are due for a port; each kind at most once, so a guest cannot make them pile up.
  enum Message : uint8_t { kAdd = 1, kConsole = 2, kSize = 4, kName = 8, kOpen = 16, kAllMessages = 31 };
  struct State {
    ByteQueue input{kInputLimit};
    bool refused = false;
    bool host_open = true;
    bool ready = false;  // the guest has the port
    bool guest_open = false;
    uint8_t due = 0;
  };

  template <typename Archive>
  void Fields(Archive& a) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static uint16_t ReceiveQueue(size_t port) { return static_cast<uint16_t>(port == 0 ? 0 : 2 * port + 2); }
  void Wake() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SendInput(size_t port);
  void ReceiveOutput(uint16_t queue, size_t port);
  void ReceiveControl(uint16_t queue);
  void HandleControl(uint32_t id, uint16_t event, uint16_t value);
  void SendControl();
  // The next message that is due, as bytes; 0 if none. Clears its mark.
  size_t NextControl(std::span<std::byte> message);

  const std::vector<Port> ports_;
  std::vector<uint16_t> queue_sizes_;
  mutable Mutex mutex_;
  std::vector<State> states_ ABSL_GUARDED_BY(mutex_);
  uint16_t columns_ ABSL_GUARDED_BY(mutex_) = 80;
  uint16_t rows_ ABSL_GUARDED_BY(mutex_) = 25;
  WorkLoop* loop_ ABSL_GUARDED_BY(mutex_) = nullptr;              // while active
  VirtioTransport* transport_ ABSL_GUARDED_BY(mutex_) = nullptr;  // while active

  // The worker's.
  VirtioRun* run_ = nullptr;
  DescriptorChain chain_{kQueueSize + 8};
};

}  // namespace hk
