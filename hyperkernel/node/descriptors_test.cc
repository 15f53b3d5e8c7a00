#include "hyperkernel/node/descriptors.h"

#include <fcntl.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

TEST(Descriptors, ASpaceMustFitBesideWhatIsOpen) {
  constexpr uint64_t kGiB = uint64_t{1} << 30;
  EXPECT_TRUE(CheckDescriptors(1024 * kGiB, {.open = 100, .limit = 100 + 256 + 2050}).ok());
  const absl::Status tight = CheckDescriptors(1024 * kGiB, {.open = 100, .limit = 100 + 256 + 2049});
  EXPECT_EQ(tight.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(tight), testing::HasSubstr("it takes 2050 file descriptors (two for each GiB); 100 of 2405 are "
                                                   "open and 256 are kept for connections: raise LimitNOFILE of the "
                                                   "unit to 2406"));
  EXPECT_TRUE(CheckDescriptors(4096, {.open = 0, .limit = 260}).ok());
  EXPECT_FALSE(CheckDescriptors(kGiB + 4096, {.open = 0, .limit = 261}).ok());
  EXPECT_FALSE(CheckDescriptors(uint64_t{1} << 52, {.open = 0, .limit = 65536}).ok());
}

TEST(Descriptors, AreCounted) {
  const uint64_t before = ReadDescriptorUse().open;
  const OwnedFd one(::open("/dev/null", O_RDONLY | O_CLOEXEC)), two(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(ReadDescriptorUse().open, before + 2);
  EXPECT_GT(ReadDescriptorUse().limit, before);
}

}  // namespace
}  // namespace hk
