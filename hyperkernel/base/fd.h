// File descriptors with an owner.
#pragma once

#include <utility>

namespace hk {

// Owns a file descriptor and closes it. Movable, not copyable; not thread-safe.
class OwnedFd {
 public:
  OwnedFd() = default;
  explicit OwnedFd(int fd) : fd_(fd) {}
  OwnedFd(OwnedFd&& other) noexcept : fd_(other.Release()) {}
  OwnedFd& operator=(OwnedFd&& other) noexcept {
    if (this != &other) {
      Reset();
      fd_ = other.Release();
    }
    return *this;
  }
  ~OwnedFd() { Reset(); }

  // -1 if nothing is owned.
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  // Gives ownership away.
  int Release() { return std::exchange(fd_, -1); }
  // Closes now.
  void Reset();

 private:
  int fd_ = -1;
};

}  // namespace hk
