// What the tests of MachineSpread share: two other nodes that do and answer what they are told to, and a machine over
// all three.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "gtest/gtest.h"
#include "hyperkernel/irq/irq_testing.h"
#include "hyperkernel/memory/space_testing.h"
#include "hyperkernel/node/machine_cpu.h"
#include "hyperkernel/node/machine_link_testing.h"
#include "hyperkernel/node/machine_spread.h"

namespace hk {

// Nodes a, b and c, numbers 1, 2 and 3, of which the test is a.
class FakePeers final : public MachinePeers {
 public:
  absl::StatusOr<NodeId> NumberOf(const std::string& node) const override {
    if (node.size() != 1 || node[0] < 'a' || node[0] > 'c') return absl::NotFoundError("no node '" + node + "'");
    return NodeId(static_cast<uint16_t>(node[0] - 'a' + 1));
  }
  absl::StatusOr<v1::DescribeMachineHostResponse> Describe(const std::string& node, const v1::CpuSpec&) override {
    MutexLock lock(&mutex_);
    return hosts[node];
  }
  absl::StatusOr<v1::AttachMachineResponse> Attach(const std::string& node,
                                                   const v1::AttachMachineRequest& request) override {
    MutexLock lock(&mutex_);
    requests_[node] = request;
    calls_.push_back(node + " attach");
    if (const auto status = attach_.find(node); status != attach_.end()) return status->second;
    parts_.insert(node);
    return v1::AttachMachineResponse();
  }
  absl::StatusOr<v1::OrderMachineResponse> Order(const std::string& node, uint64_t id, v1::MachineOrder order,
                                                 uint64_t number, uint64_t tsc_offset) override {
    MutexLock lock(&mutex_);
    EXPECT_EQ(id, requests_[node].id());
    offsets_[node] = tsc_offset;
    v1::OrderMachineResponse response;
    if (number != 0) {
      EXPECT_GT(number, std::exchange(numbers_[node], number));
    }
    if (order == v1::MACHINE_ORDER_RUN) running_.insert(node);
    if (order == v1::MACHINE_ORDER_HOLD && !hold_.contains(node)) running_.erase(node);
    response.set_running(running_.contains(node));
    (*response.mutable_exits_by_kind())["port"] = node == "b" ? 5 : 7;
    (*response.mutable_exits_by_kind())[node] = 1;
    for (const uint32_t vcpu : node == "b" ? std::vector{2U, 1U, 0U, 77U} : std::vector{1U, 0U, 77U}) {
      v1::VcpuTimes* times = response.add_vcpu_times();
      times->set_vcpu(vcpu);
      times->set_node("zoe");
      times->set_halted_ns(100 + vcpu);
    }
    if (order == v1::MACHINE_ORDER_STATUS || order == v1::MACHINE_ORDER_STALLS) {
      if (order == v1::MACHINE_ORDER_STALLS) {
        response.mutable_stalls()->set_now_ns(1);
        v1::Stall* stall = response.mutable_stalls()->add_stalls();
        stall->set_time_ns(1);
        stall->set_vcpu(node == "b" ? 2 : 1);
        stall->set_kind(v1::STALL_KIND_READ);
      }
      if (node == "b") response.set_tsc_bound_ns(3000);
      if (node == "c") response.set_tsc_lead(std::exchange(lead_, 0));
      asked_++;
      changed_.SignalAll();
      const auto status = status_.find(node);
      return status == status_.end() ? absl::StatusOr<v1::OrderMachineResponse>(response) : status->second;
    }
    calls_.push_back(node + " " + v1::MachineOrder_Name(order).substr(sizeof("MACHINE_ORDER")));
    if (order == v1::MACHINE_ORDER_HOLD && hold_.contains(node)) return hold_[node];
    if (order == v1::MACHINE_ORDER_END) parts_.erase(node);
    return response;
  }

  absl::StatusOr<v1::MoveMachineVcpuResponse> Move(const std::string& node, uint64_t id,
                                                   const v1::MoveMachineVcpuRequest& request) override {
    MutexLock lock(&mutex_);
    EXPECT_EQ(id, requests_[node].id());
    EXPECT_EQ(request.vcpu(), 1u);
    EXPECT_GT(request.number(), std::exchange(steps_, request.number()));
    const std::string step = v1::MoveStep_Name(request.step()).substr(sizeof("MOVE_STEP"));
    calls_.push_back(node + " " + step);
    v1::MoveMachineVcpuResponse response;
    if (const auto refused = refused_.find(step); refused != refused_.end()) response.set_refused(refused->second);
    return response;
  }

  // What a call at a node says from now on.
  void Refuse(const std::string& step, const std::string& why) {
    MutexLock lock(&mutex_);
    refused_[step] = why;
  }
  void SetAttach(const std::string& node, absl::Status status) {
    MutexLock lock(&mutex_);
    attach_[node] = std::move(status);
  }
  void SetHold(const std::string& node, absl::Status status) {
    MutexLock lock(&mutex_);
    hold_[node] = std::move(status);
  }
  void SetStatus(const std::string& node, absl::Status status) {
    MutexLock lock(&mutex_);
    status_[node] = std::move(status);
  }
  // Orders but STATUS, since the last time.
  std::vector<std::string> Calls() {
    MutexLock lock(&mutex_);
    return std::exchange(calls_, {});
  }
  std::set<std::string> Parts() {
    MutexLock lock(&mutex_);
    return parts_;
  }
  v1::AttachMachineRequest Request(const std::string& node) {
    MutexLock lock(&mutex_);
    return requests_[node];
  }
  // It has not heard of the last order.
  void Forget(const std::string& node) {
    MutexLock lock(&mutex_);
    running_.erase(node);
  }
  // c's clock leads when it is asked next.
  void Lead(uint64_t ticks) {
    MutexLock lock(&mutex_);
    lead_ = ticks;
  }
  // What the node was told last.
  uint64_t Offset(const std::string& node) {
    MutexLock lock(&mutex_);
    return offsets_[node];
  }
  void AwaitAsked(int more) {
    MutexLock lock(&mutex_);
    const auto guard = std::chrono::steady_clock::now() + HangGuard();
    for (const int until = asked_ + more; asked_ < until;) HK_CHECK(changed_.WaitUntil(&mutex_, guard));
  }

