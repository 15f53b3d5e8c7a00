// The seam between a guest's interrupt controllers and what carries their messages to other nodes.
#pragma once

#include <cstddef>
#include <span>

#include "hyperkernel/base/types.h"

namespace hk {

// The longest message: the transport's longest body.
inline constexpr size_t kMaxInterruptBytes = 256;

// Carries messages of one guest, of one generation of it, between the nodes that the guest runs on. What it must
// guarantee: each message arrives once at InterruptController::OnMessage of the node it was sent to, and those from one
// node to another in the order of their Sends; or the guest stops on all nodes.
class InterruptLink {
 public:
  virtual ~InterruptLink() = default;

  // Takes the message, in any case, and copies it. False: takes no more to that node until
  // InterruptController::OnWritable(to); so a link keeps at most one message for each node that its transport refused.
  // Called by any thread, with the controller's lock for other nodes held: must not block and not call the controller,
  // and a lock that it takes must not be held around a call of OnMessage or OnWritable.
  virtual bool Send(NodeId to, std::span<const std::byte> bytes) = 0;
};

}  // namespace hk
