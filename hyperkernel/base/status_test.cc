#include "hyperkernel/base/status.h"

#include <cerrno>

#include "gtest/gtest.h"

namespace hk {
namespace {

TEST(Status, ErrnoCarriesNameMeaningAndObject) {
  const absl::Status status = ErrnoStatus(ENOENT, "open /x");
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(MessageOf(status), "open /x: No such file or directory (ENOENT)");
  EXPECT_EQ(MessageOf(ErrnoStatus(99999, "x")), "x: unknown error (99999)");
}

TEST(Status, ContextIsPutBeforeAndKeepsTheCode) {
  const absl::Status status = WithContext(ErrnoStatus(EACCES, "b"), "a");
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(MessageOf(status), "a: b: Permission denied (EACCES)");
  EXPECT_TRUE(WithContext(absl::OkStatus(), "a").ok());
}

absl::Status Assign(absl::StatusOr<int> source, int* target) {
  HK_ASSIGN_OR_RETURN(*target, std::move(source));
  HK_RETURN_IF_ERROR(*target == 7 ? absl::OutOfRangeError("seven") : absl::OkStatus());
  return absl::OkStatus();
}

TEST(Status, MacrosReturnTheFirstError) {
  int value = 0;
  EXPECT_TRUE(Assign(3, &value).ok());
  EXPECT_EQ(value, 3);
  EXPECT_EQ(Assign(absl::AbortedError("x"), &value).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(value, 3);
  EXPECT_EQ(Assign(7, &value).code(), absl::StatusCode::kOutOfRange);
}

}  // namespace
}  // namespace hk
