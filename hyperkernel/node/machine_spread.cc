#include "hyperkernel/node/machine_spread.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <random>
#include <thread>
#include <utility>

#include "fmt/format.h"
#include "fmt/ranges.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/machine_cpu.h"
#include "hyperkernel/node/vcpu_waits.h"
#include "hyperkernel/node/vm_spec.h"

namespace hk {
namespace {

// As a space's: 63 random bits, and not 0.
uint64_t NewId() {
  std::random_device device;
  std::uniform_int_distribution<uint64_t> ids(1, std::numeric_limits<int64_t>::max());
  return ids(device);
}

}  // namespace

absl::StatusOr<std::unique_ptr<MachineSpread>> MachineSpread::Plan(const v1::VmSpec& spec, const Options& options) {
  const std::vector<std::string> names = VcpuNodes(spec);
  std::unique_ptr<MachineSpread> spread(new MachineSpread(spec, options));
  HK_ASSIGN_OR_RETURN(spread->self_number_, options.peers->NumberOf(options.self));
  const auto add = [&](const std::string& name) -> absl::StatusOr<NodeId> {
    HK_ASSIGN_OR_RETURN(const NodeId number, options.peers->NumberOf(name));
    const bool known = std::any_of(spread->others_.begin(), spread->others_.end(),
                                   [&](const Other& other) { return other.number == number; });
    if (number != spread->self_number_ && !known) spread->others_.push_back({.name = name, .number = number});
    return number;
  };
  for (const std::string& name : names) {
    HK_ASSIGN_OR_RETURN(const NodeId number, add(name));
    spread->first_nodes_.push_back(number);
  }
  for (const v1::PlacementSpec& place : spec.placement()) {
    if (place.takes_vcpus()) HK_RETURN_IF_ERROR(add(place.node()).status());
  }
  if (spread->others_.empty()) return std::unique_ptr<MachineSpread>();
  spread->BeginPlaces();
  spread->id_ = NewId();
  MachineLinkOptions link{
      .guest = GuestId(spread->id_),
      .self = spread->self_number_,
      .io_node = spread->self_number_,
      .nodes = {spread->self_number_},
      .failed = [spread = spread.get()](NodeId peer, const std::string& reason) {
        spread->failed_(fmt::format("node '{}', which runs vCPUs of it: {}", spread->NameOf(peer), reason));
      }};
  for (const Other& other : spread->others_) link.nodes.push_back(other.number);
  spread->link_ = std::make_unique<MachineLink>(options.transport, options.router, std::move(link));
  return spread;
}

MachineSpread::~MachineSpread() {
  End();
  Close();
}

void MachineSpread::Close() {
  if (link_ != nullptr) link_->Close();  // not there: no vCPU is elsewhere
  server_.reset();
}

void MachineSpread::BeginPlaces() {
  MutexLock lock(&mutex_);
  nodes_ = first_nodes_;
  for (const NodeId node : first_nodes_) seen_.emplace_back().Add(node);
}

std::string MachineSpread::NameOf(NodeId node) const {
  for (const Other& other : others_) {
    if (other.number == node) return other.name;
  }
  return options_.self;
}

std::vector<SpaceMemberId> MachineSpread::Members() const {
  std::vector<SpaceMemberId> members = {{options_.self, self_number_}};
  for (const Other& other : others_) members.push_back({other.name, other.number});
  return members;
}

std::string MachineSpread::NodeOf(VcpuId vcpu) const {
  MutexLock lock(&mutex_);
  return NameOf(nodes_.at(vcpu.value()));
}

uint64_t MachineSpread::vcpu_moves() const {
  MutexLock lock(&mutex_);
  return moves_;
}

bool MachineSpread::Here(VcpuId vcpu) const {
  MutexLock lock(&mutex_);
  return nodes_.at(vcpu.value()) == self_number_;
}

absl::StatusOr<std::vector<kvm_cpuid_entry2>> MachineSpread::AgreeOnHosts(const std::vector<kvm_cpuid_entry2>& ours,
                                                                          uint32_t tsc_khz) {
  const bool recorded = !options_.cpu_model.empty();
  std::vector<kvm_cpuid_entry2> model = ours;
  if (recorded) {
    HK_ASSIGN_OR_RETURN(model, CpuidOf(options_.cpu_model));
    HK_RETURN_IF_ERROR(CheckRecordedCpu(model, ours, options_.self));
  }
  for (const Other& other : others_) {
    HK_ASSIGN_OR_RETURN(const v1::DescribeMachineHostResponse host, options_.peers->Describe(other.name, spec_.cpu()));
    const absl::StatusOr<std::vector<kvm_cpuid_entry2>> theirs = CpuidOf(host.cpuid());
    if (!theirs.ok()) return WithContext(theirs.status(), fmt::format("node '{}'", other.name));
    if (recorded) {
      HK_RETURN_IF_ERROR(CheckRecordedCpu(model, *theirs, other.name));
    } else {
      HK_ASSIGN_OR_RETURN(model, AgreeOnCpu(model, *theirs, spec_.cpu().profile(), other.name));
    }
    if (host.boot_id() == options_.boot_id && !host.boot_id().empty()) continue;
    one_host_ = false;
    HK_RETURN_IF_ERROR(CheckTscRate(tsc_khz, host.tsc_khz(), other.name));
  }
  SetCpuid(model, &cpu_model_);
  if (!one_host_) HideInvariantTsc(&model);
  return model;
}

InterruptNodes MachineSpread::interrupt_nodes() {
  InterruptNodes nodes{.self = self_number_, .io_node = self_number_, .nodes = {self_number_}, .vcpus = first_nodes_};
  for (const Other& other : others_) nodes.nodes.push_back(other.number);
  nodes.link = link_.get();
  return nodes;
}

absl::Status MachineSpread::Open(InterruptController* interrupts, ExitHandler* devices, MoveMessages* moves,
                                 std::function<void(const std::string& reason)> failed,
                                 std::function<absl::Status(uint64_t ticks)> step_tsc) {
  failed_ = std::move(failed);
  step_tsc_ = std::move(step_tsc);
  server_ = std::make_unique<ExitServer>(link_.get(), devices, spec_.vcpus());
  link_->Attach(interrupts, server_.get(), moves);
  return link_->Open();
}

absl::Status MachineSpread::AtAll(const std::function<absl::Status(Other*)>& call) {
  std::vector<absl::Status> results(others_.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < others_.size(); i++) {
    threads.emplace_back([&, i] { results[i] = call(&others_[i]); });
  }
  absl::Status first;
  for (size_t i = 0; i < others_.size(); i++) {
    threads[i].join();
    first.Update(results[i]);
  }
  return first;
}

absl::Status MachineSpread::Tell(Other* other, v1::MachineOrder order, uint64_t number) {
  if (!other->attached) return absl::OkStatus();
  HK_ASSIGN_OR_RETURN(const v1::OrderMachineResponse response,
                      options_.peers->Order(other->name, id_, order, number, clocks_.offset()));
  if (order == v1::MACHINE_ORDER_STATUS || order == v1::MACHINE_ORDER_STALLS) {
    ClockWord word{.lead = response.tsc_lead(), .bound_ns = std::nullopt};
    if (response.has_tsc_bound_ns()) word.bound_ns = response.tsc_bound_ns();
    clocks_.Take(other->number, word, options_.clock->Now());
  }
  if (options_.policy != nullptr && response.has_stalls()) options_.policy->Take(other->number, response.stalls());
  MutexLock lock(&mutex_);
  running_[other->number] = response.running();
  exits_[other->number] = {response.exits_by_kind().begin(), response.exits_by_kind().end()};
  for (const v1::VcpuTimes& times : response.vcpu_times()) {
    if (times.vcpu() >= nodes_.size() || !seen_[times.vcpu()].Contains(other->number)) continue;  // never was there
    times_[{times.vcpu(), other->number}] = times;
  }
  return absl::OkStatus();
}

absl::Status MachineSpread::Attach(const Run& run) {
  clocks_.Begin(run.tsc_offset, run.tsc_khz);
  v1::AttachMachineRequest request;
  request.set_name(spec_.name());
  request.set_id(id_);
  request.set_space_id(run.space_id);
  request.set_memory_mib(spec_.memory_mib());
  for (const NodeId node : first_nodes_) request.add_vcpu_nodes(node.value());
  for (const SpaceMemberId& member : Members()) request.add_nodes(member.number.value());
  SetCpuid(run.cpuid, request.mutable_cpuid());
  request.set_tsc_khz(run.tsc_khz);
  request.set_tsc_offset(run.tsc_offset);
  request.set_boot_id(options_.boot_id);
  request.set_wall_ns(run.wall_ns);
  request.set_tsc_stable(one_host_);
  const absl::Status status = AtAll([&](Other* other) {
    other->attached = true;  // also one that does not answer in time may have them
    HK_ASSIGN_OR_RETURN(const v1::AttachMachineResponse response, options_.peers->Attach(other->name, request));
    log::Info(
        "guest", "vCPUs of it are on another node",
        {{"guest", spec_.name()}, {"peer", other->name}, {"tsc_error_ns", fmt::to_string(response.tsc_error_ns())}});
    return absl::OkStatus();
  });
  if (!status.ok()) {
    if (!HK_MUTANT(machine_start_leaves_parts)) End();
    return status;
  }
  MutexLock lock(&mutex_);
  watching_ = true;
  watcher_ = std::thread([this] { Watch(); });
  return absl::OkStatus();
}

absl::Status MachineSpread::Order(v1::MachineOrder order) {
  uint64_t number = 0;
  {
    MutexLock lock(&mutex_);
    wanted_ = order;
    number = ++orders_;
    ordering_ = true;
  }
  const absl::Status status = AtAll([&](Other* other) { return Tell(other, order, number); });
  MutexLock lock(&mutex_);
  ordering_ = false;
  return status;
}

absl::Status MachineSpread::Resume() {
  const absl::Status status = Order(v1::MACHINE_ORDER_RUN);
  // Those who do not hear of it are told again (LookAt).
  if (!status.ok()) static_cast<void>(Order(v1::MACHINE_ORDER_HOLD));
  return status;
}

absl::Status MachineSpread::Hold() {
  const absl::Status status = Order(v1::MACHINE_ORDER_HOLD);
  if (!status.ok()) static_cast<void>(Order(v1::MACHINE_ORDER_RUN));
  return status;
}

absl::StatusOr<VcpuMoved> MachineSpread::MoveVcpu(VcpuId vcpu, const std::string& to, LocalMoves* here) {
  if (vcpu.value() >= first_nodes_.size()) {
    return absl::NotFoundError(
        fmt::format("there is no vCPU {}: they are 0 to {}", vcpu.value(), first_nodes_.size() - 1));
  }
  VcpuMove move{.vcpu = vcpu, .from = NodeOf(vcpu), .to = to, .from_number = {}, .to_number = {}};
  std::vector<std::string> names;
  bool known = false;
  for (const SpaceMemberId& member : Members()) {
    names.push_back(member.name);
    if (member.name == move.from) move.from_number = member.number;
    if (member.name != to) continue;
    move.to_number = member.number;
    known = true;
  }
  if (!known) {
    return absl::FailedPreconditionError(fmt::format(
        "node '{}' is none that may have vCPUs of the machine, which are {}: its placement says who has some "
        "and who takes_vcpus",
        to, fmt::join(names, ", ")));
  }
  if (move.from == to) return VcpuMoved{.from = to, .to = to, .stopped = {}};
  const MoveCalls calls{
      .at = [&](const std::string& node,
                const v1::MoveMachineVcpuRequest& request) -> absl::StatusOr<v1::MoveMachineVcpuResponse> {
        if (node == options_.self) return here->Do(request);
        return options_.peers->Move(node, id_, request);
      },
      .cross = [&](const VcpuMove& made, uint64_t number) { return here->Cross(made, number); }};
  {
    MutexLock lock(&mutex_);
    seen_[vcpu.value()].Add(move.to_number);
  }
  const VcpuMoveEnd end = hk::MoveVcpu(move, calls, *options_.clock, &move_numbers_);
  if (options_.metrics != nullptr) {
    if (end.status.ok()) options_.metrics->CountMove(end.stopped);
    if (!end.status.ok()) options_.metrics->CountMoveNotMade(end.lost);
  }
  if (end.lost) failed_(MessageOf(end.status));
  HK_RETURN_IF_ERROR(end.status);
  {
    MutexLock lock(&mutex_);
    nodes_[vcpu.value()] = move.to_number;
    moves_++;
  }
  const auto us = [](std::chrono::nanoseconds time) { return fmt::to_string(time.count() / 1000); };
  log::Info("guest", "a vCPU has moved",
            {{"guest", spec_.name()},
             {"vcpu", fmt::to_string(vcpu.value())},
             {"from", move.from},
             {"to", to},
             {"stopped_us", us(end.stopped)},
             {"source_us", us(end.source)},
             {"target_us", us(end.target)}});
  return VcpuMoved{.from = move.from, .to = to, .stopped = end.stopped};
}

absl::Status MachineSpread::LookAt(Other* other) {
  const bool stalls = options_.policy != nullptr && options_.policy->wanted();
  uint64_t before = 0;
  {
    MutexLock lock(&mutex_);
    before = orders_;
  }
  const absl::Status told = Tell(other, stalls ? v1::MACHINE_ORDER_STALLS : v1::MACHINE_ORDER_STATUS);
  if (absl::IsFailedPrecondition(told) || absl::IsNotFound(told)) return told;
  if (!told.ok()) return absl::OkStatus();
  v1::MachineOrder wanted = v1::MACHINE_ORDER_UNSPECIFIED;
  uint64_t number = 0;
  {
    MutexLock lock(&mutex_);
    // Before the first order nothing runs, and nothing is to; of one that is under way the answers come still, and an
    // answer from before one says nothing.
    if (orders_ == 0 || orders_ != before || ordering_ || running_[other->number] == (wanted_ == v1::MACHINE_ORDER_RUN))
      return absl::OkStatus();
    wanted = wanted_;
    number = ++orders_;
  }
  static_cast<void>(Tell(other, wanted, number));  // if it fails, again next time
  return absl::OkStatus();
}

// Asks all how they are, and ends the machine if one of them says that its vCPUs have ended. One that does not answer
// is none of its business: the memory's leases are there for that.
void MachineSpread::Watch() {
  MutexLock lock(&mutex_);
  while (watching_) {
    if (changed_.WaitUntil(&mutex_, options_.clock->Now() + options_.watch_pause) || !watching_) continue;
    mutex_.Unlock();
    const absl::Status status = AtAll([this](Other* other) { return LookAt(other); });
    // With no lock held: who is told may wait for one who asks for exits_by_kind.
    if (!status.ok()) failed_(WithNodeNames(MessageOf(status), Members()));
    FollowClocks();
    mutex_.Lock();
    if (!status.ok()) return;
    if (options_.policy == nullptr) continue;
    const std::vector<NodeId> where = nodes_;
    mutex_.Unlock();
    options_.policy->Tick(where);
    mutex_.Lock();
  }
}

void MachineSpread::FollowClocks() {
  const uint64_t ticks = clocks_.TakeStep();
  // If it cannot now, the others say again that they lead.
  if (ticks != 0 && step_tsc_(ticks).ok()) clocks_.Stepped(ticks);
}

std::vector<v1::NodeClock> MachineSpread::clocks() const {
  std::vector<v1::NodeClock> clocks;
  for (const Other& other : others_) {
    v1::NodeClock& clock = clocks.emplace_back();
    clock.set_node(other.name);
    const std::optional<uint64_t> bound = clocks_.Bound(other.number, options_.clock->Now());
    if (bound.has_value()) clock.set_bound_ns(*bound);
  }
  return clocks;
}

absl::Status MachineSpread::Renew() {
  return AtAll([this](Other* other) { return Tell(other, v1::MACHINE_ORDER_RENEW); });
}

void MachineSpread::EndWatch() {
  {
    MutexLock lock(&mutex_);
    watching_ = false;
    changed_.SignalAll();
  }
  if (watcher_.joinable()) watcher_.join();
}

void MachineSpread::End() {
  EndWatch();
  const absl::Status status = AtAll([this](Other* other) {
    const absl::Status told = Tell(other, v1::MACHINE_ORDER_END);
    other->attached = false;
    return told;
  });
  if (status.ok()) return;
  log::Warning("guest", "vCPUs on another node may run until its memory ends",
               {{"guest", spec_.name()}, {"reason", MessageOf(status)}});
}

std::map<uint32_t, v1::VcpuTimes> MachineSpread::vcpu_times() const {
  MutexLock lock(&mutex_);
  std::map<uint32_t, v1::VcpuTimes> all;
  for (const auto& [key, times] : times_) {
    v1::VcpuTimes& sum = all[key.first];
    sum.set_vcpu(key.first);
    sum.set_node(NameOf(nodes_[key.first]));
    AddTimes(times, &sum);
  }
  return all;
}

std::map<std::string, uint64_t> MachineSpread::exits_by_kind() const {
  MutexLock lock(&mutex_);
  std::map<std::string, uint64_t> sum;
  for (const auto& [node, exits] : exits_) {
    for (const auto& [kind, count] : exits) sum[kind] += count;
  }
  return sum;
}

}  // namespace hk
