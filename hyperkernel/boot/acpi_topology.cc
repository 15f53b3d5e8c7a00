#include "hyperkernel/boot/acpi_topology.h"

#include <algorithm>
#include <cstdint>
#include <set>

#include "fmt/format.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/boot/acpi_table.h"

namespace hk {
namespace {

constexpr uint32_t kFirstX2ApicId = 255;  // 255 is the xAPIC broadcast; ids from here on need the x2APIC structures
constexpr uint32_t kEnabled = 1;
constexpr uint16_t kLevelActiveHigh = 0xd;  // MPS INTI flags (ACPI 6.4, table 5.26)
constexpr uint8_t kNmiInput = 1;            // LINT1, as on PCs

#pragma pack(push, 1)

// MADT after its header (ACPI 6.4, 5.2.12).
struct MadtStart {
  uint32_t local_apic_address;
  uint32_t flags;  // PCAT_COMPAT clear: no 8259
};
static_assert(sizeof(MadtStart) == 8);

// 5.2.12.2 Processor local APIC.
struct MadtLocalApic {
  uint8_t type = 0;
  uint8_t length = 8;
  uint8_t processor_uid = 0;
  uint8_t apic_id = 0;
  uint32_t flags = kEnabled;
};
static_assert(sizeof(MadtLocalApic) == 8);

// 5.2.12.3 I/O APIC.
struct MadtIoApic {
  uint8_t type = 1;
  uint8_t length = 12;
  uint8_t id = 0;
  uint8_t reserved = 0;
  uint32_t address = 0;
  uint32_t first_interrupt = 0;
};
static_assert(sizeof(MadtIoApic) == 12);

// 5.2.12.5 Interrupt source override.
struct MadtOverride {
  uint8_t type = 2;
  uint8_t length = 10;
  uint8_t bus = 0;  // ISA
  uint8_t source = 0;
  uint32_t interrupt = 0;
  uint16_t flags = 0;
};
static_assert(sizeof(MadtOverride) == 10);

// 5.2.12.7 Local APIC NMI.
struct MadtLocalApicNmi {
  uint8_t type = 4;
  uint8_t length = 6;
  uint8_t processor_uid = 0xff;  // all
  uint16_t flags = 0;
  uint8_t input = kNmiInput;
};
static_assert(sizeof(MadtLocalApicNmi) == 6);

// 5.2.12.12 Processor local x2APIC.
struct MadtX2Apic {
  uint8_t type = 9;
  uint8_t length = 16;
  uint16_t reserved = 0;
  uint32_t apic_id = 0;
  uint32_t flags = kEnabled;
  uint32_t processor_uid = 0;
};
static_assert(sizeof(MadtX2Apic) == 16);

// 5.2.12.13 Local x2APIC NMI.
struct MadtX2ApicNmi {
  uint8_t type = 10;
  uint8_t length = 12;
  uint16_t flags = 0;
  uint32_t processor_uid = 0xffffffff;  // all
  uint8_t input = kNmiInput;
  uint8_t reserved[3] = {};
};
static_assert(sizeof(MadtX2ApicNmi) == 12);

// SRAT after its header (5.2.16).
struct SratStart {
  uint32_t reserved1 = 1;
  uint64_t reserved2 = 0;
};
static_assert(sizeof(SratStart) == 12);

// 5.2.16.1 Processor local APIC affinity.
struct SratLocalApic {
  uint8_t type = 0;
  uint8_t length = 16;
  uint8_t domain_low = 0;
  uint8_t apic_id = 0;
  uint32_t flags = kEnabled;
  uint8_t sapic_eid = 0;
  uint8_t domain_high[3] = {};
  uint32_t clock_domain = 0;
};
static_assert(sizeof(SratLocalApic) == 16);

// 5.2.16.2 Memory affinity.
struct SratMemory {
  uint8_t type = 1;
  uint8_t length = 40;
  uint32_t domain = 0;
  uint16_t reserved1 = 0;
  uint64_t base = 0;
  uint64_t bytes = 0;
  uint32_t reserved2 = 0;
  uint32_t flags = kEnabled;
  uint64_t reserved3 = 0;
};
static_assert(sizeof(SratMemory) == 40);

// 5.2.16.3 Processor local x2APIC affinity.
struct SratX2Apic {
  uint8_t type = 2;
  uint8_t length = 24;
  uint16_t reserved1 = 0;
  uint32_t domain = 0;
  uint32_t apic_id = 0;
  uint32_t flags = kEnabled;
  uint32_t clock_domain = 0;
  uint32_t reserved2 = 0;
};
static_assert(sizeof(SratX2Apic) == 24);

#pragma pack(pop)

absl::Status CheckVcpusOfNodes(const AcpiInput& input) {
  std::vector<bool> seen(input.apic_ids.size(), false);
  size_t count = 0;
  for (const AcpiNode& node : input.nodes) {
    for (VcpuId vcpu : node.vcpus) {
      if (vcpu.value() >= seen.size()) {
        return absl::InvalidArgumentError(fmt::format("topology: there is no vCPU {}", vcpu.value()));
      }
      if (seen[vcpu.value()]) {
        return absl::InvalidArgumentError(fmt::format("topology: vCPU {} is on two nodes", vcpu.value()));
      }
      seen[vcpu.value()] = true;
      ++count;
    }
  }
  if (count != seen.size()) return absl::InvalidArgumentError("topology: a vCPU is on no node");
  return absl::OkStatus();
}

// The nodes' memory, sorted and joined, is the guest's RAM.
absl::Status CheckMemoryOfNodes(const AcpiInput& input) {
  std::vector<RamPiece> pieces;
  for (const AcpiNode& node : input.nodes) pieces.insert(pieces.end(), node.memory.begin(), node.memory.end());
  std::ranges::sort(pieces, {}, &RamPiece::start);
  std::vector<RamPiece> joined;
  for (const RamPiece& piece : pieces) {
    if (!joined.empty() && joined.back().end() == piece.start) {
      joined.back().bytes += piece.bytes;
    } else {
      joined.push_back(piece);
    }
  }
  if (joined != RamLayout(input.ram_bytes)) {
    return absl::InvalidArgumentError("topology: the nodes' memory is not the guest's RAM");
  }
  return absl::OkStatus();
}

absl::Status CheckDistances(const AcpiInput& input) {
  const size_t nodes = input.nodes.size();
  if (input.distances.size() != nodes) return absl::InvalidArgumentError("topology: distances of every node needed");
  for (size_t i = 0; i < nodes; ++i) {
    if (input.distances[i].size() != nodes) {
      return absl::InvalidArgumentError(fmt::format("topology: node {} needs {} distances", i, nodes));
    }
    for (size_t j = 0; j < nodes; ++j) {
      const uint8_t distance = input.distances[i][j];
      if (i == j ? distance != kAcpiLocalDistance : distance <= kAcpiLocalDistance || distance == 255) {
        return absl::InvalidArgumentError(fmt::format(
            "topology: distance {} from node {} to node {} (10 to itself, 11 to 254 to others)", distance, i, j));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckTopology(const AcpiInput& input) {
  if (input.apic_ids.empty() || input.apic_ids.size() > kAcpiMaxVcpus) {
    return absl::InvalidArgumentError(
        fmt::format("vcpus: {} (1 to {} are possible)", input.apic_ids.size(), kAcpiMaxVcpus));
  }
  std::set<uint32_t> ids;
  for (uint32_t id : input.apic_ids) {
    if (id == UINT32_MAX || !ids.insert(id).second) {
      return absl::InvalidArgumentError(fmt::format("topology: APIC id {} twice, or the broadcast's", id));
    }
  }
  if (input.ram_bytes % kPageSize != 0 || input.ram_bytes > kMaxRamBytes) {
    return absl::InvalidArgumentError(fmt::format("memory: {} bytes is not possible", input.ram_bytes));
  }
  if (input.nodes.empty()) return absl::OkStatus();
  if (input.nodes.size() > kAcpiMaxNodes) {
    return absl::InvalidArgumentError(
        fmt::format("topology: {} nodes (at most {})", input.nodes.size(), kAcpiMaxNodes));
  }
  if (input.io_node >= input.nodes.size()) {
    return absl::InvalidArgumentError(fmt::format("topology: there is no node {} for I/O", input.io_node));
  }
  HK_RETURN_IF_ERROR(CheckVcpusOfNodes(input));
  HK_RETURN_IF_ERROR(CheckMemoryOfNodes(input));
  return CheckDistances(input);
}

std::vector<std::byte> BuildMadt(const AcpiInput& input) {
  AcpiTable table("APIC", 5);
  table.Append(MadtStart{.local_apic_address = static_cast<uint32_t>(kLocalApicAddress.value()), .flags = 0});
  bool any_x2apic = false;
  for (size_t uid = 0; uid < input.apic_ids.size(); ++uid) {
    const uint32_t id = input.apic_ids[uid];
    if (id < kFirstX2ApicId) {
      table.Append(MadtLocalApic{.processor_uid = static_cast<uint8_t>(uid), .apic_id = static_cast<uint8_t>(id)});
    } else {
      table.Append(MadtX2Apic{.apic_id = id, .processor_uid = static_cast<uint32_t>(uid)});
      any_x2apic = true;
    }
  }
  table.Append(MadtIoApic{.address = static_cast<uint32_t>(kIoApicAddress.value())});
  // ISA interrupts are edge, active high, on the pin of their number, but for this one.
  table.Append(MadtOverride{.source = kPinAcpiEvents, .interrupt = kPinAcpiEvents, .flags = kLevelActiveHigh});
  table.Append(MadtLocalApicNmi{});
  if (any_x2apic) table.Append(MadtX2ApicNmi{});
  return table.Finish();
}

std::vector<std::byte> BuildSrat(const AcpiInput& input) {
  AcpiTable table("SRAT", 3);
  table.Append(SratStart{});
  for (uint32_t domain = 0; domain < input.nodes.size(); ++domain) {
    for (VcpuId vcpu : input.nodes[domain].vcpus) {
      const uint32_t id = input.apic_ids[vcpu.value()];
      if (id < kFirstX2ApicId) {
        static_assert(kAcpiMaxNodes <= 256);  // domain_high stays 0
        table.Append(SratLocalApic{.domain_low = static_cast<uint8_t>(domain), .apic_id = static_cast<uint8_t>(id)});
      } else {
        table.Append(SratX2Apic{.domain = domain, .apic_id = id});
      }
    }
  }
  for (uint32_t domain = 0; domain < input.nodes.size(); ++domain) {
    for (const RamPiece& piece : input.nodes[domain].memory) {
      table.Append(SratMemory{.domain = domain, .base = piece.start.value(), .bytes = piece.bytes});
    }
  }
  return table.Finish();
}

std::vector<std::byte> BuildSlit(const AcpiInput& input) {
  AcpiTable table("SLIT", 1);
  table.Append(uint64_t{input.nodes.size()});
  for (const std::vector<uint8_t>& row : input.distances) {
    for (uint8_t distance : row) table.Append(distance);
  }
  return table.Finish();
}

}  // namespace hk
