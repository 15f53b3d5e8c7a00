// For unit tests of what manages spaces: one node's part of a space, without frames, peers or faults.
#pragma once

#include <atomic>
#include <cstring>
#include <functional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/memory/guest_space.h"

namespace hk {

// Changes epochs as it is told, stops, and does nothing else. Thread-safe.
class FakeEngine final : public SpaceEngine {
 public:
  explicit FakeEngine(std::function<void(const absl::Status&)> stopped) : stopped_(std::move(stopped)) {}
  void OnFault(Gfn, bool, uint32_t) override {}
  void Want(Gfn, PageAccess, Granted) override {}
  void Pin(Gfn, uint64_t, Granted) override {}
  void Unpin(Gfn, uint64_t) override {}
  void Replace(Gfn, std::span<const std::byte>, Granted) override {}
  void OnMessage(NodeId, const Message&, std::span<const std::byte>, bool) override {}
  void OnWritable(NodeId, MessageClass) override {}
  void OnSlotsFree(MessageClass, SlotUse) override {}
  void OnRequestExpired(NodeId, MessageClass, uint64_t, SlotId, RequestFailure) override {}
  void OnPeerFailed(NodeId, PeerFailure, const std::string&) override {}
  void Stop(const absl::Status& why) override {
    MutexLock lock(&mutex_);
    if (!state_.ok()) return;
    state_ = why;
    stopped_(why);
    changed_.SignalAll();
  }
  SpaceStatistics Statistics() const override { return {.read_faults = 3}; }
  std::vector<ExtentUse> Uses(uint64_t, size_t) const override { return {{.extent = 0, .shared = 1}}; }
  std::vector<HotPage> MostLost(size_t) const override { return {{.page = Gfn(5), .losses = 7, .taker = NodeId(2)}}; }
  SpaceResidue Residue() const override { return {}; }
  PageRight RightOf(Gfn) const override { return PageRight::kNone; }
  NodeId HomeOf(Gfn) const override { return NodeId(1); }
  absl::Status BeginEpoch(const SpaceEpoch&) override { return absl::OkStatus(); }
  void Rebuild(Epoch, std::function<void(const absl::Status&)> done) override { done(absl::OkStatus()); }
  absl::Status Commit(Epoch) override { return absl::OkStatus(); }
  absl::Status Run(Epoch) override { return absl::OkStatus(); }

  absl::Status state() const {
    MutexLock lock(&mutex_);
    return state_;
  }
  // What waits for a page that never comes ends so.
  absl::Status WaitForStop(Monotonic deadline) {
    MutexLock lock(&mutex_);
    while (state_.ok()) {
      if (!changed_.WaitUntil(&mutex_, deadline)) return absl::DeadlineExceededError("page 0x1");
    }
    return state_;
  }

 private:
  const std::function<void(const absl::Status&)> stopped_;
  mutable Mutex mutex_;
  CondVar changed_;
  absl::Status state_ ABSL_GUARDED_BY(mutex_);
};

// What the tests see of the memory of one node.
struct FakeHost {
  absl::Status attach;                  // what the next Attach ends with
  std::function<void()> before_attach;  // runs inside it
  std::atomic<bool> stuck{false};       // reads do not end, not even by a stop
  std::atomic<bool> hang{false};        // reads wait for a page that never comes
  std::atomic<int> readers{0};          // that do
  std::atomic<FakeEngine*> last{nullptr};
  std::atomic<int> spaces{0};
};

// Bytes of this node alone, which one thread uses at a time.
class FakeSpace final : public GuestSpace {
 public:
  // `host` must outlive it.
  FakeSpace(Options options, FakeHost* host)
      : options_(std::move(options)), host_(host), engine_(options_.stopped), memory_(bytes(), '\0') {
    host_->last = &engine_;
    host_->spaces++;
  }
  ~FakeSpace() override { host_->spaces--; }
  uint64_t bytes() const override { return options_.config.pages * kPageSize; }
  uint64_t most_pinned_bytes() const override { return MostPinnedPages(options_.config.max_pages) * kPageSize; }
  std::byte* view() override { return nullptr; }
  absl::Status Read(Gpa from, std::span<std::byte> to, Monotonic deadline) override {
    if (host_->stuck) {
      host_->readers++;
      while (host_->stuck) std::this_thread::yield();
      host_->readers--;
      return absl::CancelledError("late");
    }
    if (host_->hang) {
      host_->readers++;
      const absl::Status status = engine_.WaitForStop(deadline);
      host_->readers--;
      return status;
    }
    std::memcpy(to.data(), memory_.data() + from.value(), to.size());
    return absl::OkStatus();
  }
  absl::Status Write(Gpa to, std::span<const std::byte> from, Monotonic) override {
    std::memcpy(memory_.data() + to.value(), from.data(), from.size());
    return absl::OkStatus();
  }
  absl::Status state() const override { return engine_.state(); }
  SpaceStatistics Statistics() const override { return engine_.Statistics(); }
  std::vector<ExtentUse> Uses(uint64_t first, size_t most) const override { return engine_.Uses(first, most); }
  uint64_t frame_bytes() const override { return kPageSize; }
  SpaceEngine& engine() override { return engine_; }

 private:
  const Options options_;
  FakeHost* const host_;
  FakeEngine engine_;
  std::string memory_;
};

}  // namespace hk
