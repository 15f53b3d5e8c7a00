#include "hyperkernel/boot/kernel_image.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iostream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/boot/boot_testing.h"
#include "hyperkernel/boot/kernel_payload.h"
#include "hyperkernel/boot/vmlinux.h"

namespace hk {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

absl::StatusOr<KernelImage> Read(FileBytes bytes) {
  return ReadKernelImage(*MakeMemorySource("/k", std::move(bytes)));
}

void ExpectRefused(const absl::Status& status, const std::string& reason) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(MessageOf(status), StartsWith("/k: "));
  EXPECT_THAT(MessageOf(status), HasSubstr(reason));
  EXPECT_EQ(MessageOf(status).find('\n'), std::string::npos);
}

TEST(KernelImage, BzImage) {
  const TestBzImage test;
  absl::StatusOr<KernelImage> image = Read(test.Bytes());
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(image->format, KernelImage::Format::kBzImage);
  ASSERT_EQ(image->segments.size(), 1u);
  EXPECT_EQ(image->segments[0].file_offset, 5 * 512u);
  EXPECT_EQ(image->segments[0].file_bytes, test.code_bytes);
  EXPECT_EQ(image->segments[0].start, kKernelLoadAddress);
  EXPECT_EQ(image->entry, Gpa(kKernelLoadAddress.value() + 0x200));
  EXPECT_EQ(image->memory_end, Gpa(0x2000000)) << "pref_address + init_size";
  EXPECT_EQ(image->initrd_end_limit, Gpa(0x80000000));
  EXPECT_EQ(image->command_line_limit, 2047u);
  EXPECT_EQ(image->setup_header.size(), sizeof(setup_header));
}

TEST(KernelImage, SetupSectsZeroMeansFour) {
  TestBzImage test;
  test.header.setup_sects = 0;
  absl::StatusOr<KernelImage> image = Read(test.Bytes());
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(image->segments[0].file_offset, 5 * 512u);
}

TEST(KernelImage, MemoryEndIsTheFurthestOfAllPlaces) {
  TestBzImage test;
  test.header.pref_address = 0x100000;
  test.header.init_size = 0x1000;
  absl::StatusOr<KernelImage> image = Read(test.Bytes());
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(image->memory_end, Gpa(0x201000)) << "load address aligned up, and init_size";
  test.header.relocatable_kernel = 0;
  image = Read(test.Bytes());
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(image->memory_end, Gpa(0x110000)) << "the code itself";
}

TEST(KernelImage, BzImagesThatAreRefused) {
  struct Case {
    const char* what;
    std::function<void(TestBzImage&)> spoil;
    const char* reason;
  };
  const Case cases[] = {
      {"no HdrS", [](TestBzImage& t) { t.header.header = 0; }, "a boot sector without 'HdrS'"},
      {"2.11", [](TestBzImage& t) { t.header.version = 0x020b; }, "boot protocol 2.11 is too old"},
      {"1.00", [](TestBzImage& t) { t.header.version = 0x0100; }, "boot protocol 1.00 is too old"},
      {"zImage", [](TestBzImage& t) { t.header.loadflags = 0; }, "16-bit kernel"},
      {"no 64-bit entry", [](TestBzImage& t) { t.header.xloadflags &= ~XLF_KERNEL_64; }, "32-bit kernel"},
      {"header too short", [](TestBzImage& t) { t.jump_displacement = 0x10; }, "setup header ends at 0x212"},
      {"header too long", [](TestBzImage& t) { t.jump_displacement = 0x8f; }, "setup header ends at 0x291"},
      {"setup over the file", [](TestBzImage& t) { t.header.setup_sects = 255; }, "truncated kernel"},
      {"one sector of setup less", [](TestBzImage& t) { t.header.setup_sects = 0, t.setup_sectors = 3; }, "truncated"},
      {"no code", [](TestBzImage& t) { t.header.syssize = 0, t.header.payload_length = 0; }, "syssize 0"},
      {"code without an entry", [](TestBzImage& t) { t.header.syssize = 0x20; }, "syssize 32"},
      {"code over the file", [](TestBzImage& t) { ++t.header.syssize; }, "truncated kernel"},
      {"all the code there can be", [](TestBzImage& t) { t.header.syssize = UINT32_MAX; }, "truncated kernel"},
      {"payload over the code", [](TestBzImage& t) { t.header.payload_length = 0x10000; }, "payload"},
      {"payload that wraps", [](TestBzImage& t) { t.header.payload_offset = t.header.payload_length = UINT32_MAX; },
       "payload"},
      {"alignment 0", [](TestBzImage& t) { t.header.kernel_alignment = 0; }, "kernel_alignment 0x0"},
      {"alignment 3", [](TestBzImage& t) { t.header.kernel_alignment = 3; }, "kernel_alignment 0x3"},
      {"alignment 2 GiB", [](TestBzImage& t) { t.header.kernel_alignment = 1u << 31; }, "kernel_alignment"},
      {"init_size absurd", [](TestBzImage& t) { t.header.init_size = UINT32_MAX; }, "init_size 0xffffffff"},
      {"pref_address absurd", [](TestBzImage& t) { t.header.pref_address = UINT64_MAX; }, "pref_address"},
      {"pref_address wraps", [](TestBzImage& t) { t.header.pref_address = UINT64_MAX - 0xffffff; }, "pref_address"},
  };
  for (const Case& item : cases) {
    SCOPED_TRACE(item.what);
    TestBzImage test;
    item.spoil(test);
    ExpectRefused(Read(test.Bytes()).status(), item.reason);
  }
}

