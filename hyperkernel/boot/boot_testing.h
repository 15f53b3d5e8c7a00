// What this folder's tests share: a guest's RAM that checks how it is written, and kernel files made up in memory.
#pragma once

#include <asm/bootparam.h>
#include <elf.h>
#include <lzma.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/boot/address_map.h"
#include "hyperkernel/boot/byte_source.h"
#include "hyperkernel/boot/guest_writer.h"

namespace hk {

// RAM that keeps what is written, refuses what is not RAM, and remembers whether anything was written twice.
class RecordingWriter final : public GuestWriter {
 public:
  explicit RecordingWriter(uint64_t ram_bytes) : ram_(RamLayout(ram_bytes)) {}

  absl::Status Write(Gpa to, std::span<const std::byte> bytes) override {
    const uint64_t end = to.value() + bytes.size();
    bool in_ram = false;
    for (const RamPiece& piece : ram_) in_ram |= to >= piece.start && end <= piece.end().value();
    if (!in_ram) return absl::OutOfRangeError(fmt::format("{:#x} to {:#x} is not RAM", to.value(), end));
    if (bytes.empty()) return absl::OkStatus();
    auto next = pieces_.upper_bound(to.value());
    if (next != pieces_.end() && next->first < end) overlap_ = true;
    if (next != pieces_.begin()) {
      auto previous = std::prev(next);
      if (previous->first + previous->second.size() > to.value()) overlap_ = true;
    }
    largest_ = std::max(largest_, bytes.size());
    pieces_[to.value()].assign(bytes.begin(), bytes.end());
    return absl::OkStatus();
  }

  // The bytes of [from, from + count); zeros where nothing was written.
  std::vector<std::byte> Read(uint64_t from, size_t count) const {
    std::vector<std::byte> result(count);
    for (const auto& [start, bytes] : pieces_) {
      const uint64_t low = std::max<uint64_t>(start, from);
      const uint64_t high = std::min<uint64_t>(start + bytes.size(), from + count);
      if (low < high) std::memcpy(&result[low - from], &bytes[low - start], high - low);
    }
    return result;
  }
  template <typename T>
  T ReadStruct(uint64_t from) const {
    T value;
    std::memcpy(&value, Read(from, sizeof(T)).data(), sizeof(T));
    return value;
  }
  // Whether any byte of [from, from + count) was written.
  bool wrote(uint64_t from, uint64_t count) const {
    return std::ranges::any_of(pieces_, [from, count](const auto& piece) {
      return piece.first < from + count && piece.first + piece.second.size() > from;
    });
  }
  bool overlap() const { return overlap_; }
  size_t largest() const { return largest_; }

 private:
  std::vector<RamPiece> ram_;
  std::map<uint64_t, std::vector<std::byte>> pieces_;
  bool overlap_ = false;
  size_t largest_ = 0;
};

// Bytes of a file under construction.
using FileBytes = std::vector<std::byte>;

template <typename T>
void Put(FileBytes& file, size_t offset, const T& value) {
  if (file.size() < offset + sizeof(T)) file.resize(offset + sizeof(T));
  std::memcpy(&file[offset], &value, sizeof(T));
}

// A bzImage of protocol 2.15: 4 setup sectors, 64 KiB of code, as Linux fills its header.
struct TestBzImage {
  setup_header header = {};
  uint8_t jump_displacement = sizeof(setup_header) - (0x202 - 0x1f1);
  uint64_t setup_sectors = 4;
  uint64_t code_bytes = 64 << 10;

  TestBzImage() {
    header.setup_sects = 4;
    header.syssize = static_cast<uint32_t>(code_bytes / 16);
    header.boot_flag = 0xaa55;
    header.header = 0x53726448;
    header.version = 0x020f;
    header.loadflags = LOADED_HIGH;
    header.initrd_addr_max = 0x7fffffff;
    header.kernel_alignment = 0x200000;
    header.relocatable_kernel = 1;
    header.xloadflags = XLF_KERNEL_64 | XLF_CAN_BE_LOADED_ABOVE_4G;
    header.cmdline_size = 2047;
    header.payload_offset = 0x2cc;
    header.payload_length = 0x1000;
    header.pref_address = 0x1000000;
    header.init_size = 0x1000000;
  }

  FileBytes Bytes() const {
    FileBytes file((setup_sectors + 1) * 512 + code_bytes);
    for (size_t i = (setup_sectors + 1) * 512; i < file.size(); ++i) file[i] = static_cast<std::byte>(i * 7);
    // Both are patterns, to be seen if more than the header is copied.
    for (size_t i = 0; i < 0x1f1; ++i) file[i] = std::byte{0xff};
    std::memcpy(&file[0x1f1], &header, sizeof(header));
    file[0x200] = std::byte{0xeb};
    file[0x201] = std::byte{jump_displacement};
    return file;
  }
};

// A 64-bit ELF kernel: two segments and a note with the PVH entry.
struct TestElf {
  static constexpr uint64_t kNotes = 0x200;
  static constexpr uint64_t kText = 0x1000;

  Elf64_Ehdr header = {};
  std::vector<Elf64_Phdr> segments;
  uint32_t note_type = 18;
  std::string note_name = "Xen";
  uint32_t note_name_size = 4;
  uint32_t note_bytes = 8;
  uint64_t entry = 0x1000040;
  uint64_t file_bytes = 0x4000;

