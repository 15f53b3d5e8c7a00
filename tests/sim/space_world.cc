#include "tests/sim/space_world.h"

#include <algorithm>
#include <utility>

#include "rdma/send_rules.h"
#include "rdma/wire.h"
#include "tests/sim/space_world_node.h"

namespace hk::sim {

using std::chrono::microseconds;
using std::chrono::milliseconds;

namespace {
constexpr int kMostPages = 12;
}  // namespace

SpaceWorld::SpaceWorld(uint64_t seed, const Options& options)
    : options_(options), seed_(seed), simulation_(seed), network_(&simulation_, {}), oracle_(&simulation_) {
  if (options.keep_trace) simulation_.KeepTrace();
  Draw();
}

SpaceWorld::~SpaceWorld() = default;

void SpaceWorld::Draw() {
  const auto below = [this](uint64_t limit) { return simulation_.Below(limit); };
  node_count_ = static_cast<uint16_t>(below(4) == 0 ? 2 + 2 * below(2) : 3);
  if (options_.join) node_count_ = std::max<uint16_t>(node_count_, 3);
  SimNetworkSettings& network = network_.settings();
  network.direct_writes = below(2) == 0;
  network.most_delay = simulation_.Between(microseconds(10), microseconds(600));
  if (below(3) == 0) network.stalls_per_million = 50'000;
  if (below(3) == 0) network.splits_per_million = 300'000;
  if (below(3) == 0) {
    network.spikes_per_million = 2'000;
    network.spike_delay = milliseconds(20);
  }
  breaks_ = below(2) == 0;
  busy_ = below(3) == 0;

  config_.request_limit = std::chrono::seconds(10);  // of virtual time: far above what any wish needs
  config_.guest = GuestId(7);
  config_.generation = 3;
  for (uint16_t node = 0; node < node_count_; ++node) config_.nodes.push_back(NodeId(node));
  for (uint16_t node = 0; node < founders(); ++node) config_.live.Add(NodeId(node));
  config_.pages = kExtentPages * (1 + below(6)) - below(100);
  static constexpr int kHolds[] = {0, 20, 200, 2000};
  config_.hold = microseconds(kHolds[below(4)]);
  uint64_t pages = 1 + below(below(2) == 0 ? 2 : kMostPages);
  if (below(3) == 0) {
    // More pages than a node may have, fewer than all nodes together may.
    config_.max_pages = kLeastFrames + below(5);
    // Without a hold, programs that are short of frames may take each other's page for ever.
    config_.hold = std::max(config_.hold, decltype(config_.hold)(microseconds(kHolds[1])));
    pages = config_.max_pages + 1 + below(config_.max_pages * (founders() - 1U) / 3);
    if (below(2) == 0) {
      // More than all nodes together have frames for.
      pages = config_.max_pages * node_count_ + below(config_.max_pages * node_count_);
      config_.swap_pages = pages;
      swap_failures_ = below(3) == 0 ? 50'000 : 0;
    }
  }
  for (uint64_t i = 0; i < pages; ++i) pages_.push_back(Gfn(below(config_.pages)));
  words_ = below(2) == 0 ? 1 : kWords;
  store_percent_ = static_cast<uint32_t>(10 + below(80));
  fault_percent_ = static_cast<uint32_t>(below(3) * 50);
  overwrite_percent_ = static_cast<uint32_t>(below(3) * 30);
  zero_percent_ = words_ == 1 ? static_cast<uint32_t>(below(3) * 40) : 0;
  pin_percent_ = static_cast<uint32_t>(below(3) * 15);
  programs_ = static_cast<int>(1 + below(6));
  operations_ = static_cast<int>(300 / programs_ + 1);
  think_ = simulation_.Between(microseconds(1), milliseconds(1));
  const bool scarce = below(2) == 0;
  for (uint16_t node = 0; node < node_count_; ++node) {
    TransportSettings settings;
    settings.cluster = "sim";
    settings.self = NodeId(node);
    settings.lease_ms = kLeaseMs;
    settings.heartbeat_ms = kLeaseMs / 8;
    settings.handshake_ms = 100;
    settings.backoff_ms = 2;
    settings.backoff_max_ms = 10;
    if (scarce) {
      settings.window_messages = settings.queue_messages = kMinWindow;
      settings.fault_receive_slots = static_cast<uint32_t>(1 + below(4));
      settings.fault_send_slots = static_cast<uint32_t>(1 + below(3));
    }
    settings_.push_back(settings);
  }
  DrawScans();
  if (options_.lose) DrawLosses();
  if (options_.both) DrawBoth();
}

// Pages that follow one another, and programs that mostly read them in order: what is fetched ahead comes in batches.
void SpaceWorld::DrawScans() {
  const auto below = [this](uint64_t limit) { return simulation_.Below(limit); };
  if (below(3) != 0) return;
  // All of its pages are different ones: fewer nodes may not have frames for them. And without a hold two programs that
  // are short of frames may take each other's page before either has read it.
  if (config_.max_pages != 0 && (options_.lose || config_.hold.count() == 0)) return;
  scans_ = true;
  const uint64_t count = config_.max_pages != 0 ? pages_.size() : 8 + below(40);  // no more than there are frames for
  const uint64_t first = below(config_.pages - count);
  pages_.clear();
  for (uint64_t i = 0; i < count; ++i) pages_.push_back(Gfn(first + i));
  if (below(3) != 0) return;
  for (TransportSettings& settings : settings_) {
    settings.bulk_receive_slots = static_cast<uint32_t>(1 + below(3));
    settings.bulk_send_slots = static_cast<uint32_t>(1 + below(3));
  }
}

// A program on each node, all for the same two pages; a hold that is long beside the way of a message.
void SpaceWorld::DrawBoth() {
  SimNetworkSettings network;
  network.direct_writes = network_.settings().direct_writes;
  network.most_delay = simulation_.Between(microseconds(10), microseconds(100));
  network_.settings() = network;
  breaks_ = busy_ = scans_ = false;
  config_.max_pages = config_.swap_pages = 0;
  config_.hold = milliseconds(2);
  const uint64_t first = simulation_.Below(config_.pages);
  pages_ = {Gfn(first), Gfn((first + 1 + simulation_.Below(config_.pages - 1)) % config_.pages)};
  programs_ = 1;
  operations_ = 30;
  think_ = microseconds(20);
  if (!options_.gather) return;
  network_.settings().most_delay = simulation_.Between(microseconds(100), milliseconds(2));
  std::set<uint64_t> pages;
  for (const uint64_t count = 4 + simulation_.Below(13); pages.size() < count;)
    pages.insert(simulation_.Below(config_.pages));
  pages_.clear();
  for (const uint64_t page : pages) pages_.push_back(Gfn(page));
}

bool SpaceWorld::AllUp() const {
  return std::all_of(nodes_.begin(), nodes_.end(),
                     [this](const auto& node) { return node == nullptr || node->up() == founders() - 1; });
}

void SpaceWorld::Run() {
  nodes_.resize(node_count_);
  for (uint16_t node = 0; node < founders(); ++node) {
    nodes_[node] = std::make_unique<Node>(this, NodeId(node), settings_[node]);
  }
  while (!AllUp() && simulation_.Step()) {
  }
  for (uint16_t node = 0; node < founders(); ++node) nodes_[node]->Begin();
  join_pending_ = options_.join || options_.again;
  joiner_ = options_.again ? victims_[0] : NodeId(static_cast<uint16_t>(node_count_ - 1));
  if (options_.join) simulation_.After(simulation_.Between({}, milliseconds(40)), [this] { JoinOne(); });
  simulation_.After(milliseconds(1), [this] { Disturb(); });
  if (options_.lose) {
    Duration at = simulation_.Between({}, milliseconds(20));
    for (size_t i = 0; i < losses_; ++i) {
      simulation_.After(at, [this] { LoseOne(); });
      // While the first loss is being dealt with, or before, or after.
      at += simulation_.Between({}, milliseconds(kLeaseMs * 2));
    }
  }
  if (options_.crash) simulation_.After(simulation_.Between({}, milliseconds(20)), [this] { Crash(); });
  // All programs together, with every wait that they may meet.
  const Monotonic limit = simulation_.Now() + std::chrono::seconds(60);
  const auto busy = [this] {
    return std::any_of(nodes_.begin(), nodes_.end(), [](const auto& node) { return node != nullptr && node->busy(); });
  };
  Monotonic quiet = simulation_.Now() + milliseconds(5);
  while (simulation_.Now() < limit && violations().empty()) {
    simulation_.RunUntil(simulation_.Now() + milliseconds(1));
    const bool losing = options_.lose && (dead_ < losses_ || !coordinator_->settled() ||
                                          coordinator_->live().size() + static_cast<int>(dead_ + joiner_dead_) >
                                              founders() + static_cast<int>(totals_.joined));
    const bool stopped = crashed_ && std::any_of(nodes_.begin(), nodes_.end(), [this](const auto& node) {
                           return node != nullptr && !IsToJoin(node->id()) && !node->stopped().ok();
                         });
    if (busy() || (options_.crash && !crashed_) || ((losing || join_pending_) && !stopped))
      quiet = simulation_.Now() + milliseconds(5);
    if (simulation_.Now() > quiet) break;
  }
  over_ = true;
  SimNetworkSettings& network = network_.settings();
  network.spikes_per_million = network.stalls_per_million = 0;
  simulation_.RunUntil(simulation_.Now() + milliseconds(3 * kLeaseMs));
  if (options_.lose && violations().empty()) {
    if ((options_.join || options_.again) && nothing_lost() && totals_.joined != 1) {
      oracle_.Report("a node did not join, though nothing else happened");
    }
    JoinerGoes();
    ReadAll();
  }
  CheckEnd();
}

void SpaceWorld::Disturb() {
  if (over_) return;
  const NodeId a(static_cast<uint16_t>(simulation_.Below(node_count_)));
  const NodeId b(static_cast<uint16_t>((a.value() + 1 + simulation_.Below(node_count_ - 1U)) % node_count_));
  if (breaks_) {
    switch (simulation_.Below(3)) {
      case 0:
        network_.BreakOne(a, b);
        break;
      case 1:
        network_.Break(a, b);
        break;
      case 2:
        // Shorter than the lease.
        network_.Cut(a, b);
        simulation_.After(simulation_.Between({}, milliseconds(20)), [this, a, b] { network_.Heal(a, b); });
        break;
    }
  }
  if (busy_ && nodes_[a.value()] != nullptr) {
    const auto message_class = static_cast<MessageClass>(simulation_.Below(kMessageClasses));
    network_.SetBusy(a, message_class, true);
    simulation_.After(simulation_.Between({}, milliseconds(5)),
                      [this, a, message_class] { network_.SetBusy(a, message_class, false); });
  }
  simulation_.After(simulation_.Between(milliseconds(1), milliseconds(40)), [this] { Disturb(); });
}

void SpaceWorld::Crash() {
  const NodeId victim(static_cast<uint16_t>(simulation_.Below(node_count_)));
  crashed_ = true;
  breaks_ = busy_ = false;
  network_.Crash(victim, simulation_.Below(2) == 0);
  nodes_[victim.value()].reset();
}

}  // namespace hk::sim
