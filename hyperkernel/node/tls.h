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

// Reads the three files and checks what a node needs of them, so that a mistake shows here and not at every peer: they
// are PEM (the authority may be a bundle, the certificate may bring its chain), others cannot read the key, it is the
// certificate's, the certificate is valid now under the authority, its subject is "node:NODE_NAME", it names NODE_NAME
// and kAnyNodeDnsName, and it may be used by servers and clients. Errors name the field ("key: /path: ...") and never
// hold key material.
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
