// Exits of vCPUs on a node without the guest's devices: carried to the I/O node, whose ExitServer makes the access.
// README.md, "Machines over several nodes: link".
//
// Thread-safe: the vCPU threads call the ExitHandler's part, each for itself; the link the rest.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/kvm/exit_handler.h"
#include "hyperkernel/node/machine_link.h"
#include "hyperkernel/node/machine_wire.h"

namespace hk {

// An access that is not made by then fails the guest. What takes longest is a device's reset that waits for the I/O it
// has in flight (5 s at most), behind the accesses of other vCPUs.
inline constexpr std::chrono::milliseconds kExitDeadline{30'000};

// See above.
class ForwardedExits final : public ExitHandler, public ExitMessages {
 public:
  // `link` outlives this and is not the I/O node's. `vcpus`: of the guest; no more threads make accesses at a time.
  ForwardedExits(MachineLink* link, uint32_t vcpus, std::chrono::milliseconds deadline = kExitDeadline);
  ForwardedExits(const ForwardedExits&) = delete;
  ForwardedExits& operator=(const ForwardedExits&) = delete;

  // Whoever waits returns at once, and so do all later calls: reads with all ones. Any thread.
  void Abandon();

  // ExitHandler. Each access blocks until it is made or abandoned, `deadline` at most: then the link fails. A write
  // where a doorbell may be (device/doorbells.h) does not: it leaves, and the vCPU goes on.
  void PortRead(uint16_t port, std::span<std::byte> data) override;
  void PortWrite(uint16_t port, std::span<const std::byte> data) override;
  void MmioRead(Gpa address, std::span<std::byte> data) override;
  void MmioWrite(Gpa address, std::span<const std::byte> data) override;
  void OnGuestFailure(VcpuId vcpu, const std::string& reason) override;

  // ExitMessages.
  absl::Status OnExitMessage(NodeId from, const Message& message) override;
  void OnExitsSent(NodeId) override {}

 private:
  // A call that is under way. Its transaction is `use` above its index.
  struct Waiter {
    uint64_t transaction = 0;  // of this use
    bool waits = false;
    ExitAnswer answer;  // of what kind and size is expected; then what came
    CondVar answered;
  };

  // False: too many doorbells wait for room.
  bool Ring(Gpa address);
  void Read(ExitKind kind, uint64_t address, std::span<std::byte> data);
  void Write(ExitKind kind, uint64_t address, std::span<const std::byte> data);
  // What was read; all ones if it was not made.
  std::array<std::byte, kMaxExitBytes> Access(const ExitRequest& request);

  MachineLink* const link_;
  const std::chrono::milliseconds deadline_;
  Mutex mutex_;
  bool abandoned_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t uses_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<Waiter> waiters_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint32_t> free_ ABSL_GUARDED_BY(mutex_);  // waiters that nobody uses
};

}  // namespace hk
