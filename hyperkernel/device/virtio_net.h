// The network device (virtio 1.2: 5.1): several queue pairs, checksum and segmentation offloads, mergeable receive
// buffers. Frames pass between the guest and a NetBackend with their headers as they are.
//
// Belongs to its worker; counters are readable by any thread.
//
// A frame for the guest is read into a buffer of our own and copied: no page of the guest is pinned while a frame is
// awaited. If the guest has no buffers, one frame per pair is held, and the others wait in the backend's bounded queue.
// A frame of the guest is written to the backend at once; if that is full, the frame is dropped and counted, as on a
// wire.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "hyperkernel/device/net_backend.h"
#include "hyperkernel/device/virtio_device.h"

namespace hk {

// One network card.
class VirtioNet final : public VirtioDevice {
 public:
  static constexpr uint16_t kQueueSize = 256;
  static constexpr size_t kMaxPairs = 16;
  static constexpr size_t kMaxMerged = 64;  // receive buffers for one frame
  static constexpr int kBatch = 128;        // frames per look at a queue, so that one direction does not starve others

  using Mac = std::array<uint8_t, 6>;

  // Frames so far. Plain value.
  struct Counters {
    uint64_t received = 0;  // by the guest
    uint64_t sent = 0;
    uint64_t dropped_receive = 0;  // too large for the guest's buffers, or malformed
    uint64_t dropped_send = 0;     // backend full, or malformed
  };

  // Errors: kInvalidArgument if the backend has no or too many queues.
  static absl::StatusOr<std::unique_ptr<VirtioNet>> Create(std::unique_ptr<NetBackend> backend, const Mac& mac);

  Counters counters() const;

  uint16_t type() const override { return 1; }
  uint64_t features() const override;
  std::span<const uint16_t> queue_sizes() const override { return queue_sizes_; }
  bool rings_often() const override { return true; }
  uint32_t class_code() const override { return 0x020000; }  // Ethernet controller
  void ReadConfig(uint64_t offset, std::span<std::byte> data) override;

  void Activate(VirtioRun* run) override;
  void OnDoorbell(uint16_t queue) override;
  void Stop() override;
  // A frame that waits for the guest's buffers is not among it: it is lost, as on a wire.
  std::vector<std::byte> SaveState() override;
  absl::Status RestoreState(std::span<const std::byte> bytes) override;

 private:
  // The receive side of a queue pair.
  struct Receiver {
    std::vector<std::byte> frame = std::vector<std::byte>(kMaxFrameBytes);
    size_t bytes = 0;  // of the frame that waits for the guest's buffers; 0: none
  };
  enum class Delivery { kDone, kNoBuffers };

  VirtioNet(std::unique_ptr<NetBackend> backend, const Mac& mac);
  void Receive(size_t pair);
  absl::StatusOr<Delivery> Deliver(Receiver* receiver, Virtqueue* queue);
  void Send(uint16_t queue);
  void Control(uint16_t queue);
  bool HandleControl();
  uint16_t ControlQueue() const;

  const std::unique_ptr<NetBackend> backend_;
  const Mac mac_;
  const size_t pairs_;
  const std::vector<uint16_t> queue_sizes_;
  std::vector<Receiver> receivers_;
  std::vector<DescriptorChain> merged_;
  DescriptorChain chain_{kQueueSize + 8};
  uint16_t active_pairs_ = 1;
  VirtioRun* run_ = nullptr;

  std::atomic<uint64_t> received_ = 0, sent_ = 0, dropped_receive_ = 0, dropped_send_ = 0;
};

}  // namespace hk