  TestElf() {
    std::memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = ELFCLASS64;
    header.e_ident[EI_DATA] = ELFDATA2LSB;
    header.e_ident[EI_VERSION] = EV_CURRENT;
    header.e_type = ET_EXEC;
    header.e_machine = EM_X86_64;
    header.e_phoff = sizeof(Elf64_Ehdr);
    header.e_phentsize = sizeof(Elf64_Phdr);
    segments.push_back({.p_type = PT_LOAD,
                        .p_flags = PF_R | PF_X,
                        .p_offset = kText,
                        .p_vaddr = 0xffffffff81000000,
                        .p_paddr = 0x1000000,
                        .p_filesz = 0x2000,
                        .p_memsz = 0x2000,
                        .p_align = 0x200000});
    segments.push_back({.p_type = PT_LOAD,
                        .p_flags = PF_R | PF_W,
                        .p_offset = kText + 0x2000,
                        .p_vaddr = 0xffffffff81200000,
                        .p_paddr = 0x1200000,
                        .p_filesz = 0x1000,
                        .p_memsz = 0x400000,
                        .p_align = 0x200000});
    segments.push_back({.p_type = PT_NOTE,
                        .p_flags = PF_R,
                        .p_offset = kNotes,
                        .p_vaddr = 0,
                        .p_paddr = 0,
                        .p_filesz = 64,
                        .p_memsz = 64,
                        .p_align = 4});
    header.e_phnum = static_cast<uint16_t>(segments.size());
  }

  FileBytes Bytes() const {
    FileBytes file(file_bytes);
    for (size_t i = kText; i < file.size(); ++i) file[i] = static_cast<std::byte>(i * 5);
    Put(file, 0, header);
    for (size_t i = 0; i < segments.size(); ++i) Put(file, sizeof(Elf64_Ehdr) + i * sizeof(Elf64_Phdr), segments[i]);
    // Another note first: 12 bytes of header, "GNU", 4 bytes.
    Put(file, kNotes, Elf64_Nhdr{.n_namesz = 4, .n_descsz = 2, .n_type = 3});
    std::memcpy(&file[kNotes + 12], "GNU", 4);
    Put(file, kNotes + 20, Elf64_Nhdr{.n_namesz = note_name_size, .n_descsz = note_bytes, .n_type = note_type});
    std::memcpy(&file[kNotes + 32], note_name.c_str(), note_name.size() + 1);
    Put(file, kNotes + 36, entry);
    return file;
  }
};

// The inside of a bzImage: a TestElf whose second segment ends in zeros, and lists of relocations behind it. The places
// that are listed hold their own address as linked.
struct TestVmlinux {
  static constexpr uint64_t kLinked = 0xffffffff80000000;  // where physical address 0 is, as linked
  // Physical addresses.
  std::vector<uint32_t> add64 = {0x1000100, 0x1200008};
  std::vector<uint32_t> subtract32 = {0x1000200};
  std::vector<uint32_t> add32 = {0x1000300, 0x1001ffc};
  bool with_subtractions = true;
  TestElf elf;

  TestVmlinux() {
    elf.header.e_entry = 0x1000040;
    elf.segments[1].p_filesz = 0x4000;
    elf.file_bytes = 0x7000;
  }
  // Where a physical address is in the file.
  static uint64_t OffsetOf(uint64_t physical) {
    return physical < 0x1200000 ? TestElf::kText + physical - 0x1000000
                                : TestElf::kText + 0x2000 + physical - 0x1200000;
  }
  // The lists, each behind a zero.
  FileBytes Lists() const {
    FileBytes lists;
    for (const auto* list : {&add64, &subtract32, &add32}) {
      if (list == &subtract32 && !with_subtractions) continue;
      Put(lists, lists.size(), uint32_t{0});
      for (const uint32_t place : *list) Put(lists, lists.size(), static_cast<uint32_t>(kLinked + place));
    }
    return lists;
  }
  FileBytes Bytes() const {
    FileBytes file = elf.Bytes();
    // The last of the second segment's four pages but one.
    if (file.size() >= 0x6000) std::fill(file.begin() + 0x5000, file.begin() + 0x6000, std::byte{0});
    for (const uint32_t place : add64) Put(file, OffsetOf(place), kLinked + place);
    for (const auto* list : {&subtract32, &add32}) {
      for (const uint32_t place : *list) Put(file, OffsetOf(place), static_cast<uint32_t>(kLinked + place));
    }
    const FileBytes lists = Lists();
    file.insert(file.end(), lists.begin(), lists.end());
    return file;
  }
};

// As `xz --check=crc32`, with the size appended, as Linux' build does.
inline FileBytes PackXz(const FileBytes& bytes) {
  FileBytes packed(lzma_stream_buffer_bound(bytes.size()));
  size_t end = 0;
  HK_CHECK(lzma_easy_buffer_encode(6, LZMA_CHECK_CRC32, nullptr, reinterpret_cast<const uint8_t*>(bytes.data()),
                                   bytes.size(), reinterpret_cast<uint8_t*>(packed.data()), &end,
                                   packed.size()) == LZMA_OK);
  packed.resize(end);
  Put(packed, packed.size(), static_cast<uint32_t>(bytes.size()));
  return packed;
}

// A bzImage with `payload` inside.
inline FileBytes BzImageWith(TestBzImage image, const FileBytes& payload) {
  HK_CHECK(payload.size() <= image.code_bytes - 0x1000);
  image.header.payload_offset = 0x1000;
  image.header.payload_length = static_cast<uint32_t>(payload.size());
  FileBytes file = image.Bytes();
  std::copy(payload.begin(), payload.end(),
            file.begin() + static_cast<ptrdiff_t>((image.setup_sectors + 1) * 512 + 0x1000));
  return file;
}

}  // namespace hk
