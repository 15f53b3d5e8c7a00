#include "tests/transport/sim_cluster.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "fmt/format.h"
#include "rdma/epoch_floors.h"
#include "rdma/sim_transport.h"
#include "rdma/slots.h"
#include "rdma/wire.h"
#include "tests/transport/sim_actor.h"

namespace hk {

namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr int kLeaseMs = 200;
constexpr milliseconds kStorm(2500);
// After the storm: every lease ends, every pause of a dialler, every deadline.
constexpr milliseconds kCalm(3000);
// The longest that handlers of a class are busy.
constexpr milliseconds kMostBusy(40);

}  // namespace

std::string_view NameOf(SimFault fault) {
  static constexpr std::array<std::string_view, kSimFaults> kNames = {
      "break-one", "break",       "cut",    "silence",     "deaf",        "crash",        "power-loss",    "restart",
      "fence",     "remove-peer", "busy",   "raise-epoch", "epoch-storm", "forget-guest", "second-answer", "unasked",
      "stranger",  "spikes",      "stalls", "splits",      "repeats",     "flips"};
  return kNames[static_cast<size_t>(fault)];
}

SimCluster::SimCluster(uint64_t seed, bool keep_trace)
    : simulation_(seed), network_(&simulation_, {}), checker_(&simulation_, kMostBusy + milliseconds(5)) {
  if (keep_trace) simulation_.KeepTrace();
  network_.SetObserver(&checker_);
  checker_.ExpectSuperfluous(kFirstSuperfluous);
  Draw();
}

SimCluster::~SimCluster() {
  actors_.clear();
}

NodeId SimCluster::PickOther(NodeId node) {
  const auto other = static_cast<uint16_t>(simulation_.Below(nodes_ - 1));
  return NodeId(other >= node.value() ? other + 1 : other);
}

SimCluster::Duration SimCluster::Pick(int least_ms, int most_ms) {
  return simulation_.Between(milliseconds(least_ms), milliseconds(most_ms));
}

