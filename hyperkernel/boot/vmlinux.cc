#include "hyperkernel/boot/vmlinux.h"

#include <elf.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "fmt/format.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/boot/address_map.h"

namespace hk {
namespace {

// Where virtual addresses of the kernel's image begin: __START_KERNEL_map, physical address 0.
constexpr uint64_t kStartKernelMap = 0xffffffff80000000;
constexpr uint64_t k4GiB = uint64_t{1} << 32;
constexpr size_t kMostSegments = 128;

absl::Status NotUnderstood(std::string_view what) {
  return absl::UnimplementedError(fmt::format("vmlinux: {}", what));
}

// REQUIRES: it is all there.
template <typename T>
T At(std::span<const std::byte> bytes, uint64_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

// Adds wrapping; only for bytes that were checked.
template <typename T>
void AddAt(std::span<std::byte> bytes, uint64_t offset, uint64_t delta) {
  const T value = static_cast<T>(At<T>(bytes, offset) + delta);
  std::memcpy(bytes.data() + offset, &value, sizeof(T));
}

bool Within(uint64_t offset, uint64_t size, uint64_t limit) {
  return offset <= limit && size <= limit - offset;
}

absl::StatusOr<Elf64_Ehdr> ReadHeader(std::span<const std::byte> bytes) {
  if (bytes.size() < sizeof(Elf64_Ehdr)) return NotUnderstood("cut short");
  const auto header = At<Elf64_Ehdr>(bytes, 0);
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_ident[EI_CLASS] != ELFCLASS64 ||
      header.e_ident[EI_DATA] != ELFDATA2LSB || header.e_machine != EM_X86_64 || header.e_type != ET_EXEC) {
    return NotUnderstood("not an ELF file for x86-64");
  }
  if (header.e_phentsize != sizeof(Elf64_Phdr) || header.e_phnum > kMostSegments ||
      !Within(header.e_phoff, header.e_phnum * sizeof(Elf64_Phdr), bytes.size())) {
    return NotUnderstood("program headers");
  }
  if (!Within(header.e_shoff, uint64_t{header.e_shnum} * header.e_shentsize, bytes.size())) {
    return NotUnderstood("section headers");
  }
  return header;
}

absl::StatusOr<std::vector<KernelSegment>> ReadSegments(std::span<const std::byte> bytes, const Elf64_Ehdr& header) {
  std::vector<KernelSegment> segments;
  for (size_t i = 0; i < header.e_phnum; i++) {
    const auto part = At<Elf64_Phdr>(bytes, header.e_phoff + i * sizeof(Elf64_Phdr));
    if (part.p_type != PT_LOAD || part.p_memsz == 0) continue;
    if (!Within(part.p_offset, part.p_filesz, bytes.size()) || part.p_filesz > part.p_memsz ||
        part.p_paddr < kKernelLoadAddress.value() || !Within(part.p_paddr, part.p_memsz, k4GiB)) {
      return NotUnderstood("a segment's place");
    }
    segments.push_back({part.p_offset, part.p_filesz, Gpa(part.p_paddr), part.p_memsz});
  }
  if (segments.empty()) return NotUnderstood("no segments");
  std::ranges::sort(segments, {}, &KernelSegment::start);
  for (size_t i = 1; i < segments.size(); i++) {
    if (segments[i - 1].end() > segments[i].start) return NotUnderstood("segments overlap");
  }
  return segments;
}

// Offset in the file of `bytes` bytes at a physical address; nothing if the file does not have them all.
std::optional<uint64_t> FileOffset(const std::vector<KernelSegment>& segments, uint64_t physical, uint64_t bytes) {
  for (const KernelSegment& segment : segments) {
    const uint64_t inside = physical - segment.start.value();
    if (physical >= segment.start.value() && Within(inside, bytes, segment.file_bytes)) {
      return segment.file_offset + inside;
    }
  }
  return std::nullopt;
}

// Turns a list of addresses into one of offsets.
absl::StatusOr<std::vector<uint32_t>> Places(const std::vector<KernelSegment>& segments,
                                             std::span<const std::byte> list, uint64_t width) {
  std::vector<uint32_t> places;
  places.reserve(list.size() / sizeof(uint32_t));
  for (uint64_t at = 0; at < list.size(); at += sizeof(uint32_t)) {
    const auto address = static_cast<uint64_t>(int64_t{At<int32_t>(list, at)});
    const std::optional<uint64_t> offset = FileOffset(segments, address - kStartKernelMap, width);
    if (!offset.has_value() || *offset > UINT32_MAX) return NotUnderstood("a relocation outside the kernel");
    places.push_back(static_cast<uint32_t>(*offset));
  }
  return places;
}

// 64 bit, 32 bit to subtract, 32 bit: arch/x86/boot/compressed/misc.c.
constexpr size_t kMostLists = 3;

absl::Status ReadRelocations(std::span<const std::byte> words, Vmlinux* vmlinux) {
  if (words.empty()) return absl::OkStatus();  // linked without
  if (words.size() % sizeof(uint32_t) != 0) return NotUnderstood("relocations");
  std::vector<std::span<const std::byte>> lists;
  uint64_t end = words.size();
  for (uint64_t at = words.size(); at >= sizeof(uint32_t); at -= sizeof(uint32_t)) {
    if (At<uint32_t>(words, at - sizeof(uint32_t)) != 0) continue;
    if (lists.size() == kMostLists) return NotUnderstood("relocations");
    lists.push_back(words.subspan(at, end - at));
    end = at - sizeof(uint32_t);
  }
  if (end != 0 || lists.size() < 2) return NotUnderstood("relocations");
  HK_ASSIGN_OR_RETURN(vmlinux->add32, Places(vmlinux->segments, lists.front(), sizeof(uint32_t)));
  HK_ASSIGN_OR_RETURN(vmlinux->add64, Places(vmlinux->segments, lists.back(), sizeof(uint64_t)));
  if (lists.size() == 3) {
    HK_ASSIGN_OR_RETURN(vmlinux->subtract32, Places(vmlinux->segments, lists[1], sizeof(uint32_t)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Vmlinux> ReadVmlinux(std::span<const std::byte> bytes) {
  HK_ASSIGN_OR_RETURN(const Elf64_Ehdr header, ReadHeader(bytes));
  Vmlinux vmlinux;
  HK_ASSIGN_OR_RETURN(vmlinux.segments, ReadSegments(bytes, header));
  if (!FileOffset(vmlinux.segments, header.e_entry, 1).has_value()) return NotUnderstood("the entry's place");
  vmlinux.entry = Gpa(header.e_entry);
  // The ELF file ends with its last part; its section headers tell, since the linker writes them last.
  uint64_t end = std::max(header.e_phoff + header.e_phnum * sizeof(Elf64_Phdr),
                          header.e_shoff + uint64_t{header.e_shnum} * header.e_shentsize);
  for (const KernelSegment& segment : vmlinux.segments) {
    end = std::max(end, segment.file_offset + segment.file_bytes);
  }
  HK_RETURN_IF_ERROR(ReadRelocations(bytes.subspan(end), &vmlinux));
  return vmlinux;
}

void Relocate(const Vmlinux& vmlinux, uint64_t delta, std::span<std::byte> bytes) {
  for (const uint32_t place : vmlinux.add64) AddAt<uint64_t>(bytes, place, delta);
  for (const uint32_t place : vmlinux.add32) AddAt<uint32_t>(bytes, place, delta);
  if (HK_MUTANT(relocation_forgets_subtraction)) return;
  for (const uint32_t place : vmlinux.subtract32) AddAt<uint32_t>(bytes, place, 0 - delta);
}

}  // namespace hk
