#include "hyperkernel/base/mapping.h"

#include <sys/mman.h>

#include <cerrno>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/status.h"

namespace hk {

absl::StatusOr<Mapping> Mapping::Create(size_t size, int protection, int flags, int fd, std::string_view what) {
  void* data = mmap(nullptr, size, protection, flags, fd, 0);
  if (data == MAP_FAILED) return ErrnoStatus(errno, fmt::format("mmap of {}", what));
  Mapping mapping;
  mapping.data_ = static_cast<uint8_t*>(data);
  mapping.size_ = size;
  return mapping;
}

void Mapping::Reset() {
  if (data_ == nullptr) return;
  HK_CHECK(munmap(data_, size_) == 0);
  data_ = nullptr;
  size_ = 0;
}

}  // namespace hk
