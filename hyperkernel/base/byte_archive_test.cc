#include "hyperkernel/base/byte_archive.h"

#include <cstdint>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hk {
namespace {

using testing::HasSubstr;

enum class Colour : uint8_t { kRed = 0, kBlue = 1 };

struct Thing {
  uint16_t small = 0;
  int64_t large = 0;
  bool flag = false;
  Colour colour = Colour::kRed;
  std::vector<std::byte> bytes;
  std::string text;
};

template <typename Archive>
void Fields(Archive& a, Archived<Archive, Thing>& thing) {
  a.Numbers(thing.small, thing.large, thing.flag);
  a.Choice(thing.colour, Colour::kBlue, "unknown colour");
  a.Bytes(thing.bytes, 8);
  a.Text(thing.text, 8);
}

std::vector<std::byte> Written() {
  const Thing thing{0x1234, -2, true, Colour::kBlue, {std::byte{7}, std::byte{8}}, "abc"};
  return WriteVersioned(3, [&](auto& a) { Fields(a, thing); });
}

absl::Status Read(std::span<const std::byte> bytes, Thing* thing) {
  return ReadVersioned("a thing", 3, bytes, [&](auto& a) { Fields(a, *thing); });
}

TEST(ByteArchive, WhatIsWrittenIsRead) {
  const std::vector<std::byte> bytes = Written();
  EXPECT_EQ(bytes[0], std::byte{3});
  EXPECT_EQ(bytes[2], std::byte{0x34}) << "little-endian";
  Thing thing;
  ASSERT_TRUE(Read(bytes, &thing).ok());
  EXPECT_EQ(thing.small, 0x1234);
  EXPECT_EQ(thing.large, -2);
  EXPECT_TRUE(thing.flag);
  EXPECT_EQ(thing.colour, Colour::kBlue);
  EXPECT_EQ(thing.bytes.size(), 2u);
  EXPECT_EQ(thing.text, "abc");
}

TEST(ByteArchive, WhatIsCutOrTooLongIsRefused) {
  const std::vector<std::byte> bytes = Written();
  Thing thing;
  for (size_t size = 0; size < bytes.size(); ++size) {
    const absl::Status status = Read(std::span(bytes).first(size), &thing);
    EXPECT_EQ(status.message(), "a thing: it ends early") << size;
  }
  std::vector<std::byte> longer = bytes;
  longer.push_back({});
  EXPECT_THAT(std::string(Read(longer, &thing).message()), HasSubstr("left over"));
}

TEST(ByteArchive, WhatIsNotLegalIsRefused) {
  const struct {
    size_t at;
    uint8_t value;
    const char* text;
  } kTable[] = {{0, 4, "version 4, expected 3"},
                {12, 2, "neither true nor false"},
                {13, 2, "unknown colour"},
                {14, 9, "a list is too long"},
                {17, 0xff, "a list is too long"}};
  for (const auto& [at, value, text] : kTable) {
    std::vector<std::byte> bytes = Written();
    bytes[at] = std::byte{value};
    Thing thing;
    EXPECT_THAT(std::string(Read(bytes, &thing).message()), HasSubstr(text)) << at;
    EXPECT_LE(thing.bytes.size(), 8u);
  }
}

}  // namespace
}  // namespace hk
