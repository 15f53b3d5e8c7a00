#include "hyperkernel/base/types.h"

#include <type_traits>

#include "gtest/gtest.h"

namespace hk {
namespace {

static_assert(!std::is_convertible_v<Gpa, Gfn>);
static_assert(!std::is_convertible_v<uint64_t, Gfn>);

TEST(Types, FramesAndAddresses) {
  EXPECT_EQ(GfnOf(Gpa(0x12345678)), Gfn(0x12345));
  EXPECT_EQ(GpaOf(Gfn(0x12345)), Gpa(0x12345000));
  EXPECT_LT(Gfn(1), Gfn(2));
}

}  // namespace
}  // namespace hk
