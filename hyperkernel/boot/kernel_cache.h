// Unpacked kernels kept on disk, so that a kernel is unpacked once and not at every start and reset. What is found is
// checked before it is used; what is damaged or missing is made anew. Losing the directory costs time, nothing else.
//
// A file's name is the SHA-256 of the packed bytes; a file is the unpacked bytes with holes between the runs, the
// table of the runs, and a trailer with the numbers of both and a hash over runs and table. Files appear by rename.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "hyperkernel/boot/byte_source.h"
#include "hyperkernel/boot/kernel_image.h"
#include "hyperkernel/boot/kernel_payload.h"

namespace hk {

// Thread-safe: several starts may ask for one kernel.
class KernelCache {
 public:
  // Kernels kept; the one not used for longest goes first. Enough for an old and a new one of two distributions.
  static constexpr size_t kMostKernels = 4;

  // `directory` is made when the first kernel is kept, and is this object's alone.
  explicit KernelCache(std::string directory) : directory_(std::move(directory)) {}

  // The unpacked payload of a bzImage, to be changed at will. Errors: as UnpackKernel() with the file's name, or of the
  // read. That it cannot be kept is a warning in the log.
  absl::StatusOr<UnpackedKernel> Get(const ByteSource& file, const KernelImage::Payload& payload) const;

 private:
  absl::StatusOr<UnpackedKernel> Find(const std::string& path) const;
  absl::Status Keep(const std::string& path, const UnpackedKernel& kernel) const;
  void DropOldest() const;

  const std::string directory_;
};

}  // namespace hk
