#include "hyperkernel/device/virtio_set.h"

#include "gtest/gtest.h"
#include "hyperkernel/device/testing_interrupts.h"
#include "hyperkernel/device/testing_memory.h"
#include "hyperkernel/device/virtio_console.h"
#include "hyperkernel/device/virtio_rng.h"

namespace hk {
namespace {

TEST(VirtioSetTest, LivesAndResets) {
  FakeGuestMemory memory({{Gpa(0), 0x100000}});
  RecordingInterrupts interrupts;
  Bus mmio;
  auto root = *PciRoot::Create(&mmio, &interrupts);
  auto set = *VirtioSet::Create(&memory, root.get(), &interrupts);
  ASSERT_TRUE(set->Add(1, "rng", std::make_unique<VirtioRng>()).ok());
  ASSERT_TRUE(set->Add(2, "console", std::make_unique<VirtioConsole>(std::vector<VirtioConsole::Port>(1))).ok());
  EXPECT_EQ(set->Add(2, "rng2", std::make_unique<VirtioRng>()).code(), absl::StatusCode::kAlreadyExists);
  ASSERT_TRUE(set->Start().ok());
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  EXPECT_TRUE(set->ResetAndBlock(deadline).ok());
  set->Unblock();
  EXPECT_TRUE(set->ResetAndBlock(deadline).ok());
  set->Unblock();
  int dirty = 0;
  set->HarvestDirty([&](Gfn) { ++dirty; });
  EXPECT_EQ(dirty, 0);
  EXPECT_EQ(root->EmptySlotPages().size(), 3u) << "functions 1 to 7 of slots 0 and 1, and all from 2.1 on";
}

}  // namespace
}  // namespace hk
