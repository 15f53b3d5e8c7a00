#include "hyperkernel/kvm/pv_clock.h"

#include <cstring>
#include <vector>

#include "gtest/gtest.h"

namespace hk {
namespace {

constexpr PvClockOrigin kOrigin = {
    .guest_tsc = 1000, .system_ns = 77, .wall_ns = 5'000'000'123, .tsc_khz = 2'600'000, .stable = true};

// Guest memory of 8 KiB that keeps every version that it saw.
class Memory {
 public:
  PvClock::WriteGuest Writer() {
    return [this](Gpa at, std::span<const std::byte> bytes) {
      if (at.value() > sizeof(bytes_) || bytes.size() > sizeof(bytes_) - at.value()) {
        return absl::OutOfRangeError("not RAM");
      }
      std::memcpy(bytes_ + at.value(), bytes.data(), bytes.size());
      versions.push_back(Get<uint32_t>(at.value() & ~uint64_t{63}));
      return absl::OkStatus();
    };
  }
  template <typename T>
  T Get(uint64_t at) const {
    T value;
    std::memcpy(&value, bytes_ + at, sizeof(value));
    return value;
  }
  std::vector<uint32_t> versions;

 private:
  std::byte bytes_[8192] = {};
};

// As Linux' pvclock_scale_delta.
uint64_t Scale(uint64_t ticks, PvClockScale scale) {
  ticks = scale.shift < 0 ? ticks >> -scale.shift : ticks << scale.shift;
  return static_cast<uint64_t>(static_cast<unsigned __int128>(ticks) * scale.multiplier >> 32);
}

TEST(PvClockTest, ScaleIsRightForEveryRate) {
  for (uint32_t khz : {1u, 999u, 1'000'000u, 999'999u, 1'000'001u, 2'599'998u, 4'200'000u, 4'294'967'295u}) {
    const PvClockScale scale = ScaleFor(khz);
    EXPECT_GE(scale.multiplier, 1u << 31) << khz;
    for (uint64_t seconds : {1ull, 3600ull, 86'400ull * 30}) {
      const double exact = static_cast<double>(seconds) * 1e9;
      const auto got = static_cast<double>(Scale(uint64_t{khz} * 1000 * seconds, scale));
      EXPECT_NEAR(got / exact, 1.0, khz < 1000 ? 1e-2 : 1e-9) << khz << " kHz, " << seconds << " s";
    }
  }
}

TEST(PvClockTest, PageIsWrittenWithTheVersionProtocol) {
  Memory memory;
  PvClock clock(kOrigin, 2, memory.Writer());
  ASSERT_TRUE(clock.WriteMsr(VcpuId(1), kMsrKvmSystemTime, 0x1000 | 1));
  EXPECT_EQ(memory.versions, (std::vector<uint32_t>{1, 1, 2}));
  EXPECT_EQ(memory.Get<uint64_t>(0x1008), 1000u);
  EXPECT_EQ(memory.Get<uint64_t>(0x1010), 77u);
  EXPECT_EQ(memory.Get<uint32_t>(0x1018), ScaleFor(2'600'000).multiplier);
  EXPECT_EQ(memory.Get<int8_t>(0x101c), ScaleFor(2'600'000).shift);
  EXPECT_EQ(memory.Get<uint8_t>(0x101d), 1u);

  PvClockOrigin moved = kOrigin;
  moved.stable = false;
  moved.system_ns = 99;
  const VcpuId both[] = {VcpuId(0), VcpuId(1)};
  ASSERT_TRUE(clock.SetOrigin(moved, both).ok());
  EXPECT_EQ(memory.versions, (std::vector<uint32_t>{1, 1, 2, 3, 3, 4}));  // vCPU 0 has no page
  EXPECT_EQ(memory.Get<uint64_t>(0x1010), 99u);
  EXPECT_EQ(memory.Get<uint8_t>(0x101d), 0u);
}

TEST(PvClockTest, WallClock) {
  Memory memory;
  PvClock clock(kOrigin, 1, memory.Writer());
  ASSERT_TRUE(clock.WriteMsr(VcpuId(0), kMsrKvmWallClock, 0x40));
  EXPECT_EQ(memory.versions, (std::vector<uint32_t>{1, 1, 2}));
  EXPECT_EQ(memory.Get<uint32_t>(0x44), 5u);
  EXPECT_EQ(memory.Get<uint32_t>(0x48), 123u);
  uint64_t value = 0;
  EXPECT_TRUE(clock.ReadMsr(VcpuId(0), kMsrKvmWallClock, &value));
  EXPECT_EQ(value, 0x40u);
}

TEST(PvClockTest, BadAddressesAndMsrsFault) {
  Memory memory;
  PvClock clock(kOrigin, 1, memory.Writer());
  uint64_t value = 0;
  EXPECT_FALSE(clock.WriteMsr(VcpuId(0), kMsrKvmSystemTime, 0x100000 | 1));
  EXPECT_FALSE(clock.WriteMsr(VcpuId(0), kMsrKvmSystemTime, 8190 | 1));
  EXPECT_FALSE(clock.WriteMsr(VcpuId(0), kMsrKvmSystemTime, UINT64_MAX));
  EXPECT_FALSE(clock.WriteMsr(VcpuId(0), kMsrKvmWallClock, UINT64_MAX - 3));
  EXPECT_FALSE(clock.WriteMsr(VcpuId(0), 0x4b564d02, 1));
  EXPECT_FALSE(clock.ReadMsr(VcpuId(0), 0x4b564d02, &value));
  EXPECT_TRUE(clock.ReadMsr(VcpuId(0), kMsrKvmSystemTime, &value));
  EXPECT_EQ(value, 0u);
  EXPECT_TRUE(clock.WriteMsr(VcpuId(0), kMsrKvmSystemTime, 0x100000));  // off: the address does not matter
}

TEST(PvClockTest, StateMovesAndVersionsGoOn) {
  Memory memory;
  PvClock from(kOrigin, 1, memory.Writer()), to(kOrigin, 1, memory.Writer());
  ASSERT_TRUE(from.WriteMsr(VcpuId(0), kMsrKvmSystemTime, 0x1001));
  to.Restore(VcpuId(0), from.Save(VcpuId(0)));
  EXPECT_EQ(memory.versions.size(), 3u);  // nothing was written for the move
  const VcpuId all[] = {VcpuId(0)};
  ASSERT_TRUE(to.SetOrigin(kOrigin, all).ok());
  EXPECT_EQ(memory.versions.back(), 4u);
}

}  // namespace
}  // namespace hk
