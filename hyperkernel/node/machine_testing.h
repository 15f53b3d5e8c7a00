// A machine for tests. Not for production code.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "hyperkernel/node/agent_testing.h"
#include "hyperkernel/node/machine.h"

namespace hk {

// A machine that does what it is told and remembers it.
class FakeMachine : public Machine {
 public:
  FakeMachine(MachineEvents* events, std::atomic<int>* alive, FakeAgent* agent)
      : events_(events), alive_(alive), agent_(agent) {
    alive_->fetch_add(1);
  }
  ~FakeMachine() override { alive_->fetch_sub(1); }
  size_t Input(Channel channel, std::string_view bytes) override {
    events_->OnOutput(channel, channel == Channel::kAgent ? agent_->Answer(bytes) : "echo " + std::string(bytes));
    return bytes.size();
  }
  void ResizeConsole(uint16_t columns, uint16_t rows) override { size = {columns, rows}; }
  void PressPowerButton() override { events_->OnEnd(MachineEnd::kPowerOff, ""); }
  absl::Status Pause() override { return pause_status; }
  absl::Status Unpause() override { return absl::OkStatus(); }
  absl::Status Renew(Monotonic) override {
    ++renewals;
    return renew_status;
  }
  absl::StatusOr<VcpuMoved> MoveVcpu(VcpuId vcpu, const std::string& node) override {
    if (!move_status.ok()) return move_status;
    moves.emplace_back(vcpu, node);
    return VcpuMoved{.from = "a", .to = node, .stopped = std::chrono::microseconds(1500)};
  }
  uint64_t frame_bytes() const override { return 4096; }
  SpaceStatistics memory_statistics() const override { return {.pages_exclusive = 1, .write_faults = 5}; }
  std::vector<ExtentUse> memory_uses(uint64_t first, size_t most) const override {
    if (first > 3 || most == 0) return {};
    return {{.extent = 3, .exclusive = 1, .heat = 2}};
  }
  uint64_t memory_end() const override { return 64 << 20; }
  uint64_t exits() const override { return 7; }
  std::map<std::string, uint64_t> exits_by_kind() const override { return {{"port", 7}}; }
  std::shared_ptr<MachinePolicy> policy() const override { return placement; }
  CpuidEntries cpu_model() const override { return cpu; }
  MachineEvents* events() { return events_; }
  CpuidEntries cpu;
  std::shared_ptr<MachinePolicy> placement;
  absl::Status pause_status, renew_status, move_status;
  std::vector<std::pair<VcpuId, std::string>> moves;
  int renewals = 0;
  std::pair<int, int> size;

 protected:
  MachineEvents* const events_;

 private:
  std::atomic<int>* const alive_;
  FakeAgent* const agent_;
};

}  // namespace hk
