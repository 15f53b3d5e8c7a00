// The daemon: everything a node runs, from settings to serving. Start and stop from one thread.
//
// Start order: locks and identity, frame store, data-plane address, transport, metrics, gRPC, hellos. What fails leaves
// nothing behind but directories. Stop order is the reverse, bounded by kStopDeadline.
#pragma once

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/node/config.h"

namespace hk {

// A running node.
class Daemon {
 public:
  // Serves when it returns. `clock` must outlive the daemon. Errors: one line naming the field or path.
  // `restart`: begins a restart that keeps guests, which then calls KeepGuests; called by a request. Errors: why it
  // cannot be. May be empty: the daemon cannot be asked.
  static absl::StatusOr<std::unique_ptr<Daemon>> Start(const NodeSettings& settings, const Clock& clock,
                                                       std::function<absl::Status()> restart = nullptr);
  // Stops serving; requests in flight get kStopDeadline to end.
  ~Daemon();
  // Stops serving, and leaves the machines that run to the next daemon (README.md, "Restarts that keep guests"). Only
  // the destructor may follow, or the process' end.
  void KeepGuests();

 private:
  struct Parts;
  explicit Daemon(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace hk
