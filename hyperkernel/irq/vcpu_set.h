// A set of vCPUs of one guest, of fixed size: a destination costs no allocation. Plain value.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

#include "hyperkernel/base/types.h"

namespace hk {

// vCPUs (and with them APIC ids) of one guest; id 255 is the eight-bit broadcast and never a vCPU.
inline constexpr uint32_t kMaxVcpus = 255;

// Members are numbered below 256.
class VcpuSet {
 public:
  void Add(VcpuId vcpu) { words_[vcpu.value() / 64] |= Bit(vcpu); }
  void Remove(VcpuId vcpu) { words_[vcpu.value() / 64] &= ~Bit(vcpu); }
  bool Contains(VcpuId vcpu) const { return vcpu.value() < 256 && (words_[vcpu.value() / 64] & Bit(vcpu)) != 0; }
  bool Empty() const { return (words_[0] | words_[1] | words_[2] | words_[3]) == 0; }
  VcpuSet& operator|=(const VcpuSet& other) {
    for (uint32_t i = 0; i < 4; ++i) {
      words_[i] |= other.words_[i];
    }
    return *this;
  }
  bool operator==(const VcpuSet&) const = default;

  // Calls visit(VcpuId) for each member, in ascending order.
  template <typename Visit>
  void ForEach(Visit visit) const {
    for (uint32_t i = 0; i < 4; ++i) {
      for (uint64_t rest = words_[i]; rest != 0; rest &= rest - 1) {
        visit(VcpuId(i * 64 + static_cast<uint32_t>(std::countr_zero(rest))));
      }
    }
  }

 private:
  static uint64_t Bit(VcpuId vcpu) { return uint64_t{1} << (vcpu.value() % 64); }
  std::array<uint64_t, 4> words_{};
};

}  // namespace hk
