// Addresses as operators write them: "unix:/path", "IP:PORT", "[IPv6]:PORT", "HOST:PORT". Plain values.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace hk {

// A place to listen on or to connect to.
struct Address {
  enum class Kind { kUnix, kTcp };
  Kind kind = Kind::kTcp;
  std::string path;  // kUnix: absolute path, shorter than sockaddr_un allows
  std::string
      host;  // kTcp: IP literal (no brackets, in its canonical form), or, if parsed with names allowed, a host name
  uint16_t port = 0;        // kTcp: 1 to 65535
  bool is_literal = false;  // kTcp: host is an IP literal

  // The form it is written in; parsing it again gives the same value.
  std::string ToString() const;
  // Reached only from this host: a unix socket, or a loopback IP literal (127.0.0.0/8, ::1).
  bool IsLocal() const;
  // Every address of the host: 0.0.0.0 or ::.
  bool IsWildcard() const;
  friend bool operator==(const Address&, const Address&) = default;
};

// What a text may be.
enum class AddressForm {
  kListen,     // unix path or IP literal with port
  kListenTcp,  // IP literal with port
  kConnect,    // unix path, IP literal or host name with port
  kConnectTcp  // IP literal or host name with port
};

// Errors: kInvalidArgument with what is wrong and what is expected, without the field's name.
absl::StatusOr<Address> ParseAddress(std::string_view text, AddressForm form);

}  // namespace hk
