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
  explicit VectorSet(const Words& words) : words_(words) {}

  void Set(uint8_t vector) { words_[vector / 32] |= Bit(vector); }
  void Clear(uint8_t vector) { words_[vector / 32] &= ~Bit(vector); }
  void Assign(uint8_t vector, bool value) { value ? Set(vector) : Clear(vector); }
  bool Test(uint8_t vector) const { return (words_[vector / 32] & Bit(vector)) != 0; }
  std::optional<uint8_t> Highest() const {
    for (uint32_t i = 8; i-- > 0;) {
      if (words_[i] != 0) {
        return static_cast<uint8_t>(i * 32 + static_cast<uint32_t>(std::bit_width(words_[i])) - 1);
      }
    }
    return std::nullopt;
  }
  const Words& words() const { return words_; }

 private:
  static uint32_t Bit(uint8_t vector) { return uint32_t{1} << (vector % 32); }
  Words words_{};
};

}  // namespace hk
