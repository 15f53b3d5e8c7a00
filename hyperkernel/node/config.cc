#include "hyperkernel/node/config.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "fmt/format.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/text_format.h"
#include "hyperkernel/base/file.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/names.h"
#include "hyperkernel/node/tls.h"
#include "proto/node_config.pb.h"

namespace hk {
namespace {

constexpr char kDefaultDataDirectory[] = "/var/lib/hyperkernel";
constexpr char kDefaultFrameDirectory[] = "/dev/shm/hyperkernel";
constexpr char kDefaultAdmin[] = "unix:/run/hyperkernel/admin.sock";
constexpr char kDefaultData[] = "127.0.0.1:7470";
constexpr char kDefaultMetrics[] = "127.0.0.1:7471";
constexpr uint64_t kMib = 1 << 20;

// An error of one field.
absl::Status Bad(std::string_view field, std::string_view what) {
  return absl::InvalidArgumentError(fmt::format("{}: {}", field, what));
}

// Keeps the first error of protobuf's parser, with its place.
class FirstError final : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int line, google::protobuf::io::ColumnNumber column, const std::string& message) override {
    if (text_.empty()) text_ = fmt::format("{}:{}: {}", line + 1, column + 1, message);
  }
  void AddWarning(int, google::protobuf::io::ColumnNumber, const std::string&) override {}
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

// Absolute, normal form: no "." or "..", no empty component, no trailing slash.
absl::Status CheckDirectory(std::string_view field, std::string_view path) {
  if (path.empty() || path.front() != '/') return Bad(field, fmt::format("'{}' is not an absolute path", path));
  if (path == "/") return Bad(field, "'/' is the root directory; name one of the daemon's own");
  if (path.find('\0') != std::string_view::npos) return Bad(field, "holds a zero byte");
  const std::string padded = std::string(path) + "/";
  for (std::string_view part : {"//", "/./", "/../"}) {
    if (padded.find(part) != std::string::npos)
      return Bad(field, fmt::format("'{}' holds '{}' or ends in '/'; write the plain path", path, part));
  }
  return absl::OkStatus();
}

bool IsInside(std::string_view inner, std::string_view outer) {
  return inner == outer ||
         (inner.size() > outer.size() && inner.substr(0, outer.size()) == outer && inner[outer.size()] == '/');
}

absl::StatusOr<Address> ParseField(std::string_view field, std::string_view text, AddressForm form) {
  absl::StatusOr<Address> address = ParseAddress(text, form);
  if (!address.ok()) return Bad(field, fmt::format("'{}': {}", text, MessageOf(address.status())));
  return address;
}

absl::Status FillNames(const v1::NodeConfig& config, const HostFacts& host, NodeSettings* settings) {
  settings->name = config.name();
  if (settings->name.empty()) {
    settings->name = host.host_name.substr(0, host.host_name.find('.'));
    if (!IsValidName(settings->name)) {
      return Bad("name",
                 fmt::format("not set, and the host name '{}' is not [a-z0-9-]{{1,63}}; set a name", host.host_name));
    }
  }
  if (!IsValidName(settings->name)) return Bad("name", fmt::format("'{}' is not [a-z0-9-]{{1,63}}", settings->name));
  if (settings->name == kAnyNodeDnsName) {
    return Bad("name",
               fmt::format("'{}' is in every node's certificate and names none; choose another", settings->name));
  }
  settings->cluster = config.cluster().empty() ? "default" : config.cluster();
  if (!IsValidName(settings->cluster))
    return Bad("cluster", fmt::format("'{}' is not [a-z0-9-]{{1,63}}", settings->cluster));
  return absl::OkStatus();
}

absl::Status FillDirectories(const v1::NodeConfig& config, const HostFacts& host, NodeSettings* settings) {
  settings->data_directory = config.data_directory().empty() ? kDefaultDataDirectory : config.data_directory();
  HK_RETURN_IF_ERROR(CheckDirectory("data_directory", settings->data_directory));
  const v1::FrameStore& store = config.frame_store();
  settings->frame_directory = store.directory().empty() ? kDefaultFrameDirectory : store.directory();
  HK_RETURN_IF_ERROR(CheckDirectory("frame_store.directory", settings->frame_directory));
  if (IsInside(settings->data_directory, settings->frame_directory)) {
    return Bad("data_directory",
               fmt::format("'{}' is in frame_store.directory '{}', which is memory and lost at a reboot",
                           settings->data_directory, settings->frame_directory));
  }
  const uint64_t host_mib = host.memory_bytes / kMib;
  const uint64_t budget_mib = store.has_budget_mib() ? store.budget_mib() : host_mib / 2;
  if (budget_mib < kMinFrameBudgetMib || budget_mib > host_mib) {
    return Bad("frame_store.budget_mib",
               fmt::format("{} is not from {} to {} (this host's memory)", budget_mib, kMinFrameBudgetMib, host_mib));
  }
  settings->frame_budget_bytes = budget_mib * kMib;
  if (config.swap_mib() > kMaxSwapMib) {
    return Bad("swap_mib", fmt::format("{} is not from 0 to {} (16 TiB)", config.swap_mib(), kMaxSwapMib));
  }
  settings->swap_budget_bytes = config.swap_mib() * kMib;
  return absl::OkStatus();
}

// A unix socket's path: plain, nothing of the daemon's own files, and nothing that gRPC would read as an escape.
absl::Status CheckSocketPath(std::string_view field, const std::string& path, const NodeSettings& settings) {
  HK_RETURN_IF_ERROR(CheckDirectory(field, path));
  if (path.find_first_of("%?#") != std::string::npos) {
    return Bad(field, fmt::format("'{}' holds one of %?#, which gRPC does not take as they are", path));
  }
  for (const std::string& own : {settings.frame_directory, settings.data_directory}) {
    if (IsInside(path, own)) return Bad(field, fmt::format("'{}' is in the daemon's own directory {}", path, own));
  }
  return absl::OkStatus();
}

// One socket listens on everything that the other does, or on the same.
bool Overlap(const Address& a, const Address& b) {
  if (a == b) return true;
  if (a.kind != Address::Kind::kTcp || b.kind != Address::Kind::kTcp || a.port != b.port) return false;
  return a.IsWildcard() || b.IsWildcard();
}

absl::Status FillListeners(const v1::NodeConfig& config, NodeSettings* settings) {
  const v1::Listen& listen = config.listen();
  std::vector<std::string> admin(listen.admin().begin(), listen.admin().end());
  if (admin.empty()) admin.push_back(kDefaultAdmin);
  if (admin.size() > kMaxAdminListeners) {
    return Bad("listen.admin", fmt::format("{} addresses; at most {} are possible", admin.size(), kMaxAdminListeners));
  }
  std::vector<std::pair<std::string, Address>> taken;
  const auto take = [&taken](const std::string& field, const Address& address) -> absl::Status {
    for (const auto& [other_field, other] : taken) {
      if (Overlap(address, other)) {
        return Bad(field, fmt::format("'{}' is taken by {} '{}'", address.ToString(), other_field, other.ToString()));
      }
    }
    taken.emplace_back(field, address);
    return absl::OkStatus();
  };
  for (const std::string& text : admin) {
    HK_ASSIGN_OR_RETURN(Address address, ParseField("listen.admin", text, AddressForm::kListen));
    if (address.kind == Address::Kind::kUnix)
      HK_RETURN_IF_ERROR(CheckSocketPath("listen.admin", address.path, *settings));
    HK_RETURN_IF_ERROR(take("listen.admin", address));
    settings->admin_listen.push_back(std::move(address));
  }
  const std::string data = listen.data().empty() ? kDefaultData : listen.data();
  HK_ASSIGN_OR_RETURN(settings->data_listen, ParseField("listen.data", data, AddressForm::kListenTcp));
  HK_RETURN_IF_ERROR(take("listen.data", settings->data_listen));
  const std::string metrics = listen.metrics().empty() ? kDefaultMetrics : listen.metrics();
  if (metrics == "none") return absl::OkStatus();
  HK_ASSIGN_OR_RETURN(settings->metrics_listen, ParseField("listen.metrics", metrics, AddressForm::kListenTcp));
  return take("listen.metrics", *settings->metrics_listen);
}

absl::Status FillTransport(const v1::NodeConfig& config, NodeSettings* settings) {
  switch (config.transport()) {
    case v1::TRANSPORT_AUTO:
      settings->transport = TransportChoice::kAuto;
      return absl::OkStatus();
    case v1::TRANSPORT_VERBS:
      settings->transport = TransportChoice::kVerbs;
      if (settings->data_listen.IsLocal()) {
        return Bad("transport", fmt::format("TRANSPORT_VERBS contradicts listen.data '{}': an RDMA device has no "
                                            "loopback address; set listen.data to the address of its network interface",
                                            settings->data_listen.ToString()));
      }
      return absl::OkStatus();
    case v1::TRANSPORT_TCP:
      settings->transport = TransportChoice::kTcp;
      return absl::OkStatus();
    default:
      return Bad("transport", fmt::format("{} is not TRANSPORT_AUTO, TRANSPORT_VERBS or TRANSPORT_TCP",
                                          static_cast<int>(config.transport())));
  }
}

// An address that can be compared with what this node listens on: not a host name.
bool IsComparable(const Address& address) {
  return address.kind == Address::Kind::kUnix || address.is_literal;
}

// True if a connection to `address` from this host may reach one of our own admin listeners.
bool IsOwn(const Address& address, const NodeSettings& settings) {
  for (const Address& own : settings.admin_listen) {
    if (own == address || (own.kind == Address::Kind::kTcp && own.IsWildcard() && own.port == address.port))
      return true;
  }
  return false;
}

absl::Status CheckPeerAddress(const std::string& field, const PeerSettings& peer, const NodeSettings& settings) {
  if (!IsComparable(peer.admin)) return absl::OkStatus();
  if (peer.name == settings.name && !IsOwn(peer.admin, settings)) {
    return Bad(field, fmt::format("'{}' is this node's own entry, and listen.admin has no such address",
                                  peer.admin.ToString()));
  }
  const bool wildcard_only =
      std::find(settings.admin_listen.begin(), settings.admin_listen.end(), peer.admin) == settings.admin_listen.end();
  if (peer.name != settings.name && !wildcard_only) {
    return Bad(field,
               fmt::format("'{}' is this node's own address, not that of '{}'", peer.admin.ToString(), peer.name));
  }
  return absl::OkStatus();
}

absl::Status FillPeers(const v1::NodeConfig& config, NodeSettings* settings) {
  std::set<std::string> names, addresses;
  for (int i = 0; i < config.peers_size(); i++) {
    const v1::Peer& peer = config.peers(i);
    const std::string field = fmt::format("peers[{}]", i);
    if (!IsValidName(peer.name())) {
      return Bad(field + ".name", fmt::format("'{}' is not [a-z0-9-]{{1,63}}", peer.name()));
    }
    if (!names.insert(peer.name()).second) return Bad(field + ".name", fmt::format("'{}' is there twice", peer.name()));
    PeerSettings out{.name = peer.name(), .number = {}, .admin = {}, .data = {}};
    HK_ASSIGN_OR_RETURN(out.admin, ParseField(field + ".admin", peer.admin(), AddressForm::kConnect));
    if (!addresses.insert(out.admin.ToString()).second) {
      return Bad(field + ".admin", fmt::format("'{}' is another peer's address as well", peer.admin()));
    }
    HK_RETURN_IF_ERROR(CheckPeerAddress(field + ".admin", out, *settings));
    if (!peer.data().empty()) {
      HK_ASSIGN_OR_RETURN(out.data, ParseField(field + ".data", peer.data(), AddressForm::kConnectTcp));
      if (out.data->IsWildcard())
        return Bad(field + ".data", fmt::format("'{}' leads nowhere: write an address of that node's", peer.data()));
    }
    if (peer.name() != settings->name) settings->peers.push_back(std::move(out));
  }
  if (settings->peers.size() > kMaxPeers) {
    return Bad("peers", fmt::format("{} peers; at most {} are possible", settings->peers.size(), kMaxPeers));
  }
  return absl::OkStatus();
}

// A number that the operator wrote, and the field it stands in.
struct WrittenNumber {
  std::string field;
  std::optional<uint32_t> number;
};

// By name, this node included. Errors: out of range; this node's own entry says otherwise than `number`.
absl::StatusOr<std::map<std::string, WrittenNumber>> WrittenNumbers(const v1::NodeConfig& config,
                                                                    const std::string& self) {
  std::map<std::string, WrittenNumber> numbers;
  numbers[self] = {"number", config.has_number() ? std::optional(config.number()) : std::nullopt};
  for (int i = 0; i < config.peers_size(); i++) {
    const v1::Peer& peer = config.peers(i);
    const std::string field = fmt::format("peers[{}].number", i);
    WrittenNumber& written = numbers[peer.name()];
    if (peer.name() == self && written.number.has_value() && peer.has_number() && peer.number() != *written.number) {
      return Bad(field, fmt::format("{} is this node's own entry, and number is {}", peer.number(), *written.number));
    }
    if (peer.name() == self && !peer.has_number()) continue;
    written = {field, peer.has_number() ? std::optional(peer.number()) : std::nullopt};
  }
  for (const auto& [name, written] : numbers) {
    if (written.number.has_value() && *written.number >= kMaxNodes) {
      return Bad(written.field, fmt::format("{} is not from 0 to {}", *written.number, kMaxNodes - 1));
    }
  }
  return numbers;
}

// REQUIRES: peers are filled.
absl::Status FillNumbers(const v1::NodeConfig& config, NodeSettings* settings) {
  using Numbers = std::map<std::string, WrittenNumber>;
  HK_ASSIGN_OR_RETURN(Numbers numbers, WrittenNumbers(config, settings->name));
  const auto has = [](const auto& entry) { return entry.second.number.has_value(); };
  if (std::none_of(numbers.begin(), numbers.end(), has)) {
    uint32_t next = 0;  // names are unique, and the map is sorted by them
    for (auto& [name, written] : numbers) written.number = next++;
  }
  std::map<uint32_t, std::string> taken;
  for (const auto& [name, written] : numbers) {
    if (!written.number.has_value()) {
      const auto other = std::find_if(numbers.begin(), numbers.end(), has);
      return Bad(written.field, fmt::format("not set for '{}', and {} is for '{}': number all nodes or none", name,
                                            other->second.field, other->first));
    }
    const auto [at, is_new] = taken.emplace(*written.number, name);
    if (!is_new && !HK_MUTANT(config_numbers_shared)) {
      return Bad(written.field, fmt::format("{} is the number of '{}' and of '{}'", *written.number, at->second, name));
    }
  }
  const auto number_of = [&numbers](const std::string& name) {
    return NodeId(static_cast<uint16_t>(*numbers[name].number));
  };
  settings->number = number_of(settings->name);
  for (PeerSettings& peer : settings->peers) peer.number = number_of(peer.name);
  return absl::OkStatus();
}

// REQUIRES: listeners and peers are filled.
absl::Status FillSecurity(const v1::NodeConfig& config, NodeSettings* settings) {
  if (config.has_tls()) {
    if (config.insecure()) return Bad("insecure", "contradicts tls: remove one of them");
    absl::StatusOr<TlsSettings> tls =
        LoadTls({config.tls().ca(), config.tls().certificate(), config.tls().key()}, settings->name);
    if (!tls.ok()) return WithContext(tls.status(), "tls");
    settings->tls = *std::move(tls);
  }
  std::vector<std::pair<std::string, Address>> places{{"listen.data", settings->data_listen}};
  for (const Address& address : settings->admin_listen) places.emplace_back("listen.admin", address);
  bool exposed = false;
  for (const auto& [field, address] : places) {
    if (settings->tls.has_value() || address.kind == Address::Kind::kUnix) continue;
    if (address.IsLocal()) {
      if (field == "listen.data") continue;  // its protocol knows no roles
      settings->warnings.push_back(
          fmt::format("{} {} has no TLS; every user of this host is an administrator", field, address.ToString()));
      continue;
    }
    exposed = true;
    if (!config.insecure() && !HK_MUTANT(exposed_listener_allowed)) {
      return Bad(field, fmt::format("'{}' is not loopback: set tls {{ ca certificate key }} (deploy/certs makes a "
                                    "trial set), or insecure: true",
                                    address.ToString()));
    }
    settings->warnings.push_back(
        fmt::format("insecure: {} {} has no TLS; whoever reaches it is an administrator", field, address.ToString()));
  }
  for (size_t i = 0; i < settings->peers.size() && !settings->tls.has_value(); i++) {
    const PeerSettings& peer = settings->peers[i];
    if (peer.admin.IsLocal() || peer.admin.host == "localhost") continue;
    exposed = true;
    if (!config.insecure()) {
      return Bad("peers",
                 fmt::format("'{}' at '{}' is not on this host: set tls {{ ca certificate key }}, or insecure: true",
                             peer.name, peer.admin.ToString()));
    }
  }
  if (config.insecure() && !exposed) {
    return Bad("insecure",
               "true, and nothing here needs it: remove it, so that a later change does not open a listener unseen");
  }
  if (config.insecure_metrics() && (!settings->metrics_listen.has_value() || settings->metrics_listen->IsLocal())) {
    return Bad("insecure_metrics", "true, and listen.metrics is loopback or none: remove it");
  }
  if (settings->metrics_listen.has_value() && !settings->metrics_listen->IsLocal()) {
    if (!config.insecure_metrics()) {
      return Bad("listen.metrics",
                 fmt::format("'{}' is not loopback, and metrics are plain HTTP: set insecure_metrics: true to allow it",
                             settings->metrics_listen->ToString()));
    }
    settings->warnings.push_back(
        fmt::format("insecure_metrics: {} answers anyone", settings->metrics_listen->ToString()));
  }
  return absl::OkStatus();
}

absl::Status FillMembership(const v1::NodeConfig& config, NodeSettings* settings) {
  const v1::Membership& membership = config.membership();
  const uint32_t interval = membership.has_hello_interval_ms() ? membership.hello_interval_ms() : 500;
  const uint32_t after = membership.has_unreachable_after_ms() ? membership.unreachable_after_ms() : 3000;
  if (interval < kMinHelloIntervalMs || interval > kMaxHelloIntervalMs) {
    return Bad("membership.hello_interval_ms",
               fmt::format("{} is not from {} to {}", interval, kMinHelloIntervalMs, kMaxHelloIntervalMs));
  }
  // Two intervals: one lost hello must not make a node unreachable.
  if (after < 2 * interval || after > kMaxUnreachableAfterMs) {
    return Bad("membership.unreachable_after_ms", fmt::format("{} is not from {} (twice hello_interval_ms) to {}",
                                                              after, 2 * interval, kMaxUnreachableAfterMs));
  }
  settings->hello_interval = std::chrono::milliseconds(interval);
  settings->unreachable_after = std::chrono::milliseconds(after);
  return absl::OkStatus();
}

absl::Status Fill(const v1::NodeConfig& config, const HostFacts& host, NodeSettings* settings) {
  HK_RETURN_IF_ERROR(FillNames(config, host, settings));
  HK_RETURN_IF_ERROR(FillDirectories(config, host, settings));
  HK_RETURN_IF_ERROR(FillListeners(config, settings));
  HK_RETURN_IF_ERROR(FillTransport(config, settings));
  HK_RETURN_IF_ERROR(FillPeers(config, settings));
  HK_RETURN_IF_ERROR(FillNumbers(config, settings));
  HK_RETURN_IF_ERROR(FillSecurity(config, settings));
  HK_RETURN_IF_ERROR(FillMembership(config, settings));
  if (!config.log_level().empty() && !log::ParseLevel(config.log_level(), &settings->log_level)) {
    return Bad("log_level", fmt::format("'{}' is not debug, info, warning or error", config.log_level()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<NodeSettings> ParseConfig(std::string_view text, const std::string& path, const HostFacts& host) {
  v1::NodeConfig config;
  FirstError error;
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  if (!parser.ParseFromString(std::string(text), &config)) {
    return absl::InvalidArgumentError(fmt::format("{}:{}", path, error.text()));
  }
  NodeSettings settings;
  HK_RETURN_IF_ERROR(WithContext(Fill(config, host, &settings), path));
  return settings;
}

absl::StatusOr<NodeSettings> LoadConfig(const std::string& path, const HostFacts& host) {
  HK_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(path, kMaxConfigBytes));
  return ParseConfig(text, path, host);
}

}  // namespace hk
