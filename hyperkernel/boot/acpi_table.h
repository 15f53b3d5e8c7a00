// One ACPI table under construction: header, entries, checksum (ACPI 6.4, 5.2.6). All numbers are little-endian, as the
// host is; entries are packed structs whose sizes are asserted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace hk {

#pragma pack(push, 1)
// System description table header (ACPI 6.4, table 5.4).
struct AcpiHeader {
  char signature[4];
  uint32_t length;
  uint8_t revision;
  uint8_t checksum;
  char oem_id[6];
  char oem_table_id[8];
  uint32_t oem_revision;
  char creator_id[4];
  uint32_t creator_revision;
};
static_assert(sizeof(AcpiHeader) == 36);

// Generic address structure (ACPI 6.4, table 5.1).
struct AcpiAddress {
  uint8_t space = 0;  // 1: ports
  uint8_t bits = 0;
  uint8_t offset = 0;
  uint8_t access = 0;  // 1: byte, 3: dword
  uint64_t address = 0;
};
static_assert(sizeof(AcpiAddress) == 12);
#pragma pack(pop)

// What every table says of its maker. "HYPERK" is also in dsdt.asl.
inline constexpr std::string_view kAcpiOemId = "HYPERK";
inline constexpr std::string_view kAcpiOemTableId = "HYPERKRN";

// The byte that makes the sum of `bytes` and itself zero.
uint8_t AcpiChecksum(std::span<const std::byte> bytes);

// Builds one table. Not thread-safe.
class AcpiTable {
 public:
  // REQUIRES: signature has 4 characters.
  AcpiTable(std::string_view signature, uint8_t revision);

  // Appends the bytes of a plain struct or number.
  template <typename T>
  void Append(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    const size_t at = bytes_.size();
    bytes_.resize(at + sizeof(T));
    std::memcpy(&bytes_[at], &value, sizeof(T));
  }
  // The table with length and checksum. Last call.
  std::vector<std::byte> Finish();

 private:
  std::vector<std::byte> bytes_;
};

}  // namespace hk
