#include "tests/transport/sim_cluster.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "fmt/format.h"
#include "rdma/epoch_floors.h"
#include "rdma/sim_transport.h"
#include "rdma/slots.h"
#include "rdma/wire.h"

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

constexpr uint16_t kPlain = kFirstUserType, kRequest = kFirstUserType + 1, kAnswer = kFirstUserType + 2;
// Answers that should not be: each has a type of its own from here on.
constexpr uint16_t kFirstSuperfluous = 100;

// How often a message that does not fit is offered again.
constexpr int kMostTries = 20;

}  // namespace

std::string_view NameOf(SimFault fault) {
  static constexpr std::array<std::string_view, kSimFaults> kNames = {
      "break-one", "break",       "cut",    "silence",     "deaf",        "crash",        "power-loss",    "restart",
      "fence",     "remove-peer", "busy",   "raise-epoch", "epoch-storm", "forget-guest", "second-answer", "unasked",
      "stranger",  "spikes",      "stalls", "splits",      "repeats",     "flips"};
  return kNames[static_cast<size_t>(fault)];
}

// One life of one node: the user of its transport.
class SimActor final : public TransportHandler {
 public:
  SimActor(SimCluster* cluster, NodeId id, const TransportSettings& settings)
      : cluster_(cluster), id_(id), transport_(&cluster->checker_, settings, this) {
    auto made = MakeSimTransport(&cluster->network_, settings, &transport_);
    if (!made.ok()) std::abort();
    transport_.Use(*std::move(made));
  }

  CheckedTransport& transport() { return transport_; }
  void Begin() {
    After(cluster_->Pick(0, 2), [this] { Act(); });
  }

  // TransportHandler.
  void OnMessage(NodeId from, const Message& message, std::span<const std::byte> /*payload*/, bool late) override {
    cluster_->late_ += late ? 1 : 0;
    if (message.answer) {
      After(cluster_->Pick(0, 5), [this, slot = message.slot] { transport_.ReleaseSlot(slot); });
    } else if (message.type == kRequest) {
      if (cluster_->Has(SimFault::kFence) && simulation().Chance(1000)) cluster_->Fence(id_, from);
      Message duty = message;
      duty.body = {};
      // Now and then not before its deadline.
      const Simulation::Duration wait = Chance(10) ? cluster_->Pick(0, 150) : cluster_->Pick(0, 2);
      After(wait, [this, duty] { Serve(duty, kMostTries); });
    }
  }
  void OnPeerUp(NodeId peer) override {
    const uint64_t burst = Chance(20) ? simulation().Below(60) : 0;
    for (uint64_t i = 0; i < burst && cluster_->storm_; ++i) SendPlain(peer, MessageClass::kFault);
  }
  void OnPeerFailed(NodeId /*peer*/, PeerFailure why, const std::string& /*detail*/) override {
    ++cluster_->failures_[static_cast<size_t>(why)];
  }
  void OnWritable(NodeId peer, MessageClass message_class) override {
    for (int i = 0; i < 4; ++i) SendPlain(peer, message_class);
  }
  void OnSlotsFree(MessageClass message_class, SlotUse use) override {
    if (use == SlotUse::kReceive) SendRequest(message_class);
  }
  void OnRequestExpired(NodeId, MessageClass, uint64_t, SlotId, RequestFailure) override { ++cluster_->expired_; }

