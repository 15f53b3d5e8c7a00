// Strong types for the field's basic quantities, so that a frame number is never taken for an address or a node for a
// vCPU. Plain values: no thread safety to speak of.
#pragma once

#include <compare>
#include <cstdint>

namespace hk {

// Page size of the coherence protocol and of everything built on it, in bytes. Fixed by the x86 page tables' smallest
// page.
inline constexpr uint64_t kPageShift = 12;
inline constexpr uint64_t kPageSize = uint64_t{1} << kPageShift;

// A number that is not convertible to a number of another kind. Tag is only a name.
template <typename Tag, typename Rep>
class StrongNumber {
 public:
  constexpr StrongNumber() = default;
  constexpr explicit StrongNumber(Rep value) : value_(value) {}
  constexpr Rep value() const { return value_; }
  friend constexpr auto operator<=>(StrongNumber, StrongNumber) = default;

 private:
  Rep value_ = 0;
};

// Guest-physical address, in bytes.
using Gpa = StrongNumber<struct GpaTag, uint64_t>;
// Guest frame number: Gpa >> 12.
using Gfn = StrongNumber<struct GfnTag, uint64_t>;
// Index of a vCPU within its guest, from 0.
using VcpuId = StrongNumber<struct VcpuIdTag, uint32_t>;
// A node's number in its cluster, below kMaxNodes, the same on every node.
using NodeId = StrongNumber<struct NodeIdTag, uint16_t>;
// Most nodes of a cluster: a set of nodes is one machine word.
inline constexpr uint16_t kMaxNodes = 64;
// A guest's number in its cluster, the same on every node; 0 is no guest.
using GuestId = StrongNumber<struct GuestIdTag, uint64_t>;
// A guest's epoch: raised at every change of who takes part.
using Epoch = StrongNumber<struct EpochTag, uint64_t>;

constexpr Gfn GfnOf(Gpa gpa) {
  return Gfn(gpa.value() >> kPageShift);
}
// First byte of the frame. REQUIRES: gfn < 2^52.
constexpr Gpa GpaOf(Gfn gfn) {
  return Gpa(gfn.value() << kPageShift);
}

}  // namespace hk
