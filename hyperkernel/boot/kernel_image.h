// Recognises a kernel file and finds out what loading it takes, without loading it. Input is hostile: every size and
// offset is checked against the file and against overflow before use.
//
// Two forms, brought to one description:
//  - bzImage, boot protocol 2.12 or later, with a 64-bit entry (Linux, Documentation/arch/x86/boot.rst);
//  - 64-bit ELF with the note XEN_ELFNOTE_PHYS32_ENTRY: PVH (Xen, docs/misc/pvh.pandoc): an uncompressed vmlinux.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/boot/byte_source.h"

namespace hk {

// A part of the file and where it goes. `memory_bytes` >= `file_bytes`; what is beyond the file's bytes is zero.
struct KernelSegment {
  uint64_t file_offset = 0;
  uint64_t file_bytes = 0;
  Gpa start;
  uint64_t memory_bytes = 0;

  constexpr Gpa end() const { return Gpa(start.value() + memory_bytes); }
};

// What the loader needs to know of a kernel file. Plain value.
struct KernelImage {
  enum class Format { kBzImage, kPvhElf };
  Format format = Format::kBzImage;
  // Sorted, without overlap, within the file, at or above 1 MiB and below 4 GiB.
  std::vector<KernelSegment> segments;
  // Where the first vCPU starts; inside the file's part of a segment.
  Gpa entry;
  // What the kernel takes before it has looked at the memory map ends here; <= 4 GiB.
  Gpa memory_end;
  // An initrd must end at or below this.
  Gpa initrd_end_limit;
  // Longest command line, without the terminating zero.
  uint64_t command_line_limit = 0;
  // bzImage: the file's setup header, from byte 0x1f1 to its end. At most kSetupHeaderLimit bytes.
  std::vector<std::byte> setup_header;
  // bzImage: the packed vmlinux inside it, within the file. `bytes` 0: none.
  struct Payload {
    uint64_t file_offset = 0;
    uint64_t bytes = 0;
  };
  Payload payload;
  // bzImage: where the vmlinux was linked to run, and what a move of it must be a multiple of.
  Gpa preferred_address;
  uint64_t alignment = 0;
};

// The setup header may grow up to the next field of struct boot_params (edd_mbr_sig_buffer, 0x290).
inline constexpr size_t kSetupHeaderStart = 0x1f1;
inline constexpr size_t kSetupHeaderLimit = 0x290 - kSetupHeaderStart;

// Linux' COMMAND_LINE_SIZE without the zero: PVH has no field for it, and a longer line would be cut silently.
inline constexpr uint64_t kPvhCommandLineLimit = 2047;

// Reads the headers of `file`. Errors, one line that begins with the source's name: kInvalidArgument if this is not a
// kernel that can be booted here (see README.md, failure table), or the error of a read.
absl::StatusOr<KernelImage> ReadKernelImage(const ByteSource& file);

}  // namespace hk
