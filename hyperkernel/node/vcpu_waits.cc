#include "hyperkernel/node/vcpu_waits.h"

#include <chrono>

namespace hk {
namespace {

void AddTo(FaultTimes* sum, const FaultTimes& more) {
  for (size_t cause = 0; cause < kFaultCauses; ++cause) {
    sum->faults[cause] += more.faults[cause];
    sum->ns[cause] += more.ns[cause];
  }
}

void Set(v1::VcpuWait* wait, const FaultTimes& times, FaultCause cause) {
  wait->set_count(times.faults[static_cast<size_t>(cause)]);
  wait->set_ns(times.ns[static_cast<size_t>(cause)]);
}

}  // namespace

void VcpuWaits::OnThread(VcpuId vcpu, uint32_t thread) {
  MutexLock lock(&mutex_);
  Entry& entry = vcpus_.at(vcpu.value());
  if (entry.threads++ == 0) entry.since = RealClock().Now();
  entry.known = true;
  if (meter_ != nullptr && meter_->Watch(thread)) entry.thread = thread;
}

void VcpuWaits::OnThreadEnd(VcpuId vcpu, uint32_t thread) {
  MutexLock lock(&mutex_);
  Entry& entry = vcpus_.at(vcpu.value());
  if (--entry.threads == 0) entry.lived += RealClock().Now() - entry.since;
  if (meter_ == nullptr) return;
  AddTo(&entry.earlier, meter_->Of(thread));
  meter_->Forget(thread);
  if (entry.thread == thread) entry.thread = 0;  // else a renewed vCPU's thread has begun before this one's end
}

std::vector<v1::VcpuTimes> VcpuWaits::Times(const VcpuGroup& vcpus) const {
  const Monotonic now = RealClock().Now();
  std::vector<v1::VcpuTimes> all;
  // Not under our lock, which threads take that others wait for under theirs.
  std::vector<VcpuCounters> counters_of(count_);
  for (uint32_t i = 0; i < count_; i++) counters_of[i] = vcpus.counters(VcpuId(i));
  MutexLock lock(&mutex_);
  for (uint32_t i = 0; i < count_; i++) {
    const Entry& entry = vcpus_[i];
    if (!entry.known) continue;
    const VcpuCounters& counters = counters_of[i];
    FaultTimes faults = entry.earlier;
    if (entry.thread != 0 && meter_ != nullptr) AddTo(&faults, meter_->Of(entry.thread));
    const std::chrono::nanoseconds lived = entry.lived + (entry.threads == 0 ? now - now : now - entry.since);
    v1::VcpuTimes& told = all.emplace_back();
    told.set_vcpu(i);
    told.set_lived_ns(static_cast<uint64_t>(lived.count()));
    told.set_halted_ns(counters.halted_ns);
    told.set_exits_ns(counters.exits_ns);
    Set(told.mutable_reads(), faults, FaultCause::kRead);
    Set(told.mutable_writes(), faults, FaultCause::kWrite);
    Set(told.mutable_upgrades(), faults, FaultCause::kUpgrade);
  }
  return all;
}

void AddTimes(const v1::VcpuTimes& more, v1::VcpuTimes* sum) {
  const auto add = [](const v1::VcpuWait& wait, v1::VcpuWait* to) {
    to->set_count(to->count() + wait.count());
    to->set_ns(to->ns() + wait.ns());
  };
  sum->set_lived_ns(sum->lived_ns() + more.lived_ns());
  sum->set_halted_ns(sum->halted_ns() + more.halted_ns());
  sum->set_exits_ns(sum->exits_ns() + more.exits_ns());
  add(more.reads(), sum->mutable_reads());
  add(more.writes(), sum->mutable_writes());
  add(more.upgrades(), sum->mutable_upgrades());
}

}  // namespace hk
