#include "hyperkernel/kvm/guest_access_reader.h"

#include <future>
#include <mutex>
#include <optional>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/kvm/guest_harness.h"

namespace hk {
namespace {

TEST(IsCanonicalTest, TheUpperBitsAreEqual) {
  EXPECT_TRUE(IsCanonical(0, 48));
  EXPECT_TRUE(IsCanonical(0x00007fffffffffff, 48));
  EXPECT_FALSE(IsCanonical(0x0000800000000000, 48));
  EXPECT_FALSE(IsCanonical(0xffff7fffffffffff, 48));
  EXPECT_TRUE(IsCanonical(0xffff800000000000, 48));
  EXPECT_TRUE(IsCanonical(~uint64_t{0}, 48));
  EXPECT_TRUE(IsCanonical(0x0000800000000000, 57));
  EXPECT_FALSE(IsCanonical(0x0100000000000000, 57));
}

// Asks a vCPU, as who serves its faults does.
class Asking final : public VcpuThreads {
 public:
  void OnThread(VcpuId, uint32_t thread) override {
    std::lock_guard lock(mutex_);
    thread_ = thread;
  }
  void OnThreadEnd(VcpuId, uint32_t) override {}
  std::optional<Gfn> AskedFor(uint32_t thread) override {
    std::lock_guard lock(mutex_);
    EXPECT_EQ(thread, thread_);
    return std::exchange(page_, std::nullopt);
  }
  void OnAccess(uint32_t, const GuestAccess& access) override { told_.set_value(access); }

  // What the vCPU, which is in the guest, does with the page.
  std::optional<GuestAccess> Ask(Gfn page) {
    told_ = {};
    std::future<GuestAccess> told = told_.get_future();
    uint32_t thread = 0;
    {
      std::lock_guard lock(mutex_);
      page_ = page;
      thread = thread_;
    }
    // A kick that finds it on its way into the guest is lost.
    for (const Monotonic limit = Guard(); RealClock().Now() < limit;) {
      KickThread(thread);
      if (told.wait_for(std::chrono::milliseconds(1)) == std::future_status::ready) return told.get();
    }
    return std::nullopt;
  }

 private:
  std::mutex mutex_;
  uint32_t thread_ = 0;
  std::optional<Gfn> page_;
  std::promise<GuestAccess> told_;
};

class GuestAccessTest : public KvmTest {};

TEST_F(GuestAccessTest, CodeAndAddressAreTold) {
  Asking asking;
  TestGuest guest("spin", 1, false, &asking);
  guest.Start();
  // The code itself, mapped one to one.
  std::optional<GuestAccess> access = asking.Ask(GfnOf(Gpa(kGuestCode)));
  ASSERT_TRUE(access.has_value());
  EXPECT_EQ(access->vcpu, VcpuId(0));
  EXPECT_EQ(access->page, GfnOf(Gpa(kGuestCode)));
  EXPECT_GE(access->code, kGuestCode);
  EXPECT_LT(access->code, kGuestCode + 0x1000);
  EXPECT_FALSE(access->user);
  EXPECT_EQ(access->address, kGuestCode);
  // The stack.
  access = asking.Ask(GfnOf(Gpa(GuestRam::Entry().rsp)));
  ASSERT_TRUE(access.has_value());
  EXPECT_EQ(access->address, GuestRam::Entry().rsp);
  // A page to which nothing points.
  access = asking.Ask(Gfn(0x200));
  ASSERT_TRUE(access.has_value());
  EXPECT_EQ(access->address, std::nullopt);
  EXPECT_GE(access->code, kGuestCode);
}

}  // namespace
}  // namespace hk
