// 256 interrupt vectors as the IRR, ISR and TMR hold them. Plain value.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <optional>

namespace hk {

// A set of vectors with its highest member quickly found.
class VectorSet {
 public:
  using Words = std::array<uint32_t, 8>;

  VectorSet() = default;
  explicit VectorSet(const Words& words) : words_(words) {
    for (uint32_t i = 0; i < words.size(); ++i) {
      used_ |= words[i] != 0 ? 1u << i : 0u;
    }
  }

  void Set(uint8_t vector) {
    words_[vector / 32] |= Bit(vector);
    used_ |= 1u << vector / 32;
  }
  void Clear(uint8_t vector) {
    words_[vector / 32] &= ~Bit(vector);
    if (words_[vector / 32] == 0) {
      used_ &= ~(1u << vector / 32);
    }
  }
  void Assign(uint8_t vector, bool value) { value ? Set(vector) : Clear(vector); }
  bool Test(uint8_t vector) const { return (words_[vector / 32] & Bit(vector)) != 0; }
  std::optional<uint8_t> Highest() const {
    if (used_ == 0) {
      return std::nullopt;
    }
    const auto word = static_cast<uint32_t>(std::bit_width(used_)) - 1;
    return static_cast<uint8_t>(word * 32 + static_cast<uint32_t>(std::bit_width(words_[word])) - 1);
  }
  const Words& words() const { return words_; }
  // Calls visit(vector) for each member, in ascending order.
  template <typename Visit>
  void ForEach(Visit visit) const {
    for (uint32_t used = used_; used != 0; used &= used - 1) {
      const auto word = static_cast<uint32_t>(std::countr_zero(used));
      for (uint32_t rest = words_[word]; rest != 0; rest &= rest - 1) {
        visit(static_cast<uint8_t>(word * 32 + static_cast<uint32_t>(std::countr_zero(rest))));
      }
    }
  }

 private:
  static uint32_t Bit(uint8_t vector) { return uint32_t{1} << (vector % 32); }
  Words words_{};
  uint32_t used_ = 0;  // words that are not zero, one bit each
};

}  // namespace hk
