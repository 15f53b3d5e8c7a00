#include "hyperkernel/boot/acpi_tables.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <string_view>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/boot/acpi_table.h"
#include "hyperkernel/boot/acpi_topology.h"
#include "hyperkernel/boot/dsdt.h"

namespace hk {
namespace {

constexpr size_t kTableAlignment = 64;

#pragma pack(push, 1)

// Root system description pointer (ACPI 6.4, 5.2.5.3).
struct Rsdp {
  char signature[8] = {'R', 'S', 'D', ' ', 'P', 'T', 'R', ' '};
  uint8_t checksum = 0;  // of the first 20 bytes
  char oem_id[6] = {};
  uint8_t revision = 2;
  uint32_t rsdt_address = 0;
  uint32_t length = 36;
  uint64_t xsdt_address = 0;
  uint8_t extended_checksum = 0;  // of all
  uint8_t reserved[3] = {};
};
static_assert(sizeof(Rsdp) == 36);
constexpr size_t kRsdpFirstPart = 20;

// Fixed ACPI description table after its header (ACPI 6.4, table 5.9). Fields that reduced hardware ignores are zero
// and have no names of their own.
struct Fadt {
  uint32_t firmware_ctrl = 0;
  uint32_t dsdt = 0;
  uint8_t reserved1 = 0;
  uint8_t preferred_pm_profile = 4;  // enterprise server
  uint8_t ignored1[76 - 46] = {};
  uint32_t pm_timer_block = 0;
  uint8_t ignored2[91 - 80] = {};
  uint8_t pm_timer_length = 0;
  uint8_t ignored3[109 - 92] = {};
  uint16_t boot_architecture = 0;
  uint8_t reserved2 = 0;
  uint32_t flags = 0;
  AcpiAddress reset_register;
  uint8_t reset_value = 0;
  uint16_t arm_boot_architecture = 0;
  uint8_t minor_version = 4;
  uint64_t x_firmware_ctrl = 0;
  uint64_t x_dsdt = 0;
  AcpiAddress ignored4[5];
  AcpiAddress x_pm_timer_block;
  AcpiAddress ignored5[2];
  AcpiAddress sleep_control;
  AcpiAddress sleep_status;
  uint64_t hypervisor_vendor = 0;
};
static_assert(sizeof(AcpiHeader) + sizeof(Fadt) == 276);
static_assert(sizeof(AcpiHeader) + offsetof(Fadt, pm_timer_block) == 76);
static_assert(sizeof(AcpiHeader) + offsetof(Fadt, boot_architecture) == 109);
static_assert(sizeof(AcpiHeader) + offsetof(Fadt, reset_register) == 116);
static_assert(sizeof(AcpiHeader) + offsetof(Fadt, x_dsdt) == 140);
static_assert(sizeof(AcpiHeader) + offsetof(Fadt, x_pm_timer_block) == 208);
static_assert(sizeof(AcpiHeader) + offsetof(Fadt, sleep_control) == 244);

// MCFG after its header: one allocation (PCI Firmware 3.3, table 4-2 and 4-3).
struct Mcfg {
  uint64_t reserved1 = 0;
  uint64_t base = 0;
  uint16_t segment = 0;
  uint8_t first_bus = 0;
  uint8_t last_bus = 0;
  uint32_t reserved2 = 0;
};
static_assert(sizeof(AcpiHeader) + sizeof(Mcfg) == 60);

// AML: Name(XXXX, qword) (ACPI 6.4, 20.2.5.1).
struct AmlNamedQword {
  uint8_t name_op = 0x08;
  char name[4] = {};
  uint8_t qword_prefix = 0x0e;
  uint64_t value = 0;
};
static_assert(sizeof(AmlNamedQword) == 14);

// AML: Scope (\_SB.PCI0) { Name (_PXM, domain) } (ACPI 6.4, 6.2.14, 20.2.5.1).
struct AmlPciDomain {
  uint8_t scope_op = 0x10;
  uint8_t package_length = 18;  // counts itself; one byte up to 63
  char path[10] = {'\\', '.', '_', 'S', 'B', '_', 'P', 'C', 'I', '0'};
  uint8_t name_op = 0x08;
  char name[4] = {'_', 'P', 'X', 'M'};
  uint8_t byte_prefix = 0x0a;
  uint8_t domain = 0;
};
static_assert(sizeof(AmlPciDomain) == 19);

#pragma pack(pop)

// FADT flags (ACPI 6.4, table 5.10) and boot architecture flags (table 5.11).
constexpr uint32_t kWbinvd = 1 << 0;
constexpr uint32_t kProcC1 = 1 << 2;
constexpr uint32_t kNoFixedPowerButton = 1 << 4;
constexpr uint32_t kNoFixedSleepButton = 1 << 5;
constexpr uint32_t kTimerIs32Bits = 1 << 8;
constexpr uint32_t kResetRegister = 1 << 10;
constexpr uint32_t kReducedHardware = 1 << 20;
constexpr uint16_t kLegacyDevices = 1 << 0;  // COM1; not 8042 (bit 1)
constexpr uint16_t kNoVga = 1 << 2;

AcpiAddress Port(uint16_t port, uint8_t bits) {
  return {.space = 1, .bits = bits, .offset = 0, .access = static_cast<uint8_t>(bits == 32 ? 3 : 1), .address = port};
}

std::vector<std::byte> BuildFadt(uint64_t dsdt, bool pm_timer) {
  Fadt fadt;
  fadt.dsdt = static_cast<uint32_t>(dsdt);
  fadt.x_dsdt = dsdt;
  fadt.boot_architecture = kLegacyDevices | kNoVga;
  fadt.flags = kWbinvd | kProcC1 | kNoFixedPowerButton | kNoFixedSleepButton | kResetRegister | kReducedHardware;
  fadt.reset_register = Port(kPortReset, 8);
  fadt.reset_value = kResetValue;
  fadt.sleep_control = Port(kPortPowerManagement, 8);
  fadt.sleep_status = Port(kPortPowerManagement + 1, 8);
  if (pm_timer) {
    fadt.flags |= kTimerIs32Bits;
    fadt.pm_timer_block = kPortPmTimer;
    fadt.pm_timer_length = 4;
    fadt.x_pm_timer_block = Port(kPortPmTimer, 32);
  }
  std::memcpy(&fadt.hypervisor_vendor, kAcpiOemTableId.data(), sizeof(fadt.hypervisor_vendor));
  AcpiTable table("FACP", 6);
  table.Append(fadt);
  return table.Finish();
}

std::vector<std::byte> BuildMcfg() {
  AcpiTable table("MCFG", 1);
  table.Append(Mcfg{.base = kEcamStart.value(), .last_bus = static_cast<uint8_t>((kEcamBytes >> 20) - 1)});
  return table.Finish();
}

// What dsdt.asl cannot know at build time: two numbers that it declares External, and which node has the devices.
std::vector<std::byte> BuildSsdt(const AcpiInput& input) {
  const RamPiece window = Pci64Window(input.ram_bytes, input.physical_bits);
  AcpiTable table("SSDT", 2);
  table.Append(AmlNamedQword{.name = {'P', '6', '4', 'B'}, .value = window.start.value()});
  table.Append(AmlNamedQword{.name = {'P', '6', '4', 'L'}, .value = window.bytes});
  if (!input.nodes.empty()) table.Append(AmlPciDomain{.domain = static_cast<uint8_t>(input.io_node)});
  return table.Finish();
}

// Lays tables out one after the other and remembers where.
class Layout {
 public:
  Layout() { result_.start = result_.rsdp = kAcpiTablesStart; }

