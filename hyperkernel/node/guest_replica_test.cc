#include "hyperkernel/node/guest_replica.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/node/replica_testing.h"

namespace hk {
namespace {

using GuestReplicaTest = ReplicaGuestTest;

TEST_F(GuestReplicaTest, AfterAResetReadsComeFromMemory) {
  constexpr uint64_t kMany = 64;
  EXPECT_EQ(Read(10, kMany), BlocksText(10, kMany));
  EXPECT_EQ(hits(), 0u);
  EXPECT_EQ(replica_->Describe().entries(), kMany);
  Reset();
  EXPECT_EQ(replica_->Describe().warm_entries(), kMany);
  SpoilImage();
  EXPECT_EQ(Read(10, kMany), BlocksText(10, kMany));
  EXPECT_EQ(hits(), kMany);
}

}  // namespace
}  // namespace hk
