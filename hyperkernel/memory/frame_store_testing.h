// For unit tests of what has a frame store.
#pragma once

#include <sys/mount.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>

#include "gtest/gtest.h"
#include "hyperkernel/memory/frame_store.h"

namespace hk {

// A frame store in a directory of its own, both gone after the test.
class OwnStoreTest : public testing::Test {
 protected:
  void OpenStore(uint64_t budget_bytes) {
    char pattern[] = "/dev/shm/hk_frame_store.XXXXXX";
    ASSERT_NE(::mkdtemp(pattern), nullptr);
    directory_ = pattern;
    frames_.emplace(*FrameStore::Open(directory_, budget_bytes));
  }
  void TearDown() override {
    frames_.reset();
    while (::umount2(directory_.c_str(), MNT_DETACH) == 0) {
    }
    std::filesystem::remove_all(directory_);
  }

  std::string directory_;
  std::optional<FrameStore> frames_;
};

}  // namespace hk
