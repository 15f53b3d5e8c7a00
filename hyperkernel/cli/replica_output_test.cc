#include "hyperkernel/cli/replica_output.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hk::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(ReplicaOutput, ShowsWhatItSaves) {
  v1::Replica replica;
  replica.set_vm("web\x1b");
  replica.mutable_since()->set_seconds(1000);
  const auto now = std::chrono::system_clock::from_time_t(1034);
  EXPECT_THAT(ReplicaText(replica, now), HasSubstr("nothing was read"));
  replica.set_disks(2);
  replica.set_entries(10);
  replica.set_warm_entries(4);
  replica.set_hits(3);
  replica.set_misses(1);
  replica.set_bytes_saved(3 * 4096);
  const std::string text = ReplicaText(replica, now);
  EXPECT_THAT(text, HasSubstr("web?\n"));
  EXPECT_THAT(text, HasSubstr("10 pages, 4 of them of runs before"));
  EXPECT_THAT(text, HasSubstr("75.0 % (3 of 4 blocks)"));
  EXPECT_THAT(text, HasSubstr("12 KiB"));
  EXPECT_THAT(text, HasSubstr("34s"));
  EXPECT_THAT(text, Not(HasSubstr("Recovered")));
  replica.set_not_durable_because("it is not\x1b");
  EXPECT_THAT(ReplicaText(replica, now), HasSubstr("no: it is not?\n"));
  replica.set_durable(true);
  replica.set_recovered(7);
  EXPECT_THAT(ReplicaText(replica, now), HasSubstr("yes\n"));
  EXPECT_THAT(ReplicaText(replica, now), HasSubstr("7 entries of a daemon that was killed\n"));
  replica.set_mismatched(2);
  EXPECT_THAT(ReplicaText(replica, now), HasSubstr("2 of them WRONG"));
}

TEST(ReplicaOutput, SaysHowFarVerificationIsAndWhatIsWrong) {
  v1::ReplicaVerification found;
  found.set_entries(10);
  found.set_done(4);
  EXPECT_EQ(VerificationText(found), "4 of 10 entries\n");
  found.set_done(11);
  EXPECT_EQ(VerificationText(found), "11 of 11 entries\n");
  found.set_finished(true);
  EXPECT_EQ(VerificationText(found), "11 entries compared with the disks, none is wrong\n");
  found.set_gone(1);
  found.set_wrong(2);
  found.set_first_wrong("disk 0 block 17");
  EXPECT_THAT(VerificationText(found), HasSubstr("1 went meanwhile, 2 WRONG and dropped (the first: disk 0 block 17)"));
  EXPECT_THAT(VerificationText(found), Not(HasSubstr("none")));
}

}  // namespace
}  // namespace hk::cli
