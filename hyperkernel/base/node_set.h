// A set of nodes in one word: the nodes of a guest, the holders of a page, those that may still write to a buffer.
#pragma once

#include <bit>
#include <cstdint>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/types.h"

namespace hk {

// Plain value. REQUIRES: every NodeId given to it is below kMaxNodes.
class NodeSet {
 public:
  constexpr NodeSet() = default;
  constexpr explicit NodeSet(uint64_t bits) : bits_(bits) {}
  static constexpr NodeSet Of(NodeId node) { return NodeSet(Bit(node)); }

  constexpr bool Contains(NodeId node) const { return (bits_ & Bit(node)) != 0; }
  constexpr void Add(NodeId node) { bits_ |= Bit(node); }
  constexpr void Remove(NodeId node) { bits_ &= ~Bit(node); }
  constexpr bool empty() const { return bits_ == 0; }
  constexpr int size() const { return std::popcount(bits_); }
  constexpr uint64_t bits() const { return bits_; }
  friend constexpr bool operator==(NodeSet, NodeSet) = default;

 private:
  static constexpr uint64_t Bit(NodeId node) {
    HK_CHECK(node.value() < kMaxNodes);
    return uint64_t{1} << node.value();
  }

  uint64_t bits_ = 0;
};

}  // namespace hk
