// Where the fault engine (space_engine.h) puts pages that this node owns and has no frame for. The daemon's is a file
// in stable storage (space_swap.h); tests and the simulator have one in ordinary memory.
//
// Thread safety: any thread, also with the engine's locks held: no call waits for the disk. Calls for one page are
// serial, and at most one Write or Read of a page is under way.
#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "hyperkernel/base/types.h"

namespace hk {

// The bytes of a page on their way, aligned as disks want it.
struct SwapPage {
  alignas(kPageSize) std::array<std::byte, kPageSize> bytes;
};

// Pages of one space, by GFN. What is in it does not outlive the process.
class PageSwap {
 public:
  // How it ended: called once, later, by a thread of the swap without locks.
  using Done = std::function<void(const absl::Status&)>;

  virtual ~PageSwap() = default;

  // Writes a page that is not in the swap; nobody changes `page` until `done`. If that is an error the page is not in
  // the swap. kResourceExhausted: the swap or its disk is full.
  virtual void Write(Gfn gfn, std::shared_ptr<const SwapPage> page, Done done) = 0;
  // Reads a page that is in the swap; it stays there. kDataLoss: these are not the bytes that were written.
  virtual void Read(Gfn gfn, std::shared_ptr<SwapPage> page, Done done) = 0;
  // The page is in the swap no more. REQUIRES: it was, and nothing of it is under way.
  virtual void Forget(Gfn gfn) = 0;

  // Memory that is taken for what is in it.
  virtual size_t table_bytes() const { return 0; }
};

}  // namespace hk
