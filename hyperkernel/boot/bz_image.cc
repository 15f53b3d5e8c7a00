// Linux' bzImage. Field names are those of Documentation/arch/x86/boot.rst; "The Real-Mode Kernel Header" and "64-bit
// Boot Protocol".
#include <asm/bootparam.h>

#include <algorithm>
#include <bit>

#include "hyperkernel/base/status.h"
#include "hyperkernel/boot/address_map.h"
#include "hyperkernel/boot/kernel_formats.h"

namespace hk {
namespace {

constexpr uint64_t kSectorBytes = 512;
constexpr uint64_t kParagraphBytes = 16;      // unit of syssize
constexpr uint16_t kOldestProtocol = 0x020c;  // the first with xloadflags
constexpr uint32_t kSetupMagic = 0x53726448;  // "HdrS"
constexpr uint64_t kJumpTarget = 0x202;       // what the displacement at 0x201 counts from
constexpr uint64_t kLong64Entry = 0x200;      // from the load address
constexpr uint64_t kMaxAlignment = uint64_t{1} << 30;
constexpr uint64_t k4GiB = uint64_t{1} << 32;

static_assert(offsetof(boot_params, hdr) == kSetupHeaderStart);
static_assert(offsetof(setup_header, header) == 0x202 - kSetupHeaderStart);
static_assert(offsetof(setup_header, xloadflags) == 0x236 - kSetupHeaderStart);
static_assert(offsetof(setup_header, init_size) == 0x260 - kSetupHeaderStart);

// The part of the header that every protocol has: to the version. Kernels before 2.00 end earlier.
absl::Status CheckProtocol(const ByteSource& file, const setup_header& header) {
  if (header.header != kSetupMagic) return RefuseKernel(file, "not a kernel (a boot sector without 'HdrS')");
  if (header.version < kOldestProtocol) {
    return RefuseKernel(file, fmt::format("boot protocol {}.{:02} is too old (2.12 is needed, Linux 3.8)",
                                          header.version >> 8, header.version & 0xff));
  }
  if ((header.loadflags & LOADED_HIGH) == 0) return RefuseKernel(file, "a 16-bit kernel (zImage); 64-bit is needed");
  if ((header.xloadflags & XLF_KERNEL_64) == 0) {
    return RefuseKernel(file, "a 32-bit kernel (no 64-bit entry); 64-bit is needed");
  }
  return absl::OkStatus();
}

// Where the kernel runs after it has moved itself, at the most. The protocol says align_up(load address,
// kernel_alignment) for a relocatable kernel and pref_address else; Linux never runs below pref_address
// (arch/x86/boot/compressed/head_64.S), so the higher of the two is what must be free.
absl::StatusOr<uint64_t> RuntimeEnd(const ByteSource& file, const setup_header& header, uint64_t load) {
  const uint64_t alignment = header.kernel_alignment;
  if (!std::has_single_bit(alignment) || alignment > kMaxAlignment) {
    return RefuseKernel(file, fmt::format("corrupt kernel (kernel_alignment {:#x})", alignment));
  }
  uint64_t start = header.pref_address;
  if (header.relocatable_kernel != 0) start = std::max(start, (load + alignment - 1) & ~(alignment - 1));
  if (start > k4GiB || header.init_size > k4GiB - start) {
    return RefuseKernel(file, fmt::format("corrupt kernel (pref_address {:#x}, init_size {:#x})",
                                          uint64_t{header.pref_address}, uint32_t{header.init_size}));
  }
  return start + header.init_size;
}

}  // namespace

absl::StatusOr<KernelImage> ReadBzImage(const ByteSource& file) {
  // The header's length stands in the header: the displacement of the jump over it.
  HK_ASSIGN_OR_RETURN(const uint8_t displacement, ReadStruct<uint8_t>(file, kJumpTarget - 1));
  HK_ASSIGN_OR_RETURN(const setup_header header, ReadStruct<setup_header>(file, kSetupHeaderStart));
  HK_RETURN_IF_ERROR(CheckProtocol(file, header));
  const uint64_t header_end = kJumpTarget + displacement;
  const uint64_t needed_end = kSetupHeaderStart + offsetof(setup_header, handover_offset);
  if (header_end < needed_end || header_end > kSetupHeaderStart + kSetupHeaderLimit) {
    return RefuseKernel(file, fmt::format("corrupt kernel (setup header ends at {:#x})", header_end));
  }

  // "If setup_sects is 0, the real value is 4." One more: the boot sector.
  const uint64_t setup_bytes = (uint64_t{header.setup_sects == 0 ? uint8_t{4} : header.setup_sects} + 1) * kSectorBytes;
  const uint64_t code_bytes = header.syssize * kParagraphBytes;
  if (setup_bytes < header_end || code_bytes <= kLong64Entry) {
    return RefuseKernel(
        file, fmt::format("corrupt kernel (setup_sects {}, syssize {})", header.setup_sects, uint32_t{header.syssize}));
  }
  if (setup_bytes + code_bytes > file.size()) {
    return RefuseKernel(
        file, fmt::format("truncated kernel ({} bytes, {} are needed)", file.size(), setup_bytes + code_bytes));
  }
  if (uint64_t{header.payload_offset} + header.payload_length > code_bytes) {
    return RefuseKernel(file, fmt::format("corrupt kernel (payload at {:#x}, {:#x} bytes)",
                                          uint32_t{header.payload_offset}, uint32_t{header.payload_length}));
  }

  KernelImage image;
  image.format = KernelImage::Format::kBzImage;
  image.segments.push_back(
      {.file_offset = setup_bytes, .file_bytes = code_bytes, .start = kKernelLoadAddress, .memory_bytes = code_bytes});
  image.entry = Gpa(kKernelLoadAddress.value() + kLong64Entry);
  HK_ASSIGN_OR_RETURN(const uint64_t runtime_end, RuntimeEnd(file, header, kKernelLoadAddress.value()));
  const uint64_t loaded_end = kKernelLoadAddress.value() + code_bytes;
  if (loaded_end > k4GiB)
    return RefuseKernel(file, fmt::format("corrupt kernel (syssize {})", uint32_t{header.syssize}));
  image.memory_end = Gpa(std::max(runtime_end, loaded_end));
  image.initrd_end_limit = Gpa(uint64_t{header.initrd_addr_max} + 1);
  image.command_line_limit = header.cmdline_size;
  image.payload = {.file_offset = setup_bytes + header.payload_offset, .bytes = header.payload_length};
  image.preferred_address = Gpa(header.pref_address);
  image.alignment = header.kernel_alignment;
  image.setup_header.resize(header_end - kSetupHeaderStart);
  HK_RETURN_IF_ERROR(file.Read(kSetupHeaderStart, image.setup_header));
  return image;
}

}  // namespace hk
