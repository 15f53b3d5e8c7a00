#include "hyperkernel/memory/space_engine.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/memory/space_engine_impl.h"

namespace hk {
namespace {

// Far above any use; below, times are added without overflow.
constexpr std::chrono::seconds kMostHold(1);
// The transport's longest deadline (rdma/send_rules.h).
constexpr std::chrono::milliseconds kMostRequestLimit(60'000);

absl::Status CheckConfig(const SpaceConfig& config) {
  const auto wrong = [](std::string_view field, std::string_view rule) {
    return absl::InvalidArgumentError(fmt::format("space: {} {}", field, rule));
  };
  if (config.guest == GuestId()) return wrong("guest", "is 0");
  if (config.pages == 0 || config.pages > kMaxSpacePages) {
    return wrong("pages", fmt::format("is {}, not 1 to {}", config.pages, kMaxSpacePages));
  }
  for (size_t i = 0; i < config.nodes.size(); ++i) {
    if (config.nodes[i].value() >= kMaxNodes) return wrong("nodes", "has a number that is no node's");
    if (i > 0 && config.nodes[i] <= config.nodes[i - 1]) return wrong("nodes", "is not ascending");
  }
  if (std::find(config.nodes.begin(), config.nodes.end(), config.self) == config.nodes.end()) {
    return wrong("nodes", "does not have this node");
  }
  NodeSet nodes;
  for (const NodeId node : config.nodes) nodes.Add(node);
  const auto strange = [nodes](NodeSet set) { return (set.bits() & ~nodes.bits()) != 0; };
  if (strange(config.live)) return wrong("live", "has nodes that are not the space's");
  for (const NodeSet set : config.committed) {
    if (set.empty() || strange(set)) return wrong("committed", "has nodes that are not the space's, or none");
  }
  if (!config.committed.empty() && config.committed.back() != config.live)
    return wrong("committed", "does not end with live");
  if (config.max_pages != 0 && config.max_pages < kLeastFrames) {
    return wrong("max_pages", fmt::format("is {}, less than {}", config.max_pages, kLeastFrames));
  }
  if (config.max_pages != 0 && config.max_pages < config.vcpus * kLeastFrames) {
    return wrong("max_pages", fmt::format("is {}, less than {} for each of {} virtual CPUs", config.max_pages,
                                          kLeastFrames, config.vcpus));
  }
  if (config.swap_pages != 0 && config.max_pages == 0) {
    return wrong("swap_pages", "are of no use without max_pages");
  }
  if (config.homes_at_coordinator && !config.coordinator.has_value()) {
    return wrong("homes_at_coordinator", "needs a coordinator");
  }
  if (config.fill_around > kExtentPages || (config.fill_around & (config.fill_around - 1)) != 0) {
    return wrong("fill_around", fmt::format("is {}, not a power of two up to {}", config.fill_around, kExtentPages));
  }
  if (config.hold.count() < 0 || config.hold > kMostHold) return wrong("hold", "is out of range");
  if (config.retry.count() < 0 || config.retry > kMostHold) return wrong("retry", "is out of range");
  if (config.request_limit.count() < 1 || config.request_limit > kMostRequestLimit) {
    return wrong("request_limit", "is out of range");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<SpaceEngine>> SpaceEngine::Create(const SpaceConfig& config, Transport* transport,
                                                                 PageFrames* frames, Timers* timers, const Clock& clock,
                                                                 Stopped stopped, PageSwap* swap) {
  HK_RETURN_IF_ERROR(CheckConfig(config));
  if (config.swap_pages != 0 && swap == nullptr) return absl::InvalidArgumentError("space: swap_pages without a swap");
  return std::make_unique<space::Engine>(config, transport, frames, timers, clock, std::move(stopped), swap);
}

namespace space {
namespace {

// Why a peer is not connected is told within this time, by the transport.
constexpr std::chrono::seconds kReasonComes(1);

NodeSet SetOf(const std::vector<NodeId>& nodes) {
  NodeSet set;
  for (const NodeId node : nodes) set.Add(node);
  return set;
}

PageAccess AccessOf(PageRight right) {
  return right == PageRight::kExclusive ? PageAccess::kWrite
         : right == PageRight::kNone    ? PageAccess::kNone
                                        : PageAccess::kRead;
}

}  // namespace

Engine::Engine(const SpaceConfig& config, Transport* transport, PageFrames* frames, Timers* timers, const Clock& clock,
               Stopped on_stopped, PageSwap* swap)
    : config_(config),
      nodes_(SetOf(config.nodes)),
      placement_(config.nodes, config.homes_at_coordinator ? config.coordinator : std::nullopt),
      transport_(transport),
      frames_(frames),
      timers_(timers),
      clock_(clock),
      on_stopped_(std::move(on_stopped)),
      swap_(swap),
      outbox_(transport, config.nodes) {
  {
    MutexLock lock(&change_mutex_);
    epoch_ = committed_ = config_.epoch;
    live_ = members_ = config_.live.empty() ? nodes_ : config_.live;
  }
  for (size_t i = 0; i < kShards; ++i) {
    MutexLock lock(&shards_[i].mutex);
    shards_[i].next_serial = FirstSerial(config_.epoch);
    shards_[i].owner_serials.Reset(shards_[i].next_serial - 1);
    shards_[i].epoch = config_.epoch;
    shards_[i].live = config_.live.empty() ? nodes_ : config_.live;
    shards_[i].committed = config_.committed.empty() ? std::vector<NodeSet>{shards_[i].live} : config_.committed;
    shards_[i].random = (config_.guest.value() * kShards + i + 1) * 0x9e3779b97f4a7c15U + config_.self.value();
  }
  if (config_.live.empty() || config_.live.Contains(config_.self)) return;
  phase_.store(Phase::kSuspended, std::memory_order_release);
  takes_part_.store(false);
  ArmChangeLimit();
}

absl::Status Engine::reason() const {
  MutexLock lock(&reason_mutex_);
  return reason_;
}

void Engine::OnFault(Gfn page, bool write, uint32_t thread) {
  if (!InSpace(page)) {
    frames_->Fail(page);
    return frames_->Wake(page);
  }
  Shard& shard = ShardOf(page);
  bool foresee = false;
  {
    MutexLock lock(&shard.mutex);
    if (stopped()) {
      frames_->Fail(page);
      return frames_->Wake(page);
    }
    const Monotonic now = clock_.Now();
    ActivePage* const active = Activate(&shard, page);
    if (!active->wished()) active->since = now;
    (write ? active->fault_write : active->fault_read) = true;
    BeginWait(thread);
    for (uint32_t& place : active->waiting_threads) {
      if (place == 0 || place == thread) {
        place = thread;
        break;
      }
    }
    const bool first_write = write && config_.fill_around > 1 && IsDormantHere(&shard, page);
    Grant(&shard, active);
    Advance(&shard, active);
    foresee = !write && active->request_slot != SlotId();
    Rest(&shard, active);
    Drain(&shard);
    if (first_write) FillAround(&shard, page);
  }
  if (foresee) Foresee(page);
  Finish();
}

void Engine::Replace(Gfn page, std::span<const std::byte> bytes, Granted granted) {
  HK_CHECK(bytes.size() == kPageSize);
  Enqueue(page, {.access = PageAccess::kWrite, .replacement = bytes, .granted = std::move(granted)});
}

void Engine::Enqueue(Gfn page, Waiter waiter) {
  if (!InSpace(page)) {
    return waiter.granted(absl::OutOfRangeError(fmt::format("page {:#x} is not in the space", page.value())));
  }
  Shard& shard = ShardOf(page);
  {
    MutexLock lock(&shard.mutex);
    if (stopped()) return waiter.granted(reason());
    if (leaving()) return waiter.granted(LeavesHere());
    const ExtentPages& pages = ExtentOf(&shard, page)->pages;
    const size_t index = page.value() % kExtentPages;
    const bool here = !pages.active(index) && !pages.swapped(index) && !waiter.pin;
    if (here && waiter.access <= AccessOf(hk::RightOf(pages.state(index)))) {
      End(page, &waiter);
    } else {
      ActivePage* const active = Activate(&shard, page);
      if (!active->wished()) active->since = clock_.Now();
      active->waiters.push_back(std::move(waiter));
      Grant(&shard, active);
      Advance(&shard, active);
      Rest(&shard, active);
      Drain(&shard);
    }
  }
  Finish();
}

void Engine::OnMessage(NodeId from, const Message& message, std::span<const std::byte> payload, bool /*late*/) {
  Incoming incoming;
  incoming.gfn = message.gfn;
  incoming.payload = payload;
  incoming.duty.message_class = message.message_class;
  incoming.duty.node = message.slot_node;
  incoming.duty.slot = message.slot;
  if (message.answer) incoming.duty.own = LentSlot(transport_, message.slot);
  // Whoever is not of the space cannot harm it; nobody here waits for it.
  if (stopped() || !IsNode(from)) return;
  if (IsRecoveryType(message.type)) return OnRecoveryMessage(from, message);
  if (message.type == kSpaceStoppedType) {
    {
      MutexLock lock(&change_mutex_);
      // One that is to join stops alone.
      if (!live_.Contains(from) || (!members_.Contains(from) && !HK_MUTANT(engine_joiner_stops_all))) return;
    }
    Fail(absl::AbortedError(fmt::format("node {} stopped: {}", from.value(), ReasonIn(message))), StopOf::kAllTold);
    return Finish();
  }
  if (message.type == kSpaceRoomType) {
    const absl::StatusOr<uint64_t> room = RoomIn(from, message);
    if (room.ok()) return OnRoom(from, *room);
    Fail(absl::InternalError(MessageOf(room.status())));
    return Finish();
  }
  if (message.type == kSpacePingType) return PostPing(from, message.epoch, true, message.transaction);
  if (message.type == kSpacePongType) return OnPong(from, message.transaction);
  if (IsBatchType(message.type)) return OnBatchMessage(from, message, std::move(incoming));
  if (!InSpace(message.gfn)) {
    Fail(absl::InternalError(fmt::format("node {} sent a message for page {:#x}, which is not in the space",
                                         from.value(), message.gfn.value())));
    return Finish();
  }
  if (message.type == kSpaceHurryType) {
    Shard& shard = ShardOf(message.gfn);
    MutexLock lock(&shard.mutex);
    if (message.epoch == shard.epoch) HandleHurry(&shard, message);
    return;
  }
  if (message.type == kSpaceEmptyType) return OnEmpty(from, message);
  absl::StatusOr<PageMessage> decoded = DecodePageMessage(from, config_.self, message);
  if (!decoded.ok()) {
    FailPage(message.gfn, absl::StatusCode::kInternal, MessageOf(decoded.status()));
    return Finish();
  }
  incoming.message = *decoded;
  HearTicket(decoded->ticket);
  Shard& shard = ShardOf(message.gfn);
  {
    MutexLock lock(&shard.mutex);
    // What was on its way here when the epoch changed is of the old one. Nobody asks before all are in the new one.
    const bool old =
        message.epoch != shard.epoch && !HK_MUTANT(engine_takes_old_epochs) && !HK_MUTANT(epochs_unchecked);
    if (stopped() || old || !shard.live.Contains(from)) return;
    if (std::string why = WhyImpossible(shard, incoming); !why.empty()) {
      FailPage(message.gfn, absl::StatusCode::kInternal,
               fmt::format("node {} sent {}: {}", from.value(), Name(decoded->type), why));
    } else {
      Handle(&shard, std::move(incoming));
      Drain(&shard);
    }
  }
  Finish();
}

void Engine::OnWritable(NodeId peer, MessageClass message_class) {
  outbox_.Flush(peer, message_class, [this, peer](const absl::Status& status) { OnSendFailed(peer, status); });
  if (message_class == MessageClass::kBulk && pumping_.load(std::memory_order_acquire)) SchedulePump();
  Finish();
}

void Engine::OnSlotsFree(MessageClass message_class, SlotUse use) {
  const size_t pool = PoolOf(message_class, use);
  const size_t first = first_shard_.fetch_add(1, std::memory_order_relaxed);
  bool more = true;
  for (size_t i = 0; i < kShards && more; ++i) {
    Shard& shard = shards_[(first + i) % kShards];
    MutexLock lock(&shard.mutex);
    Starved(&shard, pool, &more);
    if (HK_MUTANT(engine_starved_shard_forgotten)) break;
  }
  Finish();
}

// Serves the pages that wait for a slot of this pool, the first to come first. `more`: false when there is none left;
// then the transport tells again.
void Engine::Starved(Shard* shard, size_t pool, bool* more) {
  const auto bit = static_cast<uint8_t>(1U << pool);
  std::deque<Gfn>& starved = shard->starved[pool];
  while (!starved.empty() && *more && !stopped()) {
    if (pool == kFramePool && !HasFreeFrame()) {
      *more = false;
      return;
    }
    const Gfn page = starved.front();
    starved.pop_front();
    const auto found = shard->active.find(page.value());
    if (found == shard->active.end() || (found->second->starved & bit) == 0) continue;
    ActivePage* const active = found->second.get();
    active->starved &= static_cast<uint8_t>(~bit);
    Advance(shard, active);
    if ((active->starved & bit) != 0) {
      // It keeps its place.
      starved.pop_back();
      starved.push_front(page);
      *more = false;
    }
    Rest(shard, active);
    Drain(shard);
  }
}

void Engine::OnRequestExpired(NodeId asked, MessageClass /*message_class*/, uint64_t transaction, SlotId slot,
                              RequestFailure why) {
  Shard& shard = shards_[transaction % kShards];
  {
    MutexLock lock(&shard.mutex);
    // While an epoch changes all requests are given up, or have been.
    if (stopped() || why == RequestFailure::kOldEpoch || !running()) return;
    const ActivePage* mine = nullptr;
    for (const auto& [gfn, active] : shard.active) {
      const bool its = active->request_slot == slot || active->peek_slot == slot;
      if (its && active->page.transaction == transaction) mine = active.get();
    }
    if (mine == nullptr) return;
    if (why == RequestFailure::kDeadline) {
      FailPage(mine->gfn, absl::StatusCode::kDeadlineExceeded,
               fmt::format("its request by way of node {} was not answered within {} ms", asked.value(),
                           config_.request_limit.count()));
    } else {
      FailSoon(fmt::format("the nodes that could answer a request by way of node {} are gone", asked.value()));
    }
  }
  Finish();
}

void Engine::Stop(const absl::Status& why) {
  Fail(why);
  Finish();
}

void Engine::Fail(const absl::Status& why, StopOf whose) {
  {
    MutexLock lock(&reason_mutex_);
    if (stopped()) return;
    // Who is told to stop tells nobody: whoever found out tells all. Cancelled: by operators, at every node. And who
    // takes no part yet is missed by nobody.
    const bool concerns_all = takes_part_.load() || HK_MUTANT(engine_joiner_stops_all);
    untold_.store(whose == StopOf::kAll && concerns_all && !why.ok() && !absl::IsCancelled(why));
    alone_.store(whose == StopOf::kThisNode);
    reason_ = why.ok() ? absl::CancelledError("the space was stopped") : why;
    sweep_due_.store(true, std::memory_order_release);
    stopped_.store(true, std::memory_order_release);
  }
  if (on_stopped_) on_stopped_(reason());
}

void Engine::FailPage(Gfn page, absl::StatusCode code, const std::string& why) {
  Fail(absl::Status(code,
                    fmt::format("node {}, page at GPA {:#x}: {}", config_.self.value(), GpaOf(page).value(), why)));
}

void Engine::FailSoon(const std::string& why) {
  // A loss that the space survives is none of its reasons to stop.
  timers_->After(kReasonComes, [this, why, changes = changes_.load()] {
    if (changes != changes_.load()) return;
    Fail(absl::UnavailableError(why));
    Finish();
  });
}

void Engine::Finish() {
  if (frames_due_.load(std::memory_order_acquire)) FindFrames();
  if (!sweep_due_.load(std::memory_order_acquire) || !sweep_due_.exchange(false)) return;
  outbox_.Close();
  EndRebuild(StoppedHere());
  if (untold_.exchange(false)) TellOthers();
  if (alone_.load()) PassEpoch();
  for (Shard& shard : shards_) {
    MutexLock lock(&shard.mutex);
    Sweep(&shard);
  }
}

// As well as it goes: whom this does not reach finds out by its own limits.
void Engine::TellOthers() {
  const std::string why = MessageOf(reason());
  NodeSet live;
  Message message = SpaceStoppedMessage(why);
  message.guest = config_.guest;
  message.generation = config_.generation;
  {
    MutexLock lock(&change_mutex_);
    message.epoch = epoch_;
    live = live_;
  }
  for (const NodeId node : config_.nodes) {
    if (!live.Contains(node)) continue;
    if (node != config_.self && !HK_MUTANT(engine_stop_untold)) static_cast<void>(transport_->Send(node, message, {}));
  }
}

void Engine::Sweep(Shard* shard) {
  const absl::Status why = reason();
  std::vector<uint64_t> pages;
  for (const auto& [gfn, active] : shard->active) pages.push_back(gfn);
  std::sort(pages.begin(), pages.end());  // the same order in each run
  for (const uint64_t gfn : pages) {
    const auto found = shard->active.find(gfn);
    const std::unique_ptr<ActivePage> active = std::move(found->second);
    shard->active.erase(found);
    static constexpr PageState kStates[] = {PageState::kAbsent, PageState::kShared, PageState::kOwner,
                                            PageState::kExclusive};
    const PageRight right = hk::RightOf(active->page.state);
    ExtentOf(shard, Gfn(gfn))->pages.Set(gfn % kExtentPages, kStates[static_cast<size_t>(right)], false, false);
    if (HK_MUTANT(engine_stop_forgets_waiters)) continue;
    for (Waiter& waiter : active->waiters) waiter.granted(why);
    if (active->fault_read || active->fault_write) {
      frames_->Fail(Gfn(gfn));
      frames_->Wake(Gfn(gfn));
    }
  }
  shard->busy.clear();
  shard->batches.clear();
  shard->answer.reset();
  shard->local.clear();
  shard->local_next = 0;
  for (std::deque<Gfn>& starved : shard->starved) starved.clear();
}

// A look at what has waited too long, as long as anything waits.
void Engine::ArmWatch() {
  if (watching_.load(std::memory_order_relaxed) || watching_.exchange(true)) return;
  timers_->After(config_.request_limit / 4, [this] { Watch(); });
}

void Engine::Watch() {
  watching_.store(false);
  const Monotonic now = clock_.Now();
  bool waiting = false, no_frame = false, reading = false;
  uint64_t late = std::numeric_limits<uint64_t>::max();
  for (Shard& shard : shards_) {
    MutexLock lock(&shard.mutex);
    for (const auto& [gfn, active] : shard.active) {
      if (!active->wished()) continue;
      waiting = true;
      // Programs of a node that leaves wait for its end.
      if (now - active->since <= config_.request_limit || (leaving() && IsResting(active->page.state))) continue;
      late = std::min(late, gfn);
      reading = reading || active->swap.stage == SwapStage::kReading;
      no_frame = no_frame || (active->starved & (1U << kFramePool)) != 0;
    }
  }
  if (!running()) {
    // The epoch's limit holds, and then they wait anew.
  } else if (no_frame) {
    FailPage(Gfn(late), absl::StatusCode::kResourceExhausted,
             fmt::format("all {} frames of the space on this node are taken, and no other node took pages in {} ms{}",
                         config_.max_pages, config_.request_limit.count(), WhyNotSwapped()));
  } else if (late != std::numeric_limits<uint64_t>::max()) {
    FailPage(Gfn(late), absl::StatusCode::kDeadlineExceeded,
             fmt::format("it could not be had within {} ms{}", config_.request_limit.count(),
                         reading ? "; the disk of the swap did not answer" : ""));
  }
  if (waiting && !stopped()) ArmWatch();
  Finish();
}

void Engine::OnTimer(Gfn page, bool retry) {
  Shard& shard = ShardOf(page);
  {
    MutexLock lock(&shard.mutex);
    const auto found = shard.active.find(page.value());
    if (found == shard.active.end() || stopped()) return;
    ActivePage* const active = found->second.get();
    (retry ? active->pausing : active->hold_timer) = false;
    Advance(&shard, active);
    Rest(&shard, active);
    Drain(&shard);
  }
  Finish();
}

SpaceStatistics Engine::Statistics() const {
  SpaceStatistics sum;
  for (const Shard& shard : shards_) {
    MutexLock lock(&shard.mutex);
    const SpaceStatistics& one = shard.statistics;
    sum.pages_shared += one.pages_shared;
    sum.pages_owned += one.pages_owned;
    sum.pages_exclusive += one.pages_exclusive;
    sum.read_faults += one.read_faults;
    sum.write_faults += one.write_faults;
    sum.upgrades += one.upgrades;
    sum.served += one.served;
    sum.revoked += one.revoked;
    sum.retries += one.retries;
    sum.dropped += one.dropped;
    sum.zeroed += one.zeroed;
    sum.pages_pinned += one.pages_pinned;
    sum.pages_swapped += one.pages_swapped;
    sum.swap_writes += one.swap_writes;
    sum.swap_reads += one.swap_reads;
    sum.swap_failures += one.swap_failures;
    sum.adopted += one.adopted;
    sum.stale_messages += one.stale_messages;
    sum.pages_lost += one.pages_lost;
    sum.prefetched += one.prefetched;
    sum.filled_around += one.filled_around;
    sum.batches += one.batches;
    sum.empties += one.empties;
    sum.fetched += one.fetched;
    sum.peeks += one.peeks;
    sum.peeks_used += one.peeks_used;
    sum.peeks_refused += one.peeks_refused;
    for (size_t i = 0; i < SpaceStatistics::kLatencyBuckets; ++i) {
      sum.read_latency[i] += one.read_latency[i];
      sum.write_latency[i] += one.write_latency[i];
    }
  }
  MutexLock lock(&prefetch_mutex_);
  sum.prefetch_useful = streams_.counts().useful;
  sum.prefetch_wasted = streams_.counts().wasted;
  return sum;
}

std::vector<ExtentUse> Engine::Uses(uint64_t first, size_t most) const {
  const Monotonic now = clock_.Now();
  std::vector<ExtentUse> uses;
  for (const Shard& shard : shards_) {
    MutexLock lock(&shard.mutex);
    for (const auto& [number, extent] : shard.extents) {
      if (number < first || extent->pages.count(PageRight::kNone) == kExtentPages) continue;
      uses.push_back({.extent = number,
                      .shared = extent->pages.count(PageRight::kShared),
                      .owned = extent->pages.count(PageRight::kOwner),
                      .exclusive = extent->pages.count(PageRight::kExclusive),
                      .heat = extent->heat.At(now)});
    }
  }
  const auto before = [](const ExtentUse& left, const ExtentUse& right) { return left.extent < right.extent; };
  if (uses.size() > most) {  // of a million, a thousand at a time are asked for
    std::nth_element(uses.begin(), uses.begin() + static_cast<ptrdiff_t>(most), uses.end(), before);
    uses.resize(most);
  }
  std::sort(uses.begin(), uses.end(), before);
  return uses;
}

PageRight Engine::RightOf(Gfn page) const {
  const Shard& shard = ShardOf(page);
  MutexLock lock(&shard.mutex);
  if (const auto active = shard.active.find(page.value()); active != shard.active.end()) {
    return hk::RightOf(active->second->page.state);
  }
  const auto extent = shard.extents.find(page.value() / kExtentPages);
  if (extent == shard.extents.end()) return PageRight::kNone;
  return hk::RightOf(extent->second->pages.state(page.value() % kExtentPages));
}

NodeId Engine::HomeOf(Gfn page) const {
  const Shard& shard = ShardOf(page);
  MutexLock lock(&shard.mutex);
  return HomeIn(shard, page);
}

SpaceResidue Engine::Residue() const {
  SpaceResidue residue;
  residue.unsent_messages = outbox_.waiting();
  residue.prefetches = prefetching_.load() + prefetch_slots_.load();
  residue.frames = frames_taken_.load();
  residue.table_bytes = sizeof(shards_) + frames_->table_bytes() + (swap_ == nullptr ? 0 : swap_->table_bytes());
  for (const Shard& shard : shards_) {
    MutexLock lock(&shard.mutex);
    residue.active_pages += shard.active.size();
    residue.busy_entries += shard.busy.size();
    residue.prefetches += shard.batches.size();
    for (const std::deque<Gfn>& starved : shard.starved) residue.waiting_for_slots += starved.size();
    residue.table_bytes += shard.extents.capacity() * (sizeof(uint64_t) + sizeof(void*) + 1);
    for (const auto& [number, extent] : shard.extents) {
      residue.table_bytes += sizeof(Extent) + extent->pages.heap_bytes() + extent->home.heap_bytes();
    }
  }
  return residue;
}

}  // namespace space
}  // namespace hk
