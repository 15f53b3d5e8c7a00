// Worlds whose nodes are lost, and that go on.
#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "tests/sim/space_world.h"
#include "tests/sim/space_world_node.h"

namespace hk::sim {

using std::chrono::milliseconds;

// Of what follows a loss little is seen if all that is touched next is lost: so victims store seldom, or never.
void SpaceWorld::DrawLosses() {
  const auto below = [this](uint64_t limit) { return simulation_.Below(limit); };
  config_.coordinator = NodeId(0);
  // As a machine's space is, whose vCPUs are at the coordinator.
  if (seed_ % 4 == 3) {
    config_.homes_at_coordinator = true;
    config_.fill_around = 1U << (seed_ / 4 % 5);
  }
  static constexpr uint32_t kStores[] = {0, 0, 2, 30};
  victims_store_percent_ = kStores[below(4)];
  const bool none = options_.join && below(2) == 0;
  const bool own = !none && !options_.leave && below(12) == 0;  // the coordinator itself
  cut_ = !none && !own && !options_.leave && founders() > 2 && below(4) == 0;
  if (!none) victims_.push_back(NodeId(own ? 0 : static_cast<uint16_t>(1 + below(founders() - 1U))));
  if (!none && !own && !options_.again && founders() > 2 && (cut_ || below(3) == 0)) {
    NodeId other = victims_[0];
    while (other == victims_[0]) other = NodeId(static_cast<uint16_t>(1 + below(founders() - 1U)));
    // Who is cut from the coordinator stops by itself, before it is given up or after.
    if (cut_ && below(2) == 0) other = NodeId(0);
    victims_.push_back(other);
  }
  losses_ = cut_ ? 1 : victims_.size();
  // What is left must have frames for all pages.
  const size_t left = founders() - victims_.size();
  if (config_.max_pages != 0) {
    const size_t kept = options_.leave ? FramesKept(config_.max_pages) : 0;
    pages_.resize(std::min<size_t>(pages_.size(), config_.max_pages - kept + config_.max_pages * (left - 1) / 3));
  }
  if (config_.max_pages == 0) {
    for (uint64_t i = below(8); i > 0; --i) {
      const Gfn page(below(config_.pages));
      if (std::find(pages_.begin(), pages_.end(), page) == pages_.end()) victims_pages_.push_back(page);
    }
  }
  coordinator_ = std::make_unique<SpaceCoordinator>(
      &simulation_, NodeId(0), config_.live, config_.epoch, [this](NodeId id) { return EngineOf(id); },
      [this](NodeId id, const SpaceEpoch& epoch) { GiveUp(id, epoch); },
      [this](NodeId id, const SpaceEpoch& epoch) { return LetGo(id, epoch); });
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

bool SpaceWorld::LetGo(NodeId id, const SpaceEpoch& epoch) {
  if (!EngineOf(id)->LeavingState().empty()) {
    const absl::Status told = EngineOf(id)->BeginEpoch(epoch);
    if (!absl::IsFailedPrecondition(told)) oracle_.Report("a node leaves with pages: " + told.ToString());
    return false;
  }
  ++totals_.left;
  GiveUp(id, epoch);
  if (options_.again) simulation_.After(simulation_.Between({}, milliseconds(20)), [this] { JoinOne(); });
  return true;
}

// Until the end; what else would heal is healed by then.
void SpaceWorld::CutTwo() {
  const auto cut = [this] { network_.Cut(victims_[0], victims_[1]); };
  cut();
  simulation_.After(milliseconds(25), cut);
}

std::set<uint64_t> SpaceWorld::WantedBy(NodeId id) const {
  const bool leaves = options_.leave && !victims_.empty() && id == victims_[0] && totals_.joined == 0;
  if (leaves) return {};  // nothing may be lost with it
  std::set<uint64_t> wanted;
  if (nodes_[id.value()] != nullptr) wanted = nodes_[id.value()]->storing();
  if (config_.max_pages != 0) {
    // It may have been about to take over any of them, or was the home that knew them to be zeroes again.
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
  if (options_.leave && dead_ == 1) return LeaveOne(victim);
  oracle_.OnCrash(victim, WantedBy(victim));
  NoteWishes();
  simulation_.Trace(fmt::format("{} is lost", victim.value()));
  network_.Crash(victim, simulation_.Below(2) == 0);
  nodes_[victim.value()].reset();
}

void SpaceWorld::LeaveOne(NodeId id) {
  SpaceEngine* const engine = EngineOf(id);
  if (engine == nullptr || over_ || totals_.left != 0) return;  // it was given up, or has left
  engine->Leave(true);
  simulation_.Trace(fmt::format("{} is leaving with {} pages", id.value(), engine->LeavingState().pages_left));
  if (engine->LeavingState().empty()) coordinator_->OnLeft(id);
  simulation_.After(milliseconds(1), [this, id] { LeaveOne(id); });
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
    if (is_lost && (nothing_lost() || !oracle_.MayBeLost(page)))
      oracle_.Report(fmt::format("page {} is lost, and need not be", page.value()));
    if (is_lost && oracle_.HeldBySomebody(page))
      oracle_.Report(fmt::format("page {} is lost, and is here", page.value()));
  }
  totals_.epochs += static_cast<uint64_t>(coordinator_->epochs());
  const bool own_lost = !victims_.empty() && victims_[0] == NodeId(0);
  const auto stopped = std::find_if(left.begin(), left.end(), [](Node* node) { return !node->stopped().ok(); });
  if (stopped != left.end() || own_lost) {
    // By a lost page that somebody needed, or with the coordinator.
    for (Node* const node : left) {
      const std::string why = node->stopped().ToString();
      const bool by_page = why.find("it is lost") != std::string::npos;
      if (node->stopped().ok() || (!by_page && !own_lost)) {
        oracle_.Report(fmt::format("a node stopped, but not all as they should: {}", why));
      }
    }
    if (!own_lost) ++totals_.stopped_by_lost;
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

}  // namespace hk::sim
