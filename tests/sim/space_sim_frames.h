// Frames and swap of a simulated node. No thread safety: the Simulation's thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "hyperkernel/memory/page_frames.h"
#include "hyperkernel/memory/page_swap.h"
#include "rdma/simulation.h"
#include "tests/sim/space_oracle.h"

namespace hk::sim {

// Frames of one node in ordinary memory, as strict as the real ones.
class SimFrames final : public PageFrames {
 public:
  // `most`: frames at a time; 0: no bound.
  SimFrames(Simulation* simulation, SpaceOracle* oracle, NodeId node, uint64_t most)
      : simulation_(simulation), oracle_(oracle), node_(node), most_(most) {}

  // PageFrames.
  absl::Status Install(Gfn page, std::span<const std::byte> bytes, PageAccess access) override;
  absl::Status SetAccess(Gfn page, PageAccess access) override;
  absl::Status Remove(Gfn page, std::span<std::byte> keep) override;
  absl::Status Read(Gfn page, size_t offset, std::span<std::byte> to) override;
  absl::Status Write(Gfn page, size_t offset, std::span<const std::byte> from) override;
  void Wake(Gfn page) override;
  void Fail(Gfn page) override;

  // Of a program's thread that is watched, as a daemon watches its vCPUs': it runs whenever it does not wait.
  std::optional<std::chrono::nanoseconds> RunTime(uint32_t thread) const override;
  bool Waits(uint32_t thread) const override { return thread == kThread && watched_ && waits_since_.has_value(); }
  ThreadGather* GatherOf(uint32_t thread) const override;

  // The one program of this node has a thread that is watched.
  static constexpr uint32_t kThread = 1;
  void Watch() { watched_ = true; }
  // It has ended.
  void EndOfThread() { gather_.rests = true; }

  PageAccess access(Gfn page) const;
  // Loads or stores one word, as a program does. REQUIRES: access.
  uint64_t Load(Gfn page, size_t word);
  void Store(Gfn page, size_t word, uint64_t value);
  // A program waits until the page is woken (true) or failed (false).
  void WaitFor(Gfn page, std::function<void(bool)> then) {
    waiting_[page.value()].push_back(std::move(then));
    waits_since_ = simulation_->Now();
  }
  const std::map<uint64_t, std::pair<PageAccess, PageWords>>& pages() const { return pages_; }

 private:
  Simulation* const simulation_;
  SpaceOracle* const oracle_;
  const NodeId node_;
  const uint64_t most_;
  std::map<uint64_t, std::pair<PageAccess, PageWords>> pages_;
  std::map<uint64_t, std::vector<std::function<void(bool)>>> waiting_;
  std::map<uint64_t, bool> failed_;
  bool watched_ = false;
  mutable ThreadGather gather_;
  Simulation::Duration waited_{};
  std::optional<Monotonic> waits_since_;
};

// A swap of one node in ordinary memory: slow, and full now and then.
class SimSwap final : public PageSwap {
 public:
  using Later = std::function<void(Simulation::Duration, std::function<void()>)>;
  // `later` runs things on the node as long as it lives. `failures`: writes of a million that fail.
  SimSwap(Simulation* simulation, SpaceOracle* oracle, Later later, uint32_t failures)
      : simulation_(simulation), oracle_(oracle), later_(std::move(later)), failures_(failures) {}

  // PageSwap.
  void Write(Gfn gfn, std::shared_ptr<const SwapPage> page, Done done) override;
  void Read(Gfn gfn, std::shared_ptr<SwapPage> page, Done done) override;
  void Forget(Gfn gfn) override;

  size_t pages() const { return pages_.size(); }

 private:
  Simulation::Duration Delay();

  Simulation* const simulation_;
  SpaceOracle* const oracle_;
  const Later later_;
  const uint32_t failures_;
  std::map<uint64_t, SwapPage> pages_;
  std::map<uint64_t, bool> under_way_;
};

}  // namespace hk::sim
