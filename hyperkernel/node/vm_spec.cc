#include "hyperkernel/node/vm_spec.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <map>
#include <set>
#include <string>
#include <string_view>

#include "fmt/format.h"
#include "fmt/ranges.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/boot/address_map.h"
#include "hyperkernel/memory/space_engine.h"
#include "hyperkernel/node/names.h"
#include "migration/placement_policy.h"

namespace hk {
namespace {

constexpr uint64_t kMib = 1 << 20;
constexpr uint8_t kMacMulticast = 1, kMacLocal = 2;  // bits of the first byte (IEEE 802, 8.2)

absl::Status Bad(std::string_view field, std::string_view what) {
  return absl::InvalidArgumentError(fmt::format("{}: {}", field, what));
}

absl::Status CheckPath(std::string_view field, const std::string& path) {
  if (path.empty() || path.front() != '/' || path.find('\0') != std::string::npos) {
    return Bad(field, fmt::format("'{}' is not an absolute path", path));
  }
  return absl::OkStatus();
}

// 0 stands for the default.
absl::Status CheckQueues(const std::string& field, uint32_t queues) {
  if (queues <= kMaxQueues) return absl::OkStatus();
  return Bad(field, fmt::format("{} is not from 1 to {}", queues, kMaxQueues));
}

absl::Status CheckDisks(const v1::VmSpec& spec) {
  if (spec.disks_size() > kMaxDisks)
    return Bad("disks", fmt::format("{}; at most {} are possible", spec.disks_size(), kMaxDisks));
  std::set<std::string> paths;
  for (int i = 0; i < spec.disks_size(); i++) {
    const v1::DiskSpec& disk = spec.disks(i);
    HK_RETURN_IF_ERROR(CheckPath(fmt::format("disks[{}].path", i), disk.path()));
    if (!paths.insert(disk.path()).second)
      return Bad(fmt::format("disks[{}].path", i), fmt::format("'{}' is there twice", disk.path()));
    if (disk.serial().size() > kMaxDiskSerial) {
      return Bad(fmt::format("disks[{}].serial", i),
                 fmt::format("{} characters; at most {} are possible", disk.serial().size(), kMaxDiskSerial));
    }
    HK_RETURN_IF_ERROR(CheckQueues(fmt::format("disks[{}].queues", i), disk.queues()));
    if (disk.cache() != v1::DISK_CACHE_DIRECT && disk.cache() != v1::DISK_CACHE_BUFFERED)
      return Bad(fmt::format("disks[{}].cache", i), "not DISK_CACHE_DIRECT or DISK_CACHE_BUFFERED");
  }
  return absl::OkStatus();
}

// What the kernel takes as an interface's name (dev_valid_name), without the '%' that makes it a pattern.
absl::Status CheckInterface(std::string_view field, const std::string& name) {
  const bool sane = !name.empty() && name.size() <= kMaxInterfaceName && name != "." && name != ".." &&
                    std::all_of(name.begin(), name.end(),
                                [](unsigned char c) { return std::isgraph(c) && c != '/' && c != ':' && c != '%'; });
  if (sane) return absl::OkStatus();
  return Bad(field, fmt::format("'{}' is not an interface's name (1 to {} characters, none of / : % or blank)", name,
                                kMaxInterfaceName));
}

absl::Status CompleteNets(v1::VmSpec* spec) {
  if (spec->nets_size() > kMaxNets)
    return Bad("nets", fmt::format("{}; at most {} are possible", spec->nets_size(), kMaxNets));
  std::set<std::string> taps;
  std::map<MacAddress, int> macs;
  for (int i = 0; i < spec->nets_size(); i++) {
    v1::NetSpec& net = *spec->mutable_nets(i);
    const std::string field = fmt::format("nets[{}]", i);
    if (net.tap().empty() == net.bridge().empty()) return Bad(field, "needs either tap or bridge");
    if (!net.tap().empty()) {
      HK_RETURN_IF_ERROR(CheckInterface(field + ".tap", net.tap()));
      if (!taps.insert(net.tap()).second) return Bad(field + ".tap", fmt::format("'{}' is there twice", net.tap()));
    } else {
      HK_RETURN_IF_ERROR(CheckInterface(field + ".bridge", net.bridge()));
    }
    HK_RETURN_IF_ERROR(CheckQueues(field + ".queues", net.queues()));
    if (net.queues() == 0) net.set_queues(1);
    absl::StatusOr<MacAddress> mac = net.mac().empty() ? GeneratedMac(spec->name(), i) : ParseMac(net.mac());
    if (!mac.ok()) return WithContext(mac.status(), field + ".mac");
    net.set_mac(fmt::format("{:02x}", fmt::join(*mac, ":")));
    const auto [found, fresh] = macs.emplace(*mac, i);
    if (!fresh) return Bad(field + ".mac", fmt::format("{} is that of nets[{}] already", net.mac(), found->second));
  }
  return absl::OkStatus();
}

absl::Status CheckPlacedSwap(const v1::VmSpec& spec, int index) {
  const v1::PlacementSpec& place = spec.placement(index);
  const std::string field = fmt::format("placement[{}].swap_mib", index);
  const uint64_t first = spec.placement(0).swap_mib();
  if (place.swap_mib() != first) {
    return Bad(field, fmt::format("{}; the first node has {}, and this release wants the same of all", place.swap_mib(),
                                  first));
  }
  if (first == 0) return absl::OkStatus();
  if (spec.placement_size() == 1) return Bad(field, fmt::format("{}; a machine on one node has no swap", first));
  if (place.memory_mib() == 0 || place.memory_mib() == spec.memory_mib())
    return Bad(field, "without a memory_mib here that is less than the machine's nothing is ever swapped");
  if (first > spec.memory_mib())
    return Bad(field, fmt::format("{} is more than the machine's {}", first, spec.memory_mib()));
  return absl::OkStatus();
}

// The space reaches to the end of RAM, and its rules count the hole below 4 GiB.
uint64_t SpaceMib(const v1::VmSpec& spec) {
  const RamPiece last = RamLayout(spec.memory_mib() << 20).back();
  return (last.start.value() + last.bytes) >> 20;
}

// Its memory on several nodes: all of them with their swap hold a sixteenth more than all of it; and each has frames to
// work in.
absl::Status CheckPlacedMemory(const v1::VmSpec& spec) {
  const uint64_t swap = spec.placement(0).swap_mib();  // the same of all
  const int nodes = spec.placement_size();
  uint64_t together = 0;
  bool whole = false;
  for (int i = 0; i < nodes; i++) {
    const uint64_t here = spec.placement(i).memory_mib();
    const std::string field = fmt::format("placement[{}].memory_mib", i);
    if (nodes == 1 && here != 0 && here != spec.memory_mib())
      return Bad(field, fmt::format("{}; the only node has all {} MiB of the machine", here, spec.memory_mib()));
    if (here > spec.memory_mib())
      return Bad(field, fmt::format("{} is more than the machine's {}", here, spec.memory_mib()));
    HK_RETURN_IF_ERROR(CheckPlacedSwap(spec, i));
    whole |= here == 0;
    together += here + swap;
  }
  if (nodes == 1) return absl::OkStatus();
  const uint64_t needed = SpreadMib(spec), least = LeastPlacedMib(spec);
  if (!whole && together < needed && !HK_MUTANT(vm_placement_unchecked)) {
    return Bad("placement",
               fmt::format("{} MiB on {} nodes together{} do not hold {} MiB and a sixteenth more, which "
                           "pages need to change places: give {} more",
                           together, nodes, swap == 0 ? "" : ", swap included,", SpaceMib(spec), needed - together));
  }
  for (int i = 0; i < nodes; i++) {
    const uint64_t here = spec.placement(i).memory_mib();
    if (here == 0 || here >= least || HK_MUTANT(vm_frames_unchecked)) continue;
    return Bad(fmt::format("placement[{}].memory_mib", i),
               fmt::format("{} are too few for {} and devices: give at least {}", here,
                           spec.vcpus() == 1 ? "a vCPU" : fmt::format("{} vCPUs", spec.vcpus()), least));
  }
  return absl::OkStatus();
}

// The node that is asked has the devices, and the vCPU that boots.
absl::Status CompletePlacement(v1::VmSpec* spec, const std::string& node) {
  if (spec->placement_size() == 0) spec->add_placement()->set_node(node);
  if (spec->placement_size() > static_cast<int>(kMaxNodes))
    return Bad("placement", fmt::format("{} nodes; at most {} are possible", spec->placement_size(), kMaxNodes));
  if (spec->io_node().empty()) spec->set_io_node(spec->placement(0).node());
  std::set<std::string> nodes;
  uint64_t vcpus = 0;
  bool placed = false;
  for (const v1::PlacementSpec& place : spec->placement()) placed |= place.vcpus() != 0;
  for (int i = 0; i < spec->placement_size(); i++) {
    v1::PlacementSpec& place = *spec->mutable_placement(i);
    const std::string field = fmt::format("placement[{}]", i);
    if (!IsValidName(place.node())) return Bad(field + ".node", fmt::format("'{}' is not a node's name", place.node()));
    if (!nodes.insert(place.node()).second)
      return Bad(field + ".node", fmt::format("'{}' is there twice", place.node()));
    if (!placed && place.node() == spec->io_node()) place.set_vcpus(spec->vcpus());
    vcpus += place.vcpus();
  }
  if (!nodes.contains(spec->io_node()))
    return Bad("io_node", fmt::format("'{}' is not a node of placement", spec->io_node()));
  if (spec->io_node() != node) {
    return Bad("io_node",
               fmt::format("'{}' is not the node that is asked ('{}'): ask it (--endpoint)", spec->io_node(), node));
  }
  if (vcpus != spec->vcpus())
    return Bad("placement", fmt::format("{} vcpus are placed, the machine has {}", vcpus, spec->vcpus()));
  for (int i = 0; i < spec->placement_size(); i++) {
    if (spec->placement(i).node() == node && spec->placement(i).vcpus() == 0) {
      return Bad(fmt::format("placement[{}].vcpus", i),
                 fmt::format("0; node '{}' has the devices, and the vCPU that boots: give it one at least", node));
    }
  }
  return CheckPlacedMemory(*spec);
}

}  // namespace

uint64_t SpreadMib(const v1::VmSpec& spec) {
  const uint64_t mib = SpaceMib(spec);
  return mib + (mib + kPlacementSpareShare - 1) / kPlacementSpareShare;
}

uint64_t LeastPlacedMib(const v1::VmSpec& spec) {
  const uint64_t running = (uint64_t{spec.vcpus()} * kLeastFrames * kPageSize + kMib - 1) / kMib;
  return std::max(kMinPlacedMib, running);
}

std::vector<std::string> VcpuNodes(const v1::VmSpec& spec) {
  std::vector<std::string> nodes;
  for (const bool io_node : {true, false}) {
    for (const v1::PlacementSpec& place : spec.placement()) {
      if ((place.node() == spec.io_node()) == io_node) nodes.insert(nodes.end(), place.vcpus(), place.node());
    }
  }
  return nodes;
}

MacAddress GeneratedMac(const std::string& name, int index) {
  // FNV-1a, 64 bits: written down here, since it must never change.
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : fmt::format("{}/{}", name, index)) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  MacAddress mac;
  for (size_t i = 0; i < mac.size(); ++i) mac[i] = static_cast<uint8_t>(hash >> (8 * i));
  mac[0] = static_cast<uint8_t>((mac[0] & ~kMacMulticast) | kMacLocal);
  return mac;
}

