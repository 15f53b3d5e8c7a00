#include "hyperkernel/base/mapping.h"

#include <sys/mman.h>

#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/probe_group.h"

namespace hk {
namespace {

bool IsMapped(const void* address) {
  unsigned char resident;
  return mincore(const_cast<void*>(address), 1, &resident) == 0;
}

TEST(MappingTest, IsUnmappedByItsLastOwner) {
  auto mapping = Mapping::Create(4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, "test");
  ASSERT_TRUE(mapping.ok()) << mapping.status();
  uint8_t* const data = mapping->data();
  data[0] = 1;
  {
    Mapping moved = *std::move(mapping);
    EXPECT_EQ(moved.data(), data);
    EXPECT_EQ(moved.size(), 4096u);
    EXPECT_EQ(mapping->data(), nullptr);
    EXPECT_TRUE(IsMapped(data));
  }
  EXPECT_FALSE(IsMapped(data));
}

TEST(MappingTest, AssignmentUnmapsWhatWasThere) {
  auto first = Mapping::Create(4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, "first");
  auto second = Mapping::Create(4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, "second");
  ASSERT_TRUE(first.ok() && second.ok());
  const uint8_t *was = first->data(), *is = second->data();
  *first = *std::move(second);
  EXPECT_EQ(first->data(), is);
  EXPECT_FALSE(IsMapped(was));
}

TEST(MappingTest, ErrorNamesTheObject) {
  auto mapping = Mapping::Create(0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, "nothing");
  ASSERT_FALSE(mapping.ok());
  EXPECT_THAT(std::string(mapping.status().message()),
              testing::HasSubstr("mmap of nothing: Invalid argument (EINVAL)"));
}

TEST(ProbeGroupTest, LostAndFixBelongToANo) {
  constexpr ProbeQuestion kQuestion = {.name = "name", .lost = "lost", .fix = "fix", .required = true};
  ProbeGroup group("group");
  group.Yes(kQuestion, "fine");
  group.No(kQuestion, "broken");
  const ProbeItems items = group.Take();
  ASSERT_EQ(items.size(), 2u);
  EXPECT_TRUE(items[0].yes && items[0].required);
  EXPECT_EQ(items[0].lost + items[0].fix, "");
  EXPECT_FALSE(items[1].yes);
  EXPECT_EQ(items[1].group + items[1].detail + items[1].lost + items[1].fix, "groupbrokenlostfix");
  EXPECT_TRUE(group.Take().empty());
}

}  // namespace
}  // namespace hk
