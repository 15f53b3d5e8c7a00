#include "hyperkernel/boot/address_map.h"

#include <algorithm>

#include "hyperkernel/base/check.h"

namespace hk {
namespace {

// The fixed places do not touch each other, and the map is what the boot protocols and ACPI need of it.
static_assert(kGdtAddress.value() + 64 <= kPvhStartInfoAddress.value());
static_assert(kPvhStartInfoAddress.value() + kPageSize <= kZeroPageAddress.value());
static_assert(kZeroPageAddress.value() + kPageSize < kBootStackTop.value());
static_assert(kBootStackTop <= kBootPageTables);
static_assert(kBootPageTables.value() + 6 * kPageSize <= kCommandLineAddress.value());
static_assert(kCommandLineAddress.value() + kCommandLineLimit <= kEbdaStart.value());
static_assert(kEbdaStart < kAcpiTablesStart && kAcpiTablesEnd <= kResetVector &&
              kResetVector.value() + 16 <= kKernelLoadAddress.value());
static_assert(kMmioHoleStart <= kPci32Start && kPci32Start.value() + kPci32Bytes <= kEcamStart.value());
static_assert(kEcamStart.value() + kEcamBytes <= kIoApicAddress.value());
static_assert(kEcamStart.value() % kEcamBytes == 0);  // PCIe 7.2.2: the base is a multiple of the size
static_assert(kPortPowerManagement + 2 <= kPortAcpiEvents && kPortAcpiEvents + 1 <= kPortPmTimer);

}  // namespace

std::vector<RamPiece> RamLayout(uint64_t bytes) {
  HK_CHECK(bytes % kPageSize == 0 && bytes <= kMaxRamBytes);
  std::vector<RamPiece> pieces;
  const uint64_t low = std::min(bytes, kMmioHoleStart.value());
  if (low > 0) pieces.push_back({.start = Gpa(0), .bytes = low});
  if (bytes > low) pieces.push_back({.start = kMmioHoleEnd, .bytes = bytes - low});
  return pieces;
}

std::vector<std::vector<RamPiece>> RamLayoutOfNodes(std::span<const uint64_t> node_bytes) {
  uint64_t total = 0;
  for (uint64_t bytes : node_bytes) {
    HK_CHECK(bytes % kPageSize == 0 && bytes <= kMaxRamBytes - total);
    total += bytes;
  }
  std::vector<RamPiece> rest = RamLayout(total);
  auto piece = rest.begin();
  std::vector<std::vector<RamPiece>> nodes;
  for (uint64_t wanted : node_bytes) {
    std::vector<RamPiece>& node = nodes.emplace_back();
    while (wanted > 0) {
      const uint64_t bytes = std::min(wanted, piece->bytes);
      node.push_back({.start = piece->start, .bytes = bytes});
      *piece = {.start = Gpa(piece->start.value() + bytes), .bytes = piece->bytes - bytes};
      if (piece->bytes == 0) ++piece;
      wanted -= bytes;
    }
  }
  return nodes;
}

RamPiece Pci64Window(uint64_t ram_bytes, unsigned physical_bits) {
  const std::vector<RamPiece> ram = RamLayout(ram_bytes);
  const uint64_t above = ram.empty() ? kMmioHoleEnd.value() : std::max(ram.back().end(), kMmioHoleEnd).value();
  const uint64_t start = (above + kPci64Bytes - 1) / kPci64Bytes * kPci64Bytes;
  const uint64_t limit = uint64_t{1} << std::min(physical_bits, kMaxPhysicalBits);
  if (start > limit || limit - start < kPci64Bytes) return {.start = Gpa(0), .bytes = 0};
  return {.start = Gpa(start), .bytes = kPci64Bytes};
}

std::vector<MemoryMapEntry> MemoryMap(uint64_t ram_bytes) {
  std::vector<MemoryMapEntry> map;
  auto add = [&map](uint64_t start, uint64_t end, MemoryType type) {
    if (start < end) map.push_back({.start = Gpa(start), .bytes = end - start, .type = type});
  };
  const uint64_t mib = uint64_t{1} << 20;
  for (const RamPiece& piece : RamLayout(ram_bytes)) {
    if (piece.start < Gpa(mib)) {
      add(piece.start.value(), std::min(piece.end(), kEbdaStart).value(), MemoryType::kRam);
      add(kEbdaStart.value(), mib, MemoryType::kReserved);
      add(mib, piece.end().value(), MemoryType::kRam);
      add(kEcamStart.value(), kEcamStart.value() + kEcamBytes, MemoryType::kReserved);
    } else {
      add(piece.start.value(), piece.end().value(), MemoryType::kRam);
    }
  }
  return map;
}

}  // namespace hk
