#include "rdma/tcp_loop.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/service_thread.h"
#include "hyperkernel/base/status.h"

namespace hk {

namespace {

// Links read from in turn while spinning; with more of them in use at once polling them costs more than epoll.
constexpr size_t kHotLinks = 4;
// Spins between looks at all that epoll watches.
constexpr unsigned kSpinsPerPoll = 16;
constexpr int kEvents = 64;
// A timer at 0 would be no timer.
constexpr std::chrono::nanoseconds kSoonest(1);

constexpr std::array<const char*, kMessageClasses> kThreadNames = {"hk-tcp-fault", "hk-tcp-inval", "hk-tcp-bulk"};

// What epoll tells of the timer. Links are objects.
constexpr uintptr_t kTimerTag = 1;

}  // namespace

TcpLoop::TcpLoop(MessageClass message_class, WaitMode wait, std::chrono::microseconds spin, SpinPermits* permits,
                 TcpPartings* partings)
    : class_(message_class),
      wait_(wait),
      window_(wait == WaitMode::kBusy ? std::chrono::nanoseconds(kBusyWindow) : std::chrono::nanoseconds(spin)),
      permits_(permits),
      partings_(partings) {}

TcpLoop::~TcpLoop() {
  Stop();
}

absl::Status TcpLoop::Start(Engine* engine) {
  engine_ = engine;
  epoll_ = OwnedFd(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_.valid()) return ErrnoStatus(errno, "epoll_create1");
  HK_RETURN_IF_ERROR(wake_.Open());
  epoll_event event{.events = EPOLLIN, .data = {.ptr = nullptr}};
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.fd(), &event) != 0) return ErrnoStatus(errno, "epoll_ctl");
  timer_ = OwnedFd(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC));
  if (!timer_.valid()) return ErrnoStatus(errno, "timerfd_create");
  event.data.u64 = kTimerTag;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, timer_.get(), &event) != 0) return ErrnoStatus(errno, "epoll_ctl");
  thread_ = std::thread([this] { Run(); });
  ::pthread_setname_np(thread_.native_handle(), kThreadNames[static_cast<size_t>(class_)]);
  return absl::OkStatus();
}

void TcpLoop::Stop() {
  if (thread_.joinable()) {
    stop_ = true;
    wake_.Wake();
    thread_.join();
  }
  MutexLock lock(&mutex_);
  watches_.clear();
  resumed_.clear();
  lost_.clear();
}

void TcpLoop::UpdateWatch(Watch* watch) {
  uint32_t wanted = 0;
  if (!watch->paused) wanted |= uint32_t{EPOLLIN} | uint32_t{EPOLLRDHUP};
  if (watch->link->blocked()) wanted |= uint32_t{EPOLLOUT};
  // Edges: what was read until there was no more is not looked at again. A change of the mask tells of what is there.
  if (wanted != 0) wanted |= uint32_t{EPOLLET};
  if (wanted == watch->events) return;
  // Not watched at all while nothing is wanted: a hang-up would be reported without end.
  const int operation = watch->events == 0 ? EPOLL_CTL_ADD : wanted == 0 ? EPOLL_CTL_DEL : EPOLL_CTL_MOD;
  epoll_event event{.events = wanted, .data = {.ptr = watch->link.get()}};
  if (::epoll_ctl(epoll_.get(), operation, watch->link->fd(), &event) == 0) {
    watch->events = wanted;
    return;
  }
  // No memory, or no watches left (epoll_ctl(2)): that is this connection's end, not the node's.
  Lose(watch, ErrnoStatus(errno, "epoll_ctl"));
}

void TcpLoop::Lose(Watch* watch, absl::Status why) {
  if (std::exchange(watch->lost, true)) return;
  lost_.emplace_back(watch->link, std::move(why));
  wake_.Wake();
}

void TcpLoop::BreakDead(Monotonic now, std::chrono::milliseconds patience) {
  MutexLock lock(&mutex_);
  for (auto& [link, watch] : watches_) {
    const std::optional<AckState> state = AckStateOf(link->fd());
    if (!state || !watch.acks.IsDead(*state, now, patience)) continue;
    Lose(&watch, absl::UnavailableError(fmt::format("acknowledged nothing for {} ms", patience.count())));
  }
}

void TcpLoop::Add(std::shared_ptr<TcpLink> link) {
  MutexLock lock(&mutex_);
  TcpLink* key = link.get();
  Watch& watch = watches_[key];
  watch.link = std::move(link);
  shown_.fetch_add(1, std::memory_order_release);
  UpdateWatch(&watch);
  // Closed between Attach and here: nobody else will say so.
  if (key->closed()) Closed();
}

void TcpLoop::WantWrite(TcpLink* link) {
  MutexLock lock(&mutex_);
  const auto found = watches_.find(link);
  if (found != watches_.end()) UpdateWatch(&found->second);
}

void TcpLoop::Resume(std::shared_ptr<TcpLink> link) {
  {
    MutexLock lock(&mutex_);
    resumed_.push_back(std::move(link));
  }
  wake_.Wake();
}

void TcpLoop::Closed() {
  reap_.store(true);
  wake_.Wake();
}

void TcpLoop::Remove(TcpLink* link) {
  std::erase(more_, link);
  std::erase(hot_, link);
  Watch watch;
  {
    MutexLock lock(&mutex_);
    const auto found = watches_.find(link);
    if (found == watches_.end()) return;
    watch = std::move(found->second);
    watches_.erase(found);
    if (watch.events != 0) ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, link->fd(), nullptr);
  }
}