 private:
  Simulation& simulation() { return cluster_->simulation_; }
  bool Chance(uint32_t percent) { return simulation().Chance(percent * 10'000); }
  // Unless the node died before.
  void After(Simulation::Duration delay, std::function<void()> event) {
    simulation().After(delay, [alive = std::weak_ptr<bool>(alive_), event = std::move(event)] {
      if (!alive.expired()) event();
    });
  }

  MessageClass PickClass() { return static_cast<MessageClass>(simulation().Below(kMessageClasses)); }

  // Something that users do, again and again.
  void Act() {
    if (!cluster_->storm_) return;
    const uint64_t burst = Chance(5) ? 1 + simulation().Below(60) : 1;
    const NodeId to = cluster_->PickOther(id_);
    const MessageClass message_class = PickClass();
    const bool request = Chance(60);
    for (uint64_t i = 0; i < burst; ++i) {
      if (request) {
        SendRequest(Chance(75) ? MessageClass::kFault : MessageClass::kBulk);
      } else {
        SendPlain(to, message_class);
      }
    }
    After(simulation().Between(microseconds(100), milliseconds(4)), [this] { Act(); });
  }

  // The guest and epoch of a new message: as this node knows it, which may be old elsewhere.
  void SetGuest(Message* message) {
    const uint64_t guest = simulation().Below(cluster_->guests_.size());
    message->guest = GuestId(guest);
    if (guest == 0) return;
    const auto& [generation, epoch] = Chance(90) ? known_[guest] : cluster_->guests_[guest];
    message->generation = generation;
    message->epoch = epoch;
  }

 public:
  void Learn(size_t guest, uint32_t generation, Epoch epoch) {
    known_[guest] = {std::max(known_[guest].first, generation), std::max(known_[guest].second, epoch)};
    (void)transport_.SetEpoch(GuestId(guest), generation, epoch);
  }

 private:
  void SendPlain(NodeId to, MessageClass message_class) {
    Message message;
    message.message_class = message_class;
    message.type = kPlain;
    message.flags = static_cast<uint8_t>(simulation().Below(256));
    message.transaction = cluster_->next_transaction_++;
    SetGuest(&message);
    std::array<std::byte, kMaxBodyBytes> body;
    const size_t bytes = Chance(50) ? 0 : simulation().Below(kMaxBodyBytes + 1);
    std::fill_n(body.begin(), bytes, static_cast<std::byte>(message.transaction));
    message.body = std::span(body).first(bytes);
    (void)transport_.Send(to, message, {});
  }

  void SendRequest(MessageClass message_class) {
    if (message_class == MessageClass::kInvalidate) return;
    const absl::StatusOr<SlotId> slot = transport_.AcquireSlot(message_class, SlotUse::kReceive);
    if (!slot.ok()) return;
    if (!Chance(10)) return SendRequestInto(*slot, message_class);
    // Not at once: sessions may begin meanwhile.
    After(cluster_->Pick(0, 30), [this, slot = *slot, message_class] { SendRequestInto(slot, message_class); });
  }

  void SendRequestInto(SlotId slot, MessageClass message_class) {
    Message message;
    message.message_class = message_class;
    message.type = kRequest;
    message.transaction = cluster_->next_transaction_++;
    message.slot = slot;
    message.slot_node = id_;
    SetGuest(&message);
    const NodeId home = cluster_->PickOther(id_);
    SendOptions options;
    options.writers.Add(home);
    for (uint16_t node = 0; node < cluster_->nodes_; ++node) {
      if (NodeId(node) != id_ && Chance(40)) options.writers.Add(NodeId(node));
    }
    // Who may answer goes with the request, so that it is forwarded to none but them.
    NodeSet others = options.writers;
    others.Remove(home);
    message.gfn = Gfn(others.bits());
    options.deadline = milliseconds(1 + simulation().Below(Chance(20) ? 5 : 200));
    if (!transport_.Send(home, message, options).ok()) {
      transport_.ReleaseSlot(slot);
    } else if (Chance(10)) {
      After(cluster_->Pick(0, 3), [this, slot] { (void)transport_.CancelRequest(slot); });
    }
  }

  // The duty to answer is here: it is done, given away, or (rarely) forgotten.
  void Serve(Message duty, int tries) {
    if (tries == 0 || Chance(2)) return;
    const NodeSet others(duty.gfn.value());
    const bool twice = tries == kMostTries && cluster_->Has(SimFault::kSecondAnswer) && Chance(30);
    if (!others.empty() && Chance(50)) {
      Forward(duty, tries);
      if (!twice) return;
      cluster_->Count(SimFault::kSecondAnswer);
      return Answer(duty, Superfluous(), 1);
    }
    if (twice) {
      After(cluster_->Pick(0, 3), [this, duty] { Answer(duty, Superfluous(), 1); });
      cluster_->Count(SimFault::kSecondAnswer);
    }
    if (tries == kMostTries && cluster_->Has(SimFault::kUnasked) && Chance(2)) {
      LetAnotherAnswer(duty);
      return After(cluster_->Pick(0, 3), [this, duty, tries] { Answer(duty, kAnswer, tries); });
    }
    Answer(duty, kAnswer, tries);
  }

  void Answer(const Message& duty, uint16_t type, int tries) {
    if (duty.slot_node == id_) return;
    Message answer = duty;
    answer.type = type;
    answer.answer = true;
    SendOptions options;
    if (Chance(80)) {
      const absl::StatusOr<SlotId> slot = transport_.AcquireSlot(duty.message_class, SlotUse::kSend);
      if (!slot.ok()) return Again(duty, tries);
      const std::span<std::byte> page = transport_.SlotBytes(*slot);
      options.payload = *slot;
      options.payload_bytes = static_cast<uint32_t>(1 + simulation().Below(Chance(5) ? page.size() : 4096));
      std::fill_n(page.begin(), options.payload_bytes, static_cast<std::byte>(duty.transaction * 7 + id_.value()));
      std::memcpy(page.data(), &duty.transaction, std::min<size_t>(8, options.payload_bytes));
    }
    const absl::Status sent = transport_.Send(duty.slot_node, answer, options);
    if (options.payload != SlotId()) {
      if (Chance(70)) {
        transport_.ReleaseSlot(options.payload);
      } else {
        After(cluster_->Pick(0, 5), [this, slot = options.payload] { transport_.ReleaseSlot(slot); });
      }
    }
    if (absl::IsResourceExhausted(sent)) Again(duty, tries);
  }

  uint16_t Superfluous() { return static_cast<uint16_t>(kFirstSuperfluous + cluster_->superfluous_++ % 60'000); }

  // Whoever is not among those that the duty may still be given to: mostly somebody who was not asked.
  void LetAnotherAnswer(const Message& duty) {
    const NodeSet others(duty.gfn.value());
    const auto other = cluster_->actors_.find(cluster_->PickNode());
    if (other == cluster_->actors_.end() || other->first == duty.slot_node || others.Contains(other->first)) return;
    cluster_->Count(SimFault::kUnasked);
    other->second->Answer(duty, Superfluous(), 1);
  }

  void Forward(const Message& duty, int tries) {
    NodeSet others(duty.gfn.value());
    std::vector<NodeId> candidates;
    for (uint16_t node = 0; node < kMaxNodes; ++node) {
      if (others.Contains(NodeId(node)) && NodeId(node) != id_) candidates.push_back(NodeId(node));
    }
    if (candidates.empty()) return;
    const NodeId next = candidates[simulation().Below(candidates.size())];
    others.Remove(next);
    Message forwarded = duty;
    forwarded.gfn = Gfn(others.bits());
    if (absl::IsResourceExhausted(transport_.Send(next, forwarded, {}))) Again(duty, tries);
  }

  void Again(const Message& duty, int tries) {
    After(cluster_->Pick(0, 4), [this, duty, tries] { Serve(duty, tries - 1); });
  }

  SimCluster* const cluster_;
  const NodeId id_;
  std::array<std::pair<uint32_t, Epoch>, 3> known_{};
  CheckedTransport transport_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

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