TEST(KernelImage, BzImageCutAnywhereIsRefused) {
  const FileBytes whole = TestBzImage().Bytes();
  for (size_t size = 0; size < whole.size(); size += size < 0x400 ? 1 : 509) {
    SCOPED_TRACE(size);
    ExpectRefused(Read(FileBytes(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(size))).status(),
                  size < 0x200 ? "not a kernel" : "truncated kernel");
  }
  FileBytes longer = whole;
  longer.resize(whole.size() + 1000);
  EXPECT_TRUE(Read(longer).ok()) << "a signature may follow";
}

TEST(KernelImage, PvhElf) {
  for (uint32_t bytes : {4, 8}) {
    TestElf test;
    test.note_bytes = bytes;
    absl::StatusOr<KernelImage> image = Read(test.Bytes());
    ASSERT_TRUE(image.ok()) << image.status();
    EXPECT_EQ(image->format, KernelImage::Format::kPvhElf);
    ASSERT_EQ(image->segments.size(), 2u);
    EXPECT_EQ(image->segments[1].file_offset, 0x3000u);
    EXPECT_EQ(image->segments[1].file_bytes, 0x1000u);
    EXPECT_EQ(image->entry, Gpa(0x1000040));
    EXPECT_EQ(image->memory_end, Gpa(0x1600000));
    EXPECT_EQ(image->initrd_end_limit, kMmioHoleStart);
    EXPECT_TRUE(image->setup_header.empty());
  }
}

TEST(KernelImage, ElfsThatAreRefused) {
  struct Case {
    const char* what;
    std::function<void(TestElf&)> spoil;
    const char* reason;
  };
  const Case cases[] = {
      {"32-bit", [](TestElf& t) { t.header.e_ident[EI_CLASS] = ELFCLASS32; }, "a 32-bit ELF file"},
      {"no class", [](TestElf& t) { t.header.e_ident[EI_CLASS] = 7; }, "another machine"},
      {"big-endian", [](TestElf& t) { t.header.e_ident[EI_DATA] = ELFDATA2MSB; }, "another machine"},
      {"ARM", [](TestElf& t) { t.header.e_machine = EM_AARCH64; }, "another machine"},
      {"shared object", [](TestElf& t) { t.header.e_type = ET_DYN; }, "no fixed executable"},
      {"object file", [](TestElf& t) { t.header.e_type = ET_REL; }, "no fixed executable"},
      {"no program headers", [](TestElf& t) { t.header.e_phnum = 0; }, "0 ELF program headers"},
      {"too many", [](TestElf& t) { t.header.e_phnum = 0xffff; }, "65535 ELF program headers"},
      {"other size", [](TestElf& t) { t.header.e_phentsize = 32; }, "of 32 bytes"},
      {"headers outside", [](TestElf& t) { t.header.e_phoff = t.file_bytes - 8; }, "truncated kernel"},
      {"headers wrap", [](TestElf& t) { t.header.e_phoff = UINT64_MAX - 8; }, "truncated kernel"},
      {"no note", [](TestElf& t) { t.note_type = 17; }, "without a PVH entry"},
      {"other owner", [](TestElf& t) { t.note_name = "Xem"; }, "without a PVH entry"},
      {"note name too long", [](TestElf& t) { t.note_name_size = UINT32_MAX; }, "ELF notes"},
      {"note too long", [](TestElf& t) { t.note_bytes = UINT32_MAX; }, "ELF notes"},
      {"entry of 2 bytes", [](TestElf& t) { t.note_bytes = 2; }, "PVH entry note"},
      {"notes outside", [](TestElf& t) { t.segments[2].p_offset = t.file_bytes; }, "truncated kernel"},
      {"notes wrap", [](TestElf& t) { t.segments[2].p_offset = UINT64_MAX; }, "truncated kernel"},
      {"notes huge", [](TestElf& t) { t.file_bytes = 1 << 20, t.segments[2].p_filesz = 1 << 17; }, "too long"},
      {"segment outside", [](TestElf& t) { t.segments[1].p_filesz = 0x1001; }, "truncated kernel"},
      {"segment wraps", [](TestElf& t) { t.segments[1].p_filesz = UINT64_MAX; }, "truncated kernel"},
      {"more in the file", [](TestElf& t) { t.segments[1].p_memsz = 0xfff; }, "corrupt kernel (segment"},
      {"below 1 MiB", [](TestElf& t) { t.segments[1].p_paddr = 0xff000; }, "corrupt kernel (segment"},
      {"above 4 GiB", [](TestElf& t) { t.segments[1].p_paddr = uint64_t{1} << 32; }, "corrupt kernel (segment"},
      {"memory wraps", [](TestElf& t) { t.segments[1].p_memsz = UINT64_MAX; }, "corrupt kernel (segment"},
      {"overlap", [](TestElf& t) { t.segments[1].p_paddr = 0x1001000; }, "overlap at 0x1001000"},
      {"same place", [](TestElf& t) { t.segments[1].p_paddr = 0x1000000; }, "overlap at 0x1000000"},
      {"nothing to load", [](TestElf& t) { t.segments[0].p_type = t.segments[1].p_type = PT_NULL; }, "no ELF segments"},
      {"entry outside", [](TestElf& t) { t.entry = 0x1002000; }, "PVH entry 0x1002000"},
      {"entry in zeros", [](TestElf& t) { t.entry = 0x1201000; }, "PVH entry 0x1201000"},
      {"entry above 4 GiB", [](TestElf& t) { t.entry = 0x101000040; }, "PVH entry"},
  };
  for (const Case& item : cases) {
    SCOPED_TRACE(item.what);
    TestElf test;
    item.spoil(test);
    ExpectRefused(Read(test.Bytes()).status(), item.reason);
  }
}

