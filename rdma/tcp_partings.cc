#include "rdma/tcp_partings.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "hyperkernel/base/mutant.h"
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
  // Its link may still have the socket, so leaving ours takes it from no epoll.
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, parting->second.stream->fd(), nullptr);
  partings_.erase(parting);
}

absl::Status TcpPartings::Open() {
  epoll_ = OwnedFd(::epoll_create1(EPOLL_CLOEXEC));
  return epoll_.valid() ? absl::OkStatus() : ErrnoStatus(errno, "epoll_create1");
}

void TcpPartings::Take(std::shared_ptr<ByteStream> stream, std::vector<std::byte> rest) {
  const int fd = stream->fd();
  if (HK_MUTANT(goodbye_of_a_full_socket_lost)) rest.clear();
  if (rest.empty()) ::shutdown(fd, SHUT_WR);
  {
    MutexLock lock(&mutex_);
    epoll_event event{.events = rest.empty() ? EPOLLIN : EPOLLIN | EPOLLOUT, .data = {.u64 = next_}};
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
      ::shutdown(fd, SHUT_WR);  // the peer may learn by its lease only
      return;
    }
    if (partings_.size() >= kMost) Close(partings_.begin());
    const Monotonic deadline = std::chrono::steady_clock::now() + kPatience;
    partings_.emplace(next_++, Parting{std::move(stream), std::move(rest), deadline});
  }
  wake_();
}

bool TcpPartings::Write(Parting* parting, uint64_t number) {
  const iovec part{.iov_base = parting->rest.data(), .iov_len = parting->rest.size()};
  const ssize_t written = parting->stream->Write({&part, 1});
  if (written < 0) return written == -EAGAIN;
  parting->rest.erase(parting->rest.begin(), parting->rest.begin() + written);
  if (!parting->rest.empty()) return true;
  const int fd = parting->stream->fd();
  ::shutdown(fd, SHUT_WR);
  epoll_event event{.events = EPOLLIN, .data = {.u64 = number}};
  return ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) == 0;
}

Monotonic TcpPartings::Serve(Monotonic now) {
  MutexLock lock(&mutex_);
  if (partings_.empty()) return Monotonic::max();
  std::array<epoll_event, kEvents> events;
  const int count = ::epoll_wait(epoll_.get(), events.data(), kEvents, 0);
  for (int i = 0; i < count; ++i) {
    const epoll_event& event = events[static_cast<size_t>(i)];
    const auto found = partings_.find(event.data.u64);
    if (found == partings_.end()) continue;
    Parting& parting = found->second;
    const bool writes = (event.events & EPOLLOUT) != 0 && !parting.rest.empty();
    const bool reads = (event.events & ~uint32_t{EPOLLOUT}) != 0;
    if ((writes && !Write(&parting, found->first)) || (reads && !Discard(parting.stream->fd()))) Close(found);
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