void TcpLoop::Mail() {
  std::vector<std::pair<std::shared_ptr<TcpLink>, absl::Status>> lost;
  {
    MutexLock lock(&mutex_);
    lost.swap(lost_);
  }
  for (const auto& [link, status] : lost) engine_->OnBroken(link->ticket(), MessageOf(status));
  if (reap_.exchange(false)) {
    std::vector<TcpLink*> closed;
    {
      MutexLock lock(&mutex_);
      for (const auto& [link, watch] : watches_) {
        if (link->closed()) closed.push_back(link);
      }
    }
    for (TcpLink* link : closed) Remove(link);
  }
  std::vector<std::shared_ptr<TcpLink>> resumed;
  {
    MutexLock lock(&mutex_);
    resumed.swap(resumed_);
    for (const std::shared_ptr<TcpLink>& link : resumed) {
      const auto found = watches_.find(link.get());
      if (found == watches_.end()) continue;
      found->second.paused = false;
      UpdateWatch(&found->second);
    }
  }
  // What was held is in the link, where epoll does not see it.
  for (const std::shared_ptr<TcpLink>& link : resumed) {
    if (IsWatched(link.get())) ReadLink(link.get());
  }
}

bool TcpLoop::IsWatched(TcpLink* link) {
  MutexLock lock(&mutex_);
  return watches_.contains(link);
}

bool TcpLoop::ReadLink(TcpLink* link) {
  bool progress = false;
  const TcpLink::ReadResult result = link->Read(&progress);
  switch (result) {
    case TcpLink::ReadResult::kIdle:
      break;
    case TcpLink::ReadResult::kMore:
      // Once: an event and its place in the last turn may both have led here.
      if (std::find(more_.begin(), more_.end(), link) == more_.end()) more_.push_back(link);
      break;
    case TcpLink::ReadResult::kPaused: {
      MutexLock lock(&mutex_);
      Watch& watch = watches_.at(link);
      watch.paused = true;
      UpdateWatch(&watch);
      break;
    }
    case TcpLink::ReadResult::kClosed:
      Remove(link);
      return progress;
  }
  if (progress && wait_ != WaitMode::kBlocking && std::find(hot_.begin(), hot_.end(), link) == hot_.end()) {
    if (hot_.size() == kHotLinks) hot_.erase(hot_.begin());
    hot_.push_back(link);
  }
  return progress;
}

void TcpLoop::SetTimer(Monotonic due) {
  if (due == Monotonic::max() || timer_set_ <= due) return;
  const std::chrono::nanoseconds at = std::max<std::chrono::nanoseconds>(due.time_since_epoch(), kSoonest);
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(at);
  const itimerspec when{.it_interval = {}, .it_value = {.tv_sec = seconds.count(), .tv_nsec = (at - seconds).count()}};
  HK_CHECK(::timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &when, nullptr) == 0);
  timer_set_ = due;
}

bool TcpLoop::Poll(Monotonic due) {
  std::array<epoll_event, kEvents> events;
  const std::vector<TcpLink*> more = std::exchange(more_, {});
  const bool sleeps = more.empty() && due != Monotonic::min() && wake_.Sleep();
  if (sleeps) SetTimer(due);
  const int count = ::epoll_wait(epoll_.get(), events.data(), kEvents, sleeps ? -1 : 0);
  if (sleeps) wake_.Awake();
  if (count > 0) static_cast<void>(shown_.load(std::memory_order_acquire));
  bool progress = false;
  for (int i = 0; i < count; ++i) {
    const epoll_event& event = events[static_cast<size_t>(i)];
    if (event.data.u64 == kTimerTag) {
      uint64_t times = 0;
      static_cast<void>(::read(timer_.get(), &times, sizeof times));
      timer_set_ = Monotonic::max();
      continue;
    }
    auto* link = static_cast<TcpLink*>(event.data.ptr);
    if (link == nullptr) {
      uint64_t times = 0;
      static_cast<void>(::read(wake_.fd(), &times, sizeof times));
      continue;
    }
    if ((event.events & EPOLLOUT) != 0) {
      engine_->OnSendable(link->ticket());
      WantWrite(link);
    }
    if ((event.events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0) link->SetEnded();
    if ((event.events & ~uint32_t{EPOLLOUT}) != 0) progress |= ReadLink(link);
  }
  for (TcpLink* link : more) {
    if (IsWatched(link)) progress |= ReadLink(link);  // an event before this may have removed it
  }
  return progress;
}

bool TcpLoop::SpinOnce() {
  if (hot_.empty() || !more_.empty() || ++spins_ % kSpinsPerPoll == 0) return Poll(Monotonic::min());
  bool progress = false;
  // By index: reading may remove links.
  for (size_t i = hot_.size(); i-- > 0;) {
    if (i < hot_.size()) progress |= ReadLink(hot_[i]);
  }
  return progress;
}

void TcpLoop::Run() {
  if (wait_ != WaitMode::kBusy && class_ != MessageClass::kBulk) ServeFirst();
  bool permit = false;
  Monotonic spin_until = Monotonic::min();
  for (;;) {
    // In this order: what wakes us after this is seen before the next sleep, Stop too.
    const bool woken = wake_.Take();
    if (stop_.load()) break;
    if (woken) Mail();
    const Monotonic due = engine_->RunClass(class_);
    bool progress = false;
    if (permit) {
      progress = SpinOnce();
    } else {
      progress = Poll(due);
    }
    if (wait_ == WaitMode::kBlocking) continue;
    const Monotonic now = std::chrono::steady_clock::now();
    if (progress) spin_until = now + window_;
    const bool wanted = now < spin_until;
    if (wanted && !permit) {
      permit = permits_->Take();
    } else if (!wanted && permit) {
      permits_->Give();
      permit = false;
      hot_.clear();
    }
  }
  if (permit) permits_->Give();
}

}  // namespace hk
