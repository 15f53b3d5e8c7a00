// Node configuration: from the operator's text to settings that every other part can rely on.
// Pure but for reading the file and what it names; touches nothing on the host. Thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "hyperkernel/base/address.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/types.h"

namespace hk {

inline constexpr char kDefaultConfigPath[] = "/etc/hyperkernel/node.textproto";

// Limits, each with its reason.
inline constexpr size_t kMaxConfigBytes = 1 << 20;           // 64 peers take 10 KiB; more is the wrong file
inline constexpr size_t kMaxPeers = 63;                      // copysets are 64-bit masks of nodes
inline constexpr size_t kMaxAdminListeners = 8;              // one per network of a host, generously
inline constexpr uint64_t kMaxSwapMib = uint64_t{16} << 20;  // 16 TiB: the largest file of ext4
inline constexpr uint64_t kMinFrameBudgetMib = 16;   // below this an instruction's working set may not stay resident
inline constexpr uint32_t kMinHelloIntervalMs = 50;  // more often costs more than it tells
inline constexpr uint32_t kMaxHelloIntervalMs = 60000;
inline constexpr uint32_t kMaxUnreachableAfterMs = 600000;

enum class TransportChoice { kAuto, kVerbs, kTcp };

// Another node, as configured.
struct PeerSettings {
  std::string name;
  NodeId number{};
  Address admin;
  std::optional<Address> data;
};

// Identity files, PEM, already read and checked against one another.
struct TlsSettings {
  std::string ca_pem;
  std::string certificate_pem;
  std::string key_pem;
  std::chrono::system_clock::time_point expires;  // the certificate's end
};

// Everything the daemon needs to know, complete and free of contradictions.
struct NodeSettings {
  std::string name;
  NodeId number{};  // this node's; README.md, Numbers
  std::string cluster;
  std::string data_directory;
  std::string frame_directory;
  uint64_t frame_budget_bytes = 0;
  uint64_t swap_budget_bytes = 0;
  std::vector<Address> admin_listen;
  Address data_listen;
  std::optional<Address> metrics_listen;  // none: no metrics endpoint
  TransportChoice transport = TransportChoice::kAuto;
  std::vector<PeerSettings> peers;  // without this node itself
  std::optional<TlsSettings> tls;
  std::chrono::milliseconds hello_interval{500};
  std::chrono::milliseconds unreachable_after{3000};
  log::Level log_level = log::Level::kInfo;
  std::vector<std::string> warnings;  // what is allowed but should be known, one line each
};

// Facts of the host that defaults and limits depend on.
struct HostFacts {
  std::string host_name;
  uint64_t memory_bytes = 0;
};

// Reads and checks a configuration file. On error the message is one line: FILE[:LINE:COLUMN]: FIELD: what is wrong and
// what is expected.
absl::StatusOr<NodeSettings> LoadConfig(const std::string& path, const HostFacts& host);

// The same from text; `path` only names the source in errors.
absl::StatusOr<NodeSettings> ParseConfig(std::string_view text, const std::string& path, const HostFacts& host);

}  // namespace hk
