// Which vCPUs a message addresses (SDM 3A 11.6.2, 11.12.10), from a table kept up to date as guests change how their
// APICs are addressed: no destination is found by asking every vCPU.
//
// Pure and single-threaded. Rules where the manual leaves room:
//  1. All ones in the message's own width is a broadcast, in physical and logical mode, whatever mode the targets are
//  in.
//  2. An xAPIC-mode target answers to logical destinations of at most eight bits; an x2APIC-mode target answers to its
//     derived logical id also in messages of devices.
//  3. A disabled APIC receives nothing. The APIC id of a vCPU is its number.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "hyperkernel/base/types.h"
#include "hyperkernel/irq/interrupt_message.h"
#include "hyperkernel/irq/local_apic.h"
#include "hyperkernel/irq/vcpu_set.h"

namespace hk {

// The one vCPU a message can only address, whatever modes the APICs are in; nullopt if the table must be asked. It may
// not exist.
std::optional<VcpuId> OnlyDestination(const InterruptMessage& message, VcpuId source);

// The table.
class DestinationTable {
 public:
  // All vCPUs are disabled. REQUIRES: vcpus <= kMaxVcpus.
  explicit DestinationTable(uint32_t vcpus);

  void Update(VcpuId vcpu, const ApicAddressing& addressing);
  // Lowest priority is not decided here: the whole set is returned. `source` matters for shorthands only.
  VcpuSet Resolve(const InterruptMessage& message, VcpuId source) const;

 private:
  void Enter(VcpuId vcpu, const ApicAddressing& addressing, bool present);
  VcpuSet ResolveLogical(uint32_t destination) const;

  std::vector<ApicAddressing> addressing_;
  VcpuSet present_;
  VcpuSet x2apic_;
  std::array<VcpuSet, 8> flat_;          // by bit of the destination
  std::array<VcpuSet, 16 * 4> cluster_;  // by cluster * 4 + bit
};

// Lowest-priority arbitration (SDM 3A 11.6.2.4) over processor priorities; equal ones take turns: the search starts
// behind the last winner, so that an idle machine's interrupts spread evenly.
class LowestPriorityArbiter {
 public:
  // `priority_of(VcpuId)` gives an optional<uint8_t>: the processor priority, or nullopt if the vCPU accepts no fixed
  // interrupts. nullopt if none does.
  template <typename PriorityOf>
  std::optional<VcpuId> Pick(const VcpuSet& candidates, PriorityOf priority_of) {
    std::optional<VcpuId> best;
    uint32_t best_rank = 0;
    candidates.ForEach([&](VcpuId vcpu) {
      const std::optional<uint8_t> priority = priority_of(vcpu);
      if (!priority) {
        return;
      }
      const uint32_t turn = (vcpu.value() - next_) & 0xff;
      const uint32_t rank = uint32_t{*priority} << 8 | turn;
      if (!best || rank < best_rank) {
        best = vcpu;
        best_rank = rank;
      }
    });
    if (best) {
      next_ = (best->value() + 1) & 0xff;
    }
    return best;
  }

 private:
  uint32_t next_ = 0;
};

}  // namespace hk
