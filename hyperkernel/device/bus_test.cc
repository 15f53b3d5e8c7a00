#include "hyperkernel/device/bus.h"

#include <array>
#include <atomic>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace hk {
namespace {

// Answers with its own number; remembers what was written.
class Numbered final : public IoHandler {
 public:
  explicit Numbered(uint8_t number) : number_(number) {}
  void Read(uint64_t offset, std::span<std::byte> data) override { StoreLe(data, number_ + (offset << 8)); }
  void Write(uint64_t offset, std::span<const std::byte> data) override { last = offset << 32 | LoadLe(data); }
  std::atomic<uint64_t> last = 0;

 private:
  const uint8_t number_;
};

uint64_t Read(Bus& bus, uint64_t address, size_t bytes) {
  std::array<std::byte, 8> data{};
  bus.Read(address, std::span(data).first(bytes));
  return LoadLe(data);
}

TEST(BusTest, FindsTheRangeThatCoversTheAccess) {
  Bus bus;
  Numbered a(1), b(2);
  ASSERT_TRUE(bus.Add(0x200, 0x10, &b).ok());
  ASSERT_TRUE(bus.Add(0x100, 0x10, &a).ok());
  EXPECT_EQ(Read(bus, 0x100, 4), 1u);
  EXPECT_EQ(Read(bus, 0x10f, 1), 0x01u);
  EXPECT_EQ(Read(bus, 0x204, 4), 0x402u);
  const std::array<std::byte, 2> data = {std::byte{0x34}, std::byte{0x12}};
  bus.Write(0x208, data);
  EXPECT_EQ(b.last, 0x800001234u);
}

TEST(BusTest, NobodyReadsAsAllOnes) {
  Bus bus;
  Numbered a(1);
  EXPECT_EQ(Read(bus, 0, 4), 0xffffffffu);
  ASSERT_TRUE(bus.Add(0x100, 0x10, &a).ok());
  EXPECT_EQ(Read(bus, 0xff, 1), 0xffu);
  EXPECT_EQ(Read(bus, 0x110, 2), 0xffffu);
  EXPECT_EQ(Read(bus, 0x10e, 4), 0xffffffffu) << "partly outside";
  EXPECT_EQ(Read(bus, 0xfe, 4), 0xffffffffu) << "partly before";
  bus.Write(0x110, std::array<std::byte, 1>{});
  EXPECT_EQ(a.last, 0u);
}

TEST(BusTest, RefusesOverlapsAndWraps) {
  Bus bus;
  Numbered a(1);
  ASSERT_TRUE(bus.Add(0x100, 0x10, &a).ok());
  for (auto [start, bytes] :
       std::vector<std::pair<uint64_t, uint64_t>>{{0x100, 1}, {0x10f, 1}, {0xf0, 0x11}, {0, ~0ull}}) {
    EXPECT_EQ(bus.Add(start, bytes, &a).code(), absl::StatusCode::kAlreadyExists) << start;
  }
  EXPECT_EQ(bus.Add(0x200, 0, &a).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(bus.Add(~0ull, 2, &a).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(bus.Add(0xf0, 0x10, &a).ok());
  EXPECT_TRUE(bus.Add(0x110, 0x10, &a).ok());
  EXPECT_TRUE(bus.Add(~0ull, 1, &a).ok());
  EXPECT_EQ(Read(bus, ~0ull, 1), 1u);
}

TEST(BusTest, RangesMove) {
  Bus bus;
  Numbered a(1);
  ASSERT_TRUE(bus.Add(0x100, 0x10, &a).ok());
  EXPECT_FALSE(bus.Remove(0x101));
  EXPECT_TRUE(bus.Remove(0x100));
  EXPECT_FALSE(bus.Remove(0x100));
  EXPECT_EQ(Read(bus, 0x100, 1), 0xffu);
  for (size_t i = 0; i < Bus::kMaxRanges; ++i) ASSERT_TRUE(bus.Add(i * 16, 16, &a).ok());
  EXPECT_EQ(bus.Add(1 << 20, 1, &a).code(), absl::StatusCode::kResourceExhausted);
}

TEST(BusTest, AccessesAndMovesInParallel) {
  Bus bus;
  Numbered fixed(1), moving(2);
  ASSERT_TRUE(bus.Add(0x1000, 0x10, &fixed).ok());
  std::atomic<bool> stop = false;
  std::thread mover([&] {
    for (int i = 0; i < 2000; ++i) {
      ASSERT_TRUE(bus.Add(0x100, 0x10, &moving).ok());
      ASSERT_TRUE(bus.Remove(0x100));
    }
    stop = true;
  });
  while (!stop) {
    EXPECT_EQ(Read(bus, 0x1000, 1), 1u);
    const uint64_t value = Read(bus, 0x100, 1);
    EXPECT_TRUE(value == 2 || value == 0xff) << value;
  }
  mover.join();
}

}  // namespace
}  // namespace hk
