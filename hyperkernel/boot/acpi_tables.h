// The ACPI tables of a guest: reduced hardware (ACPI 6.4, 4.1), everything fixed in address_map.h, interrupts by local
// APICs and one I/O APIC, no 8259, no SCI. What the tables promise is what the devices must do: see README.md.
//
// Invariants:
//  1. All tables lie in [kAcpiTablesStart, kAcpiTablesEnd), the RSDP first, where a kernel that is not told finds it.
//  2. Every table's length and checksum hold, and iasl disassembles it without complaint (acpi_tables_test).
//  3. The same input gives the same bytes, on every node and at every reset.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/boot/address_map.h"

namespace hk {

// Most vCPUs and nodes that the tables are built for.
inline constexpr size_t kAcpiMaxVcpus = 255;
inline constexpr size_t kAcpiMaxNodes = 64;
// ACPI 6.4, 5.2.17: a node's distance to itself; others are above it, 255 is "unreachable".
inline constexpr uint8_t kAcpiLocalDistance = 10;

// A proximity domain: what one node of the cluster holds of the guest at its start. Plain value.
struct AcpiNode {
  std::vector<VcpuId> vcpus;
  std::vector<RamPiece> memory;  // as RamLayoutOfNodes() cuts it
};

// What the tables say. Plain value.
struct AcpiInput {
  // Local APIC id of each vCPU; the index is the vCPU's id and its ACPI processor UID.
  std::vector<uint32_t> apic_ids;
  uint64_t ram_bytes = 0;
  // Guest-physical address bits of the guest's CPU model (CPUID 0x80000008 EAX[7:0]).
  unsigned physical_bits = kMaxPhysicalBits;
  // Node i is proximity domain i. Empty: `topology: uniform`, the guest sees no domains.
  std::vector<AcpiNode> nodes;
  // distances[i][j] from node i to node j. As many rows and columns as nodes.
  std::vector<std::vector<uint8_t>> distances;
  // The node that has the devices; with nodes only.
  uint32_t io_node = 0;
  // Declare kPortPmTimer. Off by default, see README.md.
  bool pm_timer = false;
};

// The finished tables. Plain value.
struct AcpiTables {
  // One table among the bytes; for tests and tools.
  struct Table {
    std::string signature;
    size_t offset = 0;
    size_t size = 0;
  };
  Gpa start;                     // where `bytes` go
  Gpa rsdp;                      // for LinuxBoot::Load
  std::vector<std::byte> bytes;  // one piece
  std::vector<Table> tables;     // the RSDP is not among them
};

// Errors: kInvalidArgument if the input contradicts itself (no vCPUs or more than kAcpiMaxVcpus, an APIC id twice, a
// vCPU or a byte of RAM in no node or in two, no such I/O node, distances out of range); kResourceExhausted if the
// tables do not fit.
absl::StatusOr<AcpiTables> BuildAcpiTables(const AcpiInput& input);

}  // namespace hk
