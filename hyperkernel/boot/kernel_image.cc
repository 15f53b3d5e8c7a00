#include "hyperkernel/boot/kernel_image.h"

#include <elf.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "hyperkernel/base/status.h"
#include "hyperkernel/boot/kernel_formats.h"

namespace hk {
namespace {

constexpr uint64_t kBootFlagOffset = 0x1fe;

}  // namespace

absl::StatusOr<KernelImage> ReadKernelImage(const ByteSource& file) {
  std::array<std::byte, kBootFlagOffset + 2> start = {};
  const size_t there = std::min<uint64_t>(start.size(), file.size());
  HK_RETURN_IF_ERROR(file.Read(0, std::span(start).first(there)));
  if (there >= SELFMAG && std::memcmp(start.data(), ELFMAG, SELFMAG) == 0) return ReadPvhElf(file);
  if (start[kBootFlagOffset] == std::byte{0x55} && start[kBootFlagOffset + 1] == std::byte{0xaa}) {
    return ReadBzImage(file);
  }
  return RefuseKernel(file, "not a kernel (neither bzImage nor ELF)");
}

}  // namespace hk
