#include "hyperkernel/irq/destination.h"

#include "hyperkernel/base/check.h"

namespace hk {

namespace {

using Mode = ApicAddressing::Mode;
using Model = ApicAddressing::Model;

bool IsBroadcast(const InterruptMessage& message) {
  return message.destination == (message.width == DestinationWidth::kBits8 ? 0xff : 0xffffffff);
}

}  // namespace

std::optional<VcpuId> OnlyDestination(const InterruptMessage& message, VcpuId source) {
  if (message.shorthand == Shorthand::kSelf) {
    return source;
  }
  if (message.shorthand != Shorthand::kNone || message.logical || IsBroadcast(message)) {
    return std::nullopt;
  }
  return VcpuId(message.destination);
}

DestinationTable::DestinationTable(uint32_t vcpus) : addressing_(vcpus) {
  HK_CHECK(vcpus <= kMaxVcpus);
}

void DestinationTable::Update(VcpuId vcpu, const ApicAddressing& addressing) {
  HK_CHECK(vcpu.value() < addressing_.size());
  ApicAddressing& current = addressing_[vcpu.value()];
  Enter(vcpu, current, false);
  current = addressing;
  Enter(vcpu, current, true);
}

void DestinationTable::Enter(VcpuId vcpu, const ApicAddressing& addressing, bool present) {
  const auto put = [vcpu, present](VcpuSet& set) { present ? set.Add(vcpu) : set.Remove(vcpu); };
  if (addressing.mode == Mode::kDisabled) {
    return;
  }
  put(present_);
  if (addressing.mode == Mode::kX2Apic) {
    put(x2apic_);
    return;
  }
  if (addressing.model == Model::kFlat) {
    for (uint32_t bit = 0; bit < 8; ++bit) {
      if ((addressing.logical_id >> bit & 1) != 0) {
        put(flat_[bit]);
      }
    }
  } else if (addressing.model == Model::kCluster) {
    for (uint32_t bit = 0; bit < 4; ++bit) {
      if ((addressing.logical_id >> bit & 1) != 0) {
        put(cluster_[(addressing.logical_id >> 4) * 4 + bit]);
      }
    }
  }
}

VcpuSet DestinationTable::ResolveLogical(uint32_t destination) const {
  VcpuSet targets;
  const uint32_t first = (destination >> 16) * 16;
  for (uint32_t bit = 0; bit < 16 && first <= kMaxVcpus; ++bit) {
    const VcpuId vcpu(first + bit);
    if ((destination >> bit & 1) != 0 && x2apic_.Contains(vcpu)) {
      targets.Add(vcpu);
    }
  }
  if (destination > 0xff) {
    return targets;
  }
  for (uint32_t bit = 0; bit < 8; ++bit) {
    if ((destination >> bit & 1) != 0) {
      targets |= flat_[bit];
    }
  }
  for (uint32_t bit = 0; bit < 4; ++bit) {
    if ((destination >> bit & 1) != 0) {
      targets |= cluster_[(destination >> 4) * 4 + bit];
    }
  }
  return targets;
}

VcpuSet DestinationTable::Resolve(const InterruptMessage& message, VcpuId source) const {
  VcpuSet targets;
  if (const auto only = OnlyDestination(message, source)) {
    if (present_.Contains(*only)) {
      targets.Add(*only);
    }
    return targets;
  }
  if (message.shorthand != Shorthand::kNone || IsBroadcast(message)) {
    targets = present_;
    if (message.shorthand == Shorthand::kAllButSelf) {
      targets.Remove(source);
    }
    return targets;
  }
  return ResolveLogical(message.destination);
}

}  // namespace hk