  std::map<std::string, v1::DescribeMachineHostResponse> hosts;

 private:
  Mutex mutex_;
  CondVar changed_;
  int asked_ = 0;
  std::map<std::string, absl::Status> attach_, hold_, status_;
  std::map<std::string, v1::AttachMachineRequest> requests_;
  std::vector<std::string> calls_;
  std::set<std::string> parts_, running_;
  std::map<std::string, uint64_t> numbers_;
  std::map<std::string, std::string> refused_;
  uint64_t steps_ = 0, lead_ = 0;
  std::map<std::string, uint64_t> offsets_;
};

// The I/O node's own part of moves.
class FakeMoves final : public LocalMoves {
 public:
  v1::MoveMachineVcpuResponse Do(const v1::MoveMachineVcpuRequest& request) override {
    steps.push_back(request.step());
    return {};
  }
  Crossing Cross(const VcpuMove& move, uint64_t number) override {
    EXPECT_GT(number, std::exchange(last_, number));
    crossed.push_back(
        fmt::format("{} to {}: {} to {}", move.from, move.to, move.from_number.value(), move.to_number.value()));
    return crossing;
  }

  std::vector<v1::MoveStep> steps;
  std::vector<std::string> crossed;
  Crossing crossing{.left = MoveWord(), .come = MoveWord(), .stopped = {}};

 private:
  uint64_t last_ = 0;
};

inline std::vector<kvm_cpuid_entry2> Cpuid(uint32_t features) {
  kvm_cpuid_entry2 vendor = {}, extended = {};
  vendor.eax = 0xd;
  extended.function = 7;
  extended.ebx = features;
  return {vendor, extended};
}

// A machine at a, whose others are b and c.
class MachineSpreadTest : public testing::Test {
 protected:
  MachineSpreadTest() { router_.SetTransport(&transport_); }
  ~MachineSpreadTest() override { spread_.reset(); }  // before the controller

  // So many vCPUs at each node.
  static v1::VmSpec Spec(uint32_t a, uint32_t b, uint32_t c) {
    v1::VmSpec spec;
    spec.set_name("g");
    spec.set_memory_mib(64);
    spec.set_vcpus(a + b + c);
    spec.set_io_node("a");
    spec.mutable_cpu()->set_profile("host");
    for (const auto& [name, vcpus] : std::vector<std::pair<std::string, uint32_t>>{{"c", c}, {"a", a}, {"b", b}}) {
      v1::PlacementSpec* const place = spec.add_placement();
      place->set_node(name);
      place->set_vcpus(vcpus);
    }
    return spec;
  }
  absl::StatusOr<std::unique_ptr<MachineSpread>> Plan(const v1::VmSpec& spec) {
    return MachineSpread::Plan(spec, {.self = "a",
                                      .boot_id = "boot a",
                                      .peers = &peers_,
                                      .transport = &transport_,
                                      .router = &router_,
                                      .clock = &RealClock(),
                                      .policy = policy_,
                                      .metrics = &metrics_,
                                      .watch_pause = std::chrono::milliseconds(20),
                                      .cpu_model = recorded_});
  }
  void Open(const v1::VmSpec& spec) {
    auto spread = Plan(spec);
    ASSERT_TRUE(spread.ok() && *spread != nullptr) << spread.status();
    spread_ = *std::move(spread);
    interrupts_ = std::make_unique<InterruptController>(InterruptControllerOptions{.vcpus = spec.vcpus()},
                                                        spread_->interrupt_nodes(), &RealClock(), &waker_);
    ASSERT_TRUE(spread_
                    ->Open(
                        interrupts_.get(), &devices_, nullptr,
                        [this](const std::string& reason) {
                          // Who is told may wait for one who asks for what is counted.
                          static_cast<void>(spread_->exits_by_kind());
                          MutexLock lock(&mutex_);
                          failures_.push_back(reason);
                          changed_.SignalAll();
                        },
                        [this](uint64_t ticks) {
                          MutexLock lock(&mutex_);
                          steps_.push_back(ticks);
                          return step_status_;
                        })
                    .ok());
  }
  absl::Status Attach() {
    return spread_->Attach({.space_id = 9, .cpuid = Cpuid(1), .tsc_khz = 2'000'000, .tsc_offset = 77});
  }
  std::string AwaitFailure() {
    MutexLock lock(&mutex_);
    const auto guard = std::chrono::steady_clock::now() + HangGuard();
    while (failures_.empty()) HK_CHECK(changed_.WaitUntil(&mutex_, guard));
    return failures_.front();
  }
  size_t Failures() {
    MutexLock lock(&mutex_);
    return failures_.size();
  }

  Metrics metrics_;
  FakePeers peers_;
  NotingTransport transport_;
  SpaceRouter router_;
  RecordingWaker waker_;
  NotingDevices devices_;
  FakeMoves moves_;
  std::unique_ptr<InterruptController> interrupts_;
  std::shared_ptr<MachinePolicy> policy_;
  CpuidEntries recorded_;
  std::unique_ptr<MachineSpread> spread_;
  Mutex mutex_;
  CondVar changed_;
  std::vector<std::string> failures_;
  std::vector<uint64_t> steps_;
  absl::Status step_status_;
};

}  // namespace hk
