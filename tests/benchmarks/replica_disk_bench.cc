// What the storage replica costs a disk: requests of a virtio disk on a file in the page cache, the fastest there is,
// one after the other, on one thread with its device. One line: {"none": MiB/s, "memory": MiB/s, "durable": MiB/s}, for
// a disk without a replica, with one, and with its database in the working directory.
//
//   replica_disk_bench read|write BYTES   requests of so many bytes, each block once in a round; rounds for a second
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <string>
#include <vector>

#include "fmt/format.h"
#include "gtest/gtest.h"
#include "hyperkernel/node/replica_testing.h"

namespace hk {
namespace {

constexpr int kRounds = 5;
constexpr std::chrono::milliseconds kEach{400};

class Bench final : public ReplicaGuestTest {
 public:
  Bench() { SetUpFiles(); }
  ~Bench() override { TearDown(); }
  void TestBody() override {}

  void Start(bool replica, bool durable) {
    ++generation_;
    site_.databases = durable ? image_directory_ + "/replicas" : "";
    v1::VmRecord record = Record();
    record.mutable_spec()->set_no_durable_replica(!durable);
    auto made = GuestReplica::Create(site_, OwnerOf(record), generation_);
    HK_CHECK(made.ok());
    replica_ = *std::move(made);
    HK_CHECK(!durable || replica_->Describe().durable());
    auto memory = GuestMemory::Create(*frames_, "g", generation_, {{Gpa(0), kRam}}, [](const absl::Status&) {});
    HK_CHECK(memory.ok());
    memory_ = *std::move(memory);
    auto image = DiskImage::Open({.path = this->image(), .buffered = true});
    HK_CHECK(image.ok());
    VirtioBlk::Options options;
    if (replica) {
      HK_CHECK(replica_->Attach(memory_.get()));
      options.replica = replica_->AttachDisk(0, *image);
    }
    disk_ = *VirtioBlk::Create(*std::move(image), std::move(options));
    machine_ = std::make_unique<TestVirtioMachine>(disk_.get(), 128, memory_.get());
    HK_CHECK(machine_->Start());
  }
  void Stop() {
    EndRun();
    replica_.reset();
  }
  // MiB per second.
  double Measure(bool write, uint32_t bytes) {
    std::chrono::steady_clock::duration took{};
    uint64_t moved = 0;
    while (took < kEach) {
      if (!write) replica_->Drop();  // else the second round is read from memory
      const auto begin = std::chrono::steady_clock::now();
      for (uint64_t at = 0; at < kBlocks * kBlockSize; at += bytes) {
        const int status = Do(write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN, at / 512, {{kData + at, bytes, !write}});
        HK_CHECK(status == VIRTIO_BLK_S_OK);
        moved += bytes;
      }
      took += std::chrono::steady_clock::now() - begin;
    }
    return static_cast<double>(moved) / (1 << 20) / std::chrono::duration<double>(took).count();
  }
};

int Main(int argc, char** argv) {
  const std::string what = argc == 3 ? argv[1] : "";
  const auto bytes = static_cast<uint32_t>(argc == 3 ? std::atoi(argv[2]) : 0);
  if ((what != "read" && what != "write") || bytes < 4096 || bytes % 4096 != 0 || (4 << 20) % bytes != 0) {
    fmt::print(stderr, "usage: replica_disk_bench read|write BYTES\n");
    return 2;
  }
  Bench bench;
  std::vector<double> results[3];
  for (int round = 0; round < kRounds; ++round) {
    for (int kind = 0; kind < 3; ++kind) {
      bench.Start(kind > 0, kind > 1);
      results[kind].push_back(bench.Measure(what == "write", bytes));
      bench.Stop();
    }
  }
  for (auto& each : results) std::sort(each.begin(), each.end());
  fmt::print("{{\"none\": {:.0f}, \"memory\": {:.0f}, \"durable\": {:.0f}}}\n", results[0][kRounds / 2],
             results[1][kRounds / 2], results[2][kRounds / 2]);
  return 0;
}

}  // namespace
}  // namespace hk

int main(int argc, char** argv) {
  return hk::Main(argc, argv);
}
