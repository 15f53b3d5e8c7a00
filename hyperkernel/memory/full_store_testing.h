// For tests: a frame store without room.
#pragma once

#include <cstdio>
#include <string>

#include "hyperkernel/base/types.h"

namespace hk {

// Fills the file system that the directory is on with a file of its own. False: after 256 MiB there is room still, so
// it is no store of a test's own.
inline bool FillStore(const std::string& directory) {
  constexpr size_t kBlock = size_t{1} << 20, kMost = 256;
  FILE* file = std::fopen((directory + "/filler").c_str(), "w");
  if (file == nullptr) return false;
  const std::string block(kBlock, 'x');
  size_t written = 0;
  while (written < kMost && std::fwrite(block.data(), 1, block.size(), file) == block.size() &&
         std::fflush(file) == 0) {
    ++written;
  }
  std::fclose(file);
  return written < kMost;
}

}  // namespace hk
