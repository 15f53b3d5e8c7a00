// The thread of one class over verbs: sleeps until a completion queue of the class has something, polls it, up to a
// bound, and asks for the next event when it is empty. With the other wait modes it first goes on polling the links
// that were lately in use, for as long as the class is in use and a CPU is left for those who answer.
#pragma once

#include <infiniband/verbs.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "rdma/engine.h"
#include "rdma/thread_wake.h"
#include "rdma/verbs_link.h"

namespace hk {

// The thread of one class. Thread-safe but for Start and Stop.
class VerbsPoller {
 public:
  // kBusy spins until the class was not used for so long: longer than any pause between the faults of a running guest.
  static constexpr std::chrono::milliseconds kBusyWindow{100};
  // How long a closed link may take to get its last messages to the peer: some round trips; Stop may take as long.
  static constexpr std::chrono::milliseconds kFarewell{500};

  // `gone`: the poller has forgotten the link of this key; called on the thread, or in Stop. `early`: something was
  // received on a queue pair whose link was not added; on the thread. `permits` outlives it.
  VerbsPoller(MessageClass message_class, WaitMode wait, std::chrono::microseconds spin, SpinPermits* permits,
              std::function<void(uint64_t key)> gone, std::function<void(uint64_t key)> early);
  ~VerbsPoller();

  absl::Status Start(Engine* engine);
  // Waits for farewells.
  void Stop();

  // Where events come from; null while there is no device. The thread lets go of the one before soon.
  void SetChannel(std::shared_ptr<ibv_comp_channel> channel);
  // The link is the engine's already (Attach).
  void Add(std::shared_ptr<VerbsLink> link);
  void Wake() { wake_.Wake(); }
  // Of links: taking messages may go on; it was closed; the peer closed it.
  void Resume(uint64_t key);
  void Closed();
  void PeerClosed(uint64_t key);

 private:
  // What the poller knows of a link.
  struct Watch {
    std::shared_ptr<VerbsLink> link;
    bool paused = false;
    bool armed = false;
    std::optional<Monotonic> farewell;  // closed: until when it may take
  };

  void Run();
  void Mail();
  // Waits until `due` at most; true if a message came.
  bool Wait(Monotonic due);
  // One at a time: looking whether there is another costs as much as polling the channel again.
  bool TakeEvent(ibv_comp_channel* channel);
  bool SpinOnce();
  // Polls until nothing is left, or others shall have their turn; true if a message came.
  bool Serve(uint64_t key);
  void LeaveSpin();
  Watch* Find(uint64_t key);
  void Remove(uint64_t key);
  // When the next farewell ends.
  Monotonic Reap();

  const MessageClass class_;
  const WaitMode wait_;
  const std::chrono::nanoseconds window_;
  SpinPermits* const permits_;
  const std::function<void(uint64_t)> gone_, early_;
  Engine* engine_ = nullptr;
  WakeFlag wake_;
  std::thread thread_;
  std::atomic<bool> stop_{false};

  Mutex mutex_;
  std::shared_ptr<ibv_comp_channel> channel_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<VerbsLink>> added_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint64_t> resumed_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint64_t> peer_closed_ ABSL_GUARDED_BY(mutex_);
  std::atomic<bool> reap_{false};

  // The thread's own.
  std::shared_ptr<ibv_comp_channel> events_;  // channel_, as of the last Mail
  std::map<uint64_t, Watch> watches_;
  std::vector<uint64_t> more_;  // have more to take
  std::vector<uint64_t> hot_;   // lately in use
  bool spinning_ = false;
  Monotonic farewell_due_ = Monotonic::max();
  unsigned spins_ = 0;
};

}  // namespace hk
