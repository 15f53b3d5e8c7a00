// Bytes that are read in pieces: kernel and initrd files, and what tests and fuzzers have in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/mapping.h"

namespace hk {

// A fixed number of bytes with a name for error messages. Thread-safe once made.
class ByteSource {
 public:
  virtual ~ByteSource() = default;

  // How people know it: the path of a file.
  const std::string& name() const { return name_; }
  // Bytes there are.
  uint64_t size() const { return size_; }
  // Fills `to` with the bytes from `offset` on. Errors, naming the source: kOutOfRange if they are not all there, errno
  // of the read; `to` is then undefined.
  absl::Status Read(uint64_t offset, std::span<std::byte> to) const;

 protected:
  ByteSource(std::string name, uint64_t size) : name_(std::move(name)), size_(size) {}

 private:
  // As Read(), within size().
  virtual absl::Status ReadWithin(uint64_t offset, std::span<std::byte> to) const = 0;

  std::string name_;
  uint64_t size_;
};

// A regular file, kept open: what its path is given to later does not matter. It must not be changed meanwhile; if it
// is cut short, reads fail. Errors: errno of open (kNotFound, kPermissionDenied, ...) with the path; kInvalidArgument
// if it is not a regular file or empty.
absl::StatusOr<std::unique_ptr<ByteSource>> OpenFileSource(const std::string& path);

// Bytes in memory.
std::unique_ptr<ByteSource> MakeMappingSource(std::string name, Mapping bytes);
std::unique_ptr<ByteSource> MakeMemorySource(std::string name, std::vector<std::byte> bytes);

}  // namespace hk
