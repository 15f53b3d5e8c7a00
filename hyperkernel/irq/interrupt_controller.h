// All interrupt controllers of a guest on one node: its vCPUs' local APICs, the I/O APIC, and the way between them. Of
// a guest that runs on several nodes, each has one; README.md, "Across nodes".
//
// Thread-safe. No call blocks, and none allocates after construction.
//
// Locks: one per local APIC (VcpuPort::mutex_), one for the I/O APIC, one for the destination table. NO LOCK IS TAKEN
// WHILE ANOTHER IS HELD: a message is built under its source's lock, carried by value, and delivered under each
// target's. So a vCPU's accesses to its own registers meet only those who send to it, and a physical IPI takes the
// target's lock and no other. Wake-ups are made with no lock held. The one exception is the lock for other nodes, which
// nothing takes that stays on this node: any one of the others may be taken under it.
//
// What one source sends to one target arrives in order. Between a pin's decision to send and the arrival, the pin may
// be reprogrammed and deliver again; generations (LevelEoi) put that right.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/irq/destination.h"
#include "hyperkernel/irq/interrupt_exchange.h"
#include "hyperkernel/irq/io_apic.h"
#include "hyperkernel/irq/vcpu_interrupts.h"
#include "hyperkernel/irq/vcpu_port.h"
#include "hyperkernel/irq/vcpu_set.h"

namespace hk {

// Told that a vCPU has something to do: it must leave the guest, or its halt, and Peek. Called from any thread with no
// lock held, also when the vCPU is not running; never by a vCPU's own register access about itself. Must not block.
class VcpuWaker {
 public:
  virtual ~VcpuWaker() = default;
  virtual void Wake(VcpuId vcpu) = 0;
};

// How a guest's interrupt controllers are made. Plain value.
struct InterruptControllerOptions {
  uint32_t vcpus = 1;                 // 1 to kMaxVcpus; vCPU 0 is the bootstrap processor
  bool x2apic = true;                 // as the firmware leaves it; else xAPIC mode
  bool extended_destination = false;  // the guest was told of KVM_FEATURE_MSI_EXT_DEST_ID
};

// What a move carries of a vCPU's interrupts. Plain value.
struct MovedVcpuInterrupts {
  uint32_t version = 0;  // of the place it goes to; one more if it comes back instead
  LocalApicState apic;
};

// One guest's controllers.
class InterruptController {
 public:
  // `clock` and `waker` outlive this.
  InterruptController(const InterruptControllerOptions& options, const Clock* clock, VcpuWaker* waker);
  // One node's controllers of a guest on several. REQUIRES: `nodes` is as InterruptNodes says, with options.vcpus
  // vCPUs.
  InterruptController(const InterruptControllerOptions& options, const InterruptNodes& nodes, const Clock* clock,
                      VcpuWaker* waker);
  ~InterruptController();
  InterruptController(const InterruptController&) = delete;
  InterruptController& operator=(const InterruptController&) = delete;

  // The seam to a vCPU's thread; lives as long as this. REQUIRES: vcpu < options.vcpus.
  VcpuInterrupts& vcpu(VcpuId vcpu);

  // Devices; SetLine and the I/O APIC's page: on the I/O node only. A pin that does not exist is ignored; false: not an
  // MSI (see DecodeMsi), nothing was sent.
  void SetLine(uint8_t pin, bool asserted);
  bool SendMsi(uint64_t address, uint32_t data);
  // An operator's NMI. False: there is no such vCPU, or its APIC is off (of one elsewhere, that is not known).
  bool InjectNmi(VcpuId vcpu);

  // The I/O APIC's page (kIoApicAddress), by offset, 32-bit accesses.
  uint32_t IoApicRead(uint32_t offset);
  void IoApicWrite(uint32_t offset, uint32_t value);

  // State. REQUIRES of all four and of Reset: the vCPUs concerned are stopped. A failed restore changes nothing. A
  // restore sends no interrupt: what had to be sent was, before the state was saved. It wakes the vCPU. On several
  // nodes: where the vCPU or the I/O APIC is.
  LocalApicState SaveVcpu(VcpuId vcpu);
  absl::Status RestoreVcpu(VcpuId vcpu, const LocalApicState& state);
  IoApicState SaveIoApic();
  absl::Status RestoreIoApic(const IoApicState& state);
  // Each local APIC and the I/O APIC is replaced by a new one made of its saved state, under its lock: devices
  // go on meanwhile, and nothing they send is lost. Errors: a state that its own Restore refuses, which is a
  // mistake of ours; that one and those after it stay as they are.
  absl::Status Renew();
  // Everything as after power-up; device lines stay. On several nodes: on all, before a vCPU of any runs; no move is
  // under way, and no message of before arrives after.
  void Reset();

