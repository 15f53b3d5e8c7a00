#include "hyperkernel/boot/vmlinux.h"

#include <functional>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/boot/boot_testing.h"

namespace hk {
namespace {

using ::testing::HasSubstr;

template <typename T>
T At(const FileBytes& file, uint64_t physical) {
  T value;
  std::memcpy(&value, &file[TestVmlinux::OffsetOf(physical)], sizeof(T));
  return value;
}

void ExpectMoves(const TestVmlinux& test) {
  FileBytes file = test.Bytes();
  const FileBytes before = file;
  const absl::StatusOr<Vmlinux> vmlinux = ReadVmlinux(file);
  ASSERT_TRUE(vmlinux.ok()) << vmlinux.status();
  EXPECT_TRUE(vmlinux->movable());
  EXPECT_EQ(vmlinux->entry, Gpa(0x1000040));
  constexpr uint64_t kDelta = 0x12600000;
  Relocate(*vmlinux, kDelta, file);
  for (const uint32_t place : test.add64) EXPECT_EQ(At<uint64_t>(file, place), TestVmlinux::kLinked + place + kDelta);
  for (const uint32_t place : test.add32) {
    EXPECT_EQ(At<uint32_t>(file, place), static_cast<uint32_t>(TestVmlinux::kLinked + place + kDelta));
  }
  size_t others = 0;
  for (size_t i = 0; i < file.size(); i++) others += file[i] != before[i] ? 1 : 0;
  if (test.with_subtractions) {
    for (const uint32_t place : test.subtract32) {
      EXPECT_EQ(At<uint32_t>(file, place), static_cast<uint32_t>(TestVmlinux::kLinked + place - kDelta));
    }
  } else {
    for (const uint32_t place : test.subtract32) EXPECT_EQ(At<uint32_t>(file, place), At<uint32_t>(before, place));
  }
  // kDelta changes bytes 2 and 3 of every word; nothing else may have changed.
  EXPECT_LE(others, 2 * (test.add64.size() + test.add32.size() + test.subtract32.size()));
}

TEST(VmlinuxTest, ListedPlacesMoveAndNothingElse) {
  ExpectMoves(TestVmlinux());
}

TEST(VmlinuxTest, NewerKernelsHaveNoSubtractions) {
  TestVmlinux test;
  test.with_subtractions = false;
  ExpectMoves(test);
}

TEST(VmlinuxTest, SegmentsAreThoseOfTheFile) {
  const absl::StatusOr<Vmlinux> vmlinux = ReadVmlinux(TestVmlinux().Bytes());
  ASSERT_TRUE(vmlinux.ok());
  ASSERT_EQ(vmlinux->segments.size(), 2u);
  EXPECT_EQ(vmlinux->segments[0].start, Gpa(0x1000000));
  EXPECT_EQ(vmlinux->segments[1].file_offset, TestElf::kText + 0x2000);
  EXPECT_EQ(vmlinux->segments[1].file_bytes, 0x4000u);
  EXPECT_EQ(vmlinux->segments[1].memory_bytes, 0x400000u);
}

TEST(VmlinuxTest, WithoutListsItCannotMove) {
  const absl::StatusOr<Vmlinux> vmlinux = ReadVmlinux(TestVmlinux().elf.Bytes());
  ASSERT_TRUE(vmlinux.ok()) << vmlinux.status();
  EXPECT_FALSE(vmlinux->movable());
}

TEST(VmlinuxTest, WhatIsNotUnderstoodIsRefused) {
  struct Case {
    const char* what;
    std::function<void(TestVmlinux*)> change;
  };
  const Case cases[] = {
      {"not an ELF file", [](TestVmlinux* v) { v->elf.header.e_ident[0] = 'x'; }},
      {"not an ELF file", [](TestVmlinux* v) { v->elf.header.e_machine = EM_386; }},
      {"not an ELF file", [](TestVmlinux* v) { v->elf.header.e_type = ET_DYN; }},
      {"program headers", [](TestVmlinux* v) { v->elf.header.e_phentsize = 32; }},
      {"program headers", [](TestVmlinux* v) { v->elf.header.e_phoff = UINT64_MAX; }},
      {"program headers", [](TestVmlinux* v) { v->elf.header.e_phnum = 129; }},
      {"section headers",
       [](TestVmlinux* v) {
         v->elf.header.e_shnum = 9, v->elf.header.e_shentsize = 64, v->elf.header.e_shoff = 1 << 20;
       }},
      {"no segments", [](TestVmlinux* v) { v->elf.header.e_phnum = 0; }},
      {"a segment's place", [](TestVmlinux* v) { v->elf.segments[0].p_filesz = UINT64_MAX; }},
      {"a segment's place", [](TestVmlinux* v) { v->elf.segments[0].p_offset = 1 << 20; }},
      {"a segment's place", [](TestVmlinux* v) { v->elf.segments[0].p_paddr = 0x1000; }},
      {"a segment's place", [](TestVmlinux* v) { v->elf.segments[1].p_memsz = UINT64_MAX; }},
      {"a segment's place", [](TestVmlinux* v) { v->elf.segments[1].p_filesz = v->elf.segments[1].p_memsz + 1; }},
      {"segments overlap", [](TestVmlinux* v) { v->elf.segments[0].p_memsz = 0x200001; }},
      {"the entry's place", [](TestVmlinux* v) { v->elf.header.e_entry = 0x1002000; }},
  };
  for (const Case& refused : cases) {
    TestVmlinux test;
    refused.change(&test);
    const absl::Status status = ReadVmlinux(test.Bytes()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << refused.what;
    EXPECT_THAT(MessageOf(status), HasSubstr(refused.what));
  }
}

TEST(VmlinuxTest, ListsThatAreNotListsAreRefused) {
  const FileBytes elf = TestVmlinux().elf.Bytes();
  const auto with = [&elf](const std::vector<uint32_t>& words, size_t odd_bytes = 0) {
    FileBytes file = elf;
    for (const uint32_t word : words) Put(file, file.size(), word);
    file.resize(file.size() + odd_bytes);
    return ReadVmlinux(file).status();
  };
  constexpr uint32_t kPlace = 0x81000100;
  EXPECT_TRUE(with({0, kPlace, 0, kPlace}).ok());
  EXPECT_TRUE(with({0, 0}).ok());
  EXPECT_FALSE(with({0, kPlace}).ok()) << "one list";
  EXPECT_FALSE(with({0, 0, 0, 0}).ok()) << "four lists";
  EXPECT_FALSE(with({kPlace, 0, kPlace, 0}).ok()) << "does not begin with a zero";
  EXPECT_FALSE(with({0, kPlace, 0, kPlace}, 1).ok()) << "not of words";
  EXPECT_FALSE(with({0, 0x81002000 - 4, 0}).ok()) << "64 bits over the segment's end";
  EXPECT_TRUE(with({0, 0, 0x81002000 - 4}).ok()) << "32 bits just fit";
  EXPECT_FALSE(with({0, 0, 0x01000100}).ok()) << "a physical address";
}

// Cut at any byte: an answer, whatever it is (the last bytes may be an ELF file without lists).
TEST(VmlinuxTest, CutAtAnyByte) {
  const FileBytes file = TestVmlinux().Bytes();
  for (size_t size = 0; size < file.size(); size += size < 600 || size + 64 > file.size() ? 1 : 97) {
    static_cast<void>(ReadVmlinux(std::span(file).first(size)));
  }
}

}  // namespace
}  // namespace hk
