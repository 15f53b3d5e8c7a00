#include "hyperkernel/boot/address_map.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hk {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kGiB = uint64_t{1} << 30;
constexpr uint64_t kPiB = uint64_t{1} << 50;

TEST(RamLayout, GoesAroundTheHole) {
  EXPECT_THAT(RamLayout(0), IsEmpty());
  EXPECT_THAT(RamLayout(256 * kMiB), ElementsAre(RamPiece{Gpa(0), 256 * kMiB}));
  EXPECT_THAT(RamLayout(3 * kGiB), ElementsAre(RamPiece{Gpa(0), 3 * kGiB}));
  EXPECT_THAT(RamLayout(3 * kGiB + kPageSize),
              ElementsAre(RamPiece{Gpa(0), 3 * kGiB}, RamPiece{Gpa(4 * kGiB), kPageSize}));
  EXPECT_THAT(RamLayout(4 * kGiB), ElementsAre(RamPiece{Gpa(0), 3 * kGiB}, RamPiece{Gpa(4 * kGiB), kGiB}));
  EXPECT_THAT(RamLayout(5 * kGiB), ElementsAre(RamPiece{Gpa(0), 3 * kGiB}, RamPiece{Gpa(4 * kGiB), 2 * kGiB}));
  EXPECT_THAT(RamLayout(4 * kPiB),
              ElementsAre(RamPiece{Gpa(0), 3 * kGiB}, RamPiece{Gpa(4 * kGiB), 4 * kPiB - 3 * kGiB}));
}

TEST(RamLayout, IsCutForNodes) {
  const std::vector<uint64_t> three = {2 * kGiB, 2 * kGiB, kGiB};
  EXPECT_THAT(RamLayoutOfNodes(three),
              ElementsAre(ElementsAre(RamPiece{Gpa(0), 2 * kGiB}),
                          ElementsAre(RamPiece{Gpa(2 * kGiB), kGiB}, RamPiece{Gpa(4 * kGiB), kGiB}),
                          ElementsAre(RamPiece{Gpa(5 * kGiB), kGiB})));
  const std::vector<uint64_t> at_the_hole = {3 * kGiB, 0, kPageSize};
  EXPECT_THAT(RamLayoutOfNodes(at_the_hole), ElementsAre(ElementsAre(RamPiece{Gpa(0), 3 * kGiB}), IsEmpty(),
                                                         ElementsAre(RamPiece{Gpa(4 * kGiB), kPageSize})));
  const std::vector<uint64_t> large = {2 * kPiB, 2 * kPiB};
  EXPECT_EQ(RamLayoutOfNodes(large).back().back().end(), Gpa(4 * kPiB + kGiB));
}

TEST(Pci64Window, IsAboveRamAndWithinTheCpusReach) {
  EXPECT_EQ(Pci64Window(256 * kMiB, 52), (RamPiece{Gpa(kPci64Bytes), kPci64Bytes}));
  EXPECT_EQ(Pci64Window(5 * kGiB, 40), (RamPiece{Gpa(kPci64Bytes), kPci64Bytes}));
  EXPECT_EQ(Pci64Window(15 * kGiB, 40), (RamPiece{Gpa(kPci64Bytes), kPci64Bytes}));
  EXPECT_EQ(Pci64Window(15 * kGiB + kPageSize, 40), (RamPiece{Gpa(2 * kPci64Bytes), kPci64Bytes}));
  EXPECT_EQ(Pci64Window(kGiB, 35), (RamPiece{Gpa(kPci64Bytes), kPci64Bytes}));
  EXPECT_EQ(Pci64Window(kGiB, 34).bytes, 0u) << "would end above the reach";
  EXPECT_EQ(Pci64Window(4 * kPiB, 52).bytes, 0u) << "no room left";
  EXPECT_EQ(Pci64Window(4 * kPiB, 64).bytes, 0u);
  EXPECT_EQ(Pci64Window(2 * kPiB, 52).start.value() % kPci64Bytes, 0u);
}

// Entries are sorted, do not overlap, and all RAM is there but for [EBDA, 1 MiB).
void ExpectSound(uint64_t ram_bytes) {
  SCOPED_TRACE(ram_bytes);
  uint64_t ram = 0;
  Gpa end;
  const std::vector<MemoryMapEntry> map = MemoryMap(ram_bytes);
  EXPECT_LE(map.size(), 6u);
  for (const MemoryMapEntry& entry : map) {
    EXPECT_GE(entry.start, end);
    EXPECT_GT(entry.bytes, 0u);
    EXPECT_GT(entry.end(), entry.start) << "wrapped";
    end = entry.end();
    if (entry.type == MemoryType::kRam) ram += entry.bytes;
  }
  EXPECT_EQ(ram, ram_bytes - (kMiB - kEbdaStart.value()));
}

TEST(MemoryMap, CoversAllRam) {
  for (uint64_t bytes : {2 * kMiB, 256 * kMiB, 3 * kGiB - kPageSize, 3 * kGiB, 3 * kGiB + kPageSize, 4 * kGiB, 5 * kGiB,
                         64 * kGiB, kPiB, 4 * kPiB}) {
    ExpectSound(bytes);
  }
}

TEST(MemoryMap, OfFiveGiB) {
  EXPECT_THAT(MemoryMap(5 * kGiB), ElementsAre(MemoryMapEntry{Gpa(0), 0x9fc00, MemoryType::kRam},
                                               MemoryMapEntry{Gpa(0x9fc00), 0x60400, MemoryType::kReserved},
                                               MemoryMapEntry{Gpa(kMiB), 3 * kGiB - kMiB, MemoryType::kRam},
                                               MemoryMapEntry{Gpa(0xe0000000), 0x100000, MemoryType::kReserved},
                                               MemoryMapEntry{Gpa(4 * kGiB), 2 * kGiB, MemoryType::kRam}));
}

TEST(MemoryMap, OfHardlyAny) {
  EXPECT_THAT(MemoryMap(0), IsEmpty());
  const std::vector<MemoryMapEntry> map = MemoryMap(kPageSize);
  ASSERT_FALSE(map.empty());
  EXPECT_EQ(map.front(), (MemoryMapEntry{Gpa(0), kPageSize, MemoryType::kRam}));
}

}  // namespace
}  // namespace hk
