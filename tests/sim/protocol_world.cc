#include "tests/sim/protocol_world.h"

#include <algorithm>

namespace hk::sim {
namespace {

PageRight HardwareOf(PageRight right) {
  return right == PageRight::kOwner ? PageRight::kShared : right;
}

// What a node does because of what another said.
bool IsMessage(PageEventType type) {
  return type >= PageEventType::kAnswer && type <= PageEventType::kEvictDenied;
}

NodeId Node(int index) {
  return NodeId(static_cast<uint16_t>(index));
}

int ChannelOf(const Flight& flight) {
  return (flight.message.from.value() * kMaxExplorerNodes + flight.message.to.value()) * 4 + flight.channel_class;
}

}  // namespace

World::World(const WorldConfig* config) : config_(config), nodes_(static_cast<size_t>(config->nodes)) {
  for (DirectoryEntry& entry : homes_) entry.state = DirectoryState::kElsewhere;
  homes_[0].state = DirectoryState::kDormant;
  for (int n = config->nodes - config->absent; n < config->nodes; ++n) nodes_[static_cast<size_t>(n)].alive = false;
  if (config->stored) {
    homes_[0].state = DirectoryState::kStored;
    homes_[0].ever_written = mirrored_ = true;
    stored_ = latest_ = 1;
  }
}

std::vector<Choice> World::Choices() const {
  std::vector<Choice> choices;
  for (size_t i = 0; i < flights_.size(); ++i) {
    if (i == 0 || ChannelOf(flights_[i]) != ChannelOf(flights_[i - 1])) {
      choices.push_back({.kind = Choice::kDeliver, .flight = i});
    }
  }
  for (int n = 0; n < config_->nodes; ++n) {
    const WorldNode& node = nodes_[static_cast<size_t>(n)];
    if (!node.alive) continue;
    if (config_->holds && node.page.held) choices.push_back({.kind = Choice::kHoldOver, .node = n});
    if (node.page.pins > 0) choices.push_back({.kind = Choice::kOp, .node = n, .op = PageEventType::kUnpin});
    if (node.ops >= config_->ops_per_node || ops_ >= config_->ops) continue;
    const PageState state = node.page.state;
    const auto add = [&](bool enabled, PageEventType op, bool possible) {
      if (enabled && possible) choices.push_back({.kind = Choice::kOp, .node = n, .op = op});
    };
    const bool readable = state == PageState::kShared || state == PageState::kOwner;
    const bool calm = !node.page.held && !node.page.deferred.active;
    add(true, PageEventType::kRead, state == PageState::kAbsent);
    for (int asked = 0; config_->peeks && asked < config_->nodes; ++asked) {
      const bool third = asked != n && Node(asked) != node.home && nodes_[static_cast<size_t>(asked)].alive;
      if (state == PageState::kAbsent && third && node.heard > 0) {
        choices.push_back({.kind = Choice::kOp, .node = n, .op = PageEventType::kRead, .asked = asked});
      }
    }
    add(config_->write, PageEventType::kWrite, state == PageState::kAbsent || readable);
    add(config_->overwrite, PageEventType::kOverwrite, state == PageState::kAbsent || readable);
    add(config_->adopt, PageEventType::kAdopt, state == PageState::kAbsent);
    // A mutant may drop what it must not: the page decides.
    add(config_->drop, PageEventType::kDrop, readable && calm);
    add(config_->evict, PageEventType::kEvict,
        (state == PageState::kOwner || state == PageState::kExclusive) && calm && node.page.pins == 0);
    add(config_->pin, PageEventType::kPin,
        state == PageState::kExclusive && node.page.pins == 0 && !node.page.deferred.active);
    if (config_->store && node.hardware == PageRight::kExclusive) {
      choices.push_back({.kind = Choice::kOp, .node = n, .store = true});
    }
  }
  if (config_->rehome && !moved_ && home_ == 0 && nodes_[1].alive && !homes_[0].frozen)
    choices.push_back({.kind = Choice::kFreeze});
  if (homes_[0].frozen && nodes_[1].alive && !IsUnderWay(homes_[0]) && !homes_[0].releasing) {
    choices.push_back({.kind = Choice::kMoveOut});
  }
  if (crashed_ < config_->crashes) {
    for (int n = 0; n < config_->nodes; ++n) {
      if (nodes_[static_cast<size_t>(n)].alive) choices.push_back({.kind = Choice::kCrash, .node = n});
    }
  }
  for (int n = 0; n < config_->nodes; ++n) {
    if (left_ < config_->leaves && MayLeave(n)) choices.push_back({.kind = Choice::kLeave, .node = n});
    if (joined_ == config_->joins || nodes_[static_cast<size_t>(n)].alive) continue;
    choices.push_back({.kind = Choice::kJoin, .node = n});
    if (MayMoveHome()) choices.push_back({.kind = Choice::kJoin, .node = n, .moves = true});
  }
  return choices;
}

// SpaceEngine::LeavingState is empty there, and another node takes part.
bool World::MayLeave(int index) const {
  const WorldNode& node = nodes_[static_cast<size_t>(index)];
  const bool rests = node.page.state == PageState::kAbsent || node.page.state == PageState::kShared;
  if (!node.alive || !rests || node.page.retained || node.page.deferred.active) return false;
  const auto others = std::count_if(nodes_.begin(), nodes_.end(), [](const WorldNode& one) { return one.alive; }) - 1;
  return others > 0 && (home_ != index || (MayMoveHome() && homes_[home_].state != DirectoryState::kLost));
}

// Where the bytes of a Stored page are the home does not hand over. And of two nodes that evict the new home cannot
// know which one was granted it before the other wrote: as long as only zeroes are evicted, their bytes are the same.
bool World::MayMoveHome() const {
  const DirectoryEntry& entry = homes_[home_];
  const auto evictors = std::count_if(nodes_.begin(), nodes_.end(), [](const WorldNode& node) {
    return node.page.state == PageState::kEvictOwner || node.page.state == PageState::kEvictExclusive;
  });
  if (evictors > 1) return false;
  if (!IsUnderWay(entry)) return entry.state != DirectoryState::kStored;
  return entry.before != DirectoryState::kStored && entry.after != DirectoryState::kStored;
}

void World::Post(uint8_t channel_class, const PageMessage& message, int version) {
  const bool of_request = message.type == PageMessageType::kRequest || message.type == PageMessageType::kForward ||
                          message.type == PageMessageType::kAnswer || message.type == PageMessageType::kNack;
  if (config_->bulk && of_request && message.kind == RequestKind::kRead && channel_class == 0) channel_class = 2;
  const Flight flight{.channel_class = channel_class, .message = message, .version = version};
  const auto at =
      std::upper_bound(flights_.begin(), flights_.end(), flight,
                       [](const Flight& left, const Flight& right) { return ChannelOf(left) < ChannelOf(right); });
  flights_.insert(at, flight);
}

std::optional<std::string> World::Do(const Choice& choice, SeenRows* seen) {
  WorldNode& node = nodes_[static_cast<size_t>(choice.node)];
  switch (choice.kind) {
    case Choice::kDeliver:
      return Deliver(choice.flight, seen);
    case Choice::kHoldOver:
      return StepNode(choice.node, {.type = PageEventType::kHoldOver, .message = {}}, 0, seen);
    case Choice::kCrash:
      return Crash(choice.node, seen);
    case Choice::kLeave:
      return Leave(choice.node, seen);
    case Choice::kJoin:
      return Join(choice.node, choice.moves, seen);
    case Choice::kFreeze:
      return StepHome(0, {.type = DirectoryEventType::kFreeze}, seen);
    case Choice::kMoveOut: {
      DirectoryEntry entry = homes_[0];  // goes there by the bulk class, before anybody is told
      if (auto wrong = StepHome(0, {.type = DirectoryEventType::kMoveOut, .home = Node(1)}, seen)) return wrong;
      entry.frozen = false;
      entry.waiting_count = 0;
      entry.waiting = {};
      homes_[1] = entry;
      moved_ = true;
      home_ = 1;
      return std::nullopt;
    }
    case Choice::kOp:
      break;
  }
  if (choice.op != PageEventType::kUnpin) {
    ++node.ops;
    ++ops_;
  }
  if (choice.store) {
    node.frame = ++latest_;
    return std::nullopt;
  }
  PageEvent event{.type = choice.op, .message = {}};
  event.message.transaction = ++node.transaction;
  event.message.source = PageSource::kStored;
  if (choice.asked >= 0) {
    event.message.peeks = true;
    event.message.asked = Node(choice.asked);
    event.message.serial = node.heard;
  }
  if (choice.op == PageEventType::kRead) node.wish = RequestKind::kRead;
  if (choice.op == PageEventType::kWrite) node.wish = RequestKind::kWrite;
  if (choice.op == PageEventType::kOverwrite) node.wish = RequestKind::kOverwrite;
  if (choice.op == PageEventType::kAdopt) node.wish = RequestKind::kAdopt;
  if (choice.op == PageEventType::kEvict) stored_ = node.frame;  // the shell wrote it before it asks
  return StepNode(choice.node, event, 0, seen);
}

std::optional<std::string> World::StepNode(int index, const PageEvent& event, int version, SeenRows* seen) {
  WorldNode& node = nodes_[static_cast<size_t>(index)];
  const PageResult result = Step(node.page, event, Node(index), node.home);
  if (result.verdict == PageVerdict::kImpossible || result.verdict == PageVerdict::kNothingToDo ||
      result.verdict == PageVerdict::kStale) {
    return "node " + std::to_string(index) + " rejects " + Name(event.type) + " in " + Name(node.page.state);
  }
  if (result.verdict == PageVerdict::kDone && seen != nullptr) {
    seen->insert(
        {'p', static_cast<int>(node.page.state), static_cast<int>(event.type), static_cast<int>(result.page.state)});
  }
  const bool peeked = event.type == PageEventType::kPeeked && node.page.peek == PeekStage::kAsked &&
                      event.message.transaction == node.page.transaction;
  const bool uses_peeked = event.message.source == PageSource::kPeeked;
  if (peeked || (event.type == PageEventType::kAnswer && !uses_peeked && result.verdict == PageVerdict::kDone)) {
    node.kept = version;
  }
  if (IsMessage(event.type)) node.heard = std::max(node.heard, event.message.serial);
  node.page = result.page;
  bool again = false;
  for (size_t i = 0; i < result.action_count; ++i) {
    const PageAction& action = result.actions[i];
    switch (action.type) {
      case PageActionType::kSend:
        Post(action.message.type == PageMessageType::kAck ? 1 : 0, action.message, 0);
        break;
      case PageActionType::kSendPage:
        Post(0, action.message, node.frame);
        break;
      case PageActionType::kKeepData:
      case PageActionType::kDropData:
        break;
      case PageActionType::kInstall:
        if (action.source == PageSource::kPayload || action.source == PageSource::kPeeked) node.frame = node.kept;
        if (action.source == PageSource::kZero) node.frame = 0;
        if (action.source == PageSource::kStored) node.frame = stored_;
        node.hardware = HardwareOf(action.right);
        // The instruction that faulted, or the device's input, is done before anything else.
        if (node.wish == RequestKind::kOverwrite) node.frame = latest_;  // the check of what is overwritten is not ours
        if (node.hardware == PageRight::kExclusive && node.wish != RequestKind::kAdopt &&
            node.wish != RequestKind::kRead) {
          if (node.frame != latest_) return "node " + std::to_string(index) + " writes to a stale page";
          node.frame = ++latest_;
        }
        break;
      case PageActionType::kProtect:
        node.hardware = PageRight::kShared;
        break;
      case PageActionType::kUnmap:
        node.hardware = PageRight::kNone;
        node.retained = node.frame;
        break;
      case PageActionType::kMap:
        node.hardware = HardwareOf(action.right);
        break;
      case PageActionType::kDropFrame:
        if (node.hardware != PageRight::kNone) return "node " + std::to_string(index) + " drops a mapped frame";
        break;
      case PageActionType::kDropRetained:
        break;
      case PageActionType::kAdoptRetained:
        node.frame = node.retained;
        node.hardware = HardwareOf(action.right);
        break;
      case PageActionType::kStartHold:
        if (!config_->holds) node.page.held = false;
        break;
      case PageActionType::kWake:
        break;
      case PageActionType::kRetry:
        if (action.reason == NackReason::kMoved) {
          node.home = action.message.home;
          again = true;
        }
        break;
      case PageActionType::kStopGuest:
        if (!lost_) return "a page is lost although no node was";
        break;
    }
  }
  if (again) {
    static constexpr PageEventType kAgain[] = {PageEventType::kRead, PageEventType::kWrite, PageEventType::kOverwrite,
                                               PageEventType::kAdopt};
    PageEvent wish{.type = kAgain[static_cast<int>(node.wish)], .message = {}};
    wish.message.transaction = ++node.transaction;
    return StepNode(index, wish, 0, seen);
  }
  return std::nullopt;
}

std::optional<std::string> World::StepHome(int home, const DirectoryEvent& event, SeenRows* seen) {
  DirectoryEvent numbered = event;
  numbered.serial = serial_ + 1;
  numbered.owned = owned_;
  const DirectoryResult result = Step(homes_[home], numbered, Node(home));
  if (result.verdict != DirectoryVerdict::kDone) {
    return "home rejects " + std::string(Name(event.type)) + " in " + Name(homes_[home].state);
  }
  if (seen != nullptr) {
    seen->insert({'d', static_cast<int>(homes_[home].state), static_cast<int>(event.type),
                  static_cast<int>(result.entry.state)});
  }
  serial_ += result.serials_used;
  if (result.owns) owned_ = serial_;
  homes_[home] = result.entry;
  for (size_t i = 0; i < result.action_count; ++i) {
    const DirectoryAction& action = result.actions[i];
    switch (action.type) {
      case DirectoryActionType::kSend:
        Post(0, action.message, 0);
        break;
      case DirectoryActionType::kSendToEach:
        for (int n = 0; n < config_->nodes; ++n) {
          if (!action.nodes.Contains(Node(n))) continue;
          PageMessage message = action.message;
          message.to = Node(n);
          Post(1, message, 0);
        }
        break;
      case DirectoryActionType::kMirror: {
        PageMessage mirrored;
        mirrored.from = mirrored.to = Node(home);
        Post(kMirrorClass, mirrored, 0);
        break;
      }
      case DirectoryActionType::kReconcile:
        break;  // Crash does it
    }
  }
  return std::nullopt;
}

std::optional<std::string> World::Deliver(size_t index, SeenRows* seen) {
  const Flight flight = flights_[index];
  flights_.erase(flights_.begin() + static_cast<std::ptrdiff_t>(index));
  const PageMessage& message = flight.message;
  const int to = message.to.value();
  if (flight.channel_class == kMirrorClass) {
    mirrored_ = true;
    return StepHome(to, {.type = DirectoryEventType::kMirrored}, seen);
  }
  const auto home = [&](DirectoryEventType type) { return StepHome(to, {.type = type, .message = message}, seen); };
  const auto node = [&](PageEventType type) {
    return StepNode(to, {.type = type, .message = message}, flight.version, seen);
  };
  switch (message.type) {
    case PageMessageType::kRequest:
      return home(EventOf(message.kind));
    case PageMessageType::kDone:
      return home(DirectoryEventType::kDone);
    case PageMessageType::kReleased:
      return home(DirectoryEventType::kReleased);
    case PageMessageType::kEvict:
      return home(DirectoryEventType::kEvict);
    case PageMessageType::kForward:
      return node(message.kind == RequestKind::kRead    ? PageEventType::kForwardRead
                  : message.kind == RequestKind::kAdopt ? PageEventType::kForwardAdopt
                                                        : PageEventType::kForwardWrite);
    case PageMessageType::kAnswer:
      return node(PageEventType::kAnswer);
    case PageMessageType::kNack:
      return node(PageEventType::kNack);
    case PageMessageType::kInvalidate:
      return node(PageEventType::kInvalidate);
    case PageMessageType::kAck:
      return node(PageEventType::kAck);
    case PageMessageType::kRelease:
      return node(PageEventType::kRelease);
    case PageMessageType::kEvictGranted:
      return node(PageEventType::kEvictGranted);
    case PageMessageType::kEvictDenied:
      return node(PageEventType::kEvictDenied);
    case PageMessageType::kPeek:
      return node(PageEventType::kPeek);
    case PageMessageType::kPeeked:
      return node(PageEventType::kPeeked);
    case PageMessageType::kOffer:
      break;
  }
  return "a message of no meaning";
}

int World::NextHome() const {
  int next = 0;
  while (!nodes_[static_cast<size_t>(next)].alive) ++next;
  return next;
}

// The new home knows what its second, or the home before, has told it.
void World::MoveHome(int to) {
  for (const int home : {home_, to}) {
    homes_[home] = DirectoryEntry{};
    homes_[home].state = DirectoryState::kElsewhere;
  }
  homes_[to].ever_written = mirrored_;
  home_ = to;
}

std::optional<std::string> World::Crash(int victim, SeenRows* seen) {
  ++crashed_;
  owned_ = ++serial_;  // serials of an epoch are above those of earlier ones, and nobody has heard of these
  nodes_[static_cast<size_t>(victim)] = WorldNode{};
  nodes_[static_cast<size_t>(victim)].alive = false;
  if (home_ == victim) MoveHome(NextHome());
  return ChangeEpoch(false, seen);
}

std::optional<std::string> World::Leave(int leaver, SeenRows* seen) {
  ++left_;
  nodes_[static_cast<size_t>(leaver)] = WorldNode{};
  nodes_[static_cast<size_t>(leaver)].alive = false;
  const bool moves = home_ == leaver;
  if (moves) MoveHome(NextHome());
  return ChangeEpoch(moves, seen);
}

std::optional<std::string> World::Join(int joiner, bool moves, SeenRows* seen) {
  ++joined_;
  nodes_[static_cast<size_t>(joiner)] = WorldNode{};
  if (moves) {
    const DirectoryEntry before = homes_[home_];
    MoveHome(joiner);
    if (before.state == DirectoryState::kLost) {
      homes_[joiner].state = before.state;
      homes_[joiner].owner = before.owner;
    }
  }
  return ChangeEpoch(moves, seen);
}

// Other nodes take part from now on: everything under way is gone; those that were there before report; the home, or
// the node in its place, rebuilds; all in one step, because nothing else is done meanwhile.
std::optional<std::string> World::ChangeEpoch(bool home_moved, SeenRows* seen) {
  flights_.clear();
  const int home = home_;
  std::vector<PageReport> reports;
  NodeSet survivors;
  for (int n = 0; n < config_->nodes; ++n) {
    WorldNode& node = nodes_[static_cast<size_t>(n)];
    if (!node.alive) continue;
    node.home = Node(home);
    if (auto wrong = StepNode(n, {.type = PageEventType::kEpochChange, .message = {}}, 0, seen)) return wrong;
    survivors.Add(Node(n));
    reports.push_back(ReportOf(node.page, Node(n)));
  }
  const DirectoryEvent rebuild{
      .type = DirectoryEventType::kRebuild, .reports = reports, .survivors = survivors, .home_moved = home_moved};
  if (auto wrong = StepHome(home, rebuild, seen)) return wrong;
  const DirectoryEntry& entry = homes_[home];
  lost_ = entry.state == DirectoryState::kLost;
  if (lost_ && crashed_ == 0) return "a page is lost although no node was";
  for (int n = 0; n < config_->nodes; ++n) {
    if (!survivors.Contains(Node(n))) continue;
    PageEvent reconciled{.type = PageEventType::kReconciled, .message = {}};
    reconciled.message.right = RightAt(entry, Node(n));
    if (auto wrong = StepNode(n, reconciled, 0, seen)) return wrong;
  }
  return std::nullopt;
}

std::optional<std::string> World::Check(bool rest) const {
  const auto wrong = [](int node, const char* what) { return "node " + std::to_string(node) + ": " + what; };
  const int home = home_;
  const DirectoryEntry& entry = homes_[home];
  const bool calm = !IsUnderWay(entry) && nodes_[static_cast<size_t>(home)].alive;
  int writers = 0;
  int readers = 0;
  for (int n = 0; n < config_->nodes; ++n) {
    const WorldNode& node = nodes_[static_cast<size_t>(n)];
    if (!node.alive) continue;
    if (node.hardware == PageRight::kExclusive) ++writers;
    if (node.hardware != PageRight::kNone) ++readers;
    if (node.hardware != PageRight::kNone && node.frame != latest_) return wrong(n, "a stale copy can be read");
    if (node.hardware != HardwareOf(RightOf(node.page.state))) return wrong(n, "hardware and state differ");
    if (node.page.pins > 0 && node.hardware != PageRight::kExclusive) return wrong(n, "a pinned page was revoked");
    const bool own =
        entry.owner == Node(n) && (entry.state == DirectoryState::kShared || entry.state == DirectoryState::kExclusive);
    if (calm && own && (!HasBytes(node.page.state) || node.frame != latest_)) {
      return wrong(n, "the owner has not the page's bytes");
    }
    if (calm && RightOf(node.page.state) != PageRight::kNone && !own && !entry.copyset.Contains(Node(n))) {
      return wrong(n, "reads a page of which the home does not know");
    }
    if (calm && !own && RightOf(node.page.state) >= PageRight::kOwner) return wrong(n, "is owner, home knows another");
    if (calm && node.hardware == PageRight::kExclusive && entry.state != DirectoryState::kExclusive) {
      return wrong(n, "writes, the home knows of no writer");
    }
    if (rest && (node.page.deferred.active || node.page.retained ||
                 (node.page.state != PageState::kAbsent && node.page.state != PageState::kShared &&
                  node.page.state != PageState::kOwner && node.page.state != PageState::kExclusive))) {
      return wrong(n, "waits for ever");
    }
  }
  if (writers > 1 || (writers == 1 && readers > 1)) return "two may use a page that one may write";
  if (calm && entry.state == DirectoryState::kExclusive && !entry.ever_written) return "may be written, unmirrored";
  if (calm && entry.state == DirectoryState::kDormant && latest_ != 0) return "written bytes became zero";
  if (calm && entry.state == DirectoryState::kStored && latest_ != stored_) return "storage has older bytes";
  if (calm && (entry.state == DirectoryState::kShared || entry.state == DirectoryState::kExclusive) &&
      !nodes_[entry.owner.value()].alive) {
    return "the owner is dead";
  }
  if (rest && (IsUnderWay(entry) || entry.waiting_count > 0 || entry.releasing)) return "the home waits for ever";
  return std::nullopt;
}

}  // namespace hk::sim
