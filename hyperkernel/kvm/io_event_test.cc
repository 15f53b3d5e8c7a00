#include "hyperkernel/kvm/io_event.h"

#include <sys/eventfd.h>

#include "gtest/gtest.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/kvm/guest_harness.h"

namespace hk {
namespace {

constexpr Gpa kDoorbell(0xd0000004);

class IoEventTest : public KvmTest {
 protected:
  void SetUp() override {
    KvmTest::SetUp();
    if (IsSkipped()) return;
    event_ = OwnedFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    ASSERT_TRUE(event_.valid());
  }
  uint64_t Signals() {
    eventfd_t value = 0;
    return ::eventfd_read(event_.get(), &value) == 0 ? value : 0;
  }
  OwnedFd event_;
};

TEST_F(IoEventTest, WritesOfAnyWidthSignalAndDoNotExit) {
  TestGuest guest("doorbell");
  ASSERT_TRUE(AddIoEvent(*guest.vm, kDoorbell, event_.get()).ok());
  guest.Start();
  EXPECT_EQ(guest.devices.WaitForEnd(HangGuard()), FakeDevices::End::kPassed)
      << "step " << guest.devices.step() << " " << guest.devices.reason();
  EXPECT_EQ(Signals(), 3u);
}

TEST_F(IoEventTest, OneThatWasTakenBackExits) {
  TestGuest guest("doorbell");
  ASSERT_TRUE(AddIoEvent(*guest.vm, kDoorbell, event_.get()).ok());
  EXPECT_EQ(AddIoEvent(*guest.vm, kDoorbell, event_.get()).code(), absl::StatusCode::kAlreadyExists);
  ASSERT_TRUE(RemoveIoEvent(*guest.vm, kDoorbell, event_.get()).ok());
  EXPECT_EQ(RemoveIoEvent(*guest.vm, kDoorbell, event_.get()).code(), absl::StatusCode::kNotFound);
  guest.Start();
  EXPECT_EQ(guest.devices.WaitForEnd(HangGuard()), FakeDevices::End::kFailed);
  EXPECT_EQ(guest.devices.step(), 1u);
  EXPECT_EQ(Signals(), 0u);
}

}  // namespace
}  // namespace hk
