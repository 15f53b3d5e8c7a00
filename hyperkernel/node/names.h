// Names of nodes, clusters and guests.
#pragma once

#include <cstddef>
#include <string_view>

namespace hk {

// Longest name: one DNS label (RFC 1035, 2.3.4), so that a name can be a host name and a certificate's DNS name.
inline constexpr size_t kMaxNameBytes = 63;

// True for [a-z0-9-]{1,63}.
constexpr bool IsValidName(std::string_view name) {
  if (name.empty() || name.size() > kMaxNameBytes) return false;
  for (char c : name) {
    if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-')) return false;
  }
  return true;
}

}  // namespace hk
