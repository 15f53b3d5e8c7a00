// For unit tests of the virtio disk: an image, a machine that has it as its disk, and a replica that remembers what it
// is told.
#pragma once

#include <linux/virtio_blk.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "hyperkernel/device/testing_virtio.h"
#include "hyperkernel/device/virtio_blk.h"

namespace hk {

// An image full of 'i' in a directory of its own.
class TemporaryImage {
 public:
  static constexpr uint64_t kImageBytes = 8 << 20;
  TemporaryImage() {
    char pattern[] = "hk_disk_test.XXXXXX";  // in the working directory: a file system that may have O_DIRECT
    directory_ = std::filesystem::absolute(::mkdtemp(pattern));
    Write(std::string(kImageBytes, 'i'));
  }
  ~TemporaryImage() { std::filesystem::remove_all(directory_); }
  std::string path() const { return directory_ + "/image"; }
  std::string directory() const { return directory_; }
  void Write(const std::string& text) { std::ofstream(path(), std::ios::binary) << text; }
  std::string Read(size_t offset, size_t bytes) const {
    std::ifstream in(path(), std::ios::binary);
    in.seekg(static_cast<std::streamoff>(offset));
    std::string text(bytes, '?');
    in.read(text.data(), static_cast<std::streamsize>(bytes));
    return text;
  }

 private:
  std::string directory_;
};

// Remembers what a disk tells; serves what it is told to, full of 'h'.
class RecordingReplica final : public BlockReplica {
 public:
  // What it saw, and what it leaves to the image of the next reads. Plain value; outlives the disk.
  struct Log {
    std::vector<std::string> lines;
    std::optional<std::vector<BlockExtent>> gaps;
    bool hold = false;                                            // writes and erases must wait
    std::vector<std::function<void(const absl::Status&)>> asked;  // by those that wait
  };
  explicit RecordingReplica(Log* log) : log_(log) {}
  bool MayChange(const BlockIo& io, std::function<void(const absl::Status&)> ready) override {
    EXPECT_NE(io.kind, BlockIoKind::kRead);
    if (!log_->hold) return true;
    Add("wait");
    log_->asked.push_back(std::move(ready));
    return false;
  }
  void Begin(BlockIo* io, const DmaChain& chain) override {
    uint64_t bytes = 0;
    for (const BlockSegment& segment : io->segments) bytes += segment.bytes.size();
    EXPECT_EQ(bytes, io->kind == BlockIoKind::kErase ? 0 : io->extent.bytes);
    EXPECT_TRUE(chain.open());
    const char* const kinds[] = {"read", "write", "erase"};
    Add(kinds[static_cast<size_t>(io->kind)] + (" " + std::to_string(io->extent.offset)) + "+" +
        std::to_string(io->extent.bytes));
    io->place = ++open_;
  }
  void Serve(BlockIo* io, std::vector<BlockExtent>* gaps) override {
    Add("serve");
    if (!log_->gaps.has_value()) return;
    for (const BlockSegment& segment : io->segments) std::memset(segment.bytes.data(), 'h', segment.bytes.size());
    *gaps = *log_->gaps;
  }
  void End(BlockIo* io, bool ok) override {
    EXPECT_NE(io->place, 0u);
    io->place = 0;
    Add(ok ? "end" : "failed");
  }
  uint32_t FlushBegins() override {
    Add("flush");
    return 17;
  }
  void FlushEnds(uint32_t flush, bool ok) override {
    EXPECT_EQ(flush, 17u);
    Add(ok ? "flushed" : "flush failed");
  }

 private:
  void Add(std::string line) { log_->lines.push_back(std::move(line)); }
  Log* const log_;
  uint32_t open_ = 0;
};

// A disk with two queues, buffered or with O_DIRECT.
class VirtioBlkTest : public testing::TestWithParam<bool> {
 protected:
  static constexpr uint64_t kHeader = 0x200000, kStatus = 0x201000, kData = 0x210000;
  static constexpr uint64_t kImageBytes = TemporaryImage::kImageBytes;

  void SetUp() override { Open({}); }
  void Open(VirtioBlk::Options options, bool read_only = false) {
    machine_.reset();
    disk_.reset();
    options.queues = std::max<uint16_t>(options.queues, 2);
    auto image = DiskImage::Open({.path = image_.path(), .read_only = read_only, .buffered = GetParam()});
    if (!image.ok() && !GetParam()) GTEST_SKIP() << image.status();
    ASSERT_TRUE(image.ok()) << image.status();
    auto disk = VirtioBlk::Create(*std::move(image), std::move(options));
    ASSERT_TRUE(disk.ok()) << disk.status();
    disk_ = *std::move(disk);
    machine_ = std::make_unique<TestVirtioMachine>(disk_.get());
    ASSERT_TRUE(machine_->Start());
  }
  void SetHeader(uint32_t type, uint64_t sector, uint64_t at = kHeader) {
    const virtio_blk_outhdr header{type, 0, sector};
    machine_->drivers[0]->SetText(at, std::string(reinterpret_cast<const char*>(&header), sizeof(header)));
  }
  // Makes a request; its status, or -1 if it is not answered.
  int Do(uint32_t type, uint64_t sector, const std::vector<TestBuffer>& data, uint16_t queue = 0) {
    SetHeader(type, sector);
    machine_->memory.Find(Gpa(kStatus), 1)[0] = std::byte{0xee};
    std::vector<TestBuffer> buffers = {{kHeader, 16, false}};
    buffers.insert(buffers.end(), data.begin(), data.end());
    buffers.push_back({kStatus, 1, true});
    written_ = machine_->Do(queue, buffers);
    return written_ ? static_cast<int>(machine_->memory.Find(Gpa(kStatus), 1)[0]) : -1;
  }
  void SetText(uint64_t at, const std::string& text) { machine_->drivers[0]->SetText(at, text); }
  std::string Text(uint64_t at, size_t bytes) { return machine_->drivers[0]->Text(at, bytes); }

  TemporaryImage image_;
  std::unique_ptr<VirtioBlk> disk_;
  std::unique_ptr<TestVirtioMachine> machine_;
  std::optional<uint32_t> written_;
};

}  // namespace hk
