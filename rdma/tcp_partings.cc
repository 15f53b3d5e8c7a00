#include "rdma/tcp_partings.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "hyperkernel/base/status.h"

namespace hk {

namespace {

constexpr int kEvents = 16;
// What is read of a connection before others get their turn: who ends another one waits for that long at most.
constexpr size_t kDiscardBytes = 64 << 10;

// False: the connection is over.
bool Discard(int fd) {
  // Not thread_local: every thread of the program would carry it, those of libraries with small stacks too.
  std::array<std::byte, kDiscardBytes> nowhere;
  const ssize_t read = ::recv(fd, nowhere.data(), nowhere.size(), MSG_DONTWAIT);
  return read > 0 || (read < 0 && (errno == EAGAIN || errno == EINTR));
}

}  // namespace

void TcpPartings::Close(std::map<uint64_t, Parting>::iterator parting) {
  // Its link may still have a descriptor of the same socket, so closing ours takes it from no epoll.
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, parting->second.fd.get(), nullptr);
  partings_.erase(parting);
}

absl::Status TcpPartings::Open() {
  epoll_ = OwnedFd(::epoll_create1(EPOLL_CLOEXEC));
  return epoll_.valid() ? absl::OkStatus() : ErrnoStatus(errno, "epoll_create1");
}

void TcpPartings::Take(int fd) {
  OwnedFd own(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  ::shutdown(fd, own.valid() ? SHUT_WR : SHUT_RDWR);
  if (!own.valid()) return;  // no descriptors left: the peer may learn by its lease only
  {
    MutexLock lock(&mutex_);
    epoll_event event{.events = EPOLLIN, .data = {.u64 = next_}};
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, own.get(), &event) != 0) return;
    if (partings_.size() >= kMost) Close(partings_.begin());
    partings_.emplace(next_++, Parting{std::move(own), std::chrono::steady_clock::now() + kPatience});
  }
  wake_();
}

Monotonic TcpPartings::Serve(Monotonic now) {
  MutexLock lock(&mutex_);
  if (partings_.empty()) return Monotonic::max();
  std::array<epoll_event, kEvents> events;
  const int count = ::epoll_wait(epoll_.get(), events.data(), kEvents, 0);
  for (int i = 0; i < count; ++i) {
    const auto found = partings_.find(events[static_cast<size_t>(i)].data.u64);
    if (found != partings_.end() && !Discard(found->second.fd.get())) Close(found);
  }
  while (!partings_.empty() && partings_.begin()->second.deadline <= now) Close(partings_.begin());
  return partings_.empty() ? Monotonic::max() : partings_.begin()->second.deadline;
}

void TcpPartings::Finish() {
  for (;;) {
    const Monotonic now = std::chrono::steady_clock::now();
    const Monotonic due = Serve(now);
    if (due == Monotonic::max()) return;
    epoll_event event;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(due - now);
    static_cast<void>(::epoll_wait(epoll_.get(), &event, 1, static_cast<int>(left.count())));
  }
}

}  // namespace hk
