// The parts that this node has of machines of other nodes. Thread-safe.
//
// Invariants:
//  1. A part does what its machine's I/O node says, and no other node.
//  2. One thing at a time is done with a part. A part that cannot go on is destroyed by a thread of the manager's,
//     beside others that end at the same time (those of one lost node do); who asks for it later hears why.
//  3. No lock is held while a part is made, runs an order, or ends.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/node/machine_part.h"
#include "proto/machine.pb.h"

namespace hk {

// Machines whose vCPUs a node has beside its own: as many as spaces.
inline constexpr size_t kMaxMachineParts = 128;

// So many of them end at a time. One may take 4 s, as long as a vCPU that waits for a page does not stop: all of them
// together half a minute, and the daemon's end no more.
inline constexpr size_t kPartsEndingAtOnce = 16;

// All of one node.
class MachineParts {
 public:
  // Makes a part of a request; `ended` as MachinePart has it.
  using Factory = std::function<absl::StatusOr<std::unique_ptr<MachinePart>>(
      const v1::AttachMachineRequest& request, std::function<void(const std::string&)> ended)>;

  // `clock`, and what the factory uses, outlive it.
  MachineParts(Factory factory, const Clock& clock);
  // Ends all, several at a time. REQUIRES: no call is under way or comes.
  ~MachineParts();

  // For I/O nodes. Errors: for people. kAlreadyExists, kResourceExhausted, and what the factory says; kNotFound,
  // kPermissionDenied; kFailedPrecondition, of a part that has ended, with the reason.
  absl::StatusOr<v1::AttachMachineResponse> Attach(const v1::AttachMachineRequest& request);
  absl::StatusOr<v1::OrderMachineResponse> Order(const v1::OrderMachineRequest& request);
  // Also: a part that is busy for too long refuses.
  absl::StatusOr<v1::MoveMachineVcpuResponse> Move(const v1::MoveMachineVcpuRequest& request);

  // Ends all parts, and makes no more.
  void StopAll();

 private:
  struct Entry {
    std::string from, name;
    bool busy = true;  // being made, or something is being done with it
    bool being_made = true;
    bool running = false;
    uint64_t last_order = 0;
    std::string ended;  // why it cannot go on
    std::unique_ptr<MachinePart> part;
  };

  // Waits until nobody else does anything with it, and takes it. `end`: to end it. Errors: as Order; kDeadlineExceeded.
  absl::StatusOr<Entry*> Take(uint64_t id, const std::string& from, bool end) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Why a part is no more; null: nothing is known of it.
  const std::string* EndOf(uint64_t id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void NoteEnd(uint64_t id, const std::string& reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Ended(uint64_t id, const std::string& reason) ABSL_LOCKS_EXCLUDED(mutex_);
  void Run();

  const Factory factory_;
  const Clock& clock_;
  Mutex mutex_;
  CondVar changed_;
  std::map<uint64_t, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  // Of parts that are no more: why, for whoever asks, and for an Attach that comes late. The last kMaxMachineParts.
  std::deque<std::pair<uint64_t, std::string>> ends_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;  // each runs Run
};

}  // namespace hk