absl::StatusOr<MacAddress> ParseMac(const std::string& text) {
  MacAddress mac{};
  const absl::Status bad =
      absl::InvalidArgumentError(fmt::format("'{}' is not an address of one card, as 02:00:00:00:00:01", text));
  if (text.size() != 3 * mac.size() - 1) return bad;
  for (size_t i = 0; i < mac.size(); ++i) {
    const char* const start = text.data() + 3 * i;
    const auto [end, error] = std::from_chars(start, start + 2, mac[i], 16);
    if (error != std::errc() || end != start + 2 || (i + 1 < mac.size() && *end != ':')) return bad;
  }
  if (mac == MacAddress{}) return bad;
  if ((mac[0] & kMacMulticast) && !HK_MUTANT(multicast_mac_taken)) {
    return absl::InvalidArgumentError(fmt::format("'{}' is a multicast address (odd first byte)", text));
  }
  return mac;
}

absl::Status CheckBeside(const v1::VmSpec& spec, const v1::VmSpec& other) {
  for (int i = 0; i < spec.nets_size(); i++) {
    for (const v1::NetSpec& net : other.nets()) {
      if (net.mac() == spec.nets(i).mac()) {
        return absl::AlreadyExistsError(
            fmt::format("nets[{}].mac: {} is that of a card of vm '{}'", i, net.mac(), other.name()));
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::VmSpec> CompleteVmSpec(const v1::VmSpec& spec, const std::string& node) {
  v1::VmSpec out = spec;
  if (!IsValidName(spec.name())) return Bad("name", fmt::format("'{}' is not [a-z0-9-]{{1,63}}", spec.name()));
  if (spec.memory_mib() < kMinVmMemoryMib || spec.memory_mib() > kMaxVmMemoryMib) {
    return Bad("memory_mib",
               fmt::format("{} is not from {} to {}", spec.memory_mib(), kMinVmMemoryMib, kMaxVmMemoryMib));
  }
  if (spec.vcpus() == 0) out.set_vcpus(1);
  if (spec.vcpus() > kMaxVcpus) return Bad("vcpus", fmt::format("{} is not from 1 to {}", spec.vcpus(), kMaxVcpus));
  if (spec.cpu().profile().empty()) out.mutable_cpu()->set_profile("host");
  if (out.cpu().profile() != "host" && out.cpu().profile() != "common") {
    return Bad("cpu.profile", fmt::format("'{}' is not host or common", out.cpu().profile()));
  }
  HK_RETURN_IF_ERROR(CheckPath("kernel", spec.kernel()));
  if (!spec.initrd().empty()) HK_RETURN_IF_ERROR(CheckPath("initrd", spec.initrd()));
  if (spec.cmdline().size() > kMaxCommandLine || spec.cmdline().find('\0') != std::string::npos) {
    return Bad("cmdline", fmt::format("longer than {} bytes, or with a zero byte in it", kMaxCommandLine));
  }
  if (spec.on_crash() != v1::ON_CRASH_STOP && spec.on_crash() != v1::ON_CRASH_RESET)
    return Bad("on_crash", "not ON_CRASH_STOP or ON_CRASH_RESET");
  HK_RETURN_IF_ERROR(CheckDisks(spec));
  for (v1::DiskSpec& disk : *out.mutable_disks()) {
    if (disk.queues() == 0) disk.set_queues(1);
  }
  HK_RETURN_IF_ERROR(CompleteNets(&out));
  HK_RETURN_IF_ERROR(CompletePlacement(&out, node));
  if (spec.topology() != v1::TOPOLOGY_UNIFORM && spec.topology() != v1::TOPOLOGY_NUMA)
    return Bad("topology", "not TOPOLOGY_UNIFORM or TOPOLOGY_NUMA");
  const uint64_t share = spec.memory_mib() / static_cast<uint64_t>(out.placement_size());
  if (spec.topology() == v1::TOPOLOGY_NUMA && share < kMinDomainMib) {
    return Bad("topology", fmt::format("{} MiB for each node; a guest's kernel leaves out domains of less than {}",
                                       share, kMinDomainMib));
  }
  if (spec.policy().empty()) out.set_policy(std::string(kDefaultPolicy));
  if (!IsPolicy(out.policy()))
    return Bad("policy", fmt::format("'{}' is not {} or {}", spec.policy(), kFetchPolicy, kBalancePolicy));
  return out;
}

}  // namespace hk
