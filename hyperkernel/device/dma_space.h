// The only way by which a device reaches guest memory (DESIGN: devices and DMA).
//
// Every access goes through a chain: the pieces of memory that one descriptor chain (or one look at a ring) names. For
// each piece the device's address (IOVA) is translated to a guest-physical one, the device's permission is checked, the
// pages are pinned for the life of the chain, and get a frame; what other nodes have of them is waited for. Releasing
// the chain first sets the dirty bits of what the device could write, then unpins.
//
// Invariants:
//  1. A pointer into guest memory is held by a device only inside a chain that is not released.
//  2. A page's dirty bit is set after the last byte was written and before the page is unpinned. Chains are released
//     before their descriptors are published as used.
//  3. After Block() has returned OK no chain is open, and none opens until Unblock().
//  4. A pin is shared if the device reads, exclusive if it writes. "Exclusive" is towards other nodes, which must not
//     hold a copy: devices of this node may pin one page in both ways at once, as often as they like.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mapping.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/guest_memory.h"

namespace hk {

// What a device does to memory.
enum class DmaAccess : uint8_t { kRead, kWrite };

// Pin counts of every page of a guest's RAM, for all of its devices. Thread-safe, lock-free. 8 bytes per page, taken
// from the host only for pages that were ever pinned.
class DmaPins {
 public:
  // How often a page is pinned now. Plain value.
  struct Count {
    uint32_t shared = 0;
    uint32_t exclusive = 0;
  };
  static absl::StatusOr<std::unique_ptr<DmaPins>> Create(const GuestMemory& memory);

  // What the page protocol asks before it revokes a page. Zero for what is not RAM.
  Count Of(Gfn gfn) const;

 private:
  friend class DmaChain;
  friend class DmaSpace;
  explicit DmaPins(std::vector<RamRange> ranges) : ranges_(std::move(ranges)) {}

  // Place of the RAM range's first page in the arrays, which hold the pages of all ranges one after the other.
  struct Place {
    size_t page = 0;          // index of the page that holds the address
    uint64_t bytes_left = 0;  // to the end of its range
  };
  bool Find(Gpa gpa, Place* place) const;
  std::atomic_ref<uint64_t> Word(size_t page) const;

  const std::vector<RamRange> ranges_;
  size_t pages_ = 0;
  Mapping counts_;  // low half shared, high half exclusive
};

class DmaSpace;

// The pieces of one open access. Reusable; holds a bounded number of pieces, without allocating after construction if
// their memory stays on this node. Not thread-safe, but may be released by another thread than it was filled by.
class DmaChain {
 public:
  // A contiguous piece of guest memory, in this process.
  struct Piece {
    std::span<std::byte> bytes;
    Gpa gpa;
    DmaAccess access = DmaAccess::kRead;
  };

  explicit DmaChain(size_t max_pieces) { pieces_.reserve(max_pieces); }
  ~DmaChain() { Release(); }
  DmaChain(DmaChain&& other) noexcept
      : space_(std::exchange(other.space_, nullptr)),
        pieces_(std::exchange(other.pieces_, {})),
        pins_(std::exchange(other.pins_, {})) {}
  DmaChain& operator=(DmaChain&&) = delete;

  std::span<const Piece> pieces() const { return pieces_; }
  bool open() const { return space_ != nullptr; }
  // Calls `page` for each page of the chain that somebody else may be writing to now: it is pinned for writing more
  // often than a piece of this chain has it. Who pins it later, does so after this call.
  void ForEachWrittenByOthers(const std::function<void(Gfn)>& page) const;
  // Sets the dirty bits of the written pieces (all of them, whole), unpins, forgets the pieces. Does nothing if closed.
  void Release();

 private:
  friend class DmaSpace;
  DmaSpace* space_ = nullptr;
  std::vector<Piece> pieces_;
  std::vector<PinnedPages> pins_;  // of memory whose pages may leave: one for each piece, else none
};

// One device's view of guest memory. Thread-safe.
class DmaSpace {
 public:
  // A part of the device's address space and what it means. Plain value.
  struct Window {
    uint64_t iova = 0;
    Gpa gpa;
    uint64_t bytes = 0;
    bool device_may_read = true;
    bool device_may_write = true;
  };

  // An identity of all RAM if `windows` is empty. `memory` and `pins` outlive the space.
  static absl::StatusOr<std::unique_ptr<DmaSpace>> Create(GuestMemory* memory, DmaPins* pins,
                                                          std::vector<Window> windows = {});
  ~DmaSpace();

  // Adds [iova, iova + bytes) to the chain, opening it if it is closed. Zero bytes add nothing. Errors leave the chain
  // as it was: kOutOfRange (not mapped, or not RAM), kPermissionDenied, kInvalidArgument (too many pieces),
  // kUnavailable (blocked: put the work off until told to go on), kResourceExhausted (no frame).
  absl::Status Map(DmaChain* chain, uint64_t iova, uint64_t bytes, DmaAccess access);

  // Refuses new chains and waits until open ones are released. Errors: kDeadlineExceeded; still blocked then. A chain
  // that is open may be added to meanwhile.
  absl::Status Block(Monotonic deadline);
  void Unblock();

  // Calls `page` for each page written since the last harvest. Bits set meanwhile are seen now or next time.
  void HarvestDirty(const std::function<void(Gfn)>& page);

 private:
  friend class DmaChain;
  DmaSpace(GuestMemory* memory, DmaPins* pins, std::vector<Window> windows)
      : memory_(memory), pins_(pins), windows_(std::move(windows)) {}

  absl::Status MapPiece(DmaChain* chain, uint64_t iova, uint64_t bytes, DmaAccess access, uint64_t* mapped);
  void Unpin(const DmaChain::Piece& piece);
  void SetDirty(const DmaChain::Piece& piece);
  bool Enter();
  void Leave();

  GuestMemory* const memory_;
  DmaPins* const pins_;
  const std::vector<Window> windows_;
  Mapping dirty_;  // one bit per page, in words of 64
  std::atomic<bool> blocked_ = false;
  std::atomic<uint64_t> open_chains_ = 0;
  Mutex mutex_;
  CondVar idle_;  // signalled when blocked and the last chain was released
};

}  // namespace hk
