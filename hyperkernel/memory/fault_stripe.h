// The faults of one stripe of a guest view: a userfaultfd and the thread that reads it. A stripe has one of each
// because a userfaultfd has one wait-queue lock, and more readers on it make it worse.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/fd.h"

namespace hk {

// Address space of one stripe of a view, at most.
inline constexpr uint64_t kStripeBytes = uint64_t{1} << 30;

// A part of a mapping, in bytes from the mapping's start.
struct ViewRange {
  uint64_t start = 0;
  uint64_t bytes = 0;
};

// Somebody touched a page that is not there, or wrote to a write-protected one, and waits for a Wake. Plain value.
struct ViewFault {
  uint64_t offset = 0;  // of the page, in the stripe
  bool write = false;
  bool here = false;    // the page, write-protected
  uint32_t thread = 0;  // that waits, as gettid() has it there; 0: not known
};

// Serves the faults of [address, address+bytes) until destroyed. The handler runs on the stripe's thread; every other
// method may be called from any thread, also inside the handler, but where it says otherwise. Offsets are the stripe's,
// multiples of kPageSize.
class FaultStripe {
 public:
  // Sees to it that the page gets accessible, or inaccessible, and woken: inside the call or later, from any thread.
  using Handler = std::function<void(FaultStripe* stripe, ViewFault fault)>;

  // Registers MISSING|WP and starts the thread. The mapping must outlive the stripe. Errors: errno, naming the call;
  // the operator's way out is in the message.
  static absl::StatusOr<std::unique_ptr<FaultStripe>> Start(uint8_t* address, uint64_t bytes, Handler handler);
  // Stops the thread. A thread blocked in a fault then goes on as if the memory were ordinary.
  ~FaultStripe();
  // No handler is under way or comes any more; who faults waits until woken. Not inside the handler; once.
  void StopFaults();

  // Gives zero pages to the holes of `range`, mapped at once, so that neither KVM nor the guest faults on them again
  // one by one. Pages that are there stay. Errors: errno (ENOMEM also means that the file system is full); pages before
  // the failing one are filled.
  absl::Status FillHoles(ViewRange range);
  // Fills holes with `bytes`, whole pages. With `wake` who waits for it tries again. kAlreadyExists: there is a page.
  // kResourceExhausted: no memory, or the file system is full.
  absl::Status Install(uint64_t offset, std::span<const std::byte> bytes, bool write_protected, bool wake = false);
  // After it returned with `on`, nobody writes to the pages through this view. `wake`: only without `on`.
  absl::Status WriteProtect(ViewRange range, bool on, bool wake = false);
  // Nothing is there any more; whoever touches it gets SIGSEGV, or EFAULT in the kernel and from KVM_RUN. Not undone.
  void MakeInaccessible(ViewRange range);
  // Who waits for a page of the range tries again.
  void Wake(ViewRange range);

 private:
  FaultStripe(uint8_t* address, uint64_t bytes, Handler handler)
      : address_(address), bytes_(bytes), handler_(std::move(handler)) {}
  void Run();

  uint8_t* const address_;
  const uint64_t bytes_;
  const Handler handler_;
  OwnedFd faults_;
  OwnedFd stop_;  // eventfd
  std::thread thread_;
};

}  // namespace hk
