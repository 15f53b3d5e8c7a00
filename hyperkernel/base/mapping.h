// Memory mappings with an owner.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"

namespace hk {

// Owns one mmap() and unmaps it. Movable, not copyable; not thread-safe.
class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    if (this != &other) {
      Reset();
      data_ = std::exchange(other.data_, nullptr);
      size_ = std::exchange(other.size_, 0);
    }
    return *this;
  }
  ~Mapping() { Reset(); }

  // mmap() at an address of the kernel's choice, from offset 0. Errors: errno of mmap with `what`.
  static absl::StatusOr<Mapping> Create(size_t size, int protection, int flags, int fd, std::string_view what);

  // nullptr and 0 if nothing is owned.
  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  // Unmaps now.
  void Reset();

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace hk
