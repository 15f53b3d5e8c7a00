// Every fixed guest-physical address and interrupt line, in one annotated map. Nothing else in the project writes one
// down.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "hyperkernel/base/types.h"

namespace hk {

// Low memory: what the loader and firmware tables take below 1 MiB (boot protocol: Documentation/arch/x86/boot.rst).
inline constexpr Gpa kGdtAddress{0x500};            // boot GDT, 64-bit entry
inline constexpr Gpa kZeroPageAddress{0x7000};      // struct boot_params
inline constexpr Gpa kPvhStartInfoAddress{0x6000};  // struct hvm_start_info and its tables
inline constexpr Gpa kBootStackTop{0x9000};         // grows down to 0x8000; Linux makes its own at once
inline constexpr Gpa kBootPageTables{0x9000};       // identity map for the 64-bit entry, 0x9000 to 0xffff
inline constexpr Gpa kCommandLineAddress{0x20000};  // kernel command line
inline constexpr uint64_t kCommandLineLimit = 0x10000;
inline constexpr Gpa kEbdaStart{0x9fc00};        // RAM that Linux may use ends here
inline constexpr Gpa kAcpiTablesStart{0xe0000};  // RSDP first, then the tables; up to the reset vector
inline constexpr Gpa kAcpiTablesEnd{0xffff0};
// Where a PC's firmware starts (real mode f000:fff0). There is none, but Linux jumps here to reset a machine with
// reduced-hardware ACPI: 16 bytes that write kResetValue to kPortReset.
inline constexpr Gpa kResetVector{0xffff0};
inline constexpr Gpa kKernelLoadAddress{0x100000};  // "high" load address of a bzImage

// The hole below 4 GiB: RAM that would be there is placed from 4 GiB on.
inline constexpr Gpa kMmioHoleStart{0xc0000000};
inline constexpr Gpa kPci32Start{0xc0000000};  // 32-bit BARs
inline constexpr uint64_t kPci32Bytes = 0x20000000;
inline constexpr Gpa kEcamStart{0xe0000000};      // PCI configuration space, 1 MiB per bus (PCIe 7.2.2)
inline constexpr uint64_t kEcamBytes = 0x100000;  // bus 0 alone: there are no bridges, and so nothing else to scan
inline constexpr Gpa kIoApicAddress{0xfec00000};
inline constexpr Gpa kLocalApicAddress{0xfee00000};
inline constexpr Gpa kMmioHoleEnd{0x100000000};

// Ports.
inline constexpr uint16_t kPortCmosIndex = 0x70;  // and 0x71: CMOS/RTC
inline constexpr uint16_t kPortSerial = 0x3f8;    // 16550, 8 ports
inline constexpr uint16_t kPortPvpanic = 0x505;
inline constexpr uint16_t kPortPowerManagement = 0x600;  // ACPI sleep control and status (reduced hardware), 2 ports
inline constexpr uint16_t kPortAcpiEvents = 0x602;       // pending events, see below, 1 port
inline constexpr uint16_t kPortReset = 0xcf9;            // reset register
inline constexpr uint16_t kPortPmTimer = 0x608;          // 4 ports, 3.579545 MHz
inline constexpr uint16_t kPortPciConfig = 0xcf8;        // configuration mechanism 1, 8 ports
inline constexpr uint16_t kPciIoStart = 0x1000;          // I/O BARs, to 0xffff

// Values of these ports.
inline constexpr uint8_t kResetValue = 0x06;     // what the FADT has the guest write to kPortReset; 0x0e resets as well
inline constexpr uint8_t kSleepTypeS5 = 5;       // SLP_TYP of "off" in the sleep control register (ACPI 6.4, 4.8.3.7)
inline constexpr uint8_t kEventPowerButton = 1;  // bit of kPortAcpiEvents
// kPortAcpiEvents: reads as the events that wait; a 1 written clears its event. kPinAcpiEvents is high while any waits,
// so that no press of the button is lost while the pin is masked (an edge would be).

// I/O APIC pins.
inline constexpr uint8_t kPinSerial = 4;      // edge
inline constexpr uint8_t kPinAcpiEvents = 9;  // level, active high: power button (generic event device)
inline constexpr uint8_t kFirstPciPin = 16;   // INTx of slots, level; MSI-X is what drivers use
inline constexpr uint8_t kPciPins = 8;        // INTA of slot s is pin kFirstPciPin + s % kPciPins

// Bits of a guest-physical address at most (Intel SDM vol. 3, 4.1.4; AMD APM vol. 2, 5.1).
inline constexpr unsigned kMaxPhysicalBits = 52;
// The tables' arithmetic holds up to here. RAM of that size ends kMmioHoleEnd - kMmioHoleStart above 2^52, where no CPU
// reaches: a guest that runs has less.
inline constexpr uint64_t kMaxRamBytes = uint64_t{1} << 52;

// A piece of RAM, or of the space between. Plain value.
struct RamPiece {
  Gpa start;
  uint64_t bytes = 0;

  constexpr Gpa end() const { return Gpa(start.value() + bytes); }
  friend bool operator==(const RamPiece&, const RamPiece&) = default;
};

// RAM of a guest of `bytes`: up to the hole, and the rest from 4 GiB on; sorted. REQUIRES: a multiple of the page size,
// at most kMaxRamBytes.
std::vector<RamPiece> RamLayout(uint64_t bytes);

// RamLayout() of the sum, cut in the order of `node_bytes`: entry i is what node i has, a node at the hole has two
// pieces. REQUIRES: as RamLayout for every entry and for the sum.
std::vector<std::vector<RamPiece>> RamLayoutOfNodes(std::span<const uint64_t> node_bytes);

// The window for 64-bit BARs: kPci64Bytes from the first multiple of that size above RAM. Zero bytes if it would end
// above 2^physical_bits: 64-bit BARs then go into the 32-bit window. REQUIRES: as RamLayout.
inline constexpr uint64_t kPci64Bytes = uint64_t{16} << 30;
RamPiece Pci64Window(uint64_t ram_bytes, unsigned physical_bits);

// What the guest is told about a piece of guest-physical space. The values are those of e820 (ACPI 6.4, 15.3) and of
// PVH.
enum class MemoryType : uint32_t { kRam = 1, kReserved = 2 };

// An entry of the memory map that the kernel gets. Plain value.
struct MemoryMapEntry {
  Gpa start;
  uint64_t bytes = 0;
  MemoryType type = MemoryType::kReserved;

  constexpr Gpa end() const { return Gpa(start.value() + bytes); }
  friend bool operator==(const MemoryMapEntry&, const MemoryMapEntry&) = default;
};

// The memory map of a guest of `ram_bytes`, sorted, without overlap: RAM without the firmware's part below 1 MiB, which
// is reserved, and the PCI configuration space, reserved (PCI Firmware 3.3, 4.1.2: Linux uses it only then). At most 6
// entries. REQUIRES: as RamLayout.
std::vector<MemoryMapEntry> MemoryMap(uint64_t ram_bytes);

}  // namespace hk
