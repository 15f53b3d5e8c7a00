// For unit tests of a space of one node: attached to a frame store of its own, with nobody to talk to.
#pragma once

#include <chrono>
#include <memory>
#include <utility>

#include "gtest/gtest.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/memory/frame_store_testing.h"
#include "hyperkernel/memory/guest_space.h"
#include "hyperkernel/memory/space_testing.h"

namespace hk {

// One space of kPages pages, once attached.
class OneNodeSpaceTest : public OwnStoreTest {
 protected:
  static constexpr uint64_t kPages = 64;

  void SetUp() override {
    OpenStore(2 * kPages * kPageSize);
    router_.SetTransport(&transport_);
  }
  void TearDown() override {
    space_.reset();
    OwnStoreTest::TearDown();
  }
  void Attach(uint64_t max_pages = 0) {
    GuestSpace::Options options;
    options.name = "s";
    options.config.guest = GuestId(1);
    options.config.nodes = {NodeId(0)};
    options.config.pages = kPages;
    options.config.max_pages = max_pages;
    auto attached = GuestSpace::Attach(std::move(options), *frames_, &transport_, &router_, RealClock());
    ASSERT_TRUE(attached.ok()) << attached.status();
    space_ = *std::move(attached);
  }
  static Monotonic Soon() { return std::chrono::steady_clock::now() + std::chrono::seconds(30); }

  NotingTransport transport_;
  SpaceRouter router_;
  std::shared_ptr<GuestSpace> space_;
};

}  // namespace hk
