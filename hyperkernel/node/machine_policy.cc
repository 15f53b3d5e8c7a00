#include "hyperkernel/node/machine_policy.h"

#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/membership.h"
#include "hyperkernel/node/stall_wire.h"
#include "hyperkernel/node/vm_spec.h"
#include "proto/trace_file.h"

namespace hk {
namespace {

// A recorder sees a tick at least so often, also of a machine whose policy is not asked.
constexpr auto kMostBetweenTicks = 2 * PlacementPolicy::kInterval;

}  // namespace

absl::StatusOr<std::shared_ptr<MachinePolicy>> MachinePolicy::Make(Options options) {
  PolicyMachine machine;
  machine.vcpus = options.vcpus;
  machine.io_node = options.self;
  for (const Node& node : options.nodes)
    machine.nodes.push_back({.number = node.number, .most_vcpus = node.most_vcpus});
  HK_ASSIGN_OR_RETURN(std::unique_ptr<PlacementPolicy> policy, MakePolicy(options.policy, machine));
  return std::shared_ptr<MachinePolicy>(new MachinePolicy(std::move(options), std::move(policy)));
}

MachinePolicy::MachinePolicy(Options options, std::unique_ptr<PlacementPolicy> policy)
    : options_(std::move(options)),
      policy_(std::move(policy)),
      before_(options_.vcpus.size()),
      where_(options_.vcpus) {}

void MachinePolicy::SetMover(Mover mover) {
  MutexLock lock(&mutex_);
  mover_ = std::move(mover);
  ListenLocked();
}

void MachinePolicy::SetLocal(FaultMeter* meter) {
  MutexLock lock(&mutex_);
  local_ = meter;
  ListenLocked();
}

std::vector<std::shared_ptr<StallRecording>> MachinePolicy::Recordings() {
  std::vector<std::shared_ptr<StallRecording>> all;
  std::erase_if(recordings_, [&all](const std::weak_ptr<StallRecording>& weak) {
    std::shared_ptr<StallRecording> recording = weak.lock();
    if (recording == nullptr) return true;
    all.push_back(std::move(recording));
    return false;
  });
  return all;
}

void MachinePolicy::SetTimes(Times times) {
  MutexLock lock(&mutex_);
  times_ = std::move(times);
}

std::vector<v1::TraceRan> MachinePolicy::Ran(const std::vector<v1::VcpuTimes>& times) {
  std::vector<v1::TraceRan> all;
  for (const v1::VcpuTimes& told : times) {
    if (told.vcpu() >= before_.size()) continue;
    const HostTimes before = std::exchange(
        before_[told.vcpu()], HostTimes{.known = true, .running_ns = told.running_ns(), .ready_ns = told.ready_ns()});
    // What a node told late may be less than what was known.
    if (!before.known || told.running_ns() < before.running_ns || told.ready_ns() < before.ready_ns) continue;
    v1::TraceRan& ran = all.emplace_back();
    ran.set_vcpu(told.vcpu());
    ran.set_running_ns(told.running_ns() - before.running_ns);
    ran.set_ready_ns(told.ready_ns() - before.ready_ns);
  }
  return all;
}

bool MachinePolicy::WantedLocked() const {
  if (ended_) return false;
  const bool records = std::any_of(recordings_.begin(), recordings_.end(),
                                   [](const std::weak_ptr<StallRecording>& each) { return !each.expired(); });
  return records || HK_MUTANT(stalls_always_kept) || (mover_ != nullptr && options_.policy != kFetchPolicy);
}

bool MachinePolicy::wanted() const {
  MutexLock lock(&mutex_);
  return WantedLocked();
}

void MachinePolicy::ListenLocked() {
  if (local_ != nullptr) local_->Listen(WantedLocked());
}

void MachinePolicy::TakeLocked(NodeId from, const v1::MachineStalls& stalls) {
  const Monotonic now = options_.clock->Now();
  const std::vector<StallEvent> events = StallsIn(stalls, from, static_cast<uint32_t>(where_.size()), now);
  for (const StallEvent& event : events) policy_->OnStall(event);
  if (stalls.dropped() != 0) policy_->OnDropped(from, stalls.dropped());
  for (const std::shared_ptr<StallRecording>& recording : Recordings()) {
    recording->Add(events);
    recording->AddDropped(from, stalls.dropped(), now);
  }
}

void MachinePolicy::Take(NodeId from, const v1::MachineStalls& stalls) {
  const auto is_from = [from](const Node& node) { return node.number == from; };
  if (std::none_of(options_.nodes.begin(), options_.nodes.end(), is_from)) return;
  MutexLock lock(&mutex_);
  if (!ended_) TakeLocked(from, stalls);
}

void MachinePolicy::CollectLocked() {
  ListenLocked();
  if (local_ == nullptr || !local_->listened_to()) return;
  TakeLocked(options_.self, TakeStalls(local_, options_.clock->Now()));
}

void MachinePolicy::Collect() {
  MutexLock lock(&mutex_);
  if (ended_) return;
  CollectLocked();
  const Monotonic now = options_.clock->Now();
  if (now - last_tick_ >= kMostBetweenTicks) TickLocked(now, {});
}

void MachinePolicy::TickLocked(Monotonic now, std::span<const v1::TraceRan> ran) {
  last_tick_ = now;
  for (const std::shared_ptr<StallRecording>& recording : Recordings()) recording->AddTick(now, ran);
}

void MachinePolicy::NoteMove(VcpuId vcpu, NodeId to, Monotonic now) {
  where_[vcpu.value()] = to;
  policy_->OnMoved(vcpu, to, now);
  for (const std::shared_ptr<StallRecording>& recording : Recordings()) recording->AddMove(vcpu, to, now);
}

void MachinePolicy::Tick(const std::vector<NodeId>& where) {
  std::vector<PolicyMove> moves;
  Mover mover;
  Times times;
  {
    MutexLock lock(&mutex_);
    if (ended_) return;
    times = times_;
  }
  const std::vector<v1::VcpuTimes> told = times == nullptr ? std::vector<v1::VcpuTimes>() : times();
  {
    MutexLock lock(&mutex_);
    if (ended_) return;
    const Monotonic now = options_.clock->Now();
    for (size_t i = 0; i < std::min(where.size(), where_.size()); ++i) {
      if (where[i] != where_[i]) NoteMove(VcpuId(static_cast<uint32_t>(i)), where[i], now);
    }
    CollectLocked();
    if (now < next_decision_ && !HK_MUTANT(policy_moves_without_pause)) return;
    const std::vector<v1::TraceRan> ran = Ran(told);
    for (const v1::TraceRan& each : ran) {
      policy_->OnRan(VcpuId(each.vcpu()), std::chrono::nanoseconds(static_cast<int64_t>(each.running_ns())),
                     std::chrono::nanoseconds(static_cast<int64_t>(each.ready_ns())));
    }
    if (mover_ != nullptr) moves = policy_->Decide(now);
    TickLocked(now, ran);
    mover = mover_;
  }
  for (size_t i = 0; i < moves.size(); ++i) {
    const PolicyMove& move = moves[i];
    const absl::Status status = i == 0 ? mover(move.vcpu, move.to) : absl::AbortedError("one at a time");
    if (i == 0) Log(move, status);
    MutexLock lock(&mutex_);
    const Monotonic now = options_.clock->Now();
    if (!status.ok()) {
      policy_->OnRefused(move.vcpu, move.to, now);
      continue;
    }
    NoteMove(move.vcpu, move.to, now);
    next_decision_ = now + kMovePause;
  }
}

std::string MachinePolicy::NameOf(NodeId node) const {
  for (const Node& each : options_.nodes) {
    if (each.number == node) return each.name;
  }
  return fmt::to_string(node.value());
}

void MachinePolicy::Log(const PolicyMove& move, const absl::Status& status) const {
  log::Info("guest", status.ok() ? "its policy has moved a vCPU" : "its policy wants a vCPU moved, which cannot be",
            {{"guest", options_.machine},
             {"vcpu", fmt::to_string(move.vcpu.value())},
             {"to", NameOf(move.to)},
             {"waited_for_it_percent", fmt::format("{:.0f}", 100 * move.waited)},
             {"lacked_a_core_percent", fmt::format("{:.0f}", 100 * move.ready)},
             {"reason", MessageOf(status)}});
}

absl::StatusOr<std::shared_ptr<StallRecording>> MachinePolicy::Record() {
  MutexLock lock(&mutex_);
  if (ended_) return absl::FailedPreconditionError("its run is over");
  if (Recordings().size() >= kMostRecordings) {
    return absl::ResourceExhaustedError(
        fmt::format("{} traces of it are being recorded, which is the most", kMostRecordings));
  }
  v1::TraceHeader header;
  header.set_version(kTraceVersion);
  header.set_machine(options_.machine);
  header.set_policy(options_.policy);
  for (const Node& node : options_.nodes) {
    v1::TraceNode* const told = header.add_nodes();
    told->set_number(node.number.value());
    told->set_name(node.name);
    told->set_most_vcpus(node.most_vcpus);
  }
  header.set_io_node(options_.self.value());
  for (const NodeId node : where_) header.add_vcpu_nodes(node.value());
  *header.mutable_began() = ToTimestamp(options_.clock->Wall());
  const auto recording = std::make_shared<StallRecording>(std::move(header), options_.clock->Now());
  recordings_.push_back(recording);
  ListenLocked();
  return recording;
}

void MachinePolicy::End() {
  MutexLock lock(&mutex_);
  ended_ = true;
  ListenLocked();
  local_ = nullptr;
  times_ = nullptr;
  for (const std::shared_ptr<StallRecording>& recording : Recordings()) recording->End();
}

absl::StatusOr<MachinePolicy::Options> PolicyOptions(
    const v1::VmSpec& spec, const std::string& self, const std::vector<v1::Member>& members,
    const std::function<absl::StatusOr<NodeId>(const std::string&)>& number_of, const Clock& clock) {
  MachinePolicy::Options options{
      .machine = spec.name(), .policy = spec.policy(), .self = {}, .nodes = {}, .vcpus = {}, .clock = &clock};
  HK_ASSIGN_OR_RETURN(options.self, number_of(self));
  for (const v1::PlacementSpec& place : spec.placement()) {
    MachinePolicy::Node& node = options.nodes.emplace_back();
    HK_ASSIGN_OR_RETURN(node.number, number_of(place.node()));
    node.name = place.node();
    // One that gives memory alone cannot get any. More vCPUs than cores only where the operator wants them.
    node.most_vcpus = place.vcpus();
    if (place.vcpus() == 0 && !place.takes_vcpus()) continue;
    for (const v1::Member& member : members) {
      if (member.name() == place.node()) node.most_vcpus = std::max(node.most_vcpus, member.info().cpus());
    }
  }
  for (const std::string& name : VcpuNodes(spec)) {
    HK_ASSIGN_OR_RETURN(options.vcpus.emplace_back(), number_of(name));
  }
  return options;
}

}  // namespace hk