// What kind of run it is: each fault in half of the runs, so that each is seen with and without every other.
void SimCluster::Draw() {
  nodes_ = static_cast<uint16_t>(2 + simulation_.Below(3));
  most_pause_ms_ = simulation_.Chance(500'000) ? 60 : 400;
  for (size_t i = 0; i < kSimFaults; ++i) {
    if (simulation_.Chance(500'000)) kinds_.insert(static_cast<SimFault>(i));
  }
  SimNetworkSettings& network = network_.settings();
  network.direct_writes = simulation_.Chance(500'000);
  if (network.direct_writes) {
    kinds_.erase(SimFault::kRepeats);
    kinds_.erase(SimFault::kFlips);
    kinds_.erase(SimFault::kStranger);
    // The second page would land in another use of the slot: not to write it is the answerer's duty.
    kinds_.erase(SimFault::kSecondAnswer);
    kinds_.erase(SimFault::kUnasked);
  }
  // A changed bit, or a hello of somebody else, ends sessions: seldom, so that there is something between.
  if (simulation_.Chance(300'000)) kinds_.erase(SimFault::kFlips);
  network.most_delay = simulation_.Between(microseconds(10), milliseconds(2));
  if (Has(SimFault::kSpikes)) {
    network.spikes_per_million = 3'000;
    network.spike_delay = milliseconds(simulation_.Chance(300'000) ? 2 * kLeaseMs : 50);
  }
  if (Has(SimFault::kStalls)) network.stalls_per_million = 30'000;
  if (Has(SimFault::kSplits)) network.splits_per_million = 300'000;
  if (Has(SimFault::kRepeats)) network.repeats_per_million = 50'000;
  if (Has(SimFault::kFlips)) network.flips_per_million = 300;
  if (Has(SimFault::kFlips) || Has(SimFault::kUnasked)) checker_.AllowMalformed();

  for (uint16_t node = 0; node < nodes_; ++node) settings_.push_back(DrawSettings(NodeId(node)));
}

// Nodes need not be of one mind but about the lease, which the test counts with.
TransportSettings SimCluster::DrawSettings(NodeId node) {
  TransportSettings settings;
  settings.cluster = "sim";
  settings.self = node;
  settings.lease_ms = kLeaseMs;
  settings.heartbeat_ms = kLeaseMs / 8;
  settings.handshake_ms = 100;
  settings.request_ms = 100;
  settings.backoff_ms = 2;
  settings.backoff_max_ms = 40;
  settings.window_messages = static_cast<uint32_t>(kMinWindow + simulation_.Below(12));
  settings.queue_messages = settings.window_messages + static_cast<uint32_t>(simulation_.Below(24));
  settings.strangers = 16;
  settings.fault_receive_slots = static_cast<uint32_t>(1 + simulation_.Below(8));
  settings.fault_send_slots = static_cast<uint32_t>(1 + simulation_.Below(6));
  settings.bulk_receive_slots = static_cast<uint32_t>(1 + simulation_.Below(3));
  settings.bulk_send_slots = static_cast<uint32_t>(1 + simulation_.Below(2));
  return settings;
}

void SimCluster::StartNode(NodeId node) {
  if (actors_.count(node) != 0) return;
  TransportSettings settings = settings_[node.value()];
  settings.node_epoch = node_epochs_[node];
  simulation_.Trace("start " + std::to_string(node.value()));
  auto actor = std::make_unique<SimActor>(this, node, settings);
  if (!actor->transport().Start().ok()) std::abort();
  for (uint16_t other = 0; other < nodes_; ++other) {
    if (NodeId(other) == node) continue;
    (void)actor->transport().AddPeer(NodeId(other), SimNetwork::AddressOf(NodeId(other)));
  }
  for (size_t guest = 1; guest < guests_.size(); ++guest) {
    actor->Learn(guest, guests_[guest].first, guests_[guest].second);
  }
  SimActor* const begins = actor.get();
  actors_[node] = std::move(actor);
  begins->Begin();
}

void SimCluster::Run() {
  for (uint16_t node = 0; node < nodes_; ++node) node_epochs_[NodeId(node)] = Epoch(1);
  for (size_t guest = 1; guest < guests_.size(); ++guest) guests_[guest] = {1, Epoch(1)};
  for (uint16_t node = 0; node < nodes_; ++node) {
    simulation_.After(Pick(0, 10), [this, node] { StartNode(NodeId(node)); });
  }
  simulation_.After(milliseconds(50), [this] { Disturb(); });
  simulation_.RunUntil(simulation_.Now() + kStorm);
  HealAll();
  simulation_.RunUntil(simulation_.Now() + kCalm);
  CheckAllUp();
  checker_.CheckQuiet();
  const SimNetworkCounters& network = network_.counters();
  faults_[static_cast<size_t>(SimFault::kSpikes)] = network.spikes;
  faults_[static_cast<size_t>(SimFault::kStalls)] = network.stalls;
  faults_[static_cast<size_t>(SimFault::kSplits)] = network.splits;
  faults_[static_cast<size_t>(SimFault::kRepeats)] = network.repeats;
  faults_[static_cast<size_t>(SimFault::kFlips)] = network.flips;
}

void SimCluster::Disturb() {
  if (!storm_) return;
  if (!kinds_.empty()) {
    auto kind = kinds_.begin();
    std::advance(kind, simulation_.Below(kinds_.size()));
    Do(*kind);
  }
  simulation_.After(Pick(1, most_pause_ms_), [this] { Disturb(); });
}

void SimCluster::Do(SimFault fault) {
  const NodeId a = PickNode(), b = PickOther(a);
  const auto actor = actors_.find(a);
  switch (fault) {
    case SimFault::kBreakOne:
      network_.BreakOne(a, b);
      break;
    case SimFault::kBreak:
      network_.Break(a, b);
      break;
    case SimFault::kCut:
    case SimFault::kSilence:
    case SimFault::kDeaf:
      return Separate(fault);
    case SimFault::kCrash:
    case SimFault::kPowerLoss:
    case SimFault::kRestart:
      return TakeDown(fault);
    case SimFault::kFence:
      return Fence(a, b);
    case SimFault::kRemovePeer:
      if (actor == actors_.end()) return;
      actor->second->transport().RemovePeer(b);
      simulation_.After(Pick(0, 100), [this, a, b] {
        if (const auto again = actors_.find(a); again != actors_.end()) {
          (void)again->second->transport().AddPeer(b, SimNetwork::AddressOf(b));
        }
      });
      break;
    case SimFault::kBusy: {
      const auto message_class = static_cast<MessageClass>(simulation_.Below(kMessageClasses));
      network_.SetBusy(a, message_class, true);
      simulation_.After(simulation_.Between({}, kMostBusy),
                        [this, a, message_class] { network_.SetBusy(a, message_class, false); });
      break;
    }
    case SimFault::kRaiseEpoch:
      RaiseEpoch(1);
      break;
    case SimFault::kEpochStorm:
      if (actor == actors_.end()) return;
      StormEpochs(a);
      break;
    case SimFault::kForgetGuest:
      if (actor == actors_.end()) return;
      ForgetGuest(a);
      break;
    case SimFault::kStranger:
      SendStranger();
      break;
    case SimFault::kSecondAnswer:
    case SimFault::kUnasked:
    case SimFault::kSpikes:
    case SimFault::kStalls:
    case SimFault::kSplits:
    case SimFault::kRepeats:
    case SimFault::kFlips:
      return;  // the actors' and the network's, all the time
  }
  Count(fault);
}

void SimCluster::Fence(NodeId by, NodeId node) {
  const auto actor = actors_.find(by);
  if (actor == actors_.end()) return;
  Count(SimFault::kFence);
  const Epoch next(node_epochs_[node].value() + 1);
  actor->second->transport().ResetPeer(node, next);
  simulation_.After(Pick(0, 300), [this, node, next] {
    node_epochs_[node] = std::max(node_epochs_[node], next);
    if (const auto fenced = actors_.find(node); fenced != actors_.end()) {
      fenced->second->transport().SetNodeEpoch(node_epochs_[node]);
    }
  });
}

void SimCluster::Separate(SimFault fault) {
  const NodeId a = PickNode(), b = PickOther(a);
  const std::pair<NodeId, NodeId> pair = std::minmax(a, b);  // a copy: minmax gives references
  if (separations_[pair] % 2 != 0) return;                   // it is
  Count(fault);
  const uint64_t separation = ++separations_[pair];
  if (fault == SimFault::kCut) {
    network_.Cut(a, b);
  } else {
    network_.Silence(a, b);
    if (fault == SimFault::kSilence) network_.Silence(b, a);
  }
  if (fault != SimFault::kDeaf) {
    ExpectDown(a, b, separation);
    ExpectDown(b, a, separation);
  }
  simulation_.After(simulation_.Chance(600'000) ? Pick(1, kLeaseMs / 2) : Pick(kLeaseMs, 4 * kLeaseMs),
                    [this, pair, separation] {
                      if (separations_[pair] != separation) return;
                      ++separations_[pair];
                      network_.Heal(pair.first, pair.second);
                    });
}

void SimCluster::ExpectDown(NodeId observer, NodeId node, uint64_t changes) {
  // What was under way before may be heard until then; handlers may be busy.
  const Duration longest = milliseconds(kLeaseMs) + network_.settings().most_delay + network_.settings().spike_delay +
                           2 * kMostBusy + milliseconds(5);
  const SimActor* const life = actors_.count(observer) == 0 ? nullptr : actors_[observer].get();
  simulation_.After(longest, [this, observer, node, changes, life] {
    const auto still = actors_.find(observer);
    if (separations_[std::minmax(observer, node)] != changes || still == actors_.end() || still->second.get() != life) {
      return;
    }
    if (still->second->transport().IsUp(node)) {
      checker_.Report(fmt::format("node {} has not heard of node {} for longer than a lease, and takes it for up",
                                  observer.value(), node.value()));
    }
  });
}

void SimCluster::TakeDown(SimFault fault) {
  const NodeId node = PickNode();
  const auto actor = actors_.find(node);
  if (actor == actors_.end()) return;
  Count(fault);
  if (fault == SimFault::kRestart) {
    actor->second->transport().Stop();
  } else {
    network_.Crash(node, fault == SimFault::kPowerLoss);
  }
  actors_.erase(actor);
  // A process does not start in less: slots' counters rely on it.
  simulation_.After(Pick(5, 2 * kLeaseMs), [this, node] { StartNode(node); });
}

void SimCluster::StormEpochs(NodeId node) {
  const auto before = guests_;
  const uint64_t raises = kMaxFloors + 64;
  RaiseEpoch(raises);
  for (size_t guest = 1; guest < guests_.size(); ++guest) {
    const auto& [generation, epoch] = guests_[guest];
    for (uint64_t e = before[guest].second.value() + 1; e <= epoch.value(); ++e) {
      actors_[node]->Learn(guest, generation, Epoch(e));
    }
  }
}

void SimCluster::ForgetGuest(NodeId node) {
  const size_t guest = 1 + simulation_.Below(guests_.size() - 1);
  actors_[node]->transport().ForgetGuest(GuestId(guest));
  simulation_.After(Pick(0, 300), [this, node, guest] {
    if (const auto actor = actors_.find(node); actor != actors_.end()) {
      actor->second->Learn(guest, guests_[guest].first, guests_[guest].second);
    }
  });
}

void SimCluster::RaiseEpoch(uint64_t by) {
  const size_t guest = 1 + simulation_.Below(guests_.size() - 1);
  auto& [generation, epoch] = guests_[guest];
  epoch = Epoch(epoch.value() + by);
  if (simulation_.Chance(200'000)) ++generation;
  for (uint16_t node = 0; node < nodes_; ++node) {
    simulation_.After(Pick(0, 30), [this, node, guest, g = generation, e = epoch] {
      if (const auto actor = actors_.find(NodeId(node)); actor != actors_.end()) actor->second->Learn(guest, g, e);
    });
  }
}

namespace {

// Somebody who connects and cares for nothing that comes back.
struct Nobody final : public SimSocketHandler {
  void OnConnected() override {}
  void OnBytes(std::span<const std::byte> /*bytes*/) override {}
  void OnWrite(SlotId /*slot*/, std::span<const std::byte> /*payload*/) override {}
  void OnClosed() override {}

  std::unique_ptr<SimSocket> socket;
};

}  // namespace

void SimCluster::SendStranger() {
  auto nobody = std::make_shared<Nobody>();
  const NodeId to = PickNode();
  nobody->socket = network_.Connect(SimNetwork::kNowhere, to, nobody);
  if (simulation_.Chance(500'000)) {
    std::vector<std::byte> garbage(simulation_.Below(200));
    for (std::byte& byte : garbage) byte = static_cast<std::byte>(simulation_.Below(256));
    nobody->socket->Send(garbage);
  } else if (simulation_.Chance(500'000)) {
    // A hello that is well-formed: it may end a session, since without TLS nobody can tell.
    Hello hello;
    hello.message_class = static_cast<MessageClass>(simulation_.Below(kMessageClasses));
    hello.cluster = ClusterHash(simulation_.Chance(700'000) ? "sim" : "another");
    hello.from = PickOther(to);
    hello.to = to;
    hello.node_epoch = Epoch(simulation_.Below(4));
    hello.session = 1 + simulation_.Below(1000);
    hello.peer_session = simulation_.Chance(500'000) ? 0 : simulation_.Random();
    hello.received = hello.peer_session == 0 ? 0 : simulation_.Below(50);
    nobody->socket->Send(EncodeHello(hello));
  }
  if (simulation_.Chance(300'000)) nobody->socket->Close();
  strangers_.push_back(nobody);
  if (strangers_.size() > 20) strangers_.erase(strangers_.begin());
}

void SimCluster::HealAll() {
  simulation_.Trace("calm");
  storm_ = false;
  strangers_.clear();
  SimNetworkSettings& network = network_.settings();
  network.spikes_per_million = network.stalls_per_million = network.flips_per_million = network.repeats_per_million = 0;
  for (uint16_t a = 0; a < nodes_; ++a) {
    for (uint16_t b = 0; b < a; ++b) {
      network_.Heal(NodeId(a), NodeId(b));
      ++separations_[std::minmax(NodeId(a), NodeId(b))];
    }
  }
}

void SimCluster::CheckAllUp() {
  for (uint16_t a = 0; a < nodes_; ++a) {
    for (uint16_t b = 0; b < nodes_; ++b) {
      if (a == b) continue;
      const auto actor = actors_.find(NodeId(a));
      if (actor == actors_.end() || !actor->second->transport().IsUp(NodeId(b))) {
        checker_.Report(fmt::format("node {} is not up at node {} although all is healed", b, a));
      }
    }
  }
}

}  // namespace hk
