// The thread that does a device's work, so that a vCPU's exit only rings a doorbell: an epoll loop with a wake-up, file
// descriptors and one timer.
//
// Thread-safe: Wake, Start and Stop. Everything else belongs to the loop's thread, and before Start to the caller's.
// Tests do without the thread and call RunOnce.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/fd.h"

namespace hk {

// One device's loop.
class WorkLoop {
 public:
  using Handler = std::function<void()>;
  static constexpr size_t kMaxWatches = 96;  // the network card of most queues: 16 taps and 33 doorbells

  // `name` is the thread's, at most 15 bytes are shown. Errors: errno of epoll or eventfd.
  static absl::StatusOr<std::unique_ptr<WorkLoop>> Create(std::string name);
  ~WorkLoop() { Stop(); }

  // Called after each Wake, once for any number of them. REQUIRES: not started.
  void SetWakeHandler(Handler handler) { on_wake_ = std::move(handler); }
  // Called while `fd` can be read, if the watch is armed (it is at first). Errors: errno of epoll; kResourceExhausted.
  absl::Status Watch(int fd, Handler handler);
  // Makes an eventfd that is the loop's own, and calls the handler soon after it was signalled, once for any number of
  // signals. Errors: errno of eventfd or epoll; kResourceExhausted. REQUIRES: not started.
  absl::StatusOr<int> AddEvent(Handler handler);
  // Stops or resumes the calls for a watched fd.
  void Arm(int fd, bool armed);
  // Call before the fd is closed.
  void Unwatch(int fd);
  // Calls the handler once, not before `when`. A later call replaces it; nullopt cancels.
  void SetTimer(std::optional<Monotonic> when, Handler handler = {});

  // Makes the wake handler run soon. Does not block.
  void Wake();

  // Errors: kFailedPrecondition if it runs already.
  absl::Status Start();
  // Ends and joins the thread, if there is one; handlers that run are finished. REQUIRES: not called by the loop's
  // thread.
  void Stop();

  // One wait of at most `timeout_ms` and the handlers that are due. REQUIRES: not started.
  void RunOnce(int timeout_ms);

 private:
  struct Watched {
    int fd = -1;
    bool armed = true;
    Handler handler;
  };
  absl::Status WatchFor(int fd, uint32_t events, Handler handler);
  explicit WorkLoop(std::string name) : name_(std::move(name)) {}
  void Run(int timeout_ms);
  int TimeoutMs(int limit_ms) const;

  const std::string name_;
  OwnedFd epoll_;
  OwnedFd event_;
  Handler on_wake_;
  std::array<Watched, kMaxWatches> watched_;
  std::vector<OwnedFd> events_;
  std::optional<Monotonic> timer_;
  Handler on_timer_;
  std::atomic<bool> woken_ = false;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

}  // namespace hk
