// Pins of a space of one node. Of several nodes, with threads: tests/host/space_pins_test.cc.
#include <atomic>
#include <chrono>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/memory/one_node_space_testing.h"

namespace hk {
namespace {

using testing::HasSubstr;

class GuestSpacePinsTest : public OneNodeSpaceTest {
 protected:
  PinnedPages Pin(uint64_t at, uint64_t bytes, PageAccess access = PageAccess::kWrite) {
    absl::StatusOr<PinnedPages> pinned = space_->Pin(Gpa(at), bytes, access, Soon());
    EXPECT_TRUE(pinned.ok()) << pinned.status();
    return pinned.ok() ? *std::move(pinned) : PinnedPages();
  }
  uint64_t pinned() const { return space_->Statistics().pages_pinned; }
};

TEST_F(GuestSpacePinsTest, PinnedBytesAreTheSpacesOwn) {
  Attach();
  std::byte byte{};
  {
    const PinnedPages pin = Pin(2 * kPageSize - 8, kPageSize + 16);
    EXPECT_EQ(pinned(), 3u) << "of three pages there is a part in it";
    ASSERT_EQ(pin.writable().size(), kPageSize + 16);
    EXPECT_EQ(pin.bytes().data(), pin.writable().data());
    pin.writable()[0] = std::byte{1};
    pin.writable().back() = std::byte{2};
    EXPECT_EQ(space_->view()[2 * kPageSize - 8], std::byte{1});
    EXPECT_EQ(space_->view()[3 * kPageSize + 7], std::byte{2});
    space_->view()[2 * kPageSize] = std::byte{3};
    EXPECT_EQ(pin.bytes()[8], std::byte{3});
    ASSERT_TRUE(space_->Read(Gpa(3 * kPageSize + 7), std::span(&byte, 1), Soon()).ok());
    EXPECT_EQ(byte, std::byte{2});
    // Pins of one page add up.
    const PinnedPages reader = Pin(2 * kPageSize, 1, PageAccess::kRead);
    EXPECT_EQ(reader.bytes()[0], std::byte{3});
    EXPECT_EQ(pinned(), 4u);
  }
  EXPECT_EQ(pinned(), 0u);
  EXPECT_EQ(space_->engine().Residue().active_pages, 0u);
}

TEST_F(GuestSpacePinsTest, APinGoesWithWhoeverHoldsIt) {
  Attach();
  PinnedPages first = Pin(0, kPageSize), second = Pin(4 * kPageSize, 2 * kPageSize);
  std::byte* const at = second.writable().data();
  EXPECT_EQ(pinned(), 3u);
  first = std::move(second);
  EXPECT_EQ(pinned(), 2u) << "what it held before is unpinned";
  EXPECT_EQ(first.writable().data(), at);
  EXPECT_TRUE(second.bytes().empty());
  PinnedPages third = std::move(first);
  first.Release();
  EXPECT_EQ(pinned(), 2u);
  third.Release();
  third.Release();
  EXPECT_EQ(pinned(), 0u);
  EXPECT_TRUE(third.bytes().empty());
  EXPECT_TRUE(PinnedPages().writable().empty());
}

TEST_F(GuestSpacePinsTest, BadInputAndTooManyAreRefusedAtOnce) {
  Attach(16);
  for (const auto& [at, bytes] : std::vector<std::pair<uint64_t, uint64_t>>{{0, 0},
                                                                            {kPages * kPageSize, 1},
                                                                            {kPages * kPageSize - 1, 2},
                                                                            {0, kPages * kPageSize + 1},
                                                                            {~uint64_t{0}, 1},
                                                                            {1, ~uint64_t{0}}}) {
    EXPECT_EQ(space_->Pin(Gpa(at), bytes, PageAccess::kWrite, Soon()).status().code(), absl::StatusCode::kOutOfRange);
  }
  {
    const PinnedPages most = Pin(0, 8 * kPageSize);
    const absl::Status more = space_->Pin(Gpa(9 * kPageSize), 1, PageAccess::kWrite, Soon()).status();
    EXPECT_EQ(more.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(more.message()), HasSubstr("8 are, of 8 at most on this node"));
    // Everything else goes on in what is left.
    for (uint64_t page = 8; page < kPages; page++) EXPECT_EQ(space_->view()[page * kPageSize], std::byte{0});
  }
  EXPECT_EQ(Pin(9 * kPageSize, 1).bytes().size(), 1u);
  EXPECT_EQ(pinned(), 0u);
}

TEST_F(GuestSpacePinsTest, AStopEndsPinsThatWaitAndLeavesMemoryWhereItIs) {
  Attach();
  PinnedPages pin = Pin(0, kPageSize);
  pin.writable()[5] = std::byte{5};
  space_->engine().Stop(absl::UnavailableError("because"));
  EXPECT_EQ(space_->Pin(Gpa(kPageSize), 1, PageAccess::kWrite, Soon()).status(), absl::UnavailableError("because"));
  EXPECT_EQ(pin.bytes()[5], std::byte{5});
  pin.writable()[6] = std::byte{6};
  pin.Release();
  pin = PinnedPages();
  EXPECT_FALSE(space_->state().ok());
}

TEST_F(GuestSpacePinsTest, APinMayOutliveItsSpace) {
  Attach();
  PinnedPages pin = Pin(3 * kPageSize, kPageSize);
  std::memset(pin.writable().data(), 7, kPageSize);
  space_.reset();
  EXPECT_EQ(pin.bytes()[kPageSize - 1], std::byte{7});
  pin.writable()[0] = std::byte{8};
  EXPECT_EQ(*frames_->UsedBytes() > 0, true) << "its memory is still there";
  pin.Release();
  EXPECT_EQ(*frames_->UsedBytes(), 0u) << "and goes with it";
  Attach();
  EXPECT_EQ(Pin(3 * kPageSize, 1).bytes()[0], std::byte{0});
}

}  // namespace
}  // namespace hk
