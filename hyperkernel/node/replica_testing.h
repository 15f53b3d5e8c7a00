// For tests of the storage replica as it is hooked up: a guest of real memory whose disk, a virtio device on a real
// image, is driven through its queue; its runs, and stores of its own.
#pragma once

#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/device/testing_virtio.h"
#include "hyperkernel/device/virtio_blk.h"
#include "hyperkernel/memory/frame_store_testing.h"
#include "hyperkernel/node/guest_replica.h"

namespace hk {

// A guest with 16 MiB of memory and a disk of 4 MiB, whose block n is full of the byte that BlockText says.
class ReplicaGuestTest : public OwnStoreTest {
 protected:
  static constexpr uint64_t kRam = TestVirtioMachine::kRam;
  static constexpr uint64_t kBlocks = 1024;
  static constexpr uint64_t kHeader = 0x200000, kStatus = 0x201000;
  static constexpr uint64_t kData = 0x400000;  // GPA of pages for requests

  void SetUp() override {
    SetUpFiles();
    MakeReplica();
    BeginRun();
  }
  // The frame store, empty, and the image.
  void SetUpFiles() {
    OpenStore(40 << 20);
    char pattern[] = "hk_replica_test.XXXXXX";  // in the working directory: a file system that may have O_DIRECT
    image_directory_ = std::filesystem::absolute(::mkdtemp(pattern));
    std::string bytes;
    for (uint64_t block = 0; block < kBlocks; ++block) bytes += BlockText(block);
    PutImage(0, bytes);
    auto site = FindReplicaSite(*frames_, RealClock(), "node");
    ASSERT_TRUE(site.ok()) << site.status();
    site_ = *std::move(site);
  }
  void MakeReplica() {
    auto made = GuestReplica::Create(site_, Owner(), generation_);
    ASSERT_TRUE(made.ok()) << made.status();
    replica_ = *std::move(made);
  }
  void TearDown() override {
    EndRun();
    replica_.reset();
    std::filesystem::remove_all(image_directory_);
    OwnStoreTest::TearDown();
  }

