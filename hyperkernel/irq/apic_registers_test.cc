#include "hyperkernel/irq/apic_registers.h"

#include <gtest/gtest.h>

#include <map>

#include "hyperkernel/irq/local_apic.h"

namespace hk {
namespace {

// Table 11-6 of SDM 3A: which of the 256 MSRs read and which write.
enum class Access { kNone, kRead, kWrite, kBoth };

Access Expected(uint32_t reg) {
  if (reg >= 0x10 && reg <= 0x27) {
    return Access::kRead;
  }
  const std::map<uint32_t, Access> table = {
      {0x02, Access::kRead},  {0x03, Access::kRead}, {0x08, Access::kBoth}, {0x0a, Access::kRead},
      {0x0b, Access::kWrite}, {0x0d, Access::kRead}, {0x0f, Access::kBoth}, {0x28, Access::kBoth},
      {0x2f, Access::kBoth},  {0x30, Access::kBoth}, {0x32, Access::kBoth}, {0x33, Access::kBoth},
      {0x34, Access::kBoth},  {0x35, Access::kBoth}, {0x36, Access::kBoth}, {0x37, Access::kBoth},
      {0x38, Access::kBoth},  {0x39, Access::kRead}, {0x3e, Access::kBoth}, {0x3f, Access::kWrite}};
  const auto found = table.find(reg);
  return found == table.end() ? Access::kNone : found->second;
}

TEST(ApicRegisters, EveryMsrReadsAndWritesAsTheTableSays) {
  for (uint32_t reg = 0; reg <= 0xff; ++reg) {
    LocalApic apic(0, true, true);
    const Access access = Expected(reg);
    EXPECT_EQ(apic.ReadMsr(0x800 + reg, {}).has_value(), access == Access::kRead || access == Access::kBoth)
        << std::hex << reg;
    EXPECT_EQ(!apic.WriteMsr(0x800 + reg, 0, {}).fault, access == Access::kWrite || access == Access::kBoth)
        << std::hex << reg;
  }
  LocalApic apic(0, true, true);
  EXPECT_FALSE(apic.ReadMsr(0x7ff, {}));
  EXPECT_FALSE(apic.ReadMsr(0x900, {}));
}

TEST(ApicRegisters, ReservedBitsFaultAndChangeNothing) {
  // The bits that may be written to each register; every other one faults alone.
  const std::map<ApicRegister, uint64_t> writable = {
      {ApicRegister::kTaskPriority, 0xff},
      {ApicRegister::kEoi, 0},
      {ApicRegister::kSpurious, 0x13ff},
      {ApicRegister::kErrorStatus, 0},
      {ApicRegister::kLvtCmci, 0x117ff},
      {ApicRegister::kCommand, 0xffffffff000cdfff},
      {ApicRegister::kLvtTimer, 0x310ff},
      {ApicRegister::kLvtThermal, 0x117ff},
      {ApicRegister::kLvtPerformance, 0x117ff},
      {ApicRegister::kLvtLint0, 0x1f7ff},
      {ApicRegister::kLvtLint1, 0x1f7ff},
      {ApicRegister::kLvtError, 0x110ff},
      {ApicRegister::kTimerInitial, 0xffffffff},
      {ApicRegister::kTimerDivide, 0xb},
      {ApicRegister::kSelfIpi, 0xff},
  };
  for (const auto& [reg, bits] : writable) {
    for (uint32_t bit = 0; bit < 64; ++bit) {
      LocalApic apic(0, true, true);
      const auto before = apic.Save({});
      const bool fault = apic.WriteMsr(0x800 + static_cast<uint32_t>(reg), uint64_t{1} << bit, {}).fault;
      EXPECT_EQ(fault, (bits >> bit & 1) == 0) << std::hex << static_cast<uint32_t>(reg) << std::dec << " bit " << bit;
      if (fault) {
        EXPECT_EQ(apic.Save({}), before);
      }
    }
  }
}

}  // namespace
}  // namespace hk