  // Returns the table's guest-physical address.
  uint64_t Add(std::span<const std::byte> table) {
    const size_t at = (result_.bytes.size() + kTableAlignment - 1) / kTableAlignment * kTableAlignment;
    result_.bytes.resize(at);
    result_.bytes.insert(result_.bytes.end(), table.begin(), table.end());
    std::string signature(reinterpret_cast<const char*>(table.data()), sizeof(AcpiHeader::signature));
    result_.tables.push_back({.signature = std::move(signature), .offset = at, .size = table.size()});
    return result_.start.value() + at;
  }
  void ReserveRsdp() { result_.bytes.resize(sizeof(Rsdp)); }
  AcpiTables Finish(uint64_t xsdt) {
    Rsdp rsdp;
    std::memcpy(rsdp.oem_id, kAcpiOemId.data(), sizeof(rsdp.oem_id));
    rsdp.xsdt_address = xsdt;
    const std::span<const std::byte> bytes = std::as_bytes(std::span(&rsdp, 1));
    rsdp.checksum = AcpiChecksum(bytes.first(kRsdpFirstPart));
    rsdp.extended_checksum = AcpiChecksum(bytes);
    std::memcpy(result_.bytes.data(), &rsdp, sizeof(rsdp));
    return std::move(result_);
  }

 private:
  AcpiTables result_;
};

}  // namespace

absl::StatusOr<AcpiTables> BuildAcpiTables(const AcpiInput& input) {
  HK_RETURN_IF_ERROR(CheckTopology(input));
  Layout layout;
  layout.ReserveRsdp();
  const uint64_t dsdt = layout.Add(DsdtBytes());
  std::vector<uint64_t> listed = {layout.Add(BuildFadt(dsdt, input.pm_timer)), layout.Add(BuildSsdt(input)),
                                  layout.Add(BuildMadt(input)), layout.Add(BuildMcfg())};
  if (!input.nodes.empty()) {
    listed.push_back(layout.Add(BuildSrat(input)));
    listed.push_back(layout.Add(BuildSlit(input)));
  }
  AcpiTable xsdt("XSDT", 1);
  for (uint64_t address : listed) xsdt.Append(address);
  const uint64_t xsdt_address = layout.Add(xsdt.Finish());
  AcpiTables tables = layout.Finish(xsdt_address);
  const uint64_t room = kAcpiTablesEnd.value() - kAcpiTablesStart.value();
  if (tables.bytes.size() > room) {
    return absl::ResourceExhaustedError(
        fmt::format("ACPI tables take {} bytes, there is room for {}", tables.bytes.size(), room));
  }
  return tables;
}

}  // namespace hk
