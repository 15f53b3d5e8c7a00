#include "tests/sim/space_world_node.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "fmt/format.h"
#include "rdma/sim_transport.h"

namespace hk::sim {

using std::chrono::microseconds;
using std::chrono::milliseconds;

namespace {
// Of a program that needs its pages at once. Of two, in 1000 worlds the most is 348; without a hold, or with one that
// is always as long, more than 10,000.
constexpr uint64_t kMostFaults = 2000;
}  // namespace

SpaceWorld::Node::Node(SpaceWorld* world, NodeId id, const TransportSettings& settings)
    : world_(world),
      id_(id),
      frames_(&world->simulation_, &world->oracle_, id, world->MostFrames(settings)),
      swap_(
          &world->simulation_, &world->oracle_,
          [this](Duration delay, std::function<void()> run) { After(delay, std::move(run)); }, world->swap_failures_) {
  auto made = MakeSimTransport(&world->network_, settings, this);
  if (!made.ok() || !(*made)->Start().ok()) std::abort();
  transport_ = *std::move(made);
  for (uint16_t other = 0; other < world->node_count_; ++other) {
    if (NodeId(other) != id) (void)transport_->AddPeer(NodeId(other), SimNetwork::AddressOf(NodeId(other)));
  }
  if (world->options_.gather) frames_.Watch();
  SpaceConfig config = world->config_;
  config.self = id;
  auto engine = SpaceEngine::Create(
      config, transport_.get(), &frames_, this, world->simulation_, [this](const absl::Status& why) { OnStopped(why); },
      &swap_);
  if (!engine.ok()) std::abort();
  engine_ = *std::move(engine);
  engine_->WatchLosses([this](NodeId lost) {
    // The word takes its time to the coordinator.
    // That of a node that takes no part, yet or any more, does not count.
    world_->simulation_.After(world_->simulation_.Between({}, milliseconds(2)), [world = world_, self = id_, lost] {
      if (world->coordinator_ != nullptr && world->coordinator_->IsMember(self)) world->coordinator_->OnLost(lost);
    });
  });
}

SpaceWorld::Node::~Node() {
  alive_.reset();
  transport_->Stop();
  engine_.reset();
}

void SpaceWorld::Node::LoadAll(const std::vector<Gfn>& pages) {
  for (const Gfn page : pages) {
    ++unended_;
    engine_->Want(page, PageAccess::kRead, [this, page](const absl::Status& status) {
      --unended_;
      if (!status.ok()) return;
      for (size_t word = 0; word < world_->words_; ++word) Access(page, word, false);
    });
  }
}

void SpaceWorld::Node::OnStopped(const absl::Status& why) {
  stopped_ = why;
  simulation().Trace(fmt::format("{} stopped: {}", id_.value(), why.ToString()));
  const bool expected = world_->IsToJoin(id_) || (world_->nothing_lost() ? absl::IsCancelled(why) : world_->crashed_);
  if (!expected && !world_->over_)
    world_->oracle_.Report(fmt::format("node {} stopped: {}", id_.value(), why.ToString()));
}

void SpaceWorld::Node::Act(int left) {
  if (world_->options_.both) {
    ++unended_;
    std::vector<Gfn> pages = world_->pages_;
    for (size_t i = pages.size(); i > 1; --i) std::swap(pages[i - 1], pages[simulation().Below(i)]);
    return TouchAll(pages, 0, left);
  }
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
    const bool leaves = world_->options_.leave && absl::IsFailedPrecondition(status);
    // What a node that stopped had wished for it may have been granted.
    if (store && (status.ok() || leaves)) storing_.erase(storing_.find(page.value()));
    if (!status.ok() && stopped_.ok() && !leaves) world_->oracle_.Report("a wish ends with " + status.ToString());
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

void SpaceWorld::Node::PinAndStore(Gfn page, size_t word, int left) {
  const auto ended = [this, page, left] {
    --unended_;
    if (stopped_.ok()) storing_.erase(storing_.find(page.value()));
    Next(left - 1);
  };
  engine_->Pin(page, 1, [this, page, word, ended](const absl::Status& status) {
    if (absl::IsResourceExhausted(status) || !stopped_.ok()) return ended();
    if (world_->options_.leave && absl::IsFailedPrecondition(status)) return ended();
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

void SpaceWorld::Node::Touch(Gfn page, size_t word, bool store, int left) {
  if (frames_.access(page) >= (store ? PageAccess::kWrite : PageAccess::kRead)) {
    --unended_;
    if (store) storing_.erase(storing_.find(page.value()));
    Access(page, word, store);
    return Next(left - 1);
  }
  Fault(page, store, [this, page, word, store, left] { Touch(page, word, store, left); });
}

void SpaceWorld::Node::TouchAll(const std::vector<Gfn>& pages, uint64_t faults, int left) {
  for (const Gfn page : pages) {
    if (frames_.access(page) == PageAccess::kWrite) continue;
    if (faults > kMostFaults) {
      return world_->oracle_.Report(fmt::format("{} faults, and a program does not have its pages at once", faults));
    }
    return Fault(page, true, [this, pages, faults, left] { TouchAll(pages, faults + 1, left); });
  }
  --unended_;
  ++world_->totals_.both;
  world_->totals_.both_faults += faults;
  world_->totals_.most_faults = std::max(world_->totals_.most_faults, faults);
  for (const Gfn page : pages) Access(page, 0, true);
  if (left == 1) frames_.EndOfThread();
  Next(left - 1);
}

void SpaceWorld::Node::Fault(Gfn page, bool store, std::function<void()> again) {
  frames_.WaitFor(page, [this, again = std::move(again), alive = std::weak_ptr<bool>(alive_)](bool good) {
    if (alive.expired()) return;
    if (good) return again();
    --unended_;
    --programs_;
  });
  // The event is read a little later, when somebody else may have brought the page.
  After(simulation().Between({}, microseconds(3)),
        [this, page, store] { engine_->OnFault(page, store, SimFrames::kThread); });
}

void SpaceWorld::Node::Access(Gfn page, size_t word, bool store) {
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

}  // namespace hk::sim