  static std::string BlockText(uint64_t block, char salt = 0) {
    return std::string(kBlockSize, static_cast<char>('A' + block % 50 + salt));
  }
  // The machine as it is defined.
  static v1::VmRecord Record(uint64_t generation = 1) {
    v1::VmRecord record;
    record.mutable_spec()->set_name("g");
    record.mutable_spec()->set_memory_mib(kRam >> 20);
    record.mutable_spec()->add_disks()->set_path("/d");
    record.mutable_spec()->set_no_durable_replica(true);
    record.mutable_created()->set_seconds(1);
    record.set_generation(generation);
    return record;
  }
  static ReplicaOwner Owner() { return OwnerOf(Record()); }
  std::string image() const { return image_directory_ + "/image"; }
  // Writes to the image behind the disk's back.
  void PutImage(uint64_t block, const std::string& bytes) {
    const OwnedFd fd(::open(image().c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    HK_CHECK(fd.valid());
    HK_CHECK(::pwrite(fd.get(), bytes.data(), bytes.size(), static_cast<off_t>(block * kBlockSize)) ==
             static_cast<ssize_t>(bytes.size()));
  }
  std::string ImageText(uint64_t block, uint64_t blocks = 1) {
    const OwnedFd fd(::open(image().c_str(), O_RDONLY | O_CLOEXEC));
    std::string text(blocks * kBlockSize, '?');
    HK_CHECK(::pread(fd.get(), text.data(), text.size(), static_cast<off_t>(block * kBlockSize)) ==
             static_cast<ssize_t>(text.size()));
    return text;
  }
  // The bytes of an image that nobody of this test has: whoever reads them has read the image.
  void SpoilImage() { PutImage(0, std::string(kBlocks * kBlockSize, '!')); }

  void BeginRun() {
    auto memory = GuestMemory::Create(*frames_, "g", generation_, {{Gpa(0), kRam}}, [](const absl::Status&) {});
    ASSERT_TRUE(memory.ok()) << memory.status();
    memory_ = *std::move(memory);
    ASSERT_TRUE(replica_->Attach(memory_.get()));
    auto image = DiskImage::Open({.path = this->image(), .buffered = true});
    // The kernel may still be busy with requests of a process that was killed; until then they hold its lock.
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (absl::IsFailedPrecondition(image.status()) && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::yield();
      image = DiskImage::Open({.path = this->image(), .buffered = true});
    }
    ASSERT_TRUE(image.ok()) << image.status();
    std::unique_ptr<BlockReplica> account = replica_->AttachDisk(0, *image);
    ASSERT_NE(account, nullptr);
    account_ = account.get();
    VirtioBlk::Options options;
    options.replica = std::move(account);
    auto disk = VirtioBlk::Create(*std::move(image), std::move(options));
    ASSERT_TRUE(disk.ok()) << disk.status();
    disk_ = *std::move(disk);
    machine_ = std::make_unique<TestVirtioMachine>(disk_.get(), 128, memory_.get());
    ASSERT_TRUE(machine_->Start());
  }
  void EndRun() {
    if (machine_ == nullptr) return;
    machine_->SetStatus(0);
    while (machine_->Status() != 0) machine_->Run(1);
    machine_.reset();
    disk_.reset();
    memory_.reset();
  }
  void Reset() {
    EndRun();
    const absl::Status status = replica_->BeginRun(++generation_);
    ASSERT_TRUE(status.ok()) << status;
    BeginRun();
  }

  // Adds a request to the queue, and rings.
  void Ask(uint32_t type, uint64_t sector, const std::vector<TestBuffer>& data) {
    const virtio_blk_outhdr header{type, 0, sector};
    machine_->drivers[0]->SetText(kHeader, std::string(reinterpret_cast<const char*>(&header), sizeof header));
    machine_->drivers[0]->SetText(kStatus, "?");
    std::vector<TestBuffer> buffers = {{kHeader, 16, false}};
    buffers.insert(buffers.end(), data.begin(), data.end());
    buffers.push_back({kStatus, 1, true});
    machine_->drivers[0]->Add(buffers);
    machine_->Notify(0);
  }
  // Its status; -1: it was not answered.
  int Answer() {
    return machine_->Wait(0).has_value() ? static_cast<int>(*machine_->FindForGuest(Gpa(kStatus), 1)) : -1;
  }
  int Do(uint32_t type, uint64_t sector, const std::vector<TestBuffer>& data) {
    Ask(type, sector, data);
    return Answer();
  }
  // Reads blocks into the pages from `to` on, as the guest sees them then.
  std::string Read(uint64_t block, uint64_t blocks = 1, uint64_t to = kData) {
    const auto bytes = static_cast<uint32_t>(blocks * kBlockSize);
    const int status = Do(VIRTIO_BLK_T_IN, block * 8, {{to, bytes, true}});
    return status == VIRTIO_BLK_S_OK ? machine_->drivers[0]->Text(to, bytes) : "status " + std::to_string(status);
  }
  void Write(uint64_t block, const std::string& text, uint64_t from = kData) {
    Store(from, text);
    ASSERT_EQ(Do(VIRTIO_BLK_T_OUT, block * 8, {{from, static_cast<uint32_t>(text.size()), false}}), VIRTIO_BLK_S_OK);
  }
  // A store of the guest's.
  void Store(uint64_t to, const std::string& text) { machine_->drivers[0]->SetText(to, text); }
  static std::string BlocksText(uint64_t block, uint64_t blocks) {
    std::string text;
    for (uint64_t i = 0; i < blocks; ++i) text += BlockText(block + i);
    return text;
  }
  uint64_t hits() const { return replica_->Describe().hits(); }
  uint64_t misses() const { return replica_->Describe().misses(); }

  std::string image_directory_;
  ReplicaSite site_;
  uint64_t generation_ = 1;
  std::shared_ptr<GuestReplica> replica_;
  std::unique_ptr<GuestMemory> memory_;
  BlockReplica* account_ = nullptr;  // the disk's
  std::unique_ptr<VirtioBlk> disk_;
  std::unique_ptr<TestVirtioMachine> machine_;
};

}  // namespace hk
