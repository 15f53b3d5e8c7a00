// Unpacks the vmlinux that a bzImage carries, with the libraries of the formats that Linux packs it in (its
// scripts/Makefile.lib): gzip, xz, lz4 (legacy frames) and zstd. Input is hostile: the output's size is bounded and
// every library works within it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "hyperkernel/base/mapping.h"

namespace hk {

// Debian's generic kernel is 63 MiB; a kernel that is larger starts by its own decompressor.
inline constexpr uint64_t kMostUnpackedBytes = uint64_t{256} << 20;

// A vmlinux in memory: `bytes`, which are zero but for `runs`. Movable.
struct UnpackedKernel {
  // A part that is not all zeros. Page-aligned but for the end of the last.
  struct Run {
    uint64_t offset = 0;
    uint64_t bytes = 0;
    bool operator==(const Run&) const = default;
  };
  Mapping bytes;
  std::vector<Run> runs;  // in order; between two there is a page at least

  std::span<std::byte> span() const { return {reinterpret_cast<std::byte*>(bytes.data()), bytes.size()}; }
};

// Zeroed memory for a kernel of `size` bytes. Errors: errno of mmap.
absl::StatusOr<Mapping> MapUnpackedKernel(uint64_t size);

// The payload of a bzImage (KernelImage::payload), unpacked. Errors: kUnimplemented if it is
// packed in a way not known here, or larger than kMostUnpackedBytes; kInvalidArgument if it is damaged, saying how;
// errno of mmap. Thread-safe.
absl::StatusOr<UnpackedKernel> UnpackKernel(std::span<const std::byte> payload);

}  // namespace hk
