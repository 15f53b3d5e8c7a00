#include "hyperkernel/device/work_loop.h"

#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

constexpr uint64_t kEventToken = ~uint64_t{0};
constexpr int kIdleMs = 10'000;  // every wait has a deadline

}  // namespace

absl::StatusOr<std::unique_ptr<WorkLoop>> WorkLoop::Create(std::string name) {
  std::unique_ptr<WorkLoop> loop(new WorkLoop(std::move(name)));
  loop->epoll_ = OwnedFd(::epoll_create1(EPOLL_CLOEXEC));
  if (!loop->epoll_.valid()) return ErrnoStatus(errno, "epoll_create1");
  loop->event_ = OwnedFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!loop->event_.valid()) return ErrnoStatus(errno, "eventfd");
  epoll_event event{.events = EPOLLIN, .data = {.u64 = kEventToken}};
  if (::epoll_ctl(loop->epoll_.get(), EPOLL_CTL_ADD, loop->event_.get(), &event) != 0) {
    return ErrnoStatus(errno, "epoll_ctl");
  }
  return loop;
}

absl::Status WorkLoop::Watch(int fd, Handler handler) {
  return WatchFor(fd, EPOLLIN, std::move(handler));
}

// Edge-triggered: each signal is reported anew, and the counter need not be read, which would be a system call more.
absl::StatusOr<int> WorkLoop::AddEvent(Handler handler) {
  OwnedFd event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event.valid()) return ErrnoStatus(errno, "eventfd");
  HK_RETURN_IF_ERROR(WatchFor(event.get(), EPOLLIN | EPOLLET, std::move(handler)));
  events_.push_back(std::move(event));
  return events_.back().get();
}

absl::Status WorkLoop::WatchFor(int fd, uint32_t events, Handler handler) {
  const auto free = std::find_if(watched_.begin(), watched_.end(), [](const Watched& w) { return w.fd < 0; });
  if (free == watched_.end()) return absl::ResourceExhaustedError("too many watched descriptors");
  epoll_event event{.events = events, .data = {.u64 = static_cast<uint64_t>(free - watched_.begin())}};
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) return ErrnoStatus(errno, "epoll_ctl");
  *free = {.fd = fd, .armed = true, .handler = std::move(handler)};
  return absl::OkStatus();
}

void WorkLoop::Arm(int fd, bool armed) {
  for (size_t i = 0; i < watched_.size(); ++i) {
    if (watched_[i].fd != fd || watched_[i].armed == armed) continue;
    watched_[i].armed = armed;
    epoll_event event{.events = armed ? static_cast<uint32_t>(EPOLLIN) : 0u, .data = {.u64 = i}};
    HK_CHECK(::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) == 0);
  }
}

void WorkLoop::Unwatch(int fd) {
  for (Watched& watched : watched_) {
    if (watched.fd != fd) continue;
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
    watched = {};
  }
}

void WorkLoop::SetTimer(std::optional<Monotonic> when, Handler handler) {
  timer_ = when;
  on_timer_ = std::move(handler);
}

// The flag spares the system call while a wake-up is under way. It is cleared before the handler looks at what there
// is to do, and set after a caller has put something there, so nothing is missed.
void WorkLoop::Wake() {
  if (woken_.exchange(true)) return;
  const uint64_t one = 1;
  HK_CHECK(::write(event_.get(), &one, sizeof(one)) == sizeof(one));
}

int WorkLoop::TimeoutMs(int limit_ms) const {
  if (!timer_) return limit_ms;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(*timer_ - std::chrono::steady_clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, limit_ms));
}

void WorkLoop::Run(int timeout_ms) {
  std::array<epoll_event, kMaxWatches + 1> events;
  const int count = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), TimeoutMs(timeout_ms));
  HK_CHECK(count >= 0 || errno == EINTR);
  for (int i = 0; i < count; ++i) {
    if (events[i].data.u64 == kEventToken) {
      uint64_t value = 0;
      static_cast<void>(!::read(event_.get(), &value, sizeof(value)));
      woken_.store(false);
      if (on_wake_) on_wake_();
      continue;
    }
    // A handler that ran before may have unwatched this one.
    const Handler handler = watched_[events[i].data.u64].handler;
    if (handler) handler();
  }
  if (timer_ && std::chrono::steady_clock::now() >= *timer_) {
    const Handler handler = std::move(on_timer_);
    timer_.reset();
    if (handler) handler();
  }
}

void WorkLoop::RunOnce(int timeout_ms) {
  HK_CHECK(!thread_.joinable());
  Run(timeout_ms);
}

absl::Status WorkLoop::Start() {
  if (thread_.joinable()) return absl::FailedPreconditionError("the device's thread runs already");
  stop_.store(false);
  thread_ = std::thread([this] {
    ::pthread_setname_np(::pthread_self(), name_.substr(0, 15).c_str());
    // A doorbell must not take the CPU from the vCPU that rings it: it is about to ring again, and what comes in one
    // look at the ring costs one interrupt. Where a CPU is idle nothing changes. Failure costs speed only.
    const sched_param param = {};
    ::pthread_setschedparam(::pthread_self(), SCHED_BATCH, &param);
    while (!stop_.load()) Run(kIdleMs);
  });
  return absl::OkStatus();
}

void WorkLoop::Stop() {
  if (!thread_.joinable()) return;
  stop_.store(true);
  const uint64_t one = 1;
  HK_CHECK(::write(event_.get(), &one, sizeof(one)) == sizeof(one));
  thread_.join();
}

}  // namespace hk
