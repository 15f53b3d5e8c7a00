#include "hyperkernel/boot/kernel_cache.h"

#include <lz4.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/boot/boot_testing.h"
#include "hyperkernel/boot/kernel_payload.h"

namespace hk {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

// Random bytes with `zero_pages` zero pages from the third on.
FileBytes SomeKernel(unsigned seed, size_t size = 20 * kPageSize + 123, size_t zero_pages = 5) {
  std::mt19937 random(seed);
  FileBytes bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random() & 3);  // packs well
  std::fill_n(bytes.begin() + 2 * kPageSize, zero_pages * kPageSize, std::byte{0});
  return bytes;
}

FileBytes PackGzip(const FileBytes& bytes) {
  FileBytes packed(bytes.size() + 1000);
  z_stream stream = {};
  HK_CHECK(deflateInit2(&stream, 9, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY) == Z_OK);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  HK_CHECK(deflate(&stream, Z_FINISH) == Z_STREAM_END);
  packed.resize(stream.total_out);
  HK_CHECK(deflateEnd(&stream) == Z_OK);
  return packed;
}

// In two blocks, so that there is more than one.
FileBytes PackLz4(const FileBytes& bytes) {
  FileBytes packed;
  Put(packed, 0, uint32_t{0x184c2102});
  const size_t half = bytes.size() / 2;
  for (const auto& [at, size] : {std::pair(size_t{0}, half), std::pair(half, bytes.size() - half)}) {
    FileBytes block(static_cast<size_t>(LZ4_compressBound(static_cast<int>(size))));
    const int end =
        LZ4_compress_default(reinterpret_cast<const char*>(bytes.data() + at), reinterpret_cast<char*>(block.data()),
                             static_cast<int>(size), static_cast<int>(block.size()));
    HK_CHECK(end > 0);
    Put(packed, packed.size(), static_cast<uint32_t>(end));
    packed.insert(packed.end(), block.begin(), block.begin() + end);
  }
  Put(packed, packed.size(), static_cast<uint32_t>(bytes.size()));
  return packed;
}

FileBytes PackZstd(const FileBytes& bytes) {
  FileBytes packed(ZSTD_compressBound(bytes.size()));
  packed.resize(ZSTD_compress(packed.data(), packed.size(), bytes.data(), bytes.size(), 3));
  Put(packed, packed.size(), static_cast<uint32_t>(bytes.size()));
  return packed;
}

FileBytes Copy(const UnpackedKernel& kernel) {
  return FileBytes(kernel.span().begin(), kernel.span().end());
}

struct Format {
  const char* name;
  std::function<FileBytes(const FileBytes&)> pack;
};
const Format kFormats[] = {{"gzip", PackGzip}, {"xz", PackXz}, {"lz4", PackLz4}, {"zstd", PackZstd}};

TEST(KernelPayload, EveryFormatIsUnpacked) {
  const FileBytes bytes = SomeKernel(1);
  for (const Format& format : kFormats) {
    SCOPED_TRACE(format.name);
    const absl::StatusOr<UnpackedKernel> kernel = UnpackKernel(format.pack(bytes));
    ASSERT_TRUE(kernel.ok()) << kernel.status();
    EXPECT_EQ(Copy(*kernel), bytes);
    const std::vector<UnpackedKernel::Run> runs = {{0, 2 * kPageSize}, {7 * kPageSize, 13 * kPageSize + 123}};
    EXPECT_EQ(kernel->runs, runs);
  }
}

// Cut at any place or with any byte changed: refused in a line that says how, or (a byte that does not matter) the same
// kernel.
TEST(KernelPayload, DamageIsToldAndHarmsNothing) {
  const FileBytes bytes = SomeKernel(2, 3 * kPageSize + 50, 1);
  for (const Format& format : kFormats) {
    SCOPED_TRACE(format.name);
    const FileBytes packed = format.pack(bytes);
    const auto refused = [](const absl::Status& status) {
      const bool as_is = absl::IsUnimplemented(status);
      EXPECT_TRUE(as_is || MessageOf(status).starts_with("corrupt kernel")) << status;
      return as_is || absl::IsInvalidArgument(status);
    };
    for (size_t size = 0; size < packed.size(); size += size < 64 ? 1 : 17) {
      const absl::StatusOr<UnpackedKernel> kernel = UnpackKernel(std::span(packed).first(size));
      EXPECT_TRUE(!kernel.ok() && refused(kernel.status())) << "cut to " << size;
    }
    for (size_t at = 0; at < packed.size(); at += at < 64 || at + 16 > packed.size() ? 1 : 29) {
      FileBytes changed = packed;
      changed[at] ^= std::byte{0x41};
      const absl::StatusOr<UnpackedKernel> kernel = UnpackKernel(changed);
      EXPECT_TRUE(kernel.ok() || refused(kernel.status())) << "byte " << at << ": " << kernel.status();
    }
  }
}

TEST(KernelPayload, WhatIsNotKnownOrTooLargeIsLeftToTheGuest) {
  FileBytes packed = PackXz(SomeKernel(3));
  Put(packed, packed.size() - 4, static_cast<uint32_t>(kMostUnpackedBytes + 1));
  EXPECT_TRUE(absl::IsUnimplemented(UnpackKernel(packed).status()));
  Put(packed, packed.size() - 4, uint32_t{0});
  EXPECT_TRUE(absl::IsInvalidArgument(UnpackKernel(packed).status()));
  Put(packed, 0, uint32_t{0x5d});  // lzma
  EXPECT_TRUE(absl::IsUnimplemented(UnpackKernel(packed).status()));
}

