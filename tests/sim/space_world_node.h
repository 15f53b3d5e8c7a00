// A node of a simulated cluster of fault engines; the world's own matter. No thread safety: the Simulation's thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tests/sim/space_sim_frames.h"
#include "tests/sim/space_world.h"

namespace hk::sim {

// Of each node's transport.
inline constexpr int kLeaseMs = 200;

// One node: transport, frames, engine, and the programs on it.
class SpaceWorld::Node final : public TransportHandler, public Timers {
 public:
  Node(SpaceWorld* world, NodeId id, const TransportSettings& settings);
  ~Node() override;

  void Begin() {
    programs_ = world_->programs_;
    for (int i = 0; i < world_->programs_; ++i) Next(world_->operations_);
  }

  // Timers.
  void After(Monotonic::duration delay, std::function<void()> run) override {
    world_->simulation_.After(delay, [alive = std::weak_ptr<bool>(alive_), run = std::move(run)] {
      if (!alive.expired()) run();
    });
  }

  // TransportHandler.
  void OnMessage(NodeId from, const Message& message, std::span<const std::byte> payload, bool late) override {
    if (message.guest != world_->config_.guest) return;
    engine_->OnMessage(from, message, payload, late);
  }
  void OnPeerUp(NodeId peer) override {
    ++up_;
    connected_.Add(peer);
  }
  void OnPeerFailed(NodeId peer, PeerFailure why, const std::string& detail) override {
    connected_.Remove(peer);
    engine_->OnPeerFailed(peer, why, detail);
  }
  void OnWritable(NodeId peer, MessageClass message_class) override {
    ++world_->totals_.refused_full;
    engine_->OnWritable(peer, message_class);
  }
  void OnSlotsFree(MessageClass message_class, SlotUse use) override {
    ++world_->totals_.waited_for_slots;
    engine_->OnSlotsFree(message_class, use);
  }
  void OnRequestExpired(NodeId asked, MessageClass message_class, uint64_t transaction, SlotId slot,
                        RequestFailure why) override {
    engine_->OnRequestExpired(asked, message_class, transaction, slot, why);
  }

  NodeId id() const { return id_; }
  int up() const { return up_; }
  NodeSet connected() const { return connected_; }
  uint64_t pins() const { return pins_; }
  int unended() const { return unended_; }
  // Some program has something to do yet, now or later.
  bool busy() const { return programs_ > 0 || unended_ > 0; }
  std::set<uint64_t> storing() const { return {storing_.begin(), storing_.end()}; }
  // Asks for each of `pages`, and loads its words.
  void LoadAll(const std::vector<Gfn>& pages);
  const absl::Status& stopped() const { return stopped_; }
  SpaceEngine& engine() { return *engine_; }
  Transport& transport() { return *transport_; }
  const SimFrames& frames() const { return frames_; }
  const SimSwap& swap() const { return swap_; }

 private:
  Simulation& simulation() { return world_->simulation_; }
  bool Percent(uint32_t percent) { return simulation().Chance(percent * 10'000); }

  void OnStopped(const absl::Status& why);
  // One program's next step, `left` to go.
  void Next(int left) {
    if (left == 0 || !stopped_.ok()) {
      --programs_;
      return;
    }
    After(simulation().Between({}, world_->think_), [this, left] { Act(left); });
  }

  void Act(int left);
  // As a device does it: for as long as it writes, the page stays.
  void PinAndStore(Gfn page, size_t word, int left);
  // As a thread under userfaultfd does it: again and again, until the page can be had.
  void Touch(Gfn page, size_t word, bool store, int left);
  // As an instruction does that writes to all of them: what it has may go again while it waits for another. `faults` so
  // far.
  void TouchAll(const std::vector<Gfn>& pages, uint64_t faults, int left);
  // The program waits until the page may be there, and does `again`.
  void Fault(Gfn page, bool store, std::function<void()> again);
  // Loads or stores a word, which must be possible now.
  void Access(Gfn page, size_t word, bool store);

  SpaceWorld* const world_;
  const NodeId id_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  SimFrames frames_;
  SimSwap swap_;
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<SpaceEngine> engine_;
  absl::Status stopped_;
  int up_ = 0;
  NodeSet connected_;
  uint64_t pins_ = 0;
  size_t at_ = 0;     // where its programs read in order
  int programs_ = 0;  // that go on
  int unended_ = 0;
  std::multiset<uint64_t> storing_;
};

}  // namespace hk::sim
