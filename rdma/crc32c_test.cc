#include "rdma/crc32c.h"

#include <isa-l/crc.h>

#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace hk {
namespace {

// Another implementation's answer.
uint32_t Reference(std::span<const std::byte> bytes) {
  auto* data = const_cast<unsigned char*>(reinterpret_cast<const unsigned char*>(bytes.data()));
  return ~crc32_iscsi(data, static_cast<int>(bytes.size()), ~0U);
}

std::vector<std::byte> RandomBytes(size_t size) {
  std::mt19937 random(7);
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

TEST(Crc32cAgainstIsaLTest, LengthsAndAlignments) {
  const std::vector<std::byte> bytes = RandomBytes(70'000);
  for (size_t size = 0; size < 13'000; size += size < 200 ? 1 : 37) {
    for (const size_t at : {size_t{0}, size % 17}) {
      const std::span<const std::byte> part = std::span(bytes).subspan(at, size);
      ASSERT_EQ(Crc32c(part), Reference(part)) << size << " at " << at;
    }
  }
  for (const size_t size : {4080, 4096, 8159, 8160, 8161, 65536}) {
    const std::span<const std::byte> part = std::span(bytes).first(size);
    EXPECT_EQ(Crc32c(part), Reference(part)) << size;
  }
}

TEST(Crc32cAgainstIsaLTest, GoesOnWhereItStopped) {
  const std::vector<std::byte> bytes = RandomBytes(20'000);
  for (size_t cut = 0; cut < bytes.size(); cut += 501) {
    EXPECT_EQ(Crc32c(std::span(bytes).subspan(cut), Crc32c(std::span(bytes).first(cut))), Reference(bytes));
  }
}

}  // namespace
}  // namespace hk