  // Other nodes; only if made with InterruptNodes. What a peer sent: an error says what is wrong with it (nothing of a
  // malformed message counts), and the peer cannot be relied on. The link takes messages to `to` again.
  absl::Status OnMessage(NodeId from, std::span<const std::byte> bytes);
  void OnWritable(NodeId to);
  VcpuPlace PlaceOf(VcpuId vcpu);
  // Every node knows how the vCPU, which is here, is addressed. While false, it must not enter the guest: whoever sees
  // what it did since may send to it by what was told before. Wakes it when true again. Cheap.
  bool Settled(VcpuId vcpu);
  // Moves. REQUIRES of all three: the vCPU is stopped. Drained: settled, and nothing it has sent is under way; after a
  // few round trips it is, since nothing that it waits for waits for it. TakeVcpu: from now on it is elsewhere; what
  // is sent to it follows it. PutVcpu: it is here. Errors change nothing: kFailedPrecondition, not drained, not
  // here, here already, or an older version; kInvalidArgument: a node without part in the guest, a bad state.
  bool Drained(VcpuId vcpu);
  absl::StatusOr<MovedVcpuInterrupts> TakeVcpu(VcpuId vcpu, NodeId to);
  absl::Status PutVcpu(VcpuId vcpu, const MovedVcpuInterrupts& moved);
  InterruptExchangeStatistics ExchangeStatistics();

 private:
  friend class VcpuPort;

  // Messages of the I/O APIC, taken out of its lock: the first `count` of them. Most calls have none: nothing else is
  // set.
  struct PinMessages {
    PinMessages() {}
    uint8_t count = 0;
    union {
      InterruptMessage messages[kIoApicPins];
    };
  };

  Monotonic Now() const { return clock_->Now(); }
  void Collect(IoApic::Pins pins, PinMessages* messages) ABSL_EXCLUSIVE_LOCKS_REQUIRED(io_apic_mutex_);

  // The delivery path. Each adds to `wake` whom to wake once it is over.
  // Both: whether an APIC of this node has accepted it.
  bool Deliver(const InterruptMessage& message, VcpuId source, VcpuId target, VcpuSet& wake, VcpuSet* elsewhere);
  bool Route(const InterruptMessage& message, VcpuId source, VcpuSet& wake);
  void RoutePins(PinMessages* pins, VcpuSet& wake);
  void WakeAll(const VcpuSet& wake);

  // What a vCPU's own register access, INIT or restore asks of the rest. Called with no lock held.
  void Follow(VcpuId source, const PortOutcome& outcome);
  void SetAddressing(VcpuId vcpu, const ApicAddressing& addressing, VcpuSet& wake);
  absl::Status RestorePort(VcpuId vcpu, const LocalApicState& state, PortOutcome* outcome);

  // The way to other nodes (interrupt_controller_nodes.cc).
  class Across;
  void Export(const InterruptMessage& message, VcpuId source, const VcpuSet& targets, VcpuSet& wake);
  void ExportTo(const InterruptMessage& message, VcpuId source, VcpuId target, VcpuSet& wake);
  // Whether it was accepted, or may still be.
  bool RouteLevel(const InterruptMessage& message, uint64_t changes, VcpuSet& wake);
  void FollowElsewhere(VcpuId source, const PortOutcome& outcome);
  // False: the I/O APIC is here.
  bool ExportEois(const PortOutcome& outcome);
  void Finish(const ExchangeOutcome& outcome, VcpuSet& wake);
  void ForgetElsewhere();
  void ForgetPins();
  bool IsHere(VcpuId vcpu);

  const bool extended_destination_;
  const bool x2apic_;
  const Clock* const clock_;
  VcpuWaker* const waker_;
  std::vector<std::unique_ptr<VcpuPort>> ports_;
  std::unique_ptr<Across> across_;  // null: the guest runs on this node only
  std::atomic<uint64_t> routing_changes_{0};

  Mutex io_apic_mutex_;
  IoApic io_apic_ ABSL_GUARDED_BY(io_apic_mutex_);

  Mutex router_mutex_;
  DestinationTable table_ ABSL_GUARDED_BY(router_mutex_);
  LowestPriorityArbiter arbiter_ ABSL_GUARDED_BY(router_mutex_);
};

}  // namespace hk
