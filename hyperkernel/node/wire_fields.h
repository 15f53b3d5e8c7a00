// Fields of the bodies of a machine's messages: little-endian, at a place. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace hk {

// REQUIRES of both: the place is within the bytes; at most 8 of them.
inline void PutField(std::span<std::byte> to, size_t at, uint64_t value, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) to[at + i] = static_cast<std::byte>(value >> (8 * i));
}
inline uint64_t GetField(std::span<const std::byte> from, size_t at, size_t bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < bytes; ++i) value |= static_cast<uint64_t>(from[at + i]) << (8 * i);
  return value;
}

// A letter of a peer's text, fit for a log.
inline char Printable(std::byte each) {
  const char letter = static_cast<char>(each);
  return letter >= ' ' && letter <= '~' ? letter : '?';
}

}  // namespace hk
