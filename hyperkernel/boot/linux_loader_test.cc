#include "hyperkernel/boot/linux_loader.h"

#include <asm/bootparam.h>

#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/boot/boot_testing.h"
#include "hyperkernel/boot/pvh_start_info.h"

namespace hk {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kGiB = uint64_t{1} << 30;
constexpr Gpa kRsdp{0xe0000};

absl::StatusOr<LinuxBoot> Plan(FileBytes kernel, size_t initrd_bytes, const std::string& line, uint64_t ram_bytes) {
  std::unique_ptr<ByteSource> initrd;
  if (initrd_bytes > 0) initrd = MakeMemorySource("/initrd", FileBytes(initrd_bytes, std::byte{0x5a}));
  return LinuxBoot::Plan(MakeMemorySource("/kernel", std::move(kernel)), std::move(initrd),
                         {.command_line = line, .ram_bytes = ram_bytes});
}

// A source that has a size and no bytes: for placing what would not fit in the test's memory.
class HugeSource final : public ByteSource {
 public:
  explicit HugeSource(uint64_t size) : ByteSource("/initrd", size) {}

 private:
  absl::Status ReadWithin(uint64_t, std::span<std::byte>) const override { return absl::OkStatus(); }
};

absl::StatusOr<LinuxBoot> PlanHuge(FileBytes kernel, uint64_t initrd_bytes, uint64_t ram_bytes) {
  return LinuxBoot::Plan(MakeMemorySource("/kernel", std::move(kernel)), std::make_unique<HugeSource>(initrd_bytes),
                         {.command_line = "", .ram_bytes = ram_bytes});
}

TEST(LinuxBoot, BzImageIsLaidOut) {
  const uint64_t ram = 5 * kGiB;
  absl::StatusOr<LinuxBoot> boot = Plan(TestBzImage().Bytes(), 3 * kLoadChunkBytes + 5, "console=ttyS0", ram);
  ASSERT_TRUE(boot.ok()) << boot.status();
  RecordingWriter writer(ram);
  absl::StatusOr<BootState> state = boot->Load(writer, kRsdp);
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_FALSE(writer.overlap());
  EXPECT_LE(writer.largest(), kLoadChunkBytes);

  // Kernel, initrd, command line.
  const FileBytes file = TestBzImage().Bytes();
  EXPECT_EQ(writer.Read(kKernelLoadAddress.value(), 64 << 10), FileBytes(file.begin() + 5 * 512, file.end()));
  const uint64_t initrd = 2 * kGiB - 3 * kLoadChunkBytes - kPageSize;
  EXPECT_EQ(boot->initrd_start(), Gpa(initrd)) << "as high as initrd_addr_max lets it";
  EXPECT_EQ(writer.Read(initrd + 3 * kLoadChunkBytes + 4, 1)[0], std::byte{0x5a});
  EXPECT_EQ(std::memcmp(writer.Read(kCommandLineAddress.value(), 14).data(), "console=ttyS0", 14), 0);

  // mov dx, 0xcf9; mov al, 6; out dx, al at the reset vector.
  const std::vector<std::byte> reset = writer.Read(0xffff0, 7);
  constexpr uint8_t kReset[] = {0xfa, 0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee};
  EXPECT_EQ(std::memcmp(reset.data(), kReset, sizeof(kReset)), 0);

  // The zero page.
  const auto params = writer.ReadStruct<boot_params>(kZeroPageAddress.value());
  EXPECT_EQ(params.hdr.header, 0x53726448u);
  EXPECT_EQ(params.hdr.init_size, 0x1000000u);
  EXPECT_EQ(params.hdr.type_of_loader, 0xff);
  EXPECT_EQ(params.hdr.cmd_line_ptr, kCommandLineAddress.value());
  EXPECT_EQ(params.hdr.ramdisk_image, initrd);
  EXPECT_EQ(params.hdr.ramdisk_size, 3 * kLoadChunkBytes + 5);
  EXPECT_EQ(params.ext_ramdisk_image, 0u);
  EXPECT_EQ(params.acpi_rsdp_addr, kRsdp.value());
  EXPECT_EQ(params.sentinel, 0) << "only the header is copied";
  EXPECT_EQ(params.e820_entries, 5);
  EXPECT_EQ(params.e820_table[4].addr, 4 * kGiB);
  EXPECT_EQ(params.e820_table[4].size, 2 * kGiB);
  EXPECT_EQ(params.e820_table[4].type, 1u);
}

// Walks the page tables as a CPU does, for some addresses below 4 GiB.
void ExpectIdentity(const RecordingWriter& writer, uint64_t cr3) {
  auto entry = [&writer](uint64_t table, uint64_t index) {
    return writer.ReadStruct<uint64_t>((table & ~uint64_t{0xfff}) + index * 8);
  };
  for (uint64_t address = 0; address < 4 * kGiB; address += 0x3ff12345) {
    const uint64_t pdpt = entry(cr3, 0);
    const uint64_t directory = entry(pdpt, address >> 30);
    const uint64_t page = entry(directory, (address >> 21) & 511);
    for (uint64_t level : {pdpt, directory, page}) EXPECT_EQ(level & 3, 3u);
    EXPECT_EQ(page & 0x80, 0x80u);
    EXPECT_EQ((page & ~uint64_t{0x1fffff}) | (address & 0x1fffff), address);
  }
  EXPECT_EQ(entry(cr3, 1), 0u);
  EXPECT_EQ(entry(entry(cr3, 0), 4), 0u);
}

TEST(LinuxBoot, BzImageStartsInLongMode) {
  absl::StatusOr<LinuxBoot> boot = Plan(TestBzImage().Bytes(), 0, "", 256 * kMiB);
  ASSERT_TRUE(boot.ok()) << boot.status();
  RecordingWriter writer(256 * kMiB);
  absl::StatusOr<BootState> state = boot->Load(writer, kRsdp);
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(state->mode, BootMode::kLong64);
  EXPECT_EQ(state->rip, 0x100200u);
  EXPECT_EQ(state->rsi, kZeroPageAddress.value());
  EXPECT_EQ(state->rflags, 2u);
  EXPECT_EQ(state->cr0 & 0x80000001, 0x80000001u);
  EXPECT_EQ(state->cr4, 0x20u);
  EXPECT_EQ(state->efer, 0x500u);
  EXPECT_TRUE(state->cs.long_mode && !state->cs.default_32);
  ExpectIdentity(writer, state->cr3);
  // The descriptors in memory are those in the registers: base 0, limit 4 GiB, the type.
  for (const BootSegment& segment : {state->cs, state->data}) {
    const auto descriptor = writer.ReadStruct<uint64_t>(state->gdt.base.value() + segment.selector);
    EXPECT_EQ(descriptor & 0xff0000ffffff0000, 0u) << "base without its access byte";
    EXPECT_EQ((descriptor >> 40) & 0xf, segment.type);
    EXPECT_EQ((descriptor >> 53) & 1, segment.long_mode ? 1u : 0u);
    EXPECT_EQ((descriptor >> 54) & 1, segment.default_32 ? 1u : 0u);
    EXPECT_LT(segment.selector + 7, state->gdt.limit + 1);
  }
  const auto params = writer.ReadStruct<boot_params>(kZeroPageAddress.value());
  EXPECT_EQ(params.hdr.ramdisk_image, 0u);
  EXPECT_EQ(params.hdr.ramdisk_size, 0u);
  EXPECT_EQ(boot->initrd_start(), Gpa(0));
}

TEST(LinuxBoot, ShorterSetupHeaderLeavesTheRestZero) {
  TestBzImage test;
  test.jump_displacement = 0x264 - 0x202;
  test.header.handover_offset = 0x1234;
  absl::StatusOr<LinuxBoot> boot = Plan(test.Bytes(), 0, "", 256 * kMiB);
  ASSERT_TRUE(boot.ok()) << boot.status();
  RecordingWriter writer(256 * kMiB);
  ASSERT_TRUE(boot->Load(writer, kRsdp).ok());
  EXPECT_EQ(writer.ReadStruct<boot_params>(kZeroPageAddress.value()).hdr.handover_offset, 0u);
}

TEST(LinuxBoot, PvhIsLaidOut) {
  const uint64_t ram = 4 * kGiB;
  absl::StatusOr<LinuxBoot> boot = Plan(TestElf().Bytes(), kMiB, "quiet", ram);
  ASSERT_TRUE(boot.ok()) << boot.status();
  RecordingWriter writer(ram);
  absl::StatusOr<BootState> state = boot->Load(writer, kRsdp);
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_FALSE(writer.overlap());
  EXPECT_EQ(state->mode, BootMode::kPvh32);
  EXPECT_EQ(state->rip, 0x1000040u);
  EXPECT_EQ(state->rbx, kPvhStartInfoAddress.value());
  EXPECT_EQ(state->cr0, 0x11u);
  EXPECT_EQ(state->cr4 | state->efer | state->cr3, 0u);
  EXPECT_TRUE(state->cs.default_32 && !state->cs.long_mode);

  const auto info = writer.ReadStruct<PvhStartInfo>(state->rbx);
  EXPECT_EQ(info.magic, kPvhStartMagic);
  EXPECT_EQ(info.version, 1u);
  EXPECT_EQ(info.cmdline_paddr, kCommandLineAddress.value());
  EXPECT_EQ(info.rsdp_paddr, kRsdp.value());
  ASSERT_EQ(info.nr_modules, 1u);
  const auto module = writer.ReadStruct<PvhModule>(info.modlist_paddr);
  EXPECT_EQ(module.paddr, 3 * kGiB - kMiB);
  EXPECT_EQ(module.size, kMiB);
  ASSERT_EQ(info.memmap_entries, 5u);
  const auto last = writer.ReadStruct<PvhMemoryMapEntry>(info.memmap_paddr + 4 * sizeof(PvhMemoryMapEntry));
  EXPECT_EQ(last.addr, 4 * kGiB);
  EXPECT_EQ(last.size, kGiB);
  EXPECT_EQ(last.type, 1u);
  const FileBytes file = TestElf().Bytes();
  EXPECT_EQ(writer.Read(0x1000000, 0x2000), FileBytes(file.begin() + 0x1000, file.begin() + 0x3000));
}

TEST(LinuxBoot, CanBeLoadedAgain) {
  absl::StatusOr<LinuxBoot> boot = Plan(TestBzImage().Bytes(), kMiB, "a", 256 * kMiB);
  ASSERT_TRUE(boot.ok());
  RecordingWriter first(256 * kMiB), second(256 * kMiB);
  ASSERT_TRUE(boot->Load(first, kRsdp).ok());
  ASSERT_TRUE(boot->Load(second, kRsdp).ok());
  EXPECT_EQ(first.Read(0, 4 * kMiB), second.Read(0, 4 * kMiB));
}

TEST(LinuxBoot, CommandLine) {
  const std::string longest(2047, 'x');
  EXPECT_TRUE(Plan(TestBzImage().Bytes(), 0, longest, 256 * kMiB).ok());
  EXPECT_TRUE(Plan(TestElf().Bytes(), 0, longest, 256 * kMiB).ok());
  for (const FileBytes& kernel : {TestBzImage().Bytes(), TestElf().Bytes()}) {
    const absl::Status status = Plan(kernel, 0, longest + "x", 256 * kMiB).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(MessageOf(status), "cmdline: 2048 bytes; this kernel takes 2047 at the most");
  }
  EXPECT_EQ(MessageOf(Plan(TestBzImage().Bytes(), 0, std::string("a\0b", 3), 256 * kMiB).status()),
            "cmdline: has a zero byte");
  // A kernel that says it takes more than there is room for.
  TestBzImage greedy;
  greedy.header.cmdline_size = UINT32_MAX;
  EXPECT_TRUE(Plan(greedy.Bytes(), 0, std::string(kCommandLineLimit - 1, 'x'), 256 * kMiB).ok());
  EXPECT_FALSE(Plan(greedy.Bytes(), 0, std::string(kCommandLineLimit, 'x'), 256 * kMiB).ok());
}

TEST(LinuxBoot, KernelTooLarge) {
  for (uint64_t ram : {uint64_t{0}, kPageSize, 31 * kMiB}) {
    const absl::Status status = Plan(TestBzImage().Bytes(), 0, "", ram).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(MessageOf(status), HasSubstr("/kernel: the kernel needs 32 MiB of RAM below 3072 MiB, the guest has"));
  }
  EXPECT_TRUE(Plan(TestBzImage().Bytes(), 0, "", 32 * kMiB).ok());
  TestBzImage high;
  high.header.pref_address = 0xc0000000 - 0x1000;
  EXPECT_THAT(MessageOf(Plan(high.Bytes(), 0, "", 64 * kGiB).status()), HasSubstr("the kernel needs 3088 MiB"));
}

TEST(LinuxBoot, InitrdTooLarge) {
  const FileBytes kernel = TestBzImage().Bytes();  // ends at 32 MiB
  EXPECT_TRUE(PlanHuge(kernel, 224 * kMiB, 256 * kMiB).ok());
  absl::Status status = PlanHuge(kernel, 224 * kMiB + 1, 256 * kMiB).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(MessageOf(status), "/initrd: initrd of 225 MiB does not fit in 224 MiB");
  EXPECT_EQ(MessageOf(PlanHuge(kernel, 2 * kGiB, 8 * kGiB).status()),
            "/initrd: initrd of 2048 MiB does not fit in 2016 MiB");
  EXPECT_FALSE(PlanHuge(kernel, UINT64_MAX, 8 * kGiB).ok());
  // Every limit there is.
  TestBzImage low;
  low.header.initrd_addr_max = 0x37ffffff;
  EXPECT_EQ(PlanHuge(low.Bytes(), 1, 8 * kGiB)->initrd_start(), Gpa(0x38000000 - kPageSize));
  low.header.initrd_addr_max = 0;
  EXPECT_FALSE(PlanHuge(low.Bytes(), 1, 8 * kGiB).ok());
  low.header.initrd_addr_max = UINT32_MAX;
  EXPECT_EQ(PlanHuge(low.Bytes(), 1, 8 * kGiB)->initrd_start(), Gpa(3 * kGiB - kPageSize)) << "below the hole";
  EXPECT_EQ(PlanHuge(low.Bytes(), 1, kGiB)->initrd_start(), Gpa(kGiB - kPageSize)) << "in RAM";
  EXPECT_FALSE(PlanHuge(TestElf().Bytes(), 3 * kGiB, 8 * kGiB).ok());
}

// A bzImage whose vmlinux is unpacked before the guest starts.
class UnpackedBoot : public testing::Test {
 protected:
  void SetUp() override {
    char pattern[] = "/tmp/hk_linux_loader_test.XXXXXX";
    ASSERT_NE(::mkdtemp(pattern), nullptr);
    directory_ = pattern;
    cache_.emplace(directory_ + "/kernels");
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  absl::StatusOr<LinuxBoot> Plan(const FileBytes& payload, const std::string& line = "", uint64_t ram = 256 * kMiB) {
    return LinuxBoot::Plan(MakeMemorySource("/kernel", BzImageWith(TestBzImage(), payload)), nullptr,
                           {.command_line = line, .ram_bytes = ram, .unpacked = &*cache_});
  }

  std::string directory_;
  std::optional<KernelCache> cache_;
};

TEST_F(UnpackedBoot, IsEnteredWhereItWasLinkedAndMovedInVirtualSpace) {
  const TestVmlinux test;
  const FileBytes file = test.Bytes();
  std::set<uint64_t> offsets;
  for (int i = 0; i < 40; i++) {
    const absl::StatusOr<LinuxBoot> boot = Plan(PackXz(file));
    ASSERT_TRUE(boot.ok()) << boot.status();
    EXPECT_TRUE(boot->unpacked());
    RecordingWriter writer(256 * kMiB);
    const absl::StatusOr<BootState> state = boot->Load(writer, kRsdp);
    ASSERT_TRUE(state.ok()) << state.status();
    EXPECT_FALSE(writer.overlap());
    EXPECT_EQ(state->rip, 0x1000040u);
    EXPECT_EQ(state->rsi, kZeroPageAddress.value());
    EXPECT_EQ(writer.Read(0x1000000, 0x100), FileBytes(file.begin() + 0x1000, file.begin() + 0x1100));
    EXPECT_EQ(writer.Read(0x1203000, 0x1000), FileBytes(file.begin() + 0x6000, file.begin() + 0x7000));
    EXPECT_EQ(writer.Read(kKernelLoadAddress.value(), 0x1000), FileBytes(0x1000)) << "the packed form is not needed";
    EXPECT_FALSE(writer.wrote(0x1202000, 0x1000)) << "a page of zeros takes a frame";
    const uint64_t offset = boot->kaslr_offset();
    EXPECT_EQ(offset % 0x200000, 0u);
    EXPECT_LE(0x2000000 + offset, uint64_t{1} << 30) << "what the kernel takes ends within its space";
    EXPECT_EQ(writer.ReadStruct<uint64_t>(0x1000100), TestVmlinux::kLinked + 0x1000100 + offset);
    const auto params = writer.ReadStruct<boot_params>(kZeroPageAddress.value());
    EXPECT_TRUE((params.hdr.loadflags & KASLR_FLAG) != 0);
    offsets.insert(offset);
  }
  EXPECT_GT(offsets.size(), 20u) << "40 starts, 497 places";
}

TEST_F(UnpackedBoot, NokaslrLeavesItWhereItIs) {
  const FileBytes packed = PackXz(TestVmlinux().Bytes());
  for (const std::string line : {"nokaslr", "quiet nokaslr", "nokaslr quiet", "a nokaslr b"}) {
    const absl::StatusOr<LinuxBoot> boot = Plan(packed, line);
    ASSERT_TRUE(boot.ok());
    EXPECT_EQ(boot->kaslr_offset(), 0u);
    RecordingWriter writer(256 * kMiB);
    ASSERT_TRUE(boot->Load(writer, kRsdp).ok());
    EXPECT_EQ(writer.ReadStruct<uint64_t>(0x1000100), TestVmlinux::kLinked + 0x1000100);
    EXPECT_EQ(writer.ReadStruct<boot_params>(kZeroPageAddress.value()).hdr.loadflags & KASLR_FLAG, 0);
  }
  RecordingWriter writer(256 * kMiB);
  ASSERT_TRUE(Plan(packed, "xnokaslr nokaslrx")->Load(writer, kRsdp).ok());
  EXPECT_NE(writer.ReadStruct<boot_params>(kZeroPageAddress.value()).hdr.loadflags & KASLR_FLAG, 0) << "other words";
}

// Where the insides are not understood the guest gets the file as it is.
TEST_F(UnpackedBoot, OtherwiseTheGuestUnpacksItself) {
  TestVmlinux elsewhere;
  elsewhere.elf.segments[0].p_paddr = 0x1100000;
  elsewhere.elf.header.e_entry = 0x1100040;
  TestVmlinux larger;
  larger.elf.segments[1].p_memsz = 0x1000000;
  TestVmlinux in_zeros;
  in_zeros.add32.push_back(0x1202000);
  FileBytes zeroed = in_zeros.Bytes();
  std::fill(zeroed.begin() + 0x5000, zeroed.begin() + 0x6000, std::byte{0});
  for (const FileBytes& payload : {FileBytes(5000, std::byte{0x77}), PackXz(FileBytes(5000, std::byte{1})),
                                   PackXz(elsewhere.Bytes()), PackXz(larger.Bytes()), PackXz(zeroed)}) {
    const absl::StatusOr<LinuxBoot> boot = Plan(payload);
    ASSERT_TRUE(boot.ok()) << boot.status();
    EXPECT_FALSE(boot->unpacked());
    EXPECT_EQ(boot->kernel().entry, Gpa(kKernelLoadAddress.value() + 0x200));
  }
  EXPECT_FALSE(Plan(PackXz(TestVmlinux().Bytes()), "", uint64_t{1} << 47)->unpacked()) << "5-level paging";
}

TEST_F(UnpackedBoot, ACorruptPayloadIsRefusedBeforeTheGuestStarts) {
  FileBytes packed = PackXz(TestVmlinux().Bytes());
  packed[packed.size() / 2] ^= std::byte{1};
  const absl::Status status = Plan(packed).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(MessageOf(status), HasSubstr("/kernel: corrupt kernel (xz: "));
}

TEST(LinuxBoot, FilesAreNamed) {
  const std::string none = ::testing::TempDir() + "/no-such-file";
  absl::Status status =
      LinuxBoot::Plan({.kernel_path = none, .initrd_path = "", .command_line = "", .ram_bytes = kGiB}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(MessageOf(status), HasSubstr(none));
}

// A writer that fails after some writes: the error comes out, whichever write it was.
class FailingWriter final : public GuestWriter {
 public:
  explicit FailingWriter(int writes) : left_(writes) {}
  absl::Status Write(Gpa, std::span<const std::byte>) override {
    return left_-- > 0 ? absl::OkStatus() : absl::ResourceExhaustedError("no frames left");
  }

 private:
  int left_;
};

TEST(LinuxBoot, WriterErrorsComeOut) {
  for (const FileBytes& kernel : {TestBzImage().Bytes(), TestElf().Bytes()}) {
    absl::StatusOr<LinuxBoot> boot = Plan(kernel, kMiB, "a", 256 * kMiB);
    ASSERT_TRUE(boot.ok());
    int writes = 0;
    for (; writes < 100; ++writes) {
      FailingWriter writer(writes);
      absl::StatusOr<BootState> state = boot->Load(writer, kRsdp);
      if (state.ok()) break;
      EXPECT_EQ(state.status().code(), absl::StatusCode::kResourceExhausted);
    }
    EXPECT_GT(writes, 4);
    EXPECT_LT(writes, 20);
  }
}

}  // namespace
}  // namespace hk
