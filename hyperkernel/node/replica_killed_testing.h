// For tests of what a daemon that is killed leaves of a guest's memory: the daemon is a process of its own, which ends
// without a word; what it left is taken over by the test.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <optional>
#include <string>

#include "gtest/gtest.h"
#include "hyperkernel/node/guest_replicas.h"
#include "hyperkernel/node/replica_testing.h"

namespace hk {

// A guest as of ReplicaGuestTest, which nobody runs at first.
class KilledReplicaTest : public ReplicaGuestTest {
 protected:
  void SetUp() override { SetUpFiles(); }
  void TearDown() override {
    EndRun();
    replica_.reset();
    replicas_.reset();
    std::filesystem::remove_all(image_directory_);
    OwnStoreTest::TearDown();
  }

  // Runs `life` in a process of its own. REQUIRES: this process has no other thread.
  static pid_t Fork(const std::function<void()>& life) {
    const pid_t child = ::fork();
    if (child == 0) {
      life();
      ::_exit(HasFailure() ? 1 : 0);
    }
    HK_CHECK(child > 0);
    return child;
  }
  // A daemon's life, with the guest's first run if `run`, and whatever `life` does in it; no destructor runs at its
  // end.
  void Live(const std::function<void()>& life, bool run = true) {
    const pid_t child = Fork([&] {
      if (run) {
        MakeReplica();
        BeginRun();
      }
      life();
    });
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
  // The next daemon starts. False: it takes nothing over.
  bool Recover(const std::vector<v1::VmRecord>& records) {
    replicas_.emplace(site_);
    const absl::StatusOr<int> removed = replicas_->Recover(records);
    EXPECT_TRUE(removed.ok()) << removed.status();
    replica_ = replicas_->Find("g");
    return replica_ != nullptr;
  }
  bool Recover() { return Recover({Record(generation_)}); }
  // The guest is started by it.
  void Boot() {
    replica_ = replicas_->BeginRun(Record(++generation_));
    ASSERT_NE(replica_, nullptr);
    BeginRun();
  }
  std::string FramePath() const { return frames_->PathOf("g", generation_); }
  std::string TablePath() const { return frames_->TablePathOf("g", 1); }
  // Files of guests in the frame store.
  size_t Files() const { return frames_->Leftovers()->size(); }

  std::optional<GuestReplicas> replicas_;
};

}  // namespace hk
