// A 64-bit ELF kernel with a PVH entry. Xen, docs/misc/pvh.pandoc and xen/include/public/elfnote.h; ELF-64 Object File
// Format; Linux, arch/x86/platform/pvh/head.S.
#include <elf.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "hyperkernel/base/status.h"
#include "hyperkernel/boot/address_map.h"
#include "hyperkernel/boot/kernel_formats.h"

namespace hk {
namespace {

constexpr uint64_t k4GiB = uint64_t{1} << 32;
constexpr uint32_t kXenNotePhys32Entry = 18;  // XEN_ELFNOTE_PHYS32_ENTRY
constexpr char kXenNoteName[] = "Xen";        // with its zero
constexpr uint16_t kMaxProgramHeaders = 128;  // Linux has 5
constexpr uint64_t kMaxNoteBytes = 64 << 10;  // Linux' notes take about 500

// True if [offset, offset + bytes) lies in the file.
bool Within(const ByteSource& file, uint64_t offset, uint64_t bytes) {
  return offset <= file.size() && bytes <= file.size() - offset;
}

absl::Status CheckElfHeader(const ByteSource& file, const Elf64_Ehdr& header) {
  if (header.e_ident[EI_CLASS] == ELFCLASS32) return RefuseKernel(file, "a 32-bit ELF file; 64-bit is needed");
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_ident[EI_DATA] != ELFDATA2LSB ||
      header.e_machine != EM_X86_64) {
    return RefuseKernel(file, "an ELF file for another machine; x86-64 is needed");
  }
  if (header.e_type != ET_EXEC) return RefuseKernel(file, "not a kernel (an ELF file that is no fixed executable)");
  if (header.e_phentsize != sizeof(Elf64_Phdr) || header.e_phnum == 0 || header.e_phnum > kMaxProgramHeaders) {
    return RefuseKernel(
        file, fmt::format("corrupt kernel ({} ELF program headers of {} bytes)", header.e_phnum, header.e_phentsize));
  }
  if (!Within(file, header.e_phoff, uint64_t{header.e_phnum} * sizeof(Elf64_Phdr))) {
    return RefuseKernel(file, "truncated kernel (ELF program headers)");
  }
  return absl::OkStatus();
}

// The PVH entry among the notes of one PT_NOTE segment, if it is there. A note: name size, descriptor size, type, then
// both, each padded to the alignment.
absl::StatusOr<std::optional<uint64_t>> FindEntry(const ByteSource& file, const Elf64_Phdr& segment) {
  if (!Within(file, segment.p_offset, segment.p_filesz)) return RefuseKernel(file, "truncated kernel (ELF notes)");
  if (segment.p_filesz > kMaxNoteBytes) return RefuseKernel(file, "corrupt kernel (ELF notes too long)");
  std::vector<std::byte> notes(segment.p_filesz);
  HK_RETURN_IF_ERROR(file.Read(segment.p_offset, notes));
  const uint64_t alignment = segment.p_align == 8 ? 8 : 4;
  auto padded = [alignment](uint64_t size) { return (size + alignment - 1) & ~(alignment - 1); };
  uint64_t at = 0;
  while (at + sizeof(Elf64_Nhdr) <= notes.size()) {
    Elf64_Nhdr note;
    std::memcpy(&note, &notes[at], sizeof(note));
    const uint64_t name = at + sizeof(note);
    const uint64_t descriptor = name + padded(note.n_namesz);  // 32-bit sizes: no overflow
    if (descriptor + note.n_descsz > notes.size()) return RefuseKernel(file, "corrupt kernel (ELF notes)");
    if (note.n_type == kXenNotePhys32Entry && note.n_namesz == sizeof(kXenNoteName) &&
        std::memcmp(&notes[name], kXenNoteName, sizeof(kXenNoteName)) == 0) {
      uint64_t entry = 0;  // 4 bytes by the definition; 64-bit Linux writes 8
      if (note.n_descsz != 4 && note.n_descsz != 8) return RefuseKernel(file, "corrupt kernel (PVH entry note)");
      std::memcpy(&entry, &notes[descriptor], note.n_descsz);
      return entry;
    }
    at = descriptor + padded(note.n_descsz);
  }
  return std::nullopt;
}

absl::StatusOr<KernelSegment> LoadSegment(const ByteSource& file, const Elf64_Phdr& header) {
  if (!Within(file, header.p_offset, header.p_filesz)) {
    return RefuseKernel(file, fmt::format("truncated kernel ({} bytes; a segment needs {:#x} from {:#x})", file.size(),
                                          header.p_filesz, header.p_offset));
  }
  if (header.p_filesz > header.p_memsz || header.p_paddr < kKernelLoadAddress.value() || header.p_paddr > k4GiB ||
      header.p_memsz > k4GiB - header.p_paddr) {
    return RefuseKernel(file, fmt::format("corrupt kernel (segment of {:#x} bytes at {:#x}, {:#x} in the file)",
                                          header.p_memsz, header.p_paddr, header.p_filesz));
  }
  return KernelSegment{.file_offset = header.p_offset,
                       .file_bytes = header.p_filesz,
                       .start = Gpa(header.p_paddr),
                       .memory_bytes = header.p_memsz};
}

absl::Status CheckSegments(const ByteSource& file, const KernelImage& image) {
  if (image.segments.empty()) return RefuseKernel(file, "corrupt kernel (no ELF segments to load)");
  bool entry_found = false;
  Gpa previous_end;
  for (const KernelSegment& segment : image.segments) {
    if (segment.start < previous_end) {
      return RefuseKernel(file, fmt::format("corrupt kernel (ELF segments overlap at {:#x})", segment.start.value()));
    }
    previous_end = segment.end();
    entry_found |= image.entry >= segment.start && image.entry.value() < segment.start.value() + segment.file_bytes;
  }
  if (!entry_found) {
    return RefuseKernel(file, fmt::format("corrupt kernel (PVH entry {:#x} is in no segment)", image.entry.value()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<KernelImage> ReadPvhElf(const ByteSource& file) {
  // A 32-bit header is shorter; its class is named before the length counts.
  HK_ASSIGN_OR_RETURN(const uint8_t elf_class, ReadStruct<uint8_t>(file, EI_CLASS));
  if (elf_class == ELFCLASS32) return RefuseKernel(file, "a 32-bit ELF file; 64-bit is needed");
  HK_ASSIGN_OR_RETURN(const Elf64_Ehdr header, ReadStruct<Elf64_Ehdr>(file, 0));
  HK_RETURN_IF_ERROR(CheckElfHeader(file, header));

  KernelImage image;
  image.format = KernelImage::Format::kPvhElf;
  std::optional<uint64_t> entry;
  for (uint16_t i = 0; i < header.e_phnum; ++i) {
    HK_ASSIGN_OR_RETURN(const Elf64_Phdr segment,
                        ReadStruct<Elf64_Phdr>(file, header.e_phoff + uint64_t{i} * sizeof(Elf64_Phdr)));
    if (segment.p_type == PT_NOTE && !entry.has_value()) {
      HK_ASSIGN_OR_RETURN(entry, FindEntry(file, segment));
    } else if (segment.p_type == PT_LOAD && segment.p_memsz > 0) {
      HK_ASSIGN_OR_RETURN(const KernelSegment loaded, LoadSegment(file, segment));
      image.segments.push_back(loaded);
    }
  }
  if (!entry.has_value()) return RefuseKernel(file, "an ELF file without a PVH entry (XEN_ELFNOTE_PHYS32_ENTRY)");
  image.entry = Gpa(*entry);
  std::ranges::sort(image.segments, {}, &KernelSegment::start);
  HK_RETURN_IF_ERROR(CheckSegments(file, image));
  image.memory_end = image.segments.back().end();
  image.initrd_end_limit = kMmioHoleStart;
  image.command_line_limit = kPvhCommandLineLimit;
  return image;
}

}  // namespace hk
