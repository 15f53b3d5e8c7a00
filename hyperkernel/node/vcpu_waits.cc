#include "hyperkernel/node/vcpu_waits.h"

#include <time.h>

#include <chrono>
#include <fstream>

#include "fmt/format.h"

namespace hk {
namespace {

// CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED (linux/posix-timers.h)
constexpr uint32_t kThreadClock = 6;

void AddTo(FaultTimes* sum, const FaultTimes& more) {
  for (size_t cause = 0; cause < kFaultCauses; ++cause) {
    sum->faults[cause] += more.faults[cause];
    sum->ns[cause] += more.ns[cause];
  }
}

template <typename HostTimes>
void AddTo(HostTimes* sum, const HostTimes& more) {
  sum->running_ns += more.running_ns;
  sum->ready_ns += more.ready_ns;
}

void Set(v1::VcpuWait* wait, const FaultTimes& times, FaultCause cause) {
  wait->set_count(times.faults[static_cast<size_t>(cause)]);
  wait->set_ns(times.ns[static_cast<size_t>(cause)]);
}

}  // namespace

VcpuWaits::HostTimes VcpuWaits::TimesOf(uint32_t thread) {
  HostTimes times;
  timespec ran{};
  // The clock of a thread by its number, as the kernel and clock_getcpuclockid(3) have it.
  if (::clock_gettime(static_cast<clockid_t>(~thread << 3 | kThreadClock), &ran) != 0) return times;
  times.running_ns = static_cast<uint64_t>(ran.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(ran.tv_nsec);
  // Time on a processor, which lags behind the clock, and ready for one (proc(5): schedstat).
  std::ifstream file(fmt::format("/proc/self/task/{}/schedstat", thread));
  uint64_t lagging = 0;
  if (!(file >> lagging >> times.ready_ns)) times.ready_ns = 0;
  return times;
}

void VcpuWaits::OnThread(VcpuId vcpu, uint32_t thread) {
  MutexLock lock(&mutex_);
  Entry& entry = vcpus_.at(vcpu.value());
  if (entry.threads++ == 0) entry.since = RealClock().Now();
  entry.known = true;
  if (FaultMeter* const meter = this->meter(); meter != nullptr && meter->Watch(thread, vcpu.value()))
    entry.thread = thread;
}

void VcpuWaits::OnThreadEnd(VcpuId vcpu, uint32_t thread) {
  MutexLock lock(&mutex_);
  Entry& entry = vcpus_.at(vcpu.value());
  if (--entry.threads == 0) entry.lived += RealClock().Now() - entry.since;
  FaultMeter* const meter = this->meter();
  if (meter == nullptr) return;
  AddTo(&entry.earlier, meter->Of(thread));
  AddTo(&entry.earlier_host, TimesOf(thread));
  meter->Forget(thread);
  if (entry.thread == thread) entry.thread = 0;  // else a renewed vCPU's thread has begun before this one's end
}

void VcpuWaits::OnRest(uint32_t thread, bool rests) {
  FaultMeter* const meter = this->meter();
  ThreadGather* const gather = meter == nullptr ? nullptr : meter->GatherOf(thread);
  if (gather != nullptr) gather->rests.store(rests, std::memory_order_relaxed);
}

std::optional<Gfn> VcpuWaits::AskedFor(uint32_t thread) {
  FaultMeter* const meter = this->meter();
  return meter == nullptr ? std::nullopt : meter->TakeLookedFor(thread);
}

void VcpuWaits::OnAccess(uint32_t /*thread*/, const GuestAccess& access) {
  if (FaultMeter* const meter = this->meter(); meter != nullptr) meter->lookout().Note(access);
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
    if (entry.thread != 0) AddTo(&faults, meter()->Of(entry.thread));
    HostTimes host = entry.earlier_host;
    if (entry.thread != 0) AddTo(&host, TimesOf(entry.thread));
    const std::chrono::nanoseconds lived = entry.lived + (entry.threads == 0 ? now - now : now - entry.since);
    v1::VcpuTimes& told = all.emplace_back();
    told.set_vcpu(i);
    told.set_lived_ns(static_cast<uint64_t>(lived.count()));
    told.set_halted_ns(counters.halted_ns);
    told.set_exits_ns(counters.exits_ns);
    told.set_settling_ns(counters.settling_ns);
    told.set_running_ns(host.running_ns);
    told.set_ready_ns(host.ready_ns);
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
  sum->set_forwarded_ns(sum->forwarded_ns() + more.forwarded_ns());
  sum->set_settling_ns(sum->settling_ns() + more.settling_ns());
  sum->set_running_ns(sum->running_ns() + more.running_ns());
  sum->set_ready_ns(sum->ready_ns() + more.ready_ns());
  add(more.reads(), sum->mutable_reads());
  add(more.writes(), sum->mutable_writes());
  add(more.upgrades(), sum->mutable_upgrades());
}

}  // namespace hk
