#include "tests/sim/space_world.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "fmt/format.h"
#include "rdma/send_rules.h"
#include "rdma/wire.h"

namespace hk::sim {

using std::chrono::microseconds;
using std::chrono::milliseconds;

namespace {
constexpr int kLeaseMs = 200;
constexpr int kMostPages = 12;
}  // namespace

void SpaceOracle::Report(const std::string& violation) {
  if (violations_.size() < 10) violations_.push_back(violation);
  simulation_->Trace("VIOLATION " + violation);
}

void SpaceOracle::OnAccess(NodeId node, Gfn page, PageAccess access) {
  simulation_->Trace(fmt::format("{} access {} {}", node.value(), page.value(), static_cast<int>(access)));
  std::map<NodeId, PageAccess>& all = access_[page.value()];
  all[node] = access;
  last_[page.value()] = node;
  for (const auto& [other, right] : all) {
    if (other == node || right == PageAccess::kNone || access == PageAccess::kNone || dead_.contains(other.value())) {
      continue;
    }
    if (right == PageAccess::kWrite || access == PageAccess::kWrite) {
      Report(fmt::format("nodes {} and {} have page {} at once, with access {} and {}", node.value(), other.value(),
                         page.value(), static_cast<int>(access), static_cast<int>(right)));
    }
  }
}

void SpaceOracle::OnLoad(NodeId node, Gfn page, size_t word, uint64_t value) {
  ++loads_;
  simulation_->Trace(fmt::format("{} load {}.{} {}", node.value(), page.value(), word, value));
  const uint64_t expected = expected_[page.value()][word];
  if (value != expected) {
    Report(fmt::format("node {} loads {} from word {} of page {}, which is {}", node.value(), value, word, page.value(),
                       expected));
  }
}

void SpaceOracle::OnStore(NodeId node, Gfn page, size_t word, uint64_t value) {
  simulation_->Trace(fmt::format("{} store {}.{} {}", node.value(), page.value(), word, value));
  expected_[page.value()][word] = value;
  stored_.insert(page.value());
}

void SpaceOracle::OnCrash(NodeId node, const std::set<uint64_t>& wanted) {
  dead_.insert(node.value());
  gone_.insert(wanted.begin(), wanted.end());
  for (const auto& [page, last] : last_) {
    if (!HeldBySomebody(Gfn(page)) && dead_.contains(last.value())) gone_.insert(page);
    // It may have given the page away, and the bytes did not arrive.
    if (!HeldBySomebody(Gfn(page)) && access_[page].contains(node)) had_.insert(page);
    if (access_[page].contains(node) && access_[page][node] != PageAccess::kNone) {
      had_.insert(page);
      if (!HeldBySomebody(Gfn(page))) gone_.insert(page);
    }
  }
}

bool SpaceOracle::MayBeLost(Gfn page) const {
  const bool owner_lost = had_.contains(page.value()) && wished_.contains(page.value());
  return !stored_.contains(page.value()) || gone_.contains(page.value()) || owner_lost;
}

bool SpaceOracle::HeldBySomebody(Gfn page) const {
  const auto found = access_.find(page.value());
  if (found == access_.end()) return false;
  return std::any_of(found->second.begin(), found->second.end(), [this](const auto& holder) {
    return holder.second != PageAccess::kNone && !dead_.contains(holder.first.value());
  });
}

absl::Status SimFrames::Install(Gfn page, std::span<const std::byte> bytes, PageAccess access) {
  if (pages_.contains(page.value())) return absl::AlreadyExistsError("the page is here");
  if (access == PageAccess::kNone || (!bytes.empty() && bytes.size() != kPageSize)) {
    return absl::InvalidArgumentError("bytes or access");
  }
  auto& [right, words] = pages_[page.value()];
  right = access;
  words = {};
  if (most_ != 0 && pages_.size() > most_)
    oracle_->Report(fmt::format("node {} has {} frames", node_.value(), pages_.size()));
  if (!bytes.empty()) std::memcpy(words.data(), bytes.data(), kPageSize);
  oracle_->OnAccess(node_, page, access);
  return absl::OkStatus();
}

absl::Status SimFrames::SetAccess(Gfn page, PageAccess access) {
  const auto found = pages_.find(page.value());
  if (found == pages_.end() || access == PageAccess::kNone) return absl::FailedPreconditionError("no such page");
  found->second.first = access;
  oracle_->OnAccess(node_, page, access);
  return absl::OkStatus();
}

absl::Status SimFrames::Remove(Gfn page, std::span<std::byte> keep) {
  const auto found = pages_.find(page.value());
  if (found == pages_.end()) return absl::FailedPreconditionError("no such page");
  if (!keep.empty()) std::memcpy(keep.data(), found->second.second.data(), kPageSize);
  pages_.erase(found);
  oracle_->OnAccess(node_, page, PageAccess::kNone);
  return absl::OkStatus();
}

absl::Status SimFrames::Read(Gfn page, size_t offset, std::span<std::byte> to) {
  const auto found = pages_.find(page.value());
  if (found == pages_.end()) return absl::FailedPreconditionError("no such page");
  std::memcpy(to.data(), reinterpret_cast<const std::byte*>(found->second.second.data()) + offset, to.size());
  return absl::OkStatus();
}

absl::Status SimFrames::Write(Gfn page, size_t offset, std::span<const std::byte> from) {
  const auto found = pages_.find(page.value());
  if (found == pages_.end() || found->second.first != PageAccess::kWrite) {
    return absl::FailedPreconditionError("no such page");
  }
  std::memcpy(reinterpret_cast<std::byte*>(found->second.second.data()) + offset, from.data(), from.size());
  return absl::OkStatus();
}

void SimFrames::Wake(Gfn page) {
  std::vector<std::function<void(bool)>> woken = std::move(waiting_[page.value()]);
  waiting_.erase(page.value());
  const bool good = !failed_.contains(page.value());
  // A thread that was woken runs a little later.
  for (std::function<void(bool)>& then : woken) {
    simulation_->After(simulation_->Between({}, microseconds(5)), [then = std::move(then), good] { then(good); });
  }
}

void SimFrames::Fail(Gfn page) {
  failed_[page.value()] = true;
}

PageAccess SimFrames::access(Gfn page) const {
  const auto found = pages_.find(page.value());
  return found == pages_.end() ? PageAccess::kNone : found->second.first;
}

uint64_t SimFrames::Load(Gfn page, size_t word) {
  return pages_.at(page.value()).second[word];
}

void SimFrames::Store(Gfn page, size_t word, uint64_t value) {
  auto& [right, words] = pages_.at(page.value());
  if (right != PageAccess::kWrite) oracle_->Report("a store to a page that is not writable");
  words[word] = value;
}

Simulation::Duration SimSwap::Delay() {
  return simulation_->Chance(100'000) ? simulation_->Between(milliseconds(1), milliseconds(20))
                                      : simulation_->Between(microseconds(20), microseconds(500));
}

void SimSwap::Write(Gfn gfn, std::shared_ptr<const SwapPage> page, Done done) {
  if (pages_.contains(gfn.value()) || under_way_[gfn.value()]) oracle_->Report("a page is swapped twice");
  under_way_[gfn.value()] = true;
  later_(Delay(), [this, gfn, page = std::move(page), done = std::move(done)] {
    under_way_[gfn.value()] = false;
    if (simulation_->Chance(failures_)) return done(absl::ResourceExhaustedError("the disk is full"));
    pages_[gfn.value()] = *page;
    done(absl::OkStatus());
  });
}

void SimSwap::Read(Gfn gfn, std::shared_ptr<SwapPage> page, Done done) {
  if (!pages_.contains(gfn.value()) || under_way_[gfn.value()]) {
    return oracle_->Report(fmt::format("page {} is read from the swap, which does not have it", gfn.value()));
  }
  under_way_[gfn.value()] = true;
  later_(Delay(), [this, gfn, page = std::move(page), done = std::move(done)] {
    under_way_[gfn.value()] = false;
    *page = pages_.at(gfn.value());
    done(absl::OkStatus());
  });
}

void SimSwap::Forget(Gfn gfn) {
  if (under_way_[gfn.value()] || pages_.erase(gfn.value()) == 0)
    oracle_->Report("a page that is not there is forgotten");
}

// One node: transport, frames, engine, and the programs on it.
class SpaceWorld::Node final : public TransportHandler, public Timers {
 public:
  Node(SpaceWorld* world, NodeId id, const TransportSettings& settings)
      : world_(world),
        id_(id),
        frames_(&world->simulation_, &world->oracle_, id, world->config_.max_pages),
        swap_(
            &world->simulation_, &world->oracle_,
            [this](Duration delay, std::function<void()> run) { After(delay, std::move(run)); },
            world->swap_failures_) {
    auto made = MakeSimTransport(&world->network_, settings, this);
    if (!made.ok() || !(*made)->Start().ok()) std::abort();
    transport_ = *std::move(made);
    for (uint16_t other = 0; other < world->node_count_; ++other) {
      if (NodeId(other) != id) (void)transport_->AddPeer(NodeId(other), SimNetwork::AddressOf(NodeId(other)));
    }
    SpaceConfig config = world->config_;
    config.self = id;
    auto engine = SpaceEngine::Create(
        config, transport_.get(), &frames_, this, world->simulation_,
        [this](const absl::Status& why) { OnStopped(why); }, &swap_);
    if (!engine.ok()) std::abort();
    engine_ = *std::move(engine);
    engine_->WatchLosses([this](NodeId lost) {
      // The word takes its time to the coordinator.
      world_->simulation_.After(world_->simulation_.Between({}, milliseconds(2)), [world = world_, lost] {
        if (world->coordinator_ != nullptr) world->coordinator_->OnLost(lost);
      });
    });
  }
  ~Node() override {
    alive_.reset();
    transport_->Stop();
    engine_.reset();
  }

  void Begin() {
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
  void OnPeerUp(NodeId /*peer*/) override { ++up_; }
  void OnPeerFailed(NodeId peer, PeerFailure why, const std::string& detail) override {
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

  int up() const { return up_; }
  uint64_t pins() const { return pins_; }
  int unended() const { return unended_; }
  std::set<uint64_t> storing() const { return {storing_.begin(), storing_.end()}; }
  // Asks for each of `pages`, and loads its words.
  void LoadAll(const std::vector<Gfn>& pages) {
    for (const Gfn page : pages) {
      ++unended_;
      engine_->Want(page, PageAccess::kRead, [this, page](const absl::Status& status) {
        --unended_;
        if (!status.ok()) return;
        for (size_t word = 0; word < world_->words_; ++word) Access(page, word, false);
      });
    }
  }
  const absl::Status& stopped() const { return stopped_; }
  SpaceEngine& engine() { return *engine_; }
  Transport& transport() { return *transport_; }
  const SimFrames& frames() const { return frames_; }
  const SimSwap& swap() const { return swap_; }

 private:
  Simulation& simulation() { return world_->simulation_; }
  bool Percent(uint32_t percent) { return simulation().Chance(percent * 10'000); }

  void OnStopped(const absl::Status& why) {
    stopped_ = why;
    simulation().Trace(fmt::format("{} stopped: {}", id_.value(), why.ToString()));
    if (!world_->crashed_ && !world_->over_)
      world_->oracle_.Report(fmt::format("node {} stopped: {}", id_.value(), why.ToString()));
  }

  // One program's next step, `left` to go.
  void Next(int left) {
    if (left == 0 || !stopped_.ok()) return;
    After(simulation().Between({}, world_->think_), [this, left] { Act(left); });
  }

  void Act(int left) {
    Gfn page = world_->PickPage();
    const size_t word = simulation().Below(world_->words_);
    const bool victim = std::find(world_->victims_.begin(), world_->victims_.end(), id_) != world_->victims_.end();
    bool store = Percent(victim ? world_->victims_store_percent_ : world_->store_percent_);
    if (victim && !world_->victims_pages_.empty() && Percent(30)) {
      page = world_->victims_pages_[simulation().Below(world_->victims_pages_.size())];
      store = true;
    }
    const bool scans = world_->scans_ && Percent(80);
    if (scans) {
      at_ = (at_ + 1) % world_->pages_.size();
      page = world_->pages_[at_];
      store = store && Percent(10);
    }
    ++unended_;
    if (store) storing_.insert(page.value());
    if (store && world_->crashed_) world_->oracle_.OnWishToStore(page);
    if (scans || Percent(world_->fault_percent_)) return Touch(page, word, store, left);
    const auto ended = [this, left, page, store](const absl::Status& status) {
      --unended_;
      if (store) storing_.erase(storing_.find(page.value()));
      if (!status.ok() && stopped_.ok()) world_->oracle_.Report("a wish ends with " + status.ToString());
      Next(left - 1);
    };
    if (store && Percent(world_->pin_percent_)) return PinAndStore(page, word, left);
    if (store && Percent(world_->overwrite_percent_)) {
      const auto words = std::make_shared<PageWords>();
      for (uint64_t& value : *words) value = world_->oracle_.NextValue();
      engine_->Replace(page, std::as_bytes(std::span(*words)),
                       [this, page, word, words, ended](const absl::Status& status) {
                         for (size_t i = 0; i < kWords && status.ok(); ++i)
                           world_->oracle_.OnStore(id_, page, i, (*words)[i]);
                         if (status.ok()) Access(page, word, false);
                         ended(status);
                       });
      return;
    }
    engine_->Want(page, store ? PageAccess::kWrite : PageAccess::kRead,
                  [this, page, word, store, ended](const absl::Status& status) {
                    if (status.ok()) Access(page, word, store);
                    ended(status);
                  });
  }

  // As a device does it: for as long as it writes, the page stays.
  void PinAndStore(Gfn page, size_t word, int left) {
    const auto ended = [this, left] {
      --unended_;
      Next(left - 1);
    };
    engine_->Pin(page, 1, [this, page, word, ended](const absl::Status& status) {
      if (absl::IsResourceExhausted(status) || !stopped_.ok()) return ended();
      if (!status.ok()) world_->oracle_.Report("a pin ends with " + status.ToString());
      ++pins_;
      Access(page, word, true);
      After(simulation().Between({}, microseconds(800)), [this, page, word, ended] {
        if (!stopped_.ok()) return ended();
        Access(page, word, true);
        engine_->Unpin(page, 1);
        ended();
      });
    });
  }

  // As a thread under userfaultfd does it: again and again, until the page can be had.
  void Touch(Gfn page, size_t word, bool store, int left) {
    if (frames_.access(page) >= (store ? PageAccess::kWrite : PageAccess::kRead)) {
      --unended_;
      if (store) storing_.erase(storing_.find(page.value()));
      Access(page, word, store);
      return Next(left - 1);
    }
    frames_.WaitFor(page, [this, page, word, store, left, alive = std::weak_ptr<bool>(alive_)](bool good) {
      if (alive.expired()) return;
      if (good) return Touch(page, word, store, left);
      --unended_;
    });
    // The event is read a little later, when somebody else may have brought the page.
    After(simulation().Between({}, microseconds(3)), [this, page, store] { engine_->OnFault(page, store); });
  }

  void Access(Gfn page, size_t word, bool store) {
    if (frames_.access(page) < (store ? PageAccess::kWrite : PageAccess::kRead)) {
      return world_->oracle_.Report("a page that was granted is not here");
    }
    if (store) {
      const uint64_t value = Percent(world_->zero_percent_) ? 0 : world_->oracle_.NextValue();
      world_->oracle_.OnStore(id_, page, word, value);
      frames_.Store(page, word, value);
    } else {
      world_->oracle_.OnLoad(id_, page, word, frames_.Load(page, word));
    }
  }

  SpaceWorld* const world_;
  const NodeId id_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  SimFrames frames_;
  SimSwap swap_;
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<SpaceEngine> engine_;
  absl::Status stopped_;
  int up_ = 0;
  uint64_t pins_ = 0;
  size_t at_ = 0;  // where its programs read in order
  int unended_ = 0;
  std::multiset<uint64_t> storing_;
};

SpaceWorld::SpaceWorld(uint64_t seed, const Options& options)
    : options_(options), simulation_(seed), network_(&simulation_, {}), oracle_(&simulation_) {
  if (options.keep_trace) simulation_.KeepTrace();
  Draw();
}

SpaceWorld::~SpaceWorld() = default;

void SpaceWorld::Draw() {
  const auto below = [this](uint64_t limit) { return simulation_.Below(limit); };
  node_count_ = static_cast<uint16_t>(below(4) == 0 ? 2 + 2 * below(2) : 3);
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
  config_.pages = kExtentPages * (1 + below(6)) - below(100);
  static constexpr int kHolds[] = {0, 20, 200, 2000};
  config_.hold = microseconds(kHolds[below(4)]);
  uint64_t pages = 1 + below(below(2) == 0 ? 2 : kMostPages);
  if (below(3) == 0) {
    // More pages than a node may have, fewer than all nodes together may.
    config_.max_pages = kLeastFrames + below(5);
    pages = config_.max_pages + 1 + below(config_.max_pages * (node_count_ - 1U) / 3);
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

// Of what follows a loss little is seen if all that is touched next is lost: so victims store seldom, or never.
void SpaceWorld::DrawLosses() {
  const auto below = [this](uint64_t limit) { return simulation_.Below(limit); };
  config_.coordinator = NodeId(0);
  static constexpr uint32_t kStores[] = {0, 0, 2, 30};
  victims_store_percent_ = kStores[below(4)];
  const bool own = below(12) == 0;  // the coordinator itself
  cut_ = !own && node_count_ > 2 && below(4) == 0;
  victims_.push_back(NodeId(own ? 0 : static_cast<uint16_t>(1 + below(node_count_ - 1U))));
  if (!own && node_count_ > 2 && (cut_ || below(3) == 0)) {
    NodeId other = victims_[0];
    while (other == victims_[0]) other = NodeId(static_cast<uint16_t>(1 + below(node_count_ - 1U)));
    victims_.push_back(other);
  }
  losses_ = cut_ ? 1 : victims_.size();
  // What is left must have frames for all pages.
  const size_t left = node_count_ - victims_.size();
  if (config_.max_pages != 0) {
    pages_.resize(std::min<size_t>(pages_.size(), config_.max_pages + config_.max_pages * (left - 1) / 3));
  }
  if (config_.max_pages == 0) {
    for (uint64_t i = below(8); i > 0; --i) {
      const Gfn page(below(config_.pages));
      if (std::find(pages_.begin(), pages_.end(), page) == pages_.end()) victims_pages_.push_back(page);
    }
  }
  coordinator_ = std::make_unique<SpaceCoordinator>(
      &simulation_, NodeId(0), NodeSet((uint64_t{1} << node_count_) - 1), config_.epoch,
      [this](NodeId id) { return EngineOf(id); }, [this](NodeId id, const SpaceEpoch& epoch) { GiveUp(id, epoch); });
}

void SpaceWorld::GiveUp(NodeId id, const SpaceEpoch& epoch) {
  std::unique_ptr<Node>& node = nodes_[id.value()];
  oracle_.OnCrash(id, WantedBy(id));
  NoteWishes();
  simulation_.Trace(fmt::format("{} is given up", id.value()));
  const absl::Status told = node->engine().BeginEpoch(epoch);
  if (told.ok() || node->stopped().ok()) oracle_.Report("a node that is given up goes on");
  given_up_.push_back(std::move(node));
}

// Until the end; what else would heal is healed by then.
void SpaceWorld::CutTwo() {
  const auto cut = [this] { network_.Cut(victims_[0], victims_[1]); };
  cut();
  simulation_.After(milliseconds(25), cut);
}

std::set<uint64_t> SpaceWorld::WantedBy(NodeId id) const {
  std::set<uint64_t> wanted = nodes_[id.value()]->storing();
  if (config_.max_pages != 0) {
    // It may have been about to take over any of them.
    for (const Gfn page : pages_) wanted.insert(page.value());
  }
  return wanted;
}

void SpaceWorld::NoteWishes() {
  for (const auto& node : nodes_) {
    if (node == nullptr) continue;
    for (const uint64_t page : node->storing()) oracle_.OnWishToStore(Gfn(page));
  }
}

SpaceEngine* SpaceWorld::EngineOf(NodeId id) {
  return nodes_[id.value()] == nullptr ? nullptr : &nodes_[id.value()]->engine();
}

bool SpaceWorld::AllUp() const {
  return std::all_of(nodes_.begin(), nodes_.end(), [this](const auto& node) { return node->up() == node_count_ - 1; });
}

void SpaceWorld::Run() {
  for (uint16_t node = 0; node < node_count_; ++node) {
    nodes_.push_back(std::make_unique<Node>(this, NodeId(node), settings_[node]));
  }
  while (!AllUp() && simulation_.Step()) {
  }
  for (const auto& node : nodes_) node->Begin();
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
    return std::any_of(nodes_.begin(), nodes_.end(),
                       [](const auto& node) { return node != nullptr && node->unended() > 0; });
  };
  Monotonic quiet = simulation_.Now() + milliseconds(5);
  while (simulation_.Now() < limit && violations().empty()) {
    simulation_.RunUntil(simulation_.Now() + milliseconds(1));
    const bool losing = options_.lose && (dead_ < losses_ || !coordinator_->settled() ||
                                          coordinator_->live().size() + static_cast<int>(dead_) > node_count_);
    const bool stopped = crashed_ && std::any_of(nodes_.begin(), nodes_.end(), [](const auto& node) {
                           return node != nullptr && !node->stopped().ok();
                         });
    if (busy() || (options_.crash && !crashed_) || (losing && !stopped)) quiet = simulation_.Now() + milliseconds(5);
    if (simulation_.Now() > quiet) break;
  }
  over_ = true;
  SimNetworkSettings& network = network_.settings();
  network.spikes_per_million = network.stalls_per_million = 0;
  simulation_.RunUntil(simulation_.Now() + milliseconds(3 * kLeaseMs));
  if (options_.lose && violations().empty()) ReadAll();
  CheckEnd();
}

void SpaceWorld::LoseOne() {
  const NodeId victim = victims_[dead_++];
  if (nodes_[victim.value()] == nullptr) return;  // it was given up for another loss
  if (!crashed_) loads_before_ = oracle_.loads();
  crashed_ = true;
  breaks_ = busy_ = false;
  for (uint16_t id = 0; id < node_count_; ++id) {
    for (size_t c = 0; c < kMessageClasses; ++c) network_.SetBusy(NodeId(id), static_cast<MessageClass>(c), false);
  }
  if (cut_) return CutTwo();
  oracle_.OnCrash(victim, WantedBy(victim));
  NoteWishes();
  simulation_.Trace(fmt::format("{} is lost", victim.value()));
  network_.Crash(victim, simulation_.Below(2) == 0);
  nodes_[victim.value()].reset();
}

void SpaceWorld::ReadAll() {
  std::vector<Node*> left;
  for (const auto& node : nodes_) {
    if (node != nullptr) left.push_back(node.get());
  }
  std::set<uint64_t> lost;
  std::vector<Gfn> readable;
  std::vector<Gfn> pages = pages_;
  pages.insert(pages.end(), victims_pages_.begin(), victims_pages_.end());
  // Most of these were never touched.
  for (int i = 0; i < 8 && config_.max_pages == 0; ++i) pages.push_back(Gfn(simulation_.Below(config_.pages)));
  for (const Gfn page : pages) {
    const bool is_lost =
        std::any_of(left.begin(), left.end(), [page](Node* node) { return node->engine().IsLost(page); });
    (is_lost ? (void)lost.insert(page.value()) : readable.push_back(page));
    if (is_lost && !oracle_.MayBeLost(page))
      oracle_.Report(fmt::format("page {} is lost, and need not be", page.value()));
    if (is_lost && oracle_.HeldBySomebody(page))
      oracle_.Report(fmt::format("page {} is lost, and is here", page.value()));
  }
  totals_.epochs += static_cast<uint64_t>(coordinator_->epochs());
  const auto stopped = std::find_if(left.begin(), left.end(), [](Node* node) { return !node->stopped().ok(); });
  if (stopped != left.end() || victims_[0] == NodeId(0)) {
    // By a lost page that somebody needed, or with the coordinator.
    for (Node* const node : left) {
      const std::string why = node->stopped().ToString();
      const bool by_page =
          why.find("it is lost") != std::string::npos ||
          (config_.max_pages != 0 && why.find("no frame is left for a page that comes back") != std::string::npos);
      if (node->stopped().ok() || (!by_page && victims_[0] != NodeId(0))) {
        oracle_.Report(fmt::format("a node stopped, but not all as they should: {}", why));
      }
    }
    if (victims_[0] != NodeId(0)) ++totals_.stopped_by_lost;
    return;
  }
  ++totals_.went_on;
  totals_.lost_pages += lost.size();
  totals_.later_loads += oracle_.loads() - loads_before_;
  for (Node* const node : left) node->LoadAll(readable);
  const auto busy = [&left] {
    return std::any_of(left.begin(), left.end(), [](Node* node) { return node->unended() > 0; });
  };
  const Monotonic limit = simulation_.Now() + std::chrono::seconds(5);
  while (busy() && simulation_.Now() < limit) simulation_.RunUntil(simulation_.Now() + milliseconds(1));
  simulation_.RunUntil(simulation_.Now() + milliseconds(2 * kLeaseMs));
  if (busy()) oracle_.Report("pages that are not lost cannot be read");
  for (Node* const node : left) {
    if (!node->stopped().ok()) oracle_.Report("reading what is not lost stops: " + node->stopped().ToString());
  }
  if (lost.empty() || simulation_.Below(4) != 0) return;
  over_ = true;
  left[simulation_.Below(left.size())]->LoadAll({Gfn(*lost.begin())});
  simulation_.RunUntil(simulation_.Now() + milliseconds(2 * kLeaseMs));
  for (Node* const node : left) {
    const std::string why = node->stopped().ToString();
    const std::string what = fmt::format("page at GPA {:#x}: it is lost", GpaOf(Gfn(*lost.begin())).value());
    if (why.find(what) == std::string::npos) oracle_.Report("a lost page was read: " + why);
  }
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

void SpaceWorld::CheckEnd() {
  if (!violations().empty()) return;  // what follows from it says nothing
  for (uint16_t id = 0; id < node_count_; ++id) {
    Node* const node = nodes_[id].get();
    if (node == nullptr) continue;
    const auto report = [&](const std::string& what) {
      oracle_.Report(fmt::format("at the end node {} {}", id, what));
    };
    if (node->unended() != 0) report(fmt::format("has {} wishes that did not end", node->unended()));
    const SpaceResidue residue = node->engine().Residue();
    if (residue.active_pages + residue.busy_entries + residue.unsent_messages + residue.waiting_for_slots != 0) {
      report(fmt::format("keeps {} pages, {} entries, {} messages, {} waits for slots", residue.active_pages,
                         residue.busy_entries, residue.unsent_messages, residue.waiting_for_slots));
    }
    const TransportStatistics slots = node->transport().Statistics();
    if (slots.slots_lent + slots.slots_in_flight + slots.slots_sending + slots.slots_quarantined != 0 &&
        (!crashed_ || (options_.lose && node->stopped().ok()))) {
      report(fmt::format("has {} slots lent, {} in flight, {} sending, {} quarantined", slots.slots_lent,
                         slots.slots_in_flight, slots.slots_sending, slots.slots_quarantined));
    }
    if (crashed_ && (!options_.lose || !node->stopped().ok())) {
      if (node->stopped().ok()) report("goes on although a node was lost");
      if (slots.slots_lent != 0) report(fmt::format("has {} slots lent", slots.slots_lent));
      continue;
    }
    if (const uint64_t stale = node->engine().Statistics().stale_messages; stale != 0) {
      report(fmt::format("dropped {} messages that nobody should have sent", stale));
    }
    for (const auto& [page, frame] : node->frames().pages()) {
      if (frame.second != oracle_.Expected(Gfn(page))) report(fmt::format("has another page {}", page));
      const PageRight right = node->engine().RightOf(Gfn(page));
      if ((right == PageRight::kExclusive) != (frame.first == PageAccess::kWrite) || right == PageRight::kNone) {
        report(fmt::format("has page {} with another access than its right", page));
      }
    }
    const SpaceStatistics statistics = node->engine().Statistics();
    if (statistics.pages_swapped != node->swap().pages()) report("counts other pages in the swap than there are");
    if (statistics.pages_shared + statistics.pages_owned + statistics.pages_exclusive - statistics.pages_swapped !=
        node->frames().pages().size()) {
      report("counts other pages than it has");
    }
    totals_.served += statistics.served;
    totals_.dropped += statistics.dropped;
    totals_.adopted += statistics.adopted;
    totals_.pins += node->pins();
    if (statistics.pages_pinned != 0) report("has pages pinned");
    totals_.zeroed += statistics.zeroed;
    totals_.batches += statistics.batches;
    totals_.empties += statistics.empties;
    totals_.swap_writes += statistics.swap_writes;
    totals_.swap_reads += statistics.swap_reads;
    totals_.swap_failures += statistics.swap_failures;
    totals_.revoked += statistics.revoked;
    totals_.upgrades += statistics.upgrades;
  }
}

void SpaceWorld::AddTo(Totals* totals) const {
  ++totals->seeds;
  totals->loads += oracle_.loads();
  totals->stores += oracle_.stores();
  totals->served += totals_.served;
  totals->dropped += totals_.dropped;
  totals->adopted += totals_.adopted;
  totals->pins += totals_.pins;
  totals->zeroed += totals_.zeroed;
  totals->batches += totals_.batches;
  totals->empties += totals_.empties;
  totals->swap_writes += totals_.swap_writes;
  totals->swap_reads += totals_.swap_reads;
  totals->swap_failures += totals_.swap_failures;
  totals->revoked += totals_.revoked;
  totals->upgrades += totals_.upgrades;
  totals->refused_full += totals_.refused_full;
  totals->waited_for_slots += totals_.waited_for_slots;
  totals->went_on += totals_.went_on;
  totals->lost_pages += totals_.lost_pages;
  totals->later_loads += totals_.later_loads;
  totals->epochs += totals_.epochs;
  totals->stopped_by_lost += totals_.stopped_by_lost;
  totals->broken += const_cast<SpaceWorld*>(this)->network_.counters().broken;
  totals->stalls += const_cast<SpaceWorld*>(this)->network_.counters().stalls;
}

}  // namespace hk::sim
