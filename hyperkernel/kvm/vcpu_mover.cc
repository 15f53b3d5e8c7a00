#include "hyperkernel/kvm/vcpu_mover.h"

#include <chrono>
#include <thread>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/kvm/vcpu_state.h"

namespace hk {
namespace {

// A vCPU leaves KVM_RUN within microseconds of a kick, unless it waits for a page or for a device of another node: a
// move is not worth more than that, and can be asked for again.
constexpr std::chrono::seconds kLeaveDeadline(3);
// Of what it has sent, the answers: some round trips.
constexpr std::chrono::seconds kDrainDeadline(1);
// Between two looks whether they are there; nobody tells, since they come some microseconds later or are there.
constexpr std::chrono::microseconds kDrainPause(20);
// Threads and ioctls. Emulated hosts take 10 ms for a vCPU.
constexpr std::chrono::seconds kArriveDeadline(2);

absl::Status AwaitDrained(InterruptController* interrupts, VcpuId id) {
  const Monotonic limit = RealClock().Now() + kDrainDeadline;
  while (!interrupts->Drained(id)) {
    if (RealClock().Now() >= limit) {
      return absl::DeadlineExceededError(
          fmt::format("vCPU {}: another node does not answer what it has sent", id.value()));
    }
    std::this_thread::sleep_for(kDrainPause);
  }
  return absl::OkStatus();
}

}  // namespace

VcpuState AtThisNode(VcpuState state, const VcpuConfig& config) {
  state.tsc_khz = config.tsc_khz;
  if (!HK_MUTANT(move_keeps_tsc_offset)) state.tsc_offset = config.tsc_offset;
  return state;
}

absl::Status VcpuMover::Prepare(VcpuId id) {
  return vcpus_->Prepare(config_of_(id));
}

absl::StatusOr<MovedVcpu> VcpuMover::Leave(VcpuId id, NodeId to, const Left& left) {
  MovedVcpu moved{.id = id, .state = {}, .local_apic = {}};
  const auto take = [&](const VcpuState& state) -> absl::Status {
    HK_RETURN_IF_ERROR(AwaitDrained(interrupts_, id));
    HK_ASSIGN_OR_RETURN(MovedVcpuInterrupts taken, interrupts_->TakeVcpu(id, to));
    if (HK_MUTANT(move_forgets_interrupts)) taken.apic.irr = {};
    moved.version = taken.version;
    moved.local_apic = EncodeLocalApic(taken.apic);
    moved.state = EncodeVcpuState(state);
    if (left) left(moved);
    return absl::OkStatus();
  };
  HK_RETURN_IF_ERROR(vcpus_->Leave(id, take, RealClock().Now() + kLeaveDeadline));
  return moved;
}

absl::Status VcpuMover::Arrive(const MovedVcpu& moved) {
  HK_ASSIGN_OR_RETURN(VcpuState state, DecodeVcpuState(moved.state));
  HK_ASSIGN_OR_RETURN(LocalApicState apic, DecodeLocalApic(moved.local_apic));
  state = AtThisNode(std::move(state), config_of_(moved.id));
  const auto put = [&] { return interrupts_->PutVcpu(moved.id, {.version = moved.version, .apic = apic}); };
  return vcpus_->Join(moved.id, std::move(state), put, RealClock().Now() + kArriveDeadline);
}

}  // namespace hk