TEST(KernelImage, ElfCutAnywhereIsRefused) {
  const FileBytes whole = TestElf().Bytes();
  for (size_t size = 0; size < whole.size(); size += size < 0x400 ? 1 : 61) {
    SCOPED_TRACE(size);
    ExpectRefused(Read(FileBytes(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(size))).status(),
                  size < SELFMAG ? "not a kernel" : "truncated kernel");
  }
}

TEST(KernelImage, OtherFilesAreRefused) {
  ExpectRefused(Read(FileBytes(4096)).status(), "not a kernel (neither bzImage nor ELF)");
  ExpectRefused(Read({}).status(), "not a kernel");
}

TEST(OpenFileSource, NamesWhatIsWrong) {
  const std::string directory = ::testing::TempDir();
  absl::Status missing = OpenFileSource(directory + "/no-such-kernel").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(MessageOf(missing), HasSubstr("/no-such-kernel: No such file"));
  EXPECT_THAT(MessageOf(OpenFileSource(directory).status()), HasSubstr("is not a regular file"));
  EXPECT_THAT(MessageOf(OpenFileSource("/dev/null").status()), HasSubstr("is not a regular file"));
  const std::string fifo = directory + "/boot_test.fifo." + std::to_string(getpid());
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_THAT(MessageOf(OpenFileSource(fifo).status()), HasSubstr("is not a regular file"));
  std::filesystem::remove(fifo);
}

// Kernels that the lab has unpacked, if it has been set up here. HK_LAB_BUILD names another tree's build/lab.
TEST(KernelImage, DebianKernels) {
  const char* folder = std::getenv("HK_LAB_BUILD");
  const std::filesystem::path lab = folder != nullptr ? folder : HK_LAB_DIRECTORY;
  size_t found = 0;
  std::error_code error;
  for (auto at = std::filesystem::recursive_directory_iterator(lab, error);
       !error && at != std::filesystem::recursive_directory_iterator(); at.increment(error)) {
    if (at.depth() > 2) at.disable_recursion_pending();
    if (!at->path().filename().string().starts_with("vmlinu")) continue;
    SCOPED_TRACE(at->path());
    absl::StatusOr<std::unique_ptr<ByteSource>> source = OpenFileSource(at->path().string());
    ASSERT_TRUE(source.ok()) << source.status();
    absl::StatusOr<KernelImage> image = ReadKernelImage(**source);
    ASSERT_TRUE(image.ok()) << image.status();
    EXPECT_LE(image->memory_end, Gpa(256 << 20));
    ++found;
    if (image->payload.bytes == 0) continue;
    std::vector<std::byte> packed(image->payload.bytes);
    ASSERT_TRUE((*source)->Read(image->payload.file_offset, packed).ok());
    const absl::StatusOr<UnpackedKernel> kernel = UnpackKernel(packed);
    ASSERT_TRUE(kernel.ok()) << kernel.status();
    const absl::StatusOr<Vmlinux> vmlinux = ReadVmlinux(kernel->span());
    ASSERT_TRUE(vmlinux.ok()) << vmlinux.status();
    EXPECT_TRUE(vmlinux->movable());
    EXPECT_EQ(vmlinux->segments.front().start, image->preferred_address);
  }
  if (found == 0) GTEST_SKIP() << "no vmlinuz-* or vmlinux under " << lab << " (the lab has not been set up)";
  std::cout << found << " kernel(s) read\n";
}

}  // namespace
}  // namespace hk
