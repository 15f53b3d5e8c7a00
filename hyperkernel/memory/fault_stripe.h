// The faults of one stripe of a guest view: a userfaultfd and the thread that reads it. A stripe has one of each
// because a userfaultfd has one wait-queue lock, and more readers on it make it worse.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/fd.h"

namespace hk {

// A part of a mapping, in bytes from the mapping's start.
struct ViewRange {
  uint64_t start = 0;
  uint64_t bytes = 0;
};

// Serves the faults of [address, address+bytes) until destroyed. The handler runs on the stripe's thread.
class FaultStripe {
 public:
  // Makes the page at `offset` (of the stripe, page-aligned) readable and writable, and may do so for pages around it.
  // Returns what is to be woken, which holds the page. An error means that it cannot be: the page is then made
  // inaccessible and its vCPU's KVM_RUN returns EFAULT.
  using Handler = std::function<absl::StatusOr<ViewRange>(FaultStripe* stripe, uint64_t offset)>;

  // Registers MISSING|WP and starts the thread. The mapping must outlive the stripe. Errors: errno, naming the call;
  // the operator's way out is in the message.
  static absl::StatusOr<std::unique_ptr<FaultStripe>> Start(uint8_t* address, uint64_t bytes, Handler handler);
  // Stops the thread. A thread blocked in a fault then goes on as if the memory were ordinary.
  ~FaultStripe();

  // For the handler: gives zero pages to the holes of `range`, mapped at once, so that neither KVM nor the guest faults
  // on them again one by one. Pages that are there stay. `range` is page-aligned. Errors: errno (ENOMEM also means that
  // the file system is full); pages before the failing one are filled.
  absl::Status FillHoles(ViewRange range);

 private:
  FaultStripe(uint8_t* address, uint64_t bytes, Handler handler)
      : address_(address), bytes_(bytes), handler_(std::move(handler)) {}
  void Run();
  void Serve(uint64_t fault_address);
  void MakeInaccessible(uint64_t offset);

  uint8_t* const address_;
  const uint64_t bytes_;
  const Handler handler_;
  OwnedFd faults_;
  OwnedFd stop_;  // eventfd
  std::thread thread_;
};

}  // namespace hk
