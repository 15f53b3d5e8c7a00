#include "rdma/verbs_poller.h"

#include <poll.h>
#include <pthread.h>

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/service_thread.h"
#include "hyperkernel/base/status.h"

namespace hk {

namespace {

// Links polled in turn while spinning; with more of them in use at once polling them costs more than events.
constexpr size_t kHotLinks = 4;
// Spins between looks at the events of all others.
constexpr unsigned kSpinsPerLook = 16;

constexpr std::array<const char*, kMessageClasses> kThreadNames = {"hk-rdma-fault", "hk-rdma-inval", "hk-rdma-bulk"};

}  // namespace

VerbsPoller::VerbsPoller(MessageClass message_class, WaitMode wait, std::chrono::microseconds spin,
                         SpinPermits* permits, std::function<void(uint64_t key)> gone,
                         std::function<void(uint64_t key)> early)
    : class_(message_class),
      wait_(wait),
      window_(wait == WaitMode::kBusy ? std::chrono::nanoseconds(kBusyWindow) : std::chrono::nanoseconds(spin)),
      permits_(permits),
      gone_(std::move(gone)),
      early_(std::move(early)) {}

VerbsPoller::~VerbsPoller() {
  Stop();
}

absl::Status VerbsPoller::Start(Engine* engine) {
  engine_ = engine;
  HK_RETURN_IF_ERROR(wake_.Open());
  thread_ = std::thread([this] { Run(); });
  ::pthread_setname_np(thread_.native_handle(), kThreadNames[static_cast<size_t>(class_)]);
  return absl::OkStatus();
}

void VerbsPoller::Stop() {
  if (!thread_.joinable()) return;
  stop_ = true;
  wake_.Wake();
  thread_.join();
  watches_.clear();
  events_.reset();
}

void VerbsPoller::SetChannel(std::shared_ptr<ibv_comp_channel> channel) {
  {
    MutexLock lock(&mutex_);
    channel_ = std::move(channel);
  }
  wake_.Wake();
}

void VerbsPoller::Add(std::shared_ptr<VerbsLink> link) {
  {
    MutexLock lock(&mutex_);
    added_.push_back(std::move(link));
  }
  wake_.Wake();
}

void VerbsPoller::Resume(uint64_t key) {
  {
    MutexLock lock(&mutex_);
    resumed_.push_back(key);
  }
  wake_.Wake();
}

void VerbsPoller::PeerClosed(uint64_t key) {
  {
    MutexLock lock(&mutex_);
    peer_closed_.push_back(key);
  }
  wake_.Wake();
}

void VerbsPoller::Closed() {
  reap_.store(true);
  wake_.Wake();
}

VerbsPoller::Watch* VerbsPoller::Find(uint64_t key) {
  const auto found = watches_.find(key);
  return found == watches_.end() ? nullptr : &found->second;
}

void VerbsPoller::Remove(uint64_t key) {
  std::erase(more_, key);
  std::erase(hot_, key);
  watches_.erase(key);
  gone_(key);
}

Monotonic VerbsPoller::Reap() {
  const Monotonic now = std::chrono::steady_clock::now();
  Monotonic next = Monotonic::max();
  std::vector<uint64_t> done;
  for (auto& [key, watch] : watches_) {
    if (!watch.link->closed()) continue;
    if (!watch.farewell) watch.farewell = now + kFarewell;
    if (*watch.farewell <= now || watch.link->Farewell()) {
      watch.link->CutOff();
      done.push_back(key);
    } else {
      next = std::min(next, *watch.farewell);
    }
  }
  for (const uint64_t key : done) Remove(key);
  return next;
}

void VerbsPoller::Mail() {
  std::vector<std::shared_ptr<VerbsLink>> added;
  std::vector<uint64_t> resumed, peer_closed;
  {
    MutexLock lock(&mutex_);
    added.swap(added_);
    resumed.swap(resumed_);
    events_ = channel_;
    peer_closed.swap(peer_closed_);
  }
  for (std::shared_ptr<VerbsLink>& link : added) {
    const uint64_t key = link->key();
    if (link->closed()) reap_ = true;
    watches_[key].link = std::move(link);
    Serve(key);
  }
  for (const uint64_t key : resumed) {
    Watch* watch = Find(key);
    if (watch == nullptr) continue;
    watch->paused = false;
    Serve(key);
  }
  for (const uint64_t key : peer_closed) {
    Watch* watch = Find(key);
    if (watch == nullptr) continue;
    watch->link->PeerClosed();
    if (watch->link->closed()) reap_ = true;  // nobody is left to say farewell to
    Serve(key);
  }
  if (reap_.exchange(false)) farewell_due_ = Reap();
}

bool VerbsPoller::Serve(uint64_t key) {
  Watch* watch = Find(key);
  if (watch == nullptr || watch->paused) return false;
  bool progress = false;
  for (;;) {
    switch (watch->link->Poll(&progress)) {
      case VerbsLink::PollResult::kIdle: {
        // Nobody asks for an event while spinning: polling is cheaper.
        const bool hot = spinning_ && std::find(hot_.begin(), hot_.end(), key) != hot_.end();
        if (watch->armed || hot) break;
        watch->armed = watch->link->Arm();
        if (!watch->armed) {
          engine_->OnBroken(watch->link->ticket(), "ibv_req_notify_cq failed");
          break;
        }
        continue;  // what came before the queue was armed makes no event
      }
      case VerbsLink::PollResult::kMore:
        if (std::find(more_.begin(), more_.end(), key) == more_.end()) more_.push_back(key);
        break;
      case VerbsLink::PollResult::kPaused:
        watch->paused = true;
        break;
      case VerbsLink::PollResult::kClosed:
        // Close is on its way or done: it says so.
        break;
    }
    break;
  }
  if (progress && wait_ != WaitMode::kBlocking && std::find(hot_.begin(), hot_.end(), key) == hot_.end()) {
    if (hot_.size() == kHotLinks) {
      // It asks for events in the next turn; not here, where it might become hot again.
      const uint64_t cold = hot_.front();
      hot_.erase(hot_.begin());
      if (std::find(more_.begin(), more_.end(), cold) == more_.end()) more_.push_back(cold);
    }
    hot_.push_back(key);
  }
  return progress;
}

bool VerbsPoller::TakeEvent(ibv_comp_channel* channel) {
  ibv_cq* queue = nullptr;
  void* context = nullptr;
  if (ibv_get_cq_event(channel, &queue, &context) != 0) return false;
  const auto key = reinterpret_cast<uint64_t>(context);
  Watch* watch = Find(key);
  const bool receives = watch != nullptr && watch->link->IsReceiveQueue(queue);
  // After this the queue may be gone, if its link is.
  ibv_ack_cq_events(queue, 1);
  if (watch == nullptr) {
    early_(key);  // or of a link that is gone
    return false;
  }
  if (receives) {
    watch->armed = false;
    return Serve(key);
  }
  if (watch->link->closed()) {
    reap_ = true;
    wake_.Wake();
  } else {
    engine_->OnSendable(watch->link->ticket());
  }
  return false;
}

bool VerbsPoller::Wait(Monotonic due) {
  const std::vector<uint64_t> more = std::exchange(more_, {});
  // In the common case nothing is due, and no clock is read.
  const Monotonic now = due == Monotonic::max() ? Monotonic() : std::chrono::steady_clock::now();
  bool sleeps = more.empty() && due > now;
  if (sleeps && !wake_.Sleep()) sleeps = false;
  const auto left = sleeps && due != Monotonic::max() ? due - now : std::chrono::nanoseconds(0);
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(left);
  const timespec timeout{.tv_sec = seconds.count(), .tv_nsec = (left - seconds).count()};
  std::array<pollfd, 2> fds = {pollfd{.fd = wake_.fd(), .events = POLLIN, .revents = 0},
                               pollfd{.fd = events_ == nullptr ? -1 : events_->fd, .events = POLLIN, .revents = 0}};
  ::ppoll(fds.data(), fds.size(), sleeps && due == Monotonic::max() ? nullptr : &timeout, nullptr);
  if (sleeps) wake_.Awake();
  if ((fds[0].revents & POLLIN) != 0) wake_.Drain();
  bool progress = false;
  if (events_ != nullptr && fds[1].revents != 0) progress |= TakeEvent(events_.get());
  for (const uint64_t key : more) progress |= Serve(key);
  return progress;
}

bool VerbsPoller::SpinOnce() {
  if (hot_.empty() || !more_.empty() || ++spins_ % kSpinsPerLook == 0) return Wait(Monotonic::min());
  bool progress = false;
  // By index: serving may remove links.
  for (size_t i = hot_.size(); i-- > 0;) {
    if (i < hot_.size()) progress |= Serve(hot_[i]);
  }
  return progress;
}

void VerbsPoller::LeaveSpin() {
  spinning_ = false;
  permits_->Give();
  const std::vector<uint64_t> hot = std::exchange(hot_, {});
  for (const uint64_t key : hot) Serve(key);  // asks for events again
}

void VerbsPoller::Run() {
  if (wait_ != WaitMode::kBusy && class_ != MessageClass::kBulk) ServeFirst();
  Monotonic spin_until = Monotonic::min();
  for (;;) {
    // In this order: what wakes us after this is seen before the next sleep.
    const bool woken = wake_.Take();
    const bool stop = stop_.load();
    if (woken || stop) Mail();
    if (farewell_due_ != Monotonic::max() && farewell_due_ <= std::chrono::steady_clock::now()) farewell_due_ = Reap();
    if (stop && farewell_due_ == Monotonic::max()) break;
    const Monotonic due = std::min(engine_->RunClass(class_), farewell_due_);
    const bool progress = spinning_ ? SpinOnce() : Wait(due);
    if (wait_ == WaitMode::kBlocking) continue;
    const Monotonic now = std::chrono::steady_clock::now();
    if (progress) spin_until = now + window_;
    const bool wanted = now < spin_until;
    if (wanted && !spinning_) {
      spinning_ = permits_->Take();
    } else if (!wanted && spinning_) {
      LeaveSpin();
    }
  }
  if (spinning_) permits_->Give();
}

}  // namespace hk
