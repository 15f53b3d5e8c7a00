#include "hyperkernel/device/virtio_blk.h"

#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/device/testing_blk.h"

namespace hk {
namespace {

using ::testing::HasSubstr;

INSTANTIATE_TEST_SUITE_P(Cache, VirtioBlkTest, testing::Bool(),
                         [](const auto& param) { return param.param ? "Buffered" : "Direct"; });

TEST_P(VirtioBlkTest, ReadsAndWrites) {
  SetText(kData, std::string(4096, 'w'));
  EXPECT_EQ(Do(VIRTIO_BLK_T_OUT, 16, {{kData, 4096, false}}), VIRTIO_BLK_S_OK);
  EXPECT_EQ(written_, 1u);
  EXPECT_EQ(Do(VIRTIO_BLK_T_FLUSH, 0, {}), VIRTIO_BLK_S_OK);
  EXPECT_EQ(image_.Read(8192 - 1, 4098), "i" + std::string(4096, 'w') + "i");
  EXPECT_EQ(Do(VIRTIO_BLK_T_IN, 8, {{kData, 4096, true}, {kData + 0x3000, 8192, true}}, 1), VIRTIO_BLK_S_OK);
  EXPECT_EQ(written_, 3u * 4096 + 1);
  EXPECT_EQ(Text(kData, 4096) + Text(kData + 0x3000, 8192),
            std::string(4096, 'i') + std::string(4096, 'w') + std::string(4096, 'i'));
}

TEST_P(VirtioBlkTest, AnyDescriptorLayout) {
  SetHeader(VIRTIO_BLK_T_IN, 1);
  // Header in two, data with the status byte at its end, nothing aligned.
  EXPECT_EQ(machine_->Do(0, {{kHeader, 3, false},
                             {kHeader + 3, 13, false},
                             {kData + 1, 100, true},
                             {kData + 0x1003, 412 + 4096, true},
                             {kData + 0x4000, 513 - 512, true}}),
            4096u + 512 + 1);
  EXPECT_EQ(Text(kData + 1, 100), std::string(100, 'i'));
  EXPECT_EQ(Text(kData + 0x1003, 4508), std::string(4508, 'i'));
  EXPECT_EQ(Text(kData + 0x4000, 1), std::string(1, '\0'));
  SetText(kData + 5, std::string(4096, 'u'));
  EXPECT_EQ(Do(VIRTIO_BLK_T_OUT, 8, {{kData + 5, 4096, false}}), VIRTIO_BLK_S_OK);
  EXPECT_EQ(image_.Read(4095, 4098), "i" + std::string(4096, 'u') + "i");
}

TEST_P(VirtioBlkTest, RefusesWhatIsOutside) {
  const uint64_t sectors = kImageBytes / 512;
  for (uint64_t sector : {sectors, sectors - 7, ~uint64_t{0}, uint64_t{1} << 55, uint64_t{1} << 54}) {
    EXPECT_EQ(Do(VIRTIO_BLK_T_IN, sector, {{kData, 4096, true}}), VIRTIO_BLK_S_IOERR) << sector;
    EXPECT_EQ(Do(VIRTIO_BLK_T_OUT, sector, {{kData, 4096, false}}), VIRTIO_BLK_S_IOERR) << sector;
  }
  EXPECT_EQ(Do(VIRTIO_BLK_T_IN, sectors - 8, {{kData, 4096, true}}), VIRTIO_BLK_S_OK);
  EXPECT_EQ(Do(VIRTIO_BLK_T_IN, 0, {{kData, 100, true}}), VIRTIO_BLK_S_IOERR) << "not whole sectors";
  EXPECT_EQ(Do(99, 0, {{kData, 512, true}}), VIRTIO_BLK_S_UNSUPP);
  EXPECT_EQ(std::filesystem::file_size(image_.path()), kImageBytes);
}

TEST_P(VirtioBlkTest, DiscardsAndZeroes) {
  auto segment = [&](uint64_t sector, uint32_t count, uint32_t flags) {
    const virtio_blk_discard_write_zeroes value{sector, count, flags};
    SetText(kData, std::string(reinterpret_cast<const char*>(&value), sizeof(value)));
  };
  segment(8, 16, 0);
  EXPECT_EQ(Do(VIRTIO_BLK_T_WRITE_ZEROES, 0, {{kData, 16, false}}), VIRTIO_BLK_S_OK);
  segment(64, 8, 1);
  EXPECT_EQ(Do(VIRTIO_BLK_T_WRITE_ZEROES, 0, {{kData, 16, false}}), VIRTIO_BLK_S_OK);
  EXPECT_EQ(image_.Read(4095, 8194), "i" + std::string(8192, '\0') + "i");
  EXPECT_EQ(image_.Read(32768 - 1, 4098), "i" + std::string(4096, '\0') + "i");
  segment(128, 8, 0);
  EXPECT_EQ(Do(VIRTIO_BLK_T_DISCARD, 0, {{kData, 16, false}}), VIRTIO_BLK_S_OK);
  segment(128, 8, 1);
  EXPECT_EQ(Do(VIRTIO_BLK_T_DISCARD, 0, {{kData, 16, false}}), VIRTIO_BLK_S_UNSUPP) << "unmap is not for discard";
  EXPECT_EQ(Do(VIRTIO_BLK_T_DISCARD, 0, {{kData, 15, false}}), VIRTIO_BLK_S_IOERR);
  segment(kImageBytes / 512 - 1, 2, 0);
  EXPECT_EQ(Do(VIRTIO_BLK_T_WRITE_ZEROES, 0, {{kData, 16, false}}), VIRTIO_BLK_S_IOERR);
  segment(~0ull, 1, 0);
  EXPECT_EQ(Do(VIRTIO_BLK_T_DISCARD, 0, {{kData, 16, false}}), VIRTIO_BLK_S_IOERR);
}

TEST_P(VirtioBlkTest, TellsItsSerialAndConfiguration) {
  Open({.serial = "disk-0"});
  EXPECT_EQ(Do(VIRTIO_BLK_T_GET_ID, 0, {{kData, 20, true}}), VIRTIO_BLK_S_OK);
  EXPECT_EQ(Text(kData, 20), "disk-0" + std::string(14, '\0'));
  const uint64_t config = machine_->bar + VirtioPci::kDeviceOffset;
  EXPECT_EQ(machine_->Read(config, 8), kImageBytes / 512);
  EXPECT_EQ(machine_->Read(config + offsetof(virtio_blk_config, num_queues), 2), 2u);
}

TEST_P(VirtioBlkTest, ReadOnlyIsReadOnly) {
  Open({}, true);
  EXPECT_NE(machine_->features & 1 << VIRTIO_BLK_F_RO, 0u);
  EXPECT_EQ(Do(VIRTIO_BLK_T_OUT, 0, {{kData, 4096, false}}), VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(Do(VIRTIO_BLK_T_DISCARD, 0, {{kData, 16, false}}), VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(Do(VIRTIO_BLK_T_FLUSH, 0, {}), VIRTIO_BLK_S_OK);
  EXPECT_EQ(Do(VIRTIO_BLK_T_IN, 0, {{kData, 4096, true}}), VIRTIO_BLK_S_OK);
}

TEST_P(VirtioBlkTest, MalformedRequestsBreakTheDevice) {
  EXPECT_FALSE(machine_->Do(0, {{kHeader, 10, false}, {kStatus, 1, true}}, 20).has_value());
  EXPECT_EQ(machine_->Status() & 0x40, 0x40);
  ASSERT_TRUE(machine_->Start());
  EXPECT_FALSE(machine_->Do(0, {{kHeader, 16, false}}, 20).has_value());
  EXPECT_EQ(machine_->Status() & 0x40, 0x40);
  ASSERT_TRUE(machine_->Start());
  EXPECT_EQ(Do(VIRTIO_BLK_T_IN, 0, {{kData, 4096, true}}), VIRTIO_BLK_S_OK);
}

TEST_P(VirtioBlkTest, LimitsItsRate) {
  Open({.bps_limit = 8 << 20});
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 24; ++i) {  // 3 MiB, of which 1 MiB is the burst
    ASSERT_EQ(Do(VIRTIO_BLK_T_IN, 0, {{kData, 128 << 10, true}}), VIRTIO_BLK_S_OK);
  }
  const auto took = std::chrono::steady_clock::now() - start;
  EXPECT_GE(took, std::chrono::milliseconds(200));
  EXPECT_LT(took, std::chrono::seconds(5));
}

TEST_P(VirtioBlkTest, ManyInFlightAndResets) {
  machine_->StartThread();
  for (int round = 0; round < 20; ++round) {
    SetHeader(VIRTIO_BLK_T_IN, 0);
    for (uint16_t queue = 0; queue < 2; ++queue) {
      for (uint64_t i = 0; i < 5; ++i) {
        machine_->drivers[queue]->Add(
            {{kHeader, 16, false}, {kData + i * 0x10000, 0x10000, true}, {kStatus + i, 1, true}});
      }
      machine_->Notify(queue);
    }
    ASSERT_TRUE(machine_->Start()) << "a reset waits for I/O in flight";
  }
  EXPECT_EQ(Do(VIRTIO_BLK_T_IN, 0, {{kData, 4096, true}}), VIRTIO_BLK_S_OK);
  machine_->loop->Stop();  // the last answer is seen before the rings are unpinned
  for (uint64_t page = 0; page < TestVirtioMachine::kRam / 4096; ++page) {
    const auto count = machine_->pins->Of(Gfn(page));
    ASSERT_EQ(count.shared + count.exclusive, 0u);
  }
}

// Memory that other nodes wait for: a bound that one request alone is above still lets one after the other through.
TEST_P(VirtioBlkTest, WhatIsPinnedHasABound) {
  constexpr uint64_t kBytes = 0x10000;
  Open({.most_pinned_bytes = kBytes});
  SetHeader(VIRTIO_BLK_T_IN, 0);
  for (uint16_t queue = 0; queue < 2; ++queue) {
    for (uint64_t i = 0; i < 5; ++i) {
      machine_->drivers[queue]->Add({{kHeader, 16, false}, {kData + i * kBytes, kBytes, true}, {kStatus + i, 1, true}});
    }
  }
  machine_->Notify(0);
  machine_->Notify(1);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  for (int answered = 0; answered < 10;) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline) << answered << " of 10 answered";
    machine_->Run(1);
    uint64_t pinned = 0;
    for (uint64_t page = kData / 4096; page < (kData + 5 * kBytes) / 4096; ++page) {
      pinned += machine_->pins->Of(Gfn(page)).exclusive;
    }
    EXPECT_LE(pinned, kBytes / 4096) << "a second request began beside the first";
    for (uint16_t queue = 0; queue < 2; ++queue) {
      while (machine_->drivers[queue]->Take()) ++answered;
    }
  }
}

// All of a request is pinned at once: what no request may be larger than, guests are told.
TEST_P(VirtioBlkTest, RequestsHaveABound) {
  virtio_blk_config config{};
  const auto size_max = [&](uint64_t most_request_bytes) -> uint32_t {
    Open({.most_request_bytes = most_request_bytes});
    EXPECT_EQ((disk_->features() >> VIRTIO_BLK_F_SIZE_MAX) & 1, most_request_bytes == 0 ? 0u : 1u);
    disk_->ReadConfig(0, std::as_writable_bytes(std::span(&config, 1)));
    EXPECT_EQ(config.seg_max, VirtioBlk::kMaxSegments);
    return config.size_max;
  };
  EXPECT_EQ(size_max(0), 0u);
  EXPECT_EQ(size_max(1), 4096u) << "a driver's page is never split";
  EXPECT_EQ(size_max(1 << 20), 4096u);
  EXPECT_EQ(size_max(64 << 20), 64u * 4096);
  for (const uint64_t most : {1 << 20, 3 << 20, 64 << 20}) EXPECT_LE(uint64_t{size_max(most)} * config.seg_max, most);
  EXPECT_EQ(size_max(~uint64_t{0}), 1u << 30);
}

TEST_P(VirtioBlkTest, CompletionsWaitForBlockedMemory) {
  SetHeader(VIRTIO_BLK_T_IN, 0);
  machine_->drivers[0]->Add({{kHeader, 16, false}, {kData, 4096, true}, {kStatus, 1, true}});
  machine_->Notify(0);
  machine_->Run();
  std::thread blocker(
      [&] { EXPECT_TRUE(machine_->space->Block(std::chrono::steady_clock::now() + std::chrono::seconds(10)).ok()); });
  for (int i = 0; i < 50; ++i) machine_->Run(1);
  blocker.join();
  machine_->space->Unblock();
  machine_->transport->RingAll();
  EXPECT_EQ(machine_->Wait(0), 4097u);
}

TEST_P(VirtioBlkTest, RandomMixAgainstAModel) {
  machine_->StartThread();
  std::string model = image_.Read(0, kImageBytes);
  std::mt19937 random(1);
  for (int i = 0; i < 400; ++i) {
    const uint32_t sectors = 8 * (1 + random() % 15);
    const uint64_t sector = 8 * (random() % (kImageBytes / 4096 - 16));
    const bool write = random() % 2;
    const uint64_t data = kData + 512 * (random() % 8);
    if (write) {
      const std::string text(sectors * 512, static_cast<char>('a' + random() % 26));
      SetText(data, text);
      model.replace(sector * 512, text.size(), text);
    }
    ASSERT_EQ(Do(write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN, sector, {{data, sectors * 512, !write}},
                 static_cast<uint16_t>(random() % 2)),
              VIRTIO_BLK_S_OK);
    if (!write) {
      ASSERT_TRUE(Text(data, sectors * 512) == model.substr(sector * 512, sectors * 512)) << i;
    }
  }
}

TEST(DiskImageTest, RefusalsAreOneLine) {
  TemporaryImage image;
  auto refusal = [](const DiskImage::Options& options) {
    auto opened = DiskImage::Open(options);
    return opened.ok() ? std::string("opened") : std::string(opened.status().message());
  };
  EXPECT_THAT(refusal({.path = image.path() + "x", .buffered = true}), HasSubstr("No such file"));
  EXPECT_THAT(refusal({.path = image.directory(), .read_only = true, .buffered = true}),
              HasSubstr("neither a regular"));
  ASSERT_EQ(::mkfifo((image.directory() + "/fifo").c_str(), 0600), 0);
  EXPECT_THAT(refusal({.path = image.directory() + "/fifo", .buffered = true}), HasSubstr("neither a regular"));
  if (::geteuid() != 0) {
    ASSERT_EQ(::chmod(image.path().c_str(), 0400), 0);
    EXPECT_THAT(refusal({.path = image.path(), .buffered = true}), HasSubstr("readonly: true"));
    ASSERT_EQ(::chmod(image.path().c_str(), 0600), 0);
  }
  {
    auto first = DiskImage::Open({.path = image.path(), .buffered = true});
    ASSERT_TRUE(first.ok());
    EXPECT_THAT(refusal({.path = image.path(), .buffered = true}), HasSubstr("in use by another guest"));
    EXPECT_THAT(refusal({.path = image.path(), .read_only = true, .buffered = true}), HasSubstr("in use"));
  }
  auto reader = DiskImage::Open({.path = image.path(), .read_only = true, .buffered = true});
  auto other = DiskImage::Open({.path = image.path(), .read_only = true, .buffered = true});
  EXPECT_TRUE(reader.ok() && other.ok()) << "readers share";
  EXPECT_THAT(refusal({.path = image.path(), .buffered = true}), HasSubstr("in use")) << "a writer beside readers";
  EXPECT_THAT(refusal({.path = image.path(), .read_only = true, .buffered = true, .exclusive = true}),
              HasSubstr("in use"));
  reader = absl::CancelledError();
  other = absl::CancelledError();
  {
    auto alone = DiskImage::Open({.path = image.path(), .read_only = true, .buffered = true, .exclusive = true});
    ASSERT_TRUE(alone.ok()) << alone.status();
    EXPECT_THAT(refusal({.path = image.path(), .read_only = true, .buffered = true}), HasSubstr("in use"));
    EXPECT_THAT(refusal({.path = image.path(), .read_only = true, .buffered = true, .exclusive = true}),
                HasSubstr("in use"));
  }
  image.Write(std::string(1000, 'x'));
  EXPECT_THAT(refusal({.path = image.path(), .read_only = true, .buffered = true}), HasSubstr("1000 bytes"));
  image.Write("short");
  EXPECT_THAT(refusal({.path = image.path(), .read_only = true, .buffered = true}), HasSubstr("not a disk"));
}

// What QEMU does with an image, by its convention of locked bytes.
TEST(DiskImageTest, KeepsOffImagesThatQemuUsesAndItOffOurs) {
  TemporaryImage image;
  struct Qemu {
    explicit Qemu(const std::string& path) : fd(::open(path.c_str(), O_RDWR | O_CLOEXEC)) {}
    // Uses `uses`, shares all but `keeps`. False if it refuses to start.
    bool Start(std::initializer_list<int> uses, std::initializer_list<int> keeps) {
      auto lock = [this](int command, short type, off_t byte) {
        struct flock wanted {};
        wanted.l_type = type;
        wanted.l_whence = SEEK_SET;
        wanted.l_start = byte;
        wanted.l_len = 1;
        const bool done = ::fcntl(fd.get(), command, &wanted) == 0;
        return done && (command == F_OFD_SETLK || wanted.l_type == F_UNLCK);
      };
      for (int use : uses) {
        if (!lock(F_OFD_SETLK, F_RDLCK, 100 + use)) return false;
      }
      for (int keep : keeps) {
        if (!lock(F_OFD_SETLK, F_RDLCK, 200 + keep)) return false;
      }
      for (int use : uses) {
        if (!lock(F_OFD_GETLK, F_WRLCK, 200 + use)) return false;
      }
      for (int keep : keeps) {
        if (!lock(F_OFD_GETLK, F_WRLCK, 100 + keep)) return false;
      }
      return true;
    }
    OwnedFd fd;
  };
  auto opens = [&image](bool read_only) {
    return DiskImage::Open({.path = image.path(), .read_only = read_only, .buffered = true}).ok();
  };
  {
    Qemu writer(image.path());
    ASSERT_TRUE(writer.Start({0, 1}, {1, 3}));
    EXPECT_FALSE(opens(false));
    EXPECT_FALSE(opens(true));
  }
  {
    Qemu reader(image.path());
    ASSERT_TRUE(reader.Start({0}, {1, 3}));
    EXPECT_FALSE(opens(false));
    EXPECT_TRUE(opens(true)) << "readers share";
  }
  {
    const auto ours = DiskImage::Open({.path = image.path(), .buffered = true});
    EXPECT_FALSE(Qemu(image.path()).Start({0}, {}));
  }
  {
    const auto ours = DiskImage::Open({.path = image.path(), .read_only = true, .buffered = true});
    EXPECT_FALSE(Qemu(image.path()).Start({0, 1}, {1, 3}));
    EXPECT_TRUE(Qemu(image.path()).Start({0}, {1, 3})) << "readers share";
  }
  const auto ours = DiskImage::Open({.path = image.path(), .read_only = true, .buffered = true, .exclusive = true});
  EXPECT_FALSE(Qemu(image.path()).Start({0}, {1, 3}));
}

TEST(TokenBucketTest, KeepsTheAverageWithDebt) {
  Monotonic now{};
  TokenBucket bucket(1000, 100, now);
  EXPECT_TRUE(bucket.MayStart(now));
  bucket.Spend(1100);
  EXPECT_FALSE(bucket.MayStart(now));
  EXPECT_GT(bucket.NextStart(), now + std::chrono::milliseconds(999));
  EXPECT_LT(bucket.NextStart(), now + std::chrono::milliseconds(1010));
  now = bucket.NextStart();
  EXPECT_TRUE(bucket.MayStart(now));
  TokenBucket unlimited(0, 0, now);
  unlimited.Spend(1 << 30);
  EXPECT_TRUE(unlimited.MayStart(now));
}

}  // namespace
}  // namespace hk
