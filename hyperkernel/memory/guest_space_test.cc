// A space of one node: what guest_space itself does. Spaces of several nodes: tests/host/space_test.cc.
#include "hyperkernel/memory/guest_space.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/memory/frame_store_testing.h"
#include "hyperkernel/memory/space_testing.h"

namespace hk {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint64_t kPages = 64;

class GuestSpaceTest : public OwnStoreTest {
 protected:
  void SetUp() override {
    OpenStore(2 * kPages * kPageSize);
    router_.SetTransport(&transport_);
  }
  GuestSpace::Options Options(uint64_t guest = 1) {
    GuestSpace::Options options;
    options.name = "s" + std::to_string(guest);
    options.config.guest = GuestId(guest);
    options.config.nodes = {NodeId(0)};
    options.config.pages = kPages;
    options.stopped = [this](const absl::Status& why) {
      // Whoever is told may ask.
      told_ = space_->state().message() == why.message() && space_->Statistics().served == 0;
      times_told_++;
      times_told_.notify_all();
    };
    return options;
  }
  absl::Status Attach(GuestSpace::Options options) {
    auto attached = GuestSpace::Attach(std::move(options), *frames_, &transport_, &router_, RealClock());
    if (attached.ok()) space_ = *std::move(attached);
    return attached.status();
  }
  static Monotonic Soon() { return std::chrono::steady_clock::now() + std::chrono::seconds(30); }

  NotingTransport transport_;
  SpaceRouter router_;
  std::unique_ptr<GuestSpace> space_;
  std::atomic<bool> told_{false};
  std::atomic<int> times_told_{0};
};

TEST_F(GuestSpaceTest, BadInputIsRefusedAndLeavesNothing) {
  const auto refused = [this](auto change, absl::StatusCode code, const std::string& why) {
    GuestSpace::Options options = Options();
    change(&options);
    const absl::Status status = Attach(std::move(options));
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
  };
  const auto invalid = absl::StatusCode::kInvalidArgument;
  refused([](auto* options) { options->name = ""; }, invalid, "name");
  refused([](auto* options) { options->name = "../s"; }, invalid, "name");
  refused([](auto* options) { options->config.pages = 0; }, invalid, "pages");
  refused([](auto* options) { options->config.pages = kMaxSpacePages + 1; }, invalid, "pages");
  refused([](auto* options) { options->config.pages = ~uint64_t{0}; }, invalid, "pages");
  refused([](auto* options) { options->config.nodes = {NodeId(1)}; }, invalid, "nodes");
  refused([](auto* options) { options->config.guest = GuestId(0); }, invalid, "guest");
  refused([](auto* options) { options->config.pages = 3 * kPages; }, absl::StatusCode::kResourceExhausted, "budget");
  EXPECT_EQ(*frames_->UsedBytes(), 0u);
  ASSERT_TRUE(Attach(Options()).ok()) << "something was left behind";
  refused([](auto*) {}, absl::StatusCode::kAlreadyExists, "s1.1");
  refused([](auto* options) { options->name = "other"; }, absl::StatusCode::kAlreadyExists, "guest 1");
  space_.reset();
  EXPECT_THAT(transport_.forgotten, ElementsAre(1));
  ASSERT_TRUE(Attach(Options()).ok());
}

TEST_F(GuestSpaceTest, ProgramsAndTheDaemonSeeOneMemory) {
  ASSERT_TRUE(Attach(Options()).ok());
  EXPECT_EQ(space_->bytes(), kPages * kPageSize);
  std::vector<std::byte> bytes(3 * kPageSize, std::byte{7}), read(bytes.size());
  ASSERT_TRUE(space_->Write(Gpa(kPageSize - 100), bytes, Soon()).ok());
  EXPECT_EQ(space_->view()[kPageSize - 101], std::byte{0});
  EXPECT_EQ(space_->view()[kPageSize - 100], std::byte{7});
  EXPECT_EQ(space_->view()[4 * kPageSize - 101], std::byte{7});
  EXPECT_EQ(space_->view()[4 * kPageSize - 100], std::byte{0});
  space_->view()[2 * kPageSize] = std::byte{8};
  ASSERT_TRUE(space_->Read(Gpa(kPageSize - 100), read, Soon()).ok());
  bytes[kPageSize + 100] = std::byte{8};
  EXPECT_EQ(read, bytes);
  EXPECT_EQ(space_->frame_bytes(), 4 * kPageSize);
  EXPECT_EQ(space_->Uses(0, 8).size(), 1u);
  // The ends.
  ASSERT_TRUE(space_->Write(Gpa((kPages - 3) * kPageSize), bytes, Soon()).ok());
  for (const uint64_t at : {(kPages - 3) * kPageSize + 1, kPages * kPageSize, ~uint64_t{0}}) {
    EXPECT_EQ(space_->Write(Gpa(at), bytes, Soon()).code(), absl::StatusCode::kOutOfRange);
    EXPECT_EQ(space_->Read(Gpa(at), read, Soon()).code(), absl::StatusCode::kOutOfRange);
  }
}

TEST_F(GuestSpaceTest, AStoppedSpaceSaysWhyOnceAndEverywhere) {
  ASSERT_TRUE(Attach(Options()).ok());
  space_->view()[0] = std::byte{1};
  space_->engine().Stop(absl::UnavailableError("because"));
  space_->engine().Stop(absl::UnavailableError("another reason"));
  times_told_.wait(0);
  EXPECT_TRUE(told_);
  std::byte byte{};
  EXPECT_EQ(space_->Read(Gpa(5 * kPageSize), std::span(&byte, 1), Soon()), absl::UnavailableError("because"));
  EXPECT_EQ(space_->state(), absl::UnavailableError("because"));
  // A program's touch of a page that is not here, as the kernel does it for KVM.
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  EXPECT_EQ(::write(ends[1], space_->view() + 9 * kPageSize, 1), -1);
  EXPECT_EQ(errno, EFAULT);
  EXPECT_EQ(::write(ends[1], space_->view(), 1), 1) << "what is here stays";
  ::close(ends[0]);
  ::close(ends[1]);
  space_.reset();
  EXPECT_EQ(times_told_, 1);
}

}  // namespace
}  // namespace hk
