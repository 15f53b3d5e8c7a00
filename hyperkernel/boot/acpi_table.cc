#include "hyperkernel/boot/acpi_table.h"

#include "hyperkernel/base/check.h"

namespace hk {

uint8_t AcpiChecksum(std::span<const std::byte> bytes) {
  uint8_t sum = 0;
  for (std::byte byte : bytes) sum = static_cast<uint8_t>(sum + std::to_integer<uint8_t>(byte));
  return static_cast<uint8_t>(-sum);
}

AcpiTable::AcpiTable(std::string_view signature, uint8_t revision) {
  AcpiHeader header = {};
  HK_CHECK(signature.size() == sizeof(header.signature));
  std::memcpy(header.signature, signature.data(), sizeof(header.signature));
  header.revision = revision;
  std::memcpy(header.oem_id, kAcpiOemId.data(), sizeof(header.oem_id));
  std::memcpy(header.oem_table_id, kAcpiOemTableId.data(), sizeof(header.oem_table_id));
  header.oem_revision = 1;
  std::memcpy(header.creator_id, "HKRN", sizeof(header.creator_id));
  header.creator_revision = 1;
  Append(header);
}

std::vector<std::byte> AcpiTable::Finish() {
  const uint32_t length = static_cast<uint32_t>(bytes_.size());
  std::memcpy(&bytes_[offsetof(AcpiHeader, length)], &length, sizeof(length));
  bytes_[offsetof(AcpiHeader, checksum)] = std::byte{AcpiChecksum(bytes_)};
  return std::move(bytes_);
}

}  // namespace hk
