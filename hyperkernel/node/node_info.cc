#include "hyperkernel/node/node_info.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <memory>
#include <vector>

#include "fmt/format.h"
#include "hyperkernel/base/file.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/base/version.h"
#include "hyperkernel/node/membership.h"
#include "rdma/verbs_device.h"

namespace hk {
namespace {

constexpr size_t kMaxProcBytes = 1 << 20;

// The value after "KEY<spaces>:" in a /proc file's text, up to the end of the line; empty if not there.
std::string ValueOf(const std::string& text, const std::string& key) {
  size_t at = text.rfind(key, 0) == 0 ? 0 : text.find("\n" + key);
  if (at == std::string::npos) return "";
  at = text.find(':', at);
  if (at == std::string::npos) return "";
  const size_t begin = text.find_first_not_of(" \t", at + 1);
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find('\n', begin) - begin);
}

std::string ReadProc(const std::string& path) {
  return ReadSmallFile(path, kMaxProcBytes).value_or("");
}

// A "123 kB" field of /proc/meminfo in bytes; 0 if not there.
uint64_t MemInfoBytes(const std::string& text, const std::string& key) {
  const std::string value = ValueOf(text, key);
  uint64_t kib = 0;
  std::from_chars(value.data(), value.data() + value.size(), kib);
  return kib * 1024;
}

// Name of the network interface that has the address; empty if none has.
std::string InterfaceOf(const Address& address) {
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) != 0) return "";
  const std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)> owner(all, &::freeifaddrs);
  for (const ifaddrs* at = all; at != nullptr; at = at->ifa_next) {
    char text[INET6_ADDRSTRLEN] = "";
    if (at->ifa_addr == nullptr) continue;
    if (at->ifa_addr->sa_family == AF_INET) {
      ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(at->ifa_addr)->sin_addr, text, sizeof text);
    } else if (at->ifa_addr->sa_family == AF_INET6) {
      ::inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6*>(at->ifa_addr)->sin6_addr, text, sizeof text);
    }
    if (address.host == text) return at->ifa_name;
  }
  return "";
}

}  // namespace

HostFacts ReadHostFacts() {
  utsname names{};
  ::uname(&names);
  return {.host_name = names.nodename, .memory_bytes = MemInfoBytes(ReadProc("/proc/meminfo"), "MemTotal")};
}

std::string ReadBootId() {
  const std::string boot_id = ReadProc("/proc/sys/kernel/random/boot_id");
  return boot_id.substr(0, boot_id.find('\n'));
}

v1::NodeInfo StaticNodeInfo(const NodeSettings& settings, const v1::NodeIdentity& identity,
                            const std::string& transport, WallTime started) {
  utsname names{};
  ::uname(&names);
  v1::NodeInfo info;
  info.set_name(settings.name);
  info.set_number(settings.number.value());
  info.set_node_id(identity.node_id());
  info.set_cluster(settings.cluster);
  info.set_version(kVersion);
  *info.mutable_started() = ToTimestamp(started);
  info.set_pid(::getpid());
  info.set_host_name(names.nodename);
  info.set_kernel(names.release);
  info.set_boot_id(ReadBootId());
  info.set_cpu_model(ValueOf(ReadProc("/proc/cpuinfo"), "model name"));
  info.set_cpus(static_cast<uint32_t>(::get_nprocs()));
  info.set_memory_total_bytes(MemInfoBytes(ReadProc("/proc/meminfo"), "MemTotal"));
  info.set_frame_budget_bytes(settings.frame_budget_bytes);
  info.set_swap_budget_bytes(settings.swap_budget_bytes);
  info.set_transport(transport);
  for (const Address& address : settings.admin_listen) info.add_admin_addresses(address.ToString());
  info.set_data_address(settings.data_listen.ToString());
  info.set_metrics_address(settings.metrics_listen.has_value() ? settings.metrics_listen->ToString() : "none");
  for (const std::string& warning : settings.warnings) info.add_warnings(warning);
  return info;
}

void RefreshNodeInfo(const FrameStore& frames, const SwapStore& swap, v1::NodeInfo* info) {
  info->set_memory_available_bytes(MemInfoBytes(ReadProc("/proc/meminfo"), "MemAvailable"));
  // Without what goes when somebody needs the room: whoever looks for room has it.
  const uint64_t used = frames.UsedBytes().value_or(0);
  info->set_frames_used_bytes(used - std::min(used, frames.spare_bytes()));
  info->set_frames_reserved_bytes(frames.reserved_bytes());
  info->set_swap_used_bytes(swap.UsedBytes().value_or(0));
  info->set_swap_reserved_bytes(swap.reserved_bytes());
}

absl::StatusOr<std::string> ResolveTransport(TransportChoice choice, const Address& data) {
  if (choice == TransportChoice::kTcp) return "tcp";
  const absl::StatusOr<std::vector<VerbsDevice>> devices = ListVerbsDevices();
  const std::string interface = InterfaceOf(data);
  if (devices.ok() && !data.IsLocal() && !data.IsWildcard()) {
    for (const VerbsDevice& device : *devices) {
      if (device.active && device.netdev == interface) return fmt::format("verbs({})", device.name);
    }
  }
  if (choice == TransportChoice::kAuto) return "tcp";
  return absl::FailedPreconditionError(fmt::format(
      "transport: TRANSPORT_VERBS, and no RDMA device with an active port has the address of listen.data '{}'; see "
      "hyperkerneld --probe, or set TRANSPORT_AUTO",
      data.ToString()));
}

}  // namespace hk
