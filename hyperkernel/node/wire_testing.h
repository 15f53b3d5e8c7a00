// Bytes of messages, for tests that compare them.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <span>
#include <vector>

namespace hk {

using Bytes = std::vector<std::byte>;

inline Bytes Of(std::span<const std::byte> bytes) {
  return {bytes.begin(), bytes.end()};
}
inline Bytes Raw(std::initializer_list<int> values) {
  Bytes bytes;
  for (const int value : values) bytes.push_back(static_cast<std::byte>(value));
  return bytes;
}

}  // namespace hk
