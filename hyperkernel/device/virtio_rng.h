// The entropy device (virtio 1.2: 5.4): fills the driver's buffers from getrandom(2).
//
// Belongs to its worker.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "hyperkernel/device/virtio_device.h"

namespace hk {

// One entropy source.
class VirtioRng final : public VirtioDevice {
 public:
  static constexpr uint16_t kQueueSize = 64;
  // What one request gets at most: the driver asks again. Bounds the time one look at the queue takes.
  static constexpr size_t kMaxBytesPerRequest = 4096;

  uint16_t type() const override { return 4; }
  uint64_t features() const override { return 0; }
  std::span<const uint16_t> queue_sizes() const override { return queue_sizes_; }
  uint32_t class_code() const override { return 0x100000; }  // encryption controller, as others have it

  void Activate(VirtioRun* run) override { run_ = run; }
  void OnDoorbell(uint16_t queue) override;
  void Stop() override { run_ = nullptr; }

 private:
  const std::array<uint16_t, 1> queue_sizes_ = {kQueueSize};
  VirtioRun* run_ = nullptr;
  DescriptorChain chain_{kQueueSize + 8};
};

}  // namespace hk
