#include "hyperkernel/node/stall_wire.h"

#include <algorithm>
#include <chrono>

#include "hyperkernel/base/mutant.h"
#include "hyperkernel/memory/space_engine.h"

namespace hk {
namespace {

using std::chrono::nanoseconds;

// Told of what is not older: nodes are asked each second, and one that was not is not believed to remember.
constexpr nanoseconds kOldest = std::chrono::seconds(60);
// A space stops before a page is waited for so long.
constexpr nanoseconds kLongest = std::chrono::minutes(10);

uint64_t NsOf(Monotonic time) {
  return static_cast<uint64_t>(nanoseconds(time.time_since_epoch()).count());
}

nanoseconds AtMost(nanoseconds limit, uint64_t ns) {
  return nanoseconds(static_cast<int64_t>(std::min(ns, static_cast<uint64_t>(limit.count()))));
}

v1::StallKind KindOf(FaultCause cause) {
  switch (cause) {
    case FaultCause::kRead:
      return v1::STALL_KIND_READ;
    case FaultCause::kWrite:
      return v1::STALL_KIND_WRITE;
    case FaultCause::kUpgrade:
      break;
  }
  return v1::STALL_KIND_UPGRADE;
}

}  // namespace

v1::MachineStalls TakeStalls(FaultMeter* meter, Monotonic now) {
  v1::MachineStalls told;
  std::vector<RemoteStall> stalls;
  told.set_dropped(meter->TakeStalls(&stalls));
  told.set_now_ns(NsOf(now));
  for (const RemoteStall& stall : stalls) {
    v1::Stall& one = *told.add_stalls();
    one.set_time_ns(NsOf(stall.end));
    one.set_vcpu(stall.who);
    one.set_page(stall.page.value());
    one.set_kind(KindOf(stall.cause));
    if (stall.holder.has_value()) one.set_holder(stall.holder->value());
    one.set_waited_ns(stall.waited_ns);
  }
  return told;
}

std::vector<StallEvent> StallsIn(const v1::MachineStalls& told, NodeId from, uint32_t vcpus, Monotonic now) {
  std::vector<StallEvent> stalls;
  for (const v1::Stall& one : told.stalls()) {
    if (stalls.size() >= StallRing::kCapacity) break;  // no node keeps more
    const bool strange = one.vcpu() >= vcpus || one.page() >= kMaxSpacePages || one.kind() < v1::STALL_KIND_READ ||
                         one.kind() > v1::STALL_KIND_UPGRADE || (one.has_holder() && one.holder() >= kMaxNodes);
    if (strange && !HK_MUTANT(stalls_believed)) continue;
    StallEvent& stall = stalls.emplace_back();
    const uint64_t ago = told.now_ns() > one.time_ns() ? told.now_ns() - one.time_ns() : 0;
    stall.end = now - std::chrono::duration_cast<Monotonic::duration>(AtMost(kOldest, ago));
    stall.vcpu = VcpuId(one.vcpu());
    stall.node = from;
    stall.page = Gfn(one.page());
    stall.kind = one.kind() == v1::STALL_KIND_READ    ? StallKind::kRead
                 : one.kind() == v1::STALL_KIND_WRITE ? StallKind::kWrite
                                                      : StallKind::kUpgrade;
    if (one.has_holder()) stall.holder = NodeId(static_cast<uint16_t>(one.holder()));
    stall.waited = AtMost(kLongest, one.waited_ns());
  }
  return stalls;
}

v1::Stall TracedStall(const StallEvent& stall, Monotonic began) {
  v1::Stall one;
  one.set_time_ns(static_cast<uint64_t>(nanoseconds(stall.end - began).count()));
  one.set_vcpu(stall.vcpu.value());
  one.set_node(stall.node.value());
  one.set_page(stall.page.value());
  one.set_kind(stall.kind == StallKind::kRead    ? v1::STALL_KIND_READ
               : stall.kind == StallKind::kWrite ? v1::STALL_KIND_WRITE
                                                 : v1::STALL_KIND_UPGRADE);
  if (stall.holder.has_value()) one.set_holder(stall.holder->value());
  one.set_waited_ns(static_cast<uint64_t>(stall.waited.count()));
  return one;
}

}  // namespace hk
