// TLS identities and roles. All functions are thread-safe.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "hyperkernel/node/config.h"

namespace hk {

// DNS name that every node's certificate carries beside the node's own name, so that a client may ask "any node of this
// cluster's authority".
inline constexpr char kAnyNodeDnsName[] = "hyperkernel-node";

// Where the PEM files are.
struct TlsPaths {
  std::string ca;
  std::string certificate;
  std::string key;
};

// Reads the three files and checks that they are PEM, that the key belongs to the certificate, that the authority
// signed it, that it is valid now, and that its subject is "node:NODE_NAME". Errors name the field ("key: /path: ...")
// and never hold key material.
absl::StatusOr<TlsSettings> LoadTls(const TlsPaths& paths, std::string_view node_name);

// What a caller may do; each role may do what the ones before it may.
enum class Role { kNone, kViewer, kAdmin, kNode };

// Who a caller is.
struct Caller {
  Role role = Role::kNone;
  std::string name;  // node name for kNode; user's name, possibly empty, else
};

// From a verified certificate's subject CN: "viewer", "admin", "viewer:USER", "admin:USER", "node:NAME"; else kNone.
Caller CallerOfCommonName(std::string_view common_name);

}  // namespace hk
