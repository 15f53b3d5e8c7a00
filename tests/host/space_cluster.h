// Several nodes' ends of one guest-physical space in one process: each with a transport over TCP on this host, or over
// its verbs device, a frame store and a GuestSpace. For tests and benches.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/memory/frame_store.h"
#include "hyperkernel/memory/guest_space.h"
#include "hyperkernel/memory/space_router.h"
#include "rdma/transport.h"

namespace hk {

// A cluster whose nodes are 0, 1, 2 ... Everything that fails while it is made is a CHECK. The nodes' parts are used by
// any thread; Stop and the destructor by one.
class SpaceCluster {
 public:
  static constexpr std::chrono::seconds kHangGuard{60};

  // Plain value.
  struct Settings {
    size_t nodes = 2;
    uint64_t pages = 0;
    uint64_t max_pages = 0;  // of a node; 0: no bound
    uint64_t swap_pages = 0;
    std::chrono::microseconds hold{200};
    WaitMode wait = WaitMode::kBlocking;
    // Of a verbs device: over it instead of over TCP.
    std::string verbs_address{};
    // Node 0 coordinates: the loss of another one is the test's to deal with (SpaceEngine's epochs), and does not stop
    // it.
    bool survives = false;
  };
  explicit SpaceCluster(const Settings& settings);
  // REQUIRES: no program runs on the views.
  ~SpaceCluster();

  size_t size() const { return nodes_.size(); }
  GuestSpace& space(size_t node) { return *nodes_[node]->space; }
  std::byte* view(size_t node) { return nodes_[node]->space->view(); }
  Transport& transport(size_t node) { return *nodes_[node]->transport; }
  // The node leaves, as a daemon that ends. REQUIRES: no program runs on its view.
  void Stop(size_t node);
  // Why the node's space stopped, as its owner was told; waits for it. OK: not within the hang guard.
  absl::Status WaitStopped(size_t node);
  // Waits until the node knows that it has lost another one. REQUIRES: the settings say that it survives that.
  void WaitLost(size_t node);
  // How often its owner was told.
  int TimesStopped(size_t node);
  static Monotonic Soon() { return std::chrono::steady_clock::now() + kHangGuard; }

 private:
  // A node and what it is told.
  struct Node {
    std::optional<FrameStore> frames;
    std::optional<SwapStore> swap;
    std::unique_ptr<SpaceRouter> router;
    std::unique_ptr<Transport> transport;
    std::unique_ptr<GuestSpace> space;
    size_t peers_up = 0;
    int times_stopped = 0, times_lost = 0;
    absl::Status stopped;
  };

  Mutex mutex_;  // of what the nodes are told
  CondVar changed_;
  std::vector<std::unique_ptr<Node>> nodes_;
};

}  // namespace hk
