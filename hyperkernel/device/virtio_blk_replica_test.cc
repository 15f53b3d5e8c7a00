#include <linux/virtio_blk.h>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/device/testing_blk.h"

namespace hk {
namespace {

using VirtioBlkReplicaTest = VirtioBlkTest;

INSTANTIATE_TEST_SUITE_P(Cache, VirtioBlkReplicaTest, testing::Bool(),
                         [](const auto& param) { return param.param ? "Buffered" : "Direct"; });

TEST_P(VirtioBlkReplicaTest, TellsItsReplicaOfEachRequestOnce) {
  RecordingReplica::Log log;
  VirtioBlk::Options options;
  options.replica = std::make_unique<RecordingReplica>(&log);
  Open(std::move(options));
  const auto told = [&log] { return std::exchange(log.lines, {}); };
  using ::testing::ElementsAre;
  EXPECT_EQ(Do(VIRTIO_BLK_T_IN, 8, {{kData, 4096, true}, {kData + 0x3000, 4096, true}}), VIRTIO_BLK_S_OK);
  EXPECT_THAT(told(), ElementsAre("read 4096+8192", "serve", "end"));
  EXPECT_EQ(Text(kData, 4096), std::string(4096, 'i'));
  EXPECT_EQ(Do(VIRTIO_BLK_T_OUT, 16, {{kData, 4096, false}}), VIRTIO_BLK_S_OK);
  EXPECT_THAT(told(), ElementsAre("write 8192+4096", "end"));
  EXPECT_EQ(Do(VIRTIO_BLK_T_FLUSH, 0, {}), VIRTIO_BLK_S_OK);
  EXPECT_THAT(told(), ElementsAre("flush", "flushed"));
  const virtio_blk_discard_write_zeroes erase{64, 8, 0};
  SetText(kData, std::string(reinterpret_cast<const char*>(&erase), sizeof erase));
  for (const uint32_t type : {VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES}) {
    EXPECT_EQ(Do(type, 0, {{kData, 16, false}}), VIRTIO_BLK_S_OK);
    EXPECT_THAT(told(), ElementsAre("erase 32768+4096", "end"));
  }
  // Through the bounce buffer if memory does not suit O_DIRECT; of what is refused nobody hears.
  EXPECT_EQ(Do(VIRTIO_BLK_T_OUT, 8, {{kData + 5, 4096, false}}), VIRTIO_BLK_S_OK);
  EXPECT_THAT(told(), ElementsAre("write 4096+4096", "end"));
  EXPECT_EQ(Do(VIRTIO_BLK_T_IN, kImageBytes / 512, {{kData, 4096, true}}), VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(Do(VIRTIO_BLK_T_IN, 8, {{kData, 100, true}}), VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(Do(VIRTIO_BLK_T_GET_ID, 0, {{kData, 20, true}}), VIRTIO_BLK_S_OK);
  EXPECT_TRUE(told().empty());
  // The image is shorter than it was: the request fails, or is short.
  std::filesystem::resize_file(image_.path(), 8192);
  EXPECT_EQ(Do(VIRTIO_BLK_T_IN, 8, {{kData, 8192, true}}), VIRTIO_BLK_S_IOERR);
  EXPECT_THAT(told(), ElementsAre("read 4096+8192", "serve", "failed"));
}

TEST_P(VirtioBlkReplicaTest, ReadsOnlyWhatItsReplicaDoesNotHave) {
  RecordingReplica::Log log;
  VirtioBlk::Options options;
  options.replica = std::make_unique<RecordingReplica>(&log);
  Open(std::move(options));
  const std::vector<TestBuffer> data = {{kData, 4096, true}, {kData + 0x3000, 5 * 4096, true}};
  const auto text = [this] { return Text(kData, 4096) + Text(kData + 0x3000, 5 * 4096); };
  const std::string h(4096, 'h'), i(4096, 'i');
  log.gaps.emplace();
  EXPECT_EQ(Do(VIRTIO_BLK_T_IN, 8, data), VIRTIO_BLK_S_OK);
  EXPECT_EQ(written_, 6u * 4096 + 1);
  EXPECT_EQ(text(), h + h + h + h + h + h);
  log.gaps = {{4096, 2 * 4096}, {4 * 4096, 4096}, {6 * 4096, 4096}};
  EXPECT_EQ(Do(VIRTIO_BLK_T_IN, 8, data), VIRTIO_BLK_S_OK);
  EXPECT_EQ(written_, 6u * 4096 + 1);
  EXPECT_EQ(text(), i + i + h + i + h + i);
  EXPECT_THAT(log.lines, testing::ElementsAre("read 4096+24576", "serve", "end", "read 4096+24576", "serve", "end"));
}

TEST_P(VirtioBlkReplicaTest, AResetEndsWhatItsReplicaWasToldOf) {
  RecordingReplica::Log log;
  VirtioBlk::Options options;
  options.replica = std::make_unique<RecordingReplica>(&log);
  Open(std::move(options));
  SetHeader(VIRTIO_BLK_T_IN, 0);
  for (uint64_t i = 0; i < 5; ++i) {
    machine_->drivers[0]->Add({{kHeader, 16, false}, {kData + i * 0x10000, 0x10000, true}, {kStatus + i, 1, true}});
  }
  machine_->Notify(0);
  ASSERT_TRUE(machine_->Start()) << "a reset waits for I/O in flight";
  const auto count = [&log](const char* prefix) {
    return std::count_if(log.lines.begin(), log.lines.end(), [&](const auto& l) { return l.starts_with(prefix); });
  };
  EXPECT_EQ(count("read"), count("end") + count("failed"));
}

// Begins a write of 'w' at block 1; it is not answered.
class VirtioBlkPermitTest : public VirtioBlkTest {
 protected:
  void SetUp() override {
    VirtioBlk::Options options;
    options.replica = std::make_unique<RecordingReplica>(&log_);
    Open(std::move(options));
    log_.hold = true;
  }
  void Ask() {
    SetText(kData, std::string(4096, 'w'));
    SetHeader(VIRTIO_BLK_T_OUT, 8);
    machine_->memory.Find(Gpa(kStatus), 1)[0] = std::byte{0xee};
    machine_->drivers[0]->Add({{kHeader, 16, false}, {kData, 4096, false}, {kStatus, 1, true}});
    machine_->Notify(0);
    machine_->Run();
    EXPECT_EQ(image_.Read(4096, 1), "i") << "written before it may";
  }
  // Answers the nth question.
  void Answer(size_t n, const absl::Status& status) {
    ASSERT_LT(n, log_.asked.size()) << "nobody asked";
    log_.asked[n](status);
  }
  int Status() { return machine_->Wait(0) ? static_cast<int>(machine_->memory.Find(Gpa(kStatus), 1)[0]) : -1; }
  RecordingReplica::Log log_;
};

INSTANTIATE_TEST_SUITE_P(Cache, VirtioBlkPermitTest, testing::Bool(),
                         [](const auto& param) { return param.param ? "Buffered" : "Direct"; });

TEST_P(VirtioBlkPermitTest, AWriteBeginsWhenItMay) {
  Ask();
  // Asked again, and still it may not.
  std::thread([this] { Answer(0, absl::OkStatus()); }).join();
  machine_->Run();
  EXPECT_THAT(log_.lines, testing::ElementsAre("wait", "wait"));
  EXPECT_EQ(image_.Read(4096, 1), "i");
  log_.hold = false;
  std::thread([this] { Answer(1, absl::OkStatus()); }).join();
  EXPECT_EQ(Status(), VIRTIO_BLK_S_OK);
  EXPECT_EQ(image_.Read(4096, 4096), std::string(4096, 'w'));
  EXPECT_THAT(log_.lines, testing::ElementsAre("wait", "wait", "write 4096+4096", "end"));
}

TEST_P(VirtioBlkPermitTest, OthersGoOnMeanwhile) {
  Ask();
  SetHeader(VIRTIO_BLK_T_IN, 80, kHeader + 0x100);
  machine_->drivers[0]->Add({{kHeader + 0x100, 16, false}, {kData + 0x10000, 512, true}, {kStatus + 1, 1, true}});
  machine_->Notify(0);
  EXPECT_TRUE(machine_->Wait(0));
  EXPECT_EQ(Text(kData + 0x10000, 512), std::string(512, 'i'));
}

TEST_P(VirtioBlkPermitTest, AWriteThatMayNotFails) {
  Ask();
  Answer(0, absl::UnavailableError("the database cannot be written"));
  EXPECT_EQ(Status(), VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(image_.Read(4096, 1), "i");
}

TEST_P(VirtioBlkPermitTest, AnEraseWaitsToo) {
  const virtio_blk_discard_write_zeroes value{8, 8, 0};
  SetText(kData, std::string(reinterpret_cast<const char*>(&value), sizeof(value)));
  SetHeader(VIRTIO_BLK_T_WRITE_ZEROES, 0);
  machine_->drivers[0]->Add({{kHeader, 16, false}, {kData, sizeof(value), false}, {kStatus, 1, true}});
  machine_->Notify(0);
  machine_->Run();
  EXPECT_EQ(image_.Read(4096, 1), "i");
  log_.hold = false;
  Answer(0, absl::OkStatus());
  EXPECT_EQ(Status(), VIRTIO_BLK_S_OK);
  EXPECT_EQ(image_.Read(4096, 1), std::string(1, '\0'));
}

// What waits is forgotten, and whoever answers later, be it when the disk is gone, is not heard.
TEST_P(VirtioBlkPermitTest, AResetForgetsWhatWaits) {
  Ask();
  ASSERT_TRUE(machine_->Start());
  Ask();
  Answer(0, absl::OkStatus());
  machine_->Run();
  EXPECT_EQ(image_.Read(4096, 1), "i");
  Answer(1, absl::OkStatus());
  machine_->SetStatus(0);  // with an answer on its way
  ASSERT_TRUE(machine_->Start());
  machine_->Run();
  EXPECT_EQ(image_.Read(4096, 1), "i");
  Ask();
  machine_.reset();
  disk_.reset();
  Answer(log_.asked.size() - 1, absl::OkStatus());
}

}  // namespace
}  // namespace hk
