// The block device (virtio 1.2: 5.2) over a raw image, with io_uring: reads and writes go between the image and the
// guest's pages, in any number at once, flush is fdatasync.
//
// Belongs to its worker, which also owns the io_uring. Destroyed after its transport, which stops it.
//
// Invariants:
//  1. A request's chain is open from Pop until the kernel has finished with its pages.
//  2. At most kRequests requests are in flight, and none begins while those pin as much as is allowed; a queue that
//     finds no slot, or too much pinned, is looked at again when that has changed.
//  3. A request is answered once, with a status byte, also if memory was blocked meanwhile (then when it is not).
//  4. With a replica: what was begun there is ended there, before the guest is told and before its pages are given
//  back. A write or erase that may not begin yet waits here, unknown to the kernel and the replica, with its chain
//  open.
#pragma once

#include <liburing.h>
#include <sys/uio.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "hyperkernel/device/block_permits.h"
#include "hyperkernel/device/block_replica.h"
#include "hyperkernel/device/disk_image.h"
#include "hyperkernel/device/token_bucket.h"
#include "hyperkernel/device/virtio_device.h"

namespace hk {

// One disk.
class VirtioBlk final : public VirtioDevice {
 public:
  static constexpr uint16_t kQueueSize = 256;
  static constexpr uint32_t kMaxSegments = kQueueSize - 2;  // of a request; header and status take one each
  static constexpr uint16_t kMaxQueues = 16;
  static constexpr size_t kRequests = 128;
  static constexpr size_t kSerialBytes = 20;
  static constexpr uint32_t kMaxZeroSectors = 32768;  // one discard or write-zeroes: 16 MiB

  // Beyond the image. Plain value.
  struct Options {
    std::string serial = {};  // at most kSerialBytes are shown
    uint16_t queues = 1;      // 1 to kMaxQueues
    uint64_t bps_limit = 0;   // bytes per second read and written together; 0: none
    // Most memory that requests in flight may pin before no other is begun; 0: no bound. For memory whose pages other
    // nodes may wait for.
    uint64_t most_pinned_bytes = 0;
    // Most that the guest is told to ask for at once, through the size of its segments (SIZE_MAX), which is a page at
    // least: all of a request is pinned together. 0: no bound.
    uint64_t most_request_bytes = 0;
    // Told of all requests, and asked for what reads wish for; null: nobody is.
    std::unique_ptr<BlockReplica> replica = {};
  };

  // Errors: kInvalidArgument for the options, errno of io_uring_setup.
  static absl::StatusOr<std::unique_ptr<VirtioBlk>> Create(DiskImage image, Options options);
  ~VirtioBlk() override;

  uint16_t type() const override { return 2; }
  uint64_t features() const override;
  std::span<const uint16_t> queue_sizes() const override { return queue_sizes_; }
  bool rings_often() const override { return true; }
  uint32_t class_code() const override { return 0x018000; }  // mass storage
  void ReadConfig(uint64_t offset, std::span<std::byte> data) override;

  void Activate(VirtioRun* run) override;
  void OnDoorbell(uint16_t queue) override;
  void Stop() override;
  absl::Status Drain(Monotonic deadline) override;

 private:
  // A request in flight, or a free slot.
  struct Request {
    DescriptorChain chain{kQueueSize + 8};
    size_t number = 0;       // its place in requests_
    std::vector<iovec> iov;  // what is left to do
    size_t iov_first = 0;    // of those in `iov`
    uint16_t queue = 0;
    uint32_t type = 0;
    uint64_t offset = 0;            // in the image, of what is left
    uint64_t bytes = 0;             // left
    uint64_t data_bytes = 0;        // written to the guest on success
    int mode = 0;                   // fallocate
    BlockIo io;                     // all of it, as it was asked for
    std::vector<BlockExtent> gaps;  // of a transfer: what the image is asked for, one after the other
    size_t next_gap = 0;
    enum class Told : uint8_t { kNothing, kIo, kFlush } told = Told::kNothing;  // the replica, of what has begun
    uint32_t flush = 0;
    bool suits = false;    // O_DIRECT takes the memory as it is
    bool waiting = false;  // until it may change the disk
  };
  // A request that is answered but not yet in the used ring.
  struct Done {
    uint16_t head = 0;
    uint32_t written = 0;
  };

  VirtioBlk(DiskImage image, Options options);
  // Pops and starts requests. True if it took all there was. Errors: as Begin and Virtqueue::Pop.
  absl::StatusOr<bool> TakeRequests(uint16_t index, Virtqueue* queue);
  static uint64_t PinnedBy(const Request& request);
  bool MayBegin() const;
  // Unpins, and gives the slot back.
  void Free(Request* request);
  // Starts a request that was popped. Errors: the driver broke the protocol.
  absl::Status Begin(Request* request);
  void BeginTransfer(Request* request, bool write);
  void StartTransfer(Request* request, bool write);
  void BeginZeroing(Request* request);
  void StartZeroing(Request* request);
  // False: it waits, and is started by OnPermits.
  bool MayChange(Request* request);
  void OnPermits();
  void BeginIdentify(Request* request);
  // Sets the request's segments. False if a piece of memory does not suit O_DIRECT.
  bool GatherData(Request* request, bool write);
  // Submits the next gap. False: there is none.
  bool SubmitGap(Request* request);
  void TellBegin(Request* request);
  void TellEnd(Request* request, bool ok);
  void Submit(Request* request);
  void TransferThroughBounce(Request* request, bool write);
  bool WriteZeros(uint64_t offset, uint64_t bytes);
  void OnCompletions();
  // Handles what the kernel has finished.
  void Reap();
  void OnCompletion(Request* request, int result);
  // Writes the status, releases the chain, frees the slot.
  void Finish(Request* request, uint8_t status);
  void AddDone(uint16_t index, Virtqueue* queue);
  void PublishDone();
  void SubmitAll();
  void SetTimer(Monotonic when);

  const DiskImage image_;
  const Options options_;
  const std::vector<uint16_t> queue_sizes_;
  io_uring ring_{};
  bool ring_ready_ = false;
  std::unique_ptr<std::byte, decltype(&std::free)> bounce_;
  std::vector<std::unique_ptr<Request>> requests_;
  std::vector<Request*> free_;
  std::vector<std::vector<Done>> done_;  // per queue
  size_t in_flight_ = 0;                 // in the kernel
  uint64_t pinned_bytes_ = 0;            // by requests that are not finished
  uint64_t starved_ = 0;                 // queues that wait for a free slot, one bit each
  const bool limited_;
  TokenBucket bucket_;
  VirtioRun* run_ = nullptr;
  std::shared_ptr<BlockPermits> permits_;  // null without a replica
};

}  // namespace hk