class KernelCacheTest : public testing::Test {
 protected:
  void SetUp() override {
    char pattern[] = "/tmp/hk_kernel_cache_test.XXXXXX";
    ASSERT_NE(::mkdtemp(pattern), nullptr);
    directory_ = std::string(pattern) + "/kernels";
  }
  void TearDown() override { fs::remove_all(fs::path(directory_).parent_path()); }

  // The kernel of this seed by way of the cache, checked.
  void Get(unsigned seed) {
    const FileBytes bytes = SomeKernel(seed), packed = PackXz(bytes);
    const std::unique_ptr<ByteSource> file = MakeMemorySource("/k", packed);
    const absl::StatusOr<UnpackedKernel> kernel =
        KernelCache(directory_).Get(*file, {.file_offset = 0, .bytes = packed.size()});
    ASSERT_TRUE(kernel.ok()) << kernel.status();
    EXPECT_EQ(Copy(*kernel), bytes);
    EXPECT_EQ(kernel->runs.size(), 2u);
  }
  std::vector<fs::path> Files() const {
    std::vector<fs::path> files;
    for (const fs::directory_entry& entry : fs::directory_iterator(directory_)) files.push_back(entry.path());
    std::ranges::sort(files);
    return files;
  }

  std::string directory_;
};

TEST_F(KernelCacheTest, AKernelIsUnpackedOnce) {
  Get(1);
  ASSERT_EQ(Files().size(), 1u);
  struct stat before = {}, after = {};
  ASSERT_EQ(::stat(Files()[0].c_str(), &before), 0);
  EXPECT_EQ(before.st_mode & 0777, 0600u);
  Get(1);
  ASSERT_EQ(::stat(Files()[0].c_str(), &after), 0);
  EXPECT_EQ(before.st_ino, after.st_ino) << "it was written again";
  Get(2);
  EXPECT_EQ(Files().size(), 2u);
}

TEST_F(KernelCacheTest, WhatIsDamagedIsMadeAnew) {
  Get(1);
  const fs::path file = Files().at(0);
  const uint64_t size = fs::file_size(file);
  const uint64_t in_a_hole = 3 * kPageSize;
  for (const uint64_t at :
       {uint64_t{0}, uint64_t{kPageSize}, 8 * kPageSize, size - 1, size - 20, size - 39, size - 50, size - 72}) {
    SCOPED_TRACE(at);
    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekg(static_cast<std::streamoff>(at));
    const char was = static_cast<char>(stream.get());
    stream.seekp(static_cast<std::streamoff>(at));
    stream.put(static_cast<char>(was ^ 0x10));
    stream.close();
    Get(1);
    Get(1);
  }
  // Bytes between the runs are nobody's.
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekp(static_cast<std::streamoff>(in_a_hole));
  stream.put('x');
  stream.close();
  Get(1);
  for (const uint64_t cut : {size - 1, size / 2, uint64_t{10}, uint64_t{0}}) {
    fs::resize_file(file, cut);
    Get(1);
    EXPECT_EQ(fs::file_size(file), size);
  }
  EXPECT_EQ(Files().size(), 1u) << "unfinished files are left";
}

TEST_F(KernelCacheTest, TheOnesNotUsedForLongestGo) {
  Get(1);
  const fs::path first = Files().at(0);
  for (unsigned seed = 2; seed <= KernelCache::kMostKernels; seed++) Get(seed);
  ASSERT_EQ(Files().size(), KernelCache::kMostKernels);
  for (const fs::path& file : Files())
    fs::last_write_time(file, fs::file_time_type::clock::now() - std::chrono::hours(1));
  Get(1);
  Get(100);
  Get(101);
  EXPECT_EQ(Files().size(), KernelCache::kMostKernels);
  EXPECT_TRUE(fs::exists(first)) << "it was used just now";
}

TEST_F(KernelCacheTest, APayloadBeyondTheLimitIsNotRead) {
  const FileBytes packed = PackXz(SomeKernel(1));
  const std::unique_ptr<ByteSource> file = MakeMemorySource("/k", packed);
  // Reading would fail otherwise: the file ends before.
  const absl::Status status =
      KernelCache(directory_).Get(*file, {.file_offset = 0, .bytes = kMostUnpackedBytes + 1}).status();
  EXPECT_TRUE(absl::IsUnimplemented(status)) << status;
}

TEST_F(KernelCacheTest, WithoutADirectoryItStillUnpacks) {
  std::ofstream(directory_).put('x');  // a file is in the way
  Get(1);
  EXPECT_TRUE(fs::is_regular_file(directory_));
}

TEST_F(KernelCacheTest, ManyStartsAtATime) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; i++) threads.emplace_back([this] { Get(1); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(Files().size(), 1u);
}

TEST_F(KernelCacheTest, ACorruptKernelIsNamed) {
  FileBytes packed = PackXz(SomeKernel(1));
  packed.resize(packed.size() - 100);
  Put(packed, packed.size(), uint32_t{5000});
  const absl::Status status = KernelCache(directory_)
                                  .Get(*MakeMemorySource("/boot/k", packed), {.file_offset = 0, .bytes = packed.size()})
                                  .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(MessageOf(status), HasSubstr("/boot/k: corrupt kernel (xz: "));
}

}  // namespace
}  // namespace hk
