// The thread of one class over TCP: waits for its connections, reads from them, and runs what the engine has for the
// class. It sleeps in epoll; with the other wait modes it first looks at the connections that were lately in use, for
// as long as the class is in use and a CPU is left for those who answer.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/mutex.h"
#include "rdma/engine.h"
#include "rdma/tcp_acks.h"
#include "rdma/tcp_link.h"
#include "rdma/tcp_partings.h"
#include "rdma/thread_wake.h"

namespace hk {

// The thread of one class. Thread-safe but for Start and Stop.
class TcpLoop {
 public:
  // kBusy spins until the class was not used for so long: longer than any pause between the faults of a running guest.
  static constexpr std::chrono::milliseconds kBusyWindow{100};

  // `permits` outlives the loop.
  TcpLoop(MessageClass message_class, WaitMode wait, std::chrono::microseconds spin, SpinPermits* permits,
          TcpPartings* partings);
  ~TcpLoop();

  absl::Status Start(Engine* engine);
  void Stop();

  // The link is the engine's already (Attach).
  void Add(std::shared_ptr<TcpLink> link);
  void Wake() { wake_.Wake(); }
  // Of links: the socket takes no more; reading may go on; it was closed.
  void WantWrite(TcpLink* link);
  void Resume(std::shared_ptr<TcpLink> link);
  void Closed();
  // Breaks the connections whose other host has acknowledged nothing for `patience` though it should. Called again and
  // again, several times in that time.
  void BreakDead(Monotonic now, std::chrono::milliseconds patience);
  // Ends a connection such that the peer still gets what was sent, and `rest`.
  void Part(std::shared_ptr<ByteStream> stream, std::vector<std::byte> rest) {
    partings_->Take(std::move(stream), std::move(rest));
  }

 private:
  // What epoll knows of a link.
  struct Watch {
    std::shared_ptr<TcpLink> link;
    uint32_t events = 0;  // 0: not registered
    bool paused = false;
    bool lost = false;  // it is in lost_, or was
    AckWatch acks;
  };

  void Run();
  void Mail();
  // Waits until `due` at most; true if a message came.
  bool Poll(Monotonic due);
  // The timer wakes the thread at `due` at the latest. It stays set while the thread is woken by other things: setting
  // one anew before each wait costs a guest of a hypervisor two exits each time.
  void SetTimer(Monotonic due);
  bool SpinOnce();
  bool IsWatched(TcpLink* link);
  bool ReadLink(TcpLink* link);
  void Remove(TcpLink* link);
  void Lose(Watch* watch, absl::Status why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void UpdateWatch(Watch* watch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const MessageClass class_;
  const WaitMode wait_;
  const std::chrono::nanoseconds window_;
  SpinPermits* const permits_;
  TcpPartings* const partings_;
  Engine* engine_ = nullptr;
  OwnedFd epoll_;
  WakeFlag wake_;
  OwnedFd timer_;
  std::thread thread_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> reap_{false};
  // Raised before a link is shown to epoll, read after epoll has shown one: what made the link is seen by the thread
  // (the kernel orders the two, but no tool knows of it).
  std::atomic<uint64_t> shown_{0};

  Mutex mutex_;
  std::unordered_map<TcpLink*, Watch> watches_ ABSL_GUARDED_BY(mutex_);  // only the thread removes
  std::vector<std::shared_ptr<TcpLink>> resumed_ ABSL_GUARDED_BY(mutex_);
  // Links that cannot go on, and why: the thread breaks them, since no lock of theirs is held then.
  std::vector<std::pair<std::shared_ptr<TcpLink>, absl::Status>> lost_ ABSL_GUARDED_BY(mutex_);

  // The thread's own.
  std::vector<TcpLink*> more_;  // have more to read
  std::vector<TcpLink*> hot_;   // lately in use
  unsigned spins_ = 0;
  Monotonic timer_set_ = Monotonic::max();  // when it goes off; max: it is not set
};

}  // namespace hk
