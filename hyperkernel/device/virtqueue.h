// The device's side of a split virtqueue (virtio 1.2: 2.7), with indirect descriptors and event indices. Packed
// virtqueues (2.8) are not offered.
//
// Everything in the rings is hostile input. Every index, length and address is checked on every use; a descriptor is
// read once, into a private copy, and only the copy is looked at. An error means that the guest broke the protocol: the
// caller marks the device as needing reset and does not use the queue again; nothing else is harmed.
//
// Belongs to one thread, the device's worker.
//
// A look at the rings is a session: Open pins them, Close unpins. A session is short: it never waits for input or I/O.
//
//   if (queue.Open().ok()) {
//     while (*queue.Pop(&chain)) { ...; chain.Release(); queue.AddUsed(chain.head, written); }
//     interrupt = *queue.Publish();
//     queue.Close();
//   }
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/device/dma_space.h"

namespace hk {

// One request of the driver: memory for the device to read, then memory for it to write (2.7.4.2). Reusable.
struct DescriptorChain {
  explicit DescriptorChain(size_t max_pieces) : dma(max_pieces) {}

  // Gives the memory back: no piece is valid any more, `head` stays for AddUsed.
  void Release() {
    dma.Release();
    readable_pieces = 0;
    readable_bytes = writable_bytes = 0;
  }
  std::span<const DmaChain::Piece> readable() const { return dma.pieces().first(readable_pieces); }
  std::span<const DmaChain::Piece> writable() const { return dma.pieces().subspan(readable_pieces); }

  uint16_t head = 0;
  size_t readable_pieces = 0;
  uint64_t readable_bytes = 0;
  uint64_t writable_bytes = 0;
  DmaChain dma;
};

// Copies out of the readable part from `offset`; returns how many bytes there were.
size_t CopyFrom(const DescriptorChain& chain, uint64_t offset, std::span<std::byte> to);
// Copies into the writable part at `offset`; returns how many bytes fit.
size_t CopyTo(const DescriptorChain& chain, uint64_t offset, std::span<const std::byte> from);

// One split virtqueue.
class Virtqueue {
 public:
  static constexpr uint16_t kMaxSize = 1024;
  static constexpr uint32_t kMaxIndirect = 4096;  // entries of an indirect table; a chain is at most the queue's size

  // What the driver set up. Plain value.
  struct Layout {
    uint16_t size = 0;
    uint64_t descriptors = 0;  // device addresses of the three areas
    uint64_t available = 0;
    uint64_t used = 0;
    bool event_index = false;  // VIRTIO_F_EVENT_IDX
    bool indirect = false;     // VIRTIO_F_INDIRECT_DESC
  };

  // `space` outlives the queue.
  explicit Virtqueue(DmaSpace* space) : space_(space), rings_(3), indirect_(1) {}
  Virtqueue(Virtqueue&&) = default;

  // Starts from an empty queue. Errors: kInvalidArgument with what is wrong with the layout (2.7, 4.1.4.3).
  absl::Status Enable(const Layout& layout);
  // Forgets the layout. REQUIRES: no session.
  void Disable();
  bool enabled() const { return layout_.size != 0; }
  // How far the device is, between two sessions; free-running. Requests that were taken back count as not taken. Plain
  // value.
  struct Progress {
    uint16_t next_available = 0;
    uint16_t next_used = 0;
  };
  Progress progress() const { return {next_available_, next_used_}; }
  // Goes on from there instead of from an empty queue. REQUIRES: enabled; no session.
  void GoOnFrom(Progress progress);
  uint16_t size() const { return layout_.size; }

  // Errors: kUnavailable if memory is blocked (try again when told), else the rings are not in memory.
  absl::Status Open();
  void Close();

  // Takes the next request. False if there is none; `chain` is then released. Errors: kUnavailable, nothing was taken;
  // else the guest's fault. REQUIRES: a session; `chain` is released.
  absl::StatusOr<bool> Pop(DescriptorChain* chain);
  // Takes the last `count` Pops back: they are known, but not enough. REQUIRES: their chains are released and not added
  // as used.
  void UndoPop(uint16_t count) {
    next_available_ -= count;
    left_ = count;
  }
  // Gives a request back to the driver, which sees it after Publish. REQUIRES: a session; the chain is released.
  void AddUsed(uint16_t head, uint32_t written);
  // Shows the driver what was added. True if it wants an interrupt for that. REQUIRES: a session.
  bool Publish();
  // Asks for a doorbell at the next request beyond those that UndoPop left. True if there is one already: look again.
  // REQUIRES: a session.
  absl::StatusOr<bool> EnableDoorbell();
  // Asks for no doorbells: a hint, the driver may ring nevertheless. REQUIRES: a session.
  void DisableDoorbell();

 private:
  struct Descriptor {
    uint64_t address = 0;
    uint32_t bytes = 0;
    uint16_t flags = 0;
    uint16_t next = 0;
  };
  absl::StatusOr<uint16_t> Pending() const;
  absl::Status Walk(uint16_t head, DescriptorChain* chain);
  absl::Status AddDescriptor(const Descriptor& descriptor, DescriptorChain* chain);
  // The areas' base if the table is one piece in this process.
  absl::Status MapArea(DmaChain* chain, uint64_t address, uint64_t bytes, DmaAccess access, std::byte** base);
  static Descriptor Load(const std::byte* table, uint32_t index);

  DmaSpace* space_;
  Layout layout_;
  DmaChain rings_;     // open during a session
  DmaChain indirect_;  // open while an indirect table is walked
  std::byte* descriptors_ = nullptr;
  std::byte* available_ = nullptr;
  std::byte* used_ = nullptr;
  uint16_t next_available_ = 0;  // free-running
  uint16_t left_ = 0;            // requests from there on that were taken back
  uint16_t next_used_ = 0;       // free-running; what the driver sees after Publish
  uint16_t published_ = 0;       // what it sees now
};

}  // namespace hk
