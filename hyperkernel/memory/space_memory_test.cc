// A guest's RAM that is a space, of one node.
#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/memory/one_node_space_testing.h"
#include "hyperkernel/memory/space_memory.h"

namespace hk {
namespace {

using testing::HasSubstr;

// RAM below a hole and above it, as a guest of more than 3 GiB has.
constexpr uint64_t kHoleFirst = 16, kHoleEnd = 32;

class SpaceMemoryTest : public OneNodeSpaceTest {
 protected:
  void TearDown() override {
    memory_.reset();
    OneNodeSpaceTest::TearDown();
  }
  void Make(uint64_t max_pages = 0) {
    Attach(max_pages);
    auto memory = MakeSpaceMemory(
        space_, {{Gpa(0), kHoleFirst * kPageSize}, {Gpa(kHoleEnd * kPageSize), (kPages - kHoleEnd) * kPageSize}},
        RealClock());
    ASSERT_TRUE(memory.ok()) << memory.status();
    memory_ = *std::move(memory);
  }
  static std::span<const std::byte> Bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

  std::unique_ptr<GuestMemory> memory_;
};

TEST_F(SpaceMemoryTest, TheGuestTheLoaderAndDevicesSeeOneMemory) {
  Make();
  ASSERT_EQ(memory_->slots().size(), 2u);
  EXPECT_EQ(memory_->slots()[1].start, Gpa(kHoleEnd * kPageSize));
  EXPECT_EQ(memory_->bytes(), (kPages - (kHoleEnd - kHoleFirst)) * kPageSize);
  const Gpa high(kHoleEnd * kPageSize + 100);
  ASSERT_TRUE(memory_->Write(high, Bytes("loader")).ok());
  EXPECT_EQ(memory_->slots()[1].guest_view[100], std::byte{'l'});
  {
    PinnedPages pins;
    const absl::StatusOr<std::byte*> at = memory_->Pin(high, 6, PageAccess::kWrite, &pins);
    ASSERT_TRUE(at.ok()) << at.status();
    EXPECT_EQ(std::string(reinterpret_cast<char*>(*at), 6), "loader");
    **at = std::byte{'L'};
    EXPECT_EQ(memory_->Statistics().pages_pinned, 1u);
  }
  EXPECT_EQ(memory_->Statistics().pages_pinned, 0u) << "unpinned when the access ends";
  std::string text(6, ' ');
  ASSERT_TRUE(memory_->Read(high, std::as_writable_bytes(std::span(text))).ok());
  EXPECT_EQ(text, "Loader");
  EXPECT_EQ(memory_->frame_bytes(), kPageSize) << "what was not touched costs nothing";
}

TEST_F(SpaceMemoryTest, WhatIsNotRamIsRefusedThoughTheSpaceHasIt) {
  Make();
  const uint64_t hole = kHoleFirst * kPageSize, end = kPages * kPageSize;
  std::string text(16, 'x');
  for (const uint64_t at : {hole - 8, hole, kHoleEnd * kPageSize - 8, end - 8, end, ~uint64_t{0} - 3}) {
    PinnedPages pins;
    EXPECT_EQ(memory_->Write(Gpa(at), Bytes(text)).code(), absl::StatusCode::kOutOfRange) << at;
    EXPECT_EQ(memory_->Read(Gpa(at), std::as_writable_bytes(std::span(text))).code(), absl::StatusCode::kOutOfRange);
    EXPECT_EQ(memory_->Pin(Gpa(at), 16, PageAccess::kRead, &pins).status().code(), absl::StatusCode::kOutOfRange);
  }
  EXPECT_EQ(memory_->frame_bytes(), 0u);
}

TEST_F(SpaceMemoryTest, WhatMayBePinnedIsWhatTheSpaceLets) {
  Make(kPages / 2);
  const uint64_t most = memory_->most_pinned_bytes();
  EXPECT_EQ(most, kPages / 4 * kPageSize);
  PinnedPages pins, more;
  ASSERT_TRUE(memory_->Pin(Gpa(0), most, PageAccess::kWrite, &pins).ok());
  EXPECT_EQ(memory_->Pin(Gpa(kHoleEnd * kPageSize), 1, PageAccess::kWrite, &more).status().code(),
            absl::StatusCode::kAborted)
      << "to be tried again";
  pins.Release();
  EXPECT_TRUE(memory_->Pin(Gpa(kHoleEnd * kPageSize), 1, PageAccess::kWrite, &more).ok());
  EXPECT_EQ(memory_->Pin(Gpa(kHoleEnd * kPageSize), most + 1, PageAccess::kWrite, &pins).status().code(),
            absl::StatusCode::kInvalidArgument)
      << "never";
}

TEST_F(SpaceMemoryTest, AbandonedItIsForNobodyButWhoHasPins) {
  Make();
  PinnedPages pins;
  const absl::StatusOr<std::byte*> at = memory_->Pin(Gpa(0), 8, PageAccess::kWrite, &pins);
  ASSERT_TRUE(at.ok()) << at.status();
  memory_->Abandon();
  **at = std::byte{7};
  EXPECT_EQ(pins.bytes()[0], std::byte{7});
  EXPECT_THAT(memory_->Write(Gpa(kPageSize), Bytes("x")).ToString(), HasSubstr("the guest is stopped"));
  PinnedPages more;
  const absl::Status refused = memory_->Pin(Gpa(kPageSize), 8, PageAccess::kRead, &more).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable) << "the driver has done nothing wrong";
  EXPECT_THAT(refused.ToString(), HasSubstr("the guest is stopped"));
  EXPECT_EQ(memory_->state().code(), absl::StatusCode::kCancelled);
}

TEST_F(SpaceMemoryTest, RamBeyondTheSpaceIsRefused) {
  Make();
  const absl::Status status = MakeSpaceMemory(space_, {{Gpa(kPageSize), kPages * kPageSize}}, RealClock()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
}

}  // namespace
}  // namespace hk
