// Who owns the pages of an extent, as a node has last heard, and which pages have changed owner lately, as their home
// knows: what lets a reader ask the owner at once, and the home answer without it (README.md, "Peeks"). The first may
// be wrong at any time; the second is never too low. Bounded memory. No thread safety: a shard's lock guards both.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "hyperkernel/base/types.h"

namespace hk {

// What a node has heard of an extent. Plain value.
struct OwnerHint {
  uint64_t extent = 0;
  NodeId owner;
  uint64_t serial = 0;     // the highest of the home's; 0: nothing was heard
  bool confirmed = false;  // it was named twice, with no other between
};

// The hints of one shard, whose extents agree in the upper 6 bits of their hash.
class OwnerHints {
 public:
  // A message that names the owner of a page of the extent, now or as soon as its transaction is done.
  void Told(uint64_t extent, NodeId owner, uint64_t serial) {
    OwnerHint& hint = At(extent);
    const bool known = hint.serial != 0 && hint.extent == extent;
    hint = {.extent = extent,
            .owner = owner,
            .serial = known ? std::max(hint.serial, serial) : serial,
            .confirmed = known && hint.owner == owner};
  }
  // Any other message with a serial.
  void Heard(uint64_t extent, uint64_t serial) {
    OwnerHint& hint = At(extent);
    if (hint.extent == extent && hint.serial != 0) hint.serial = std::max(hint.serial, serial);
  }
  // The owner is not who it was taken for, or does not give the page: it must be named anew, twice.
  void Refused(uint64_t extent) {
    OwnerHint& hint = At(extent);
    if (hint.extent == extent) hint.confirmed = false;
  }
  // Null: nobody is worth asking.
  const OwnerHint* Find(uint64_t extent) {
    const OwnerHint& hint = At(extent);
    return hint.extent == extent && hint.confirmed ? &hint : nullptr;
  }
  void Clear() { hints_ = {}; }

 private:
  // With 64 shards: 1024 extents, 2 GiB.
  static constexpr size_t kHints = 16;
  OwnerHint& At(uint64_t extent) { return hints_[(extent * 0x9e3779b97f4a7c15U) >> 54 & (kHints - 1)]; }
  std::array<OwnerHint, kHints> hints_{};
};

// Serials of the last grants that made owners or writers, by page; pages share them.
class OwnerSerials {
 public:
  // Of what was before nothing is known but that its serials are not above `floor`.
  void Reset(uint64_t floor) { serials_.fill(floor); }
  // REQUIRES: above all before.
  void Note(Gfn page, uint64_t serial) { At(page) = serial; }
  // At least that of the page's last one.
  uint64_t Last(Gfn page) { return At(page); }

 private:
  // Of a page that no grant went to, one of so many others hides that. 2 KiB for each of 64 shards.
  static constexpr size_t kBits = 8;
  uint64_t& At(Gfn page) { return serials_[(page.value() * 0x9e3779b97f4a7c15U) >> (64 - kBits)]; }
  std::array<uint64_t, size_t{1} << kBits> serials_{};
};

}  // namespace hk
