#include "hyperkernel/boot/cpu_tables.h"

#include <array>
#include <cstdint>
#include <span>

#include "hyperkernel/base/status.h"
#include "hyperkernel/boot/address_map.h"

namespace hk {
namespace {

// Page-table entries (Intel SDM vol. 3, table 4-15 and following).
constexpr uint64_t kPresent = 1 << 0;
constexpr uint64_t kWritable = 1 << 1;
constexpr uint64_t kLargePage = 1 << 7;
constexpr uint64_t kEntries = 512;
constexpr uint64_t kLargePageBytes = uint64_t{2} << 20;
constexpr uint64_t kDirectories = 4;  // of 1 GiB each

// Control registers (Intel SDM vol. 3, 2.5) and EFER (2.2.1).
constexpr uint64_t kCr0Pe = 1 << 0;
constexpr uint64_t kCr0Et = 1 << 4;
constexpr uint64_t kCr0Pg = uint64_t{1} << 31;
constexpr uint64_t kCr4Pae = 1 << 5;
constexpr uint64_t kEferLme = 1 << 8;
constexpr uint64_t kEferLma = 1 << 10;

// Descriptor types (Intel SDM vol. 3, 3.4.5.1 and 3.5), "accessed" or "busy" as a loaded register has it.
constexpr uint8_t kCodeReadable = 0xb;
constexpr uint8_t kDataWritable = 0x3;
constexpr uint8_t kTssBusy = 0xb;

// __BOOT_CS and __BOOT_DS of the boot protocol.
constexpr uint16_t kBootCs = 0x10;
constexpr uint16_t kBootDs = 0x18;
constexpr std::array<uint64_t, 4> kGdt = {
    0, 0,
    0x00af9b000000ffff,  // 64-bit code, base 0, limit 4 GiB
    0x00cf93000000ffff,  // data, base 0, limit 4 GiB
};

constexpr BootSegment kFlatData = {
    .selector = kBootDs, .limit = 0xffffffff, .type = kDataWritable, .default_32 = true, .granularity_4k = true};
constexpr BootSegment kTask = {.limit = 0x67, .type = kTssBusy, .code_or_data = false};

}  // namespace

absl::Status WriteLong64Tables(GuestWriter& writer) {
  HK_RETURN_IF_ERROR(writer.Write(kGdtAddress, std::as_bytes(std::span(kGdt))));
  const uint64_t pml4 = kBootPageTables.value();
  const uint64_t pdpt = pml4 + kPageSize;
  const uint64_t first_directory = pdpt + kPageSize;

  std::array<uint64_t, kEntries> table = {};
  table[0] = pdpt | kPresent | kWritable;
  HK_RETURN_IF_ERROR(writer.Write(Gpa(pml4), std::as_bytes(std::span(table))));
  table = {};
  for (uint64_t i = 0; i < kDirectories; ++i) table[i] = (first_directory + i * kPageSize) | kPresent | kWritable;
  HK_RETURN_IF_ERROR(writer.Write(Gpa(pdpt), std::as_bytes(std::span(table))));
  for (uint64_t i = 0; i < kDirectories; ++i) {
    for (uint64_t j = 0; j < kEntries; ++j) {
      table[j] = (i * kEntries + j) * kLargePageBytes | kPresent | kWritable | kLargePage;
    }
    HK_RETURN_IF_ERROR(writer.Write(Gpa(first_directory + i * kPageSize), std::as_bytes(std::span(table))));
  }
  return absl::OkStatus();
}

absl::Status WriteResetVector(GuestWriter& writer) {
  // 16-bit code. The write does not return to the guest's use: the machine is taken down; until then it halts.
  constexpr uint8_t kCode[] = {
      0xfa,  // cli
      0xba,
      kPortReset & 0xff,
      kPortReset >> 8,  // mov dx, kPortReset
      0xb0,
      kResetValue,  // mov al, kResetValue
      0xee,         // out dx, al
      0xf4,         // hlt
      0xeb,
      0xfd,  // jmp to hlt (an NMI wakes it)
  };
  static_assert(sizeof(kCode) <= 16);
  return writer.Write(kResetVector, std::as_bytes(std::span(kCode)));
}

BootState Long64State() {
  BootState state;
  state.mode = BootMode::kLong64;
  state.rsp = kBootStackTop.value();
  state.cr0 = kCr0Pe | kCr0Et | kCr0Pg;
  state.cr3 = kBootPageTables.value();
  state.cr4 = kCr4Pae;
  state.efer = kEferLme | kEferLma;
  state.cs = {
      .selector = kBootCs, .limit = 0xffffffff, .type = kCodeReadable, .long_mode = true, .granularity_4k = true};
  state.data = kFlatData;
  state.tr = kTask;
  state.gdt = {.base = kGdtAddress, .limit = sizeof(kGdt) - 1};
  return state;
}

BootState Pvh32State() {
  BootState state;
  state.mode = BootMode::kPvh32;
  state.rsp = kBootStackTop.value();
  state.cr0 = kCr0Pe | kCr0Et;
  state.cs = {
      .selector = kBootCs, .limit = 0xffffffff, .type = kCodeReadable, .default_32 = true, .granularity_4k = true};
  state.data = kFlatData;
  state.tr = kTask;
  return state;
}

}  // namespace hk
