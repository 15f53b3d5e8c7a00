// The two readers behind ReadKernelImage(). For kernel_image.cc only.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fmt/format.h"
#include "hyperkernel/boot/byte_source.h"
#include "hyperkernel/boot/kernel_image.h"

namespace hk {

// "NAME: REASON", kInvalidArgument.
inline absl::Status RefuseKernel(const ByteSource& file, std::string_view reason) {
  return absl::InvalidArgumentError(fmt::format("{}: {}", file.name(), reason));
}

// A T of the file's bytes at `offset`, little-endian as the host is.
template <typename T>
absl::StatusOr<T> ReadStruct(const ByteSource& file, uint64_t offset) {
  std::array<std::byte, sizeof(T)> bytes;
  if (offset > file.size() || sizeof(T) > file.size() - offset) return RefuseKernel(file, "truncated kernel");
  if (absl::Status status = file.Read(offset, bytes); !status.ok()) return status;
  T value;
  std::memcpy(&value, bytes.data(), sizeof(T));
  return value;
}

// REQUIRES: bytes 0x1fe and 0x1ff are 0x55 0xaa. Errors: as ReadKernelImage().
absl::StatusOr<KernelImage> ReadBzImage(const ByteSource& file);
// REQUIRES: the file begins with the ELF magic number. Errors: as ReadKernelImage().
absl::StatusOr<KernelImage> ReadPvhElf(const ByteSource& file);

}  // namespace hk
