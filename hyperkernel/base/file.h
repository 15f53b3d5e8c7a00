// Small files, whole: configuration, identity, /proc. All functions are thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace hk {

// Reads a regular file of at most `limit` bytes. Errors: errno of the failing call with the path; kInvalidArgument if
// it is longer than the limit or a directory.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t limit);

// Replaces `path` by `content`, all or nothing, durable on return: temporary file in the same directory, fsync, rename,
// fsync of the directory. `mode` is the new file's mode. On failure the old file, if any, is untouched.
absl::Status ReplaceFile(const std::string& path, std::string_view content, unsigned mode);

// What the regular files of a directory take of its file system, bytes; those below it are not counted. Errors: errno
// with the path.
absl::StatusOr<uint64_t> BytesOfFiles(const std::string& directory);

// Makes the directory and its parents, mode 0755 for parents and `mode` for the last; an existing directory is fine.
absl::Status MakeDirectories(const std::string& path, unsigned mode);

}  // namespace hk
