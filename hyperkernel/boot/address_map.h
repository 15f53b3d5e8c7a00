// Every fixed guest-physical address and interrupt line, in one annotated map. Nothing else in the project writes one
// down.
#pragma once

#include <cstdint>
#include <vector>

#include "hyperkernel/base/types.h"

namespace hk {

// Low memory: what the loader and firmware tables take below 1 MiB (boot protocol: Documentation/arch/x86/boot.rst).
inline constexpr Gpa kGdtAddress{0x500};            // boot GDT, 64-bit entry
inline constexpr Gpa kZeroPageAddress{0x7000};      // struct boot_params
inline constexpr Gpa kPvhStartInfoAddress{0x6000};  // struct hvm_start_info and its tables
inline constexpr Gpa kBootPageTables{0x9000};       // identity map for the 64-bit entry, 0x9000 to 0xffff
inline constexpr Gpa kCommandLineAddress{0x20000};  // kernel command line
inline constexpr uint64_t kCommandLineLimit = 0x10000;
inline constexpr Gpa kEbdaStart{0x9fc00};        // RAM that Linux may use ends here
inline constexpr Gpa kAcpiTablesStart{0xe0000};  // RSDP first, then the tables; up to 1 MiB
inline constexpr Gpa kAcpiTablesEnd{0x100000};
inline constexpr Gpa kKernelLoadAddress{0x100000};  // "high" load address of a bzImage

// The hole below 4 GiB: RAM that would be there is placed from 4 GiB on.
inline constexpr Gpa kMmioHoleStart{0xc0000000};
inline constexpr Gpa kPci32Start{0xc0000000};  // 32-bit BARs
inline constexpr uint64_t kPci32Bytes = 0x20000000;
inline constexpr Gpa kEcamStart{0xe0000000};  // PCI configuration space, 1 MiB per bus (PCIe 7.2.2)
inline constexpr uint64_t kEcamBytes = 0x10000000;
inline constexpr Gpa kIoApicAddress{0xfec00000};
inline constexpr Gpa kLocalApicAddress{0xfee00000};
inline constexpr Gpa kMmioHoleEnd{0x100000000};

// Ports.
inline constexpr uint16_t kPortCmosIndex = 0x70;  // and 0x71: CMOS/RTC
inline constexpr uint16_t kPortSerial = 0x3f8;    // 16550, 8 ports
inline constexpr uint16_t kPortPvpanic = 0x505;
inline constexpr uint16_t kPortPowerManagement = 0x600;  // ACPI sleep control and status (reduced hardware), 2 ports
inline constexpr uint16_t kPortPowerButton = 0x602;      // events behind kPinAcpiEvents: read, write 1 to clear
inline constexpr uint8_t kPowerButtonPressed = 0x01;     // its bit
inline constexpr uint8_t kSleepTypeS5 = 5;               // SLP_TYP of \_S5 in the DSDT
inline constexpr uint16_t kPortReset = 0xcf9;            // reset register
inline constexpr uint16_t kPortPmTimer = 0x608;          // 4 ports, 3.579545 MHz
inline constexpr uint16_t kPortPciConfig = 0xcf8;        // configuration mechanism 1, 8 ports

// I/O APIC pins.
inline constexpr uint8_t kPinSerial = 4;      // edge
inline constexpr uint8_t kPinAcpiEvents = 9;  // level: power button (generic event device)
inline constexpr uint8_t kFirstPciPin = 16;   // INTx of slots, level; MSI-X is what drivers use
inline constexpr uint8_t kPciPins = 8;        // INTA of slot s is on pin kFirstPciPin + s % kPciPins (the DSDT's _PRT)

// A piece of RAM. Plain value.
struct RamPiece {
  Gpa start;
  uint64_t bytes = 0;
};

// RAM of a guest of `bytes`: up to the hole, and the rest from 4 GiB on. REQUIRES: a multiple of the page size.
std::vector<RamPiece> RamLayout(uint64_t bytes);

}  // namespace hk
