// What a node keeps of an extent while nothing of it is under way: one byte for each page that is here, and of the
// pages whose home it is one entry for all of them (fused), or a code of two bytes for each (split) until they are
// alike again. Sizes: README.md, "The engine". Not thread-safe: the shard's lock.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/node_set.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/decayed_count.h"
#include "hyperkernel/memory/page_directory.h"
#include "hyperkernel/memory/page_protocol.h"
#include "hyperkernel/memory/space_engine.h"

namespace hk {

// A directory entry at rest. Plain value.
struct RestingEntry {
  DirectoryState state = DirectoryState::kDormant;
  bool ever_written = false;
  NodeId owner;
  NodeSet copyset;
  uint64_t storage = 0;
  friend bool operator==(const RestingEntry&, const RestingEntry&) = default;
};

// True if nothing of the entry is under way.
bool IsAtRest(const DirectoryEntry& entry);
// REQUIRES: IsAtRest(entry).
RestingEntry RestOf(const DirectoryEntry& entry);
DirectoryEntry EntryOf(const RestingEntry& rest);

// The entries of an extent at its home. `page`: within the extent.
class ExtentDirectory {
 public:
  // All pages alike.
  ExtentDirectory() = default;
  explicit ExtentDirectory(const RestingEntry& all) : fused_(all) {}
  RestingEntry Get(size_t page) const;
  void Set(size_t page, const RestingEntry& entry);
  bool fused() const { return split_ == nullptr; }
  // Memory beside the object itself.
  size_t heap_bytes() const;

 private:
  // Pages that differ: which of the different entries each has. Unused entries are taken again, so there are never more
  // than pages.
  struct Split {
    std::array<uint16_t, kExtentPages> codes{};
    std::vector<RestingEntry> entries;
    std::vector<uint16_t> uses;
  };
  RestingEntry fused_;
  std::unique_ptr<Split> split_;
};

// The pages of an extent on this node.
class ExtentPages {
 public:
  // Absent, Shared, Owner or Exclusive.
  PageState state(size_t page) const { return static_cast<PageState>(Byte(page) & kStateMask); }
  bool held(size_t page) const { return (Byte(page) & kHeld) != 0; }
  // There is a record of the page with more about it; state and hold are there.
  bool active(size_t page) const { return (Byte(page) & kActive) != 0; }
  // Its bytes are in the swap, and it has no frame.
  bool swapped(size_t page) const { return (Byte(page) & kSwapped) != 0; }
  // REQUIRES: there is something of the page here.
  void SetSwapped(size_t page, bool swapped) {
    uint8_t& byte = (*bytes_)[page];
    byte = static_cast<uint8_t>(swapped ? byte | kSwapped : byte & ~kSwapped);
  }
  // It was granted, or unpinned, since the last TakeMark.
  void Mark(size_t page) { (*bytes_)[page] |= kMarked; }
  bool TakeMark(size_t page) {
    const bool marked = (Byte(page) & kMarked) != 0;
    if (marked) (*bytes_)[page] = static_cast<uint8_t>((*bytes_)[page] & ~kMarked);
    return marked;
  }
  // Swapped and the mark stay as they are.
  void Set(size_t page, PageState state, bool held, bool active) {
    HK_DCHECK(static_cast<uint8_t>(state) <= kStateMask);
    const uint8_t byte = static_cast<uint8_t>(static_cast<uint8_t>(state) | (held ? kHeld : 0) |
                                              (active ? kActive : 0) | (Byte(page) & (kSwapped | kMarked)));
    if (bytes_ == nullptr) {
      if (byte == 0) return;
      bytes_ = std::make_unique<std::array<uint8_t, kExtentPages>>();
    }
    (*bytes_)[page] = byte;
  }
  // Counts of the pages by right, moved from one to another.
  void Count(PageRight before, PageRight after) {
    --counts_[static_cast<size_t>(before)];
    ++counts_[static_cast<size_t>(after)];
  }
  uint32_t count(PageRight right) const { return counts_[static_cast<size_t>(right)]; }
  size_t heap_bytes() const { return bytes_ == nullptr ? 0 : sizeof(*bytes_); }

 private:
  static constexpr uint8_t kStateMask = 0x0f, kHeld = 0x10, kActive = 0x20, kSwapped = 0x40, kMarked = 0x80;
  uint8_t Byte(size_t page) const { return bytes_ == nullptr ? 0 : (*bytes_)[page]; }

  std::unique_ptr<std::array<uint8_t, kExtentPages>> bytes_;  // null: all Absent
  std::array<uint16_t, 4> counts_{kExtentPages, 0, 0, 0};     // by PageRight
};

// An extent that was touched. Others are Absent and Dormant and take no memory.
struct Extent {
  ExtentPages pages;
  ExtentDirectory home;  // if this node is the home
  DecayedCount heat;     // rights of its pages granted and taken here
  // The pages of which this node, as the extent's second, was told that they are ever written; as its home: of which it
  // has told. Null: of none.
  std::unique_ptr<std::array<uint64_t, kExtentPages / 64>> written;
};

}  // namespace hk
