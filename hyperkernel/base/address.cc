#include "hyperkernel/base/address.h"

#include <arpa/inet.h>
#include <sys/un.h>

#include <charconv>

#include "fmt/format.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

constexpr std::string_view kUnixPrefix = "unix:";
// Longest host name (RFC 1035, 2.3.4).
constexpr size_t kMaxHostName = 253;

bool AllowsUnix(AddressForm form) {
  return form == AddressForm::kListen || form == AddressForm::kConnect;
}
bool AllowsNames(AddressForm form) {
  return form == AddressForm::kConnect || form == AddressForm::kConnectTcp;
}

std::string Expected(AddressForm form) {
  return fmt::format("{}{}", AllowsUnix(form) ? "unix:/PATH or " : "", AllowsNames(form) ? "HOST:PORT" : "IP:PORT");
}

bool IsIpv4(const std::string& host) {
  in_addr address;
  return ::inet_pton(AF_INET, host.c_str(), &address) == 1;
}

bool IsIpv6(const std::string& host) {
  in6_addr address;
  return ::inet_pton(AF_INET6, host.c_str(), &address) == 1;
}

// One address has many spellings; compared are canonical ones (RFC 5952). REQUIRES: IsIpv6(host).
std::string CanonicalIpv6(const std::string& host) {
  in6_addr address;
  char text[INET6_ADDRSTRLEN] = "";
  ::inet_pton(AF_INET6, host.c_str(), &address);
  ::inet_ntop(AF_INET6, &address, text, sizeof text);
  return text;
}

bool IsHostName(std::string_view host) {
  if (host.empty() || host.size() > kMaxHostName || host.front() == '-' || host.front() == '.') return false;
  for (char c : host) {
    const bool ok = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.';
    if (!ok) return false;
  }
  // Digits and dots only: a mistyped IPv4 address, not a name.
  return host.find_first_not_of("0123456789.") != std::string_view::npos;
}

absl::StatusOr<Address> ParseUnix(std::string_view path) {
  if (path.empty() || path.front() != '/') return absl::InvalidArgumentError("a unix socket needs an absolute path");
  // sun_path holds the terminating zero as well (unix(7)).
  constexpr size_t kLimit = sizeof(sockaddr_un{}.sun_path) - 1;
  if (path.size() > kLimit) {
    return absl::InvalidArgumentError(
        fmt::format("unix socket path of {} bytes; at most {} are possible", path.size(), kLimit));
  }
  if (path.find('\0') != std::string_view::npos)
    return absl::InvalidArgumentError("unix socket path holds a zero byte");
  Address address;
  address.kind = Address::Kind::kUnix;
  address.path = path;
  return address;
}

}  // namespace

std::string Address::ToString() const {
  if (kind == Kind::kUnix) return fmt::format("{}{}", kUnixPrefix, path);
  return host.find(':') == std::string::npos ? fmt::format("{}:{}", host, port) : fmt::format("[{}]:{}", host, port);
}

bool Address::IsLocal() const {
  if (kind == Kind::kUnix) return true;
  in_addr v4;
  if (::inet_pton(AF_INET, host.c_str(), &v4) == 1) return (ntohl(v4.s_addr) >> 24) == 127;
  in6_addr v6;
  return ::inet_pton(AF_INET6, host.c_str(), &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

bool Address::IsWildcard() const {
  return kind == Kind::kTcp && (host == "0.0.0.0" || host == "::");
}

absl::StatusOr<Address> ParseAddress(std::string_view text, AddressForm form) {
  if (text.substr(0, kUnixPrefix.size()) == kUnixPrefix) {
    if (!AllowsUnix(form))
      return absl::InvalidArgumentError(fmt::format("a unix socket is not possible here; expected {}", Expected(form)));
    return ParseUnix(text.substr(kUnixPrefix.size()));
  }
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return absl::InvalidArgumentError(fmt::format("expected {}", Expected(form)));
  const std::string_view port_text = text.substr(colon + 1);
  std::string_view host = text.substr(0, colon);
  Address address;
  const auto [end, error] = std::from_chars(port_text.data(), port_text.data() + port_text.size(), address.port);
  if (error != std::errc() || end != port_text.data() + port_text.size() || address.port == 0) {
    return absl::InvalidArgumentError(fmt::format("port '{}' is not a number from 1 to 65535", port_text));
  }
  const bool bracketed = host.size() >= 2 && host.front() == '[' && host.back() == ']';
  if (bracketed) host = host.substr(1, host.size() - 2);
  address.host = host;
  address.is_literal = bracketed ? IsIpv6(address.host) : IsIpv4(address.host);
  if (address.is_literal) {
    if (bracketed) address.host = CanonicalIpv6(address.host);
    return address;
  }
  if (!bracketed && IsIpv6(address.host)) {
    return absl::InvalidArgumentError(fmt::format("an IPv6 address is written [{}]:PORT", host));
  }
  if (!bracketed && AllowsNames(form) && IsHostName(host)) return address;
  return absl::InvalidArgumentError(fmt::format("'{}' is not {}; expected {}", host,
                                                AllowsNames(form) ? "an IP address or host name" : "an IP address",
                                                Expected(form)));
}

}  // namespace hk
