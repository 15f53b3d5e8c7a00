// What the nodes of a space say to each other while an epoch changes, and to an extent's second node about first writes
// (README.md, "Recovery").
#include <algorithm>
#include <map>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/memory/space_engine_impl.h"

namespace hk::space {
namespace {

PageRun RunOf(size_t page, const PageReport& report) {
  PageRun run{.first = static_cast<uint16_t>(page),
              .count = 1,
              .right = report.right,
              .evicting = report.evicting,
              .retained = report.retained};
  if (report.retained) {
    run.retained_serial = report.retained_serial;
    run.retained_for = report.retained_for;
  }
  return run;
}

// Adds the page to the runs, to the last of them if they are alike.
void Append(std::vector<PageRun>* runs, const PageRun& page) {
  if (!runs->empty()) {
    PageRun& last = runs->back();
    const bool next = last.first + last.count == page.first;
    if (next && !last.retained && !page.retained && last.right == page.right && last.evicting == page.evicting) {
      ++last.count;
      return;
    }
  }
  runs->push_back(page);
}

}  // namespace

void Engine::Rebuild(Epoch epoch, std::function<void(const absl::Status&)> done) {
  absl::Status failure;
  {
    MutexLock pump_lock(&pump_mutex_);
    MutexLock lock(&change_mutex_);
    failure = CheckEpoch(epoch);
    if (failure.ok()) failure = FailedHere();
    if (failure.ok() && (phase_.load() != Phase::kChanging || rebuild_done_ || rebuilt_)) {
      failure = absl::FailedPreconditionError(fmt::format("epoch {} is not to be rebuilt now", epoch.value()));
    }
    if (failure.ok()) {
      rebuild_done_ = std::move(done);
      pump_ = PumpState();
      pump_.stage = PumpStage::kReport;
      pump_.epoch = epoch;
      pump_.live = live_;
      pumping_.store(true, std::memory_order_release);
      ArmChangeLimit();
    }
  }
  if (!failure.ok()) return done(failure);
  SchedulePump();
}

// Not in a handler of the transport: much may be to do.
void Engine::SchedulePump() {
  timers_->After(Monotonic::duration(0), [this] { Pump(); });
}

void Engine::Pump() {
  bool ended = false;
  {
    MutexLock lock(&pump_mutex_);
    while (pumping_.load() && !stopped() && PumpStep()) {
    }
    MutexLock change_lock(&change_mutex_);
    ended = rebuilt_ && epoch_ == pump_.epoch;
  }
  if (ended) EndRebuild(absl::OkStatus());
  Finish();
}

void Engine::EndRebuild(const absl::Status& status) {
  std::function<void(const absl::Status&)> done;
  {
    MutexLock lock(&change_mutex_);
    done = std::exchange(rebuild_done_, nullptr);
    if (done) pumping_.store(false);
  }
  if (done) done(status);
}

// False: nothing can be done now.
bool Engine::PumpStep() {
  if (!FlushPump()) return false;
  const auto all_ended = [this, epoch = pump_.epoch](bool reports) {
    MutexLock lock(&change_mutex_);
    const NodeSet ends = reports ? report_ends_ : reconcile_ends_;
    return epoch_ == epoch && (live_.bits() & ~ends.bits()) == 0;
  };
  switch (pump_.stage) {
    case PumpStage::kIdle:
      return false;
    case PumpStage::kReport:
      if (NextExtent(false)) return true;
      PumpEach(kReportEndType);
      pump_.stage = PumpStage::kAwaitReports;
      return true;
    case PumpStage::kAwaitReports:
      if (!all_ended(true) && !HK_MUTANT(engine_rebuilds_early)) return false;
      pump_.stage = PumpStage::kRebuild;
      pump_.shard = pump_.extent = 0;
      return true;
    case PumpStage::kRebuild:
      if (NextExtent(true)) return true;
      PumpEach(kReconcileEndType);
      pump_.stage = PumpStage::kAwaitReconciles;
      return true;
    case PumpStage::kAwaitReconciles: {
      if (!all_ended(false)) return false;
      pump_.stage = PumpStage::kIdle;
      MutexLock lock(&change_mutex_);
      rebuilt_ = true;
      return false;
    }
  }
  return false;
}

bool Engine::NextExtent(bool rebuild) {
  for (; pump_.shard < kShards; ++pump_.shard, pump_.extent = 0) {
    Shard& shard = shards_[pump_.shard];
    MutexLock lock(&shard.mutex);
    if (stopped() || shard.epoch != pump_.epoch || shard.change == nullptr) {
      pump_.stage = PumpStage::kIdle;  // another epoch began
      return true;
    }
    if (pump_.extent >= shard.touched.size()) continue;
    const uint64_t number = shard.touched[pump_.extent++];
    if (rebuild) {
      RebuildExtent(&shard, number);
    } else {
      ReportExtent(&shard, number);
    }
    return true;
  }
  return false;
}

void Engine::PumpOne(NodeId to, uint16_t type, uint64_t extent, std::string body) {
  Message message;
  message.message_class = MessageClass::kBulk;
  message.type = type;
  message.guest = config_.guest;
  message.generation = config_.generation;
  message.epoch = pump_.epoch;
  message.gfn = Gfn(extent * kExtentPages);
  pump_.unsent.emplace_back(to, std::pair(message, std::move(body)));
}

void Engine::PumpEach(uint16_t type) {
  for (const NodeId node : config_.nodes) {
    if (node != config_.self && pump_.live.Contains(node)) PumpOne(node, type, 0, "");
  }
}

bool Engine::FlushPump() {
  while (!pump_.unsent.empty()) {
    auto& [to, sent] = pump_.unsent.front();
    Message& message = sent.first;
    message.body = std::as_bytes(std::span(sent.second));
    const absl::Status status = transport_->Send(to, message, {});
    if (absl::IsResourceExhausted(status)) return false;  // OnWritable comes again
    if (absl::IsUnavailable(status)) {
      // It fails, and everybody is told in a moment; or a node that joins is not connected from here yet.
      if (!pump_pauses_.exchange(true)) {
        timers_->After(kPumpPause, [this] {
          pump_pauses_.store(false);
          Pump();
        });
      }
      return false;
    }
    if (!status.ok()) {
      pump_.unsent.clear();  // another epoch began
      pump_.stage = PumpStage::kIdle;
      return false;
    }
    pump_.unsent.pop_front();
  }
  return true;
}

void Engine::ReportExtent(Shard* shard, uint64_t number) {
  const Gfn first(number * kExtentPages);
  const ExtentPages& pages = ExtentOf(shard, first)->pages;
  HandOver(shard, number);
  std::vector<PageRun> runs;
  for (size_t page = 0; page < kExtentPages; ++page) {
    PageReport report{.node = config_.self, .right = hk::RightOf(pages.state(page))};
    if (pages.active(page)) {
      report = ReportOf(shard->active.find(first.value() + page)->second->page, config_.self);
    }
    if (report.right == PageRight::kNone && report.evicting == PageRight::kNone && !report.retained) continue;
    if (HK_MUTANT(engine_reports_no_copies) && report.right == PageRight::kShared) continue;
    if (HK_MUTANT(engine_reports_nothing_kept) && report.retained) continue;
    Append(&runs, RunOf(page, report));
  }
  const NodeId home = HomeIn(*shard, first);
  if (home == config_.self) return AddReport(shard, number, home, runs);
  for (std::string& body : EncodeRuns(runs)) PumpOne(home, kReportType, number, std::move(body));
}

void Engine::AddReport(Shard* shard, uint64_t number, NodeId node, const std::vector<PageRun>& runs) {
  if (runs.empty()) return;
  ExtentOf(shard, Gfn(number * kExtentPages));  // it is rebuilt
  std::unique_ptr<ExtentReports>& reports = shard->change->reports[number];
  if (reports == nullptr) reports = std::make_unique<ExtentReports>();
  auto mine = std::find_if(reports->rights.begin(), reports->rights.end(),
                           [node](const auto& rights) { return rights.first == node; });
  if (mine == reports->rights.end()) {
    reports->rights.emplace_back(node, std::array<PageRight, kExtentPages>{});
    mine = reports->rights.end() - 1;
  }
  for (const PageRun& run : runs) {
    std::fill_n(mine->second.begin() + run.first, run.count, run.right);
    if (!run.retained && run.evicting == PageRight::kNone) continue;
    for (uint16_t i = 0; i < run.count; ++i) {
      reports->kept.push_back({.page = static_cast<uint16_t>(run.first + i),
                               .report = {.node = node,
                                          .right = run.right,
                                          .evicting = run.evicting,
                                          .retained = run.retained,
                                          .retained_serial = run.retained_serial,
                                          .retained_for = run.retained_for}});
    }
  }
}

// Makes the entries of an extent whose home this is from what is known here and what all have told; tells each node
// what it has now as far as that is not what it said, and the second node what was ever written, unless it knows.
void Engine::RebuildExtent(Shard* shard, uint64_t number) {
  const Gfn first(number * kExtentPages);
  if (HomeIn(*shard, first) != config_.self) return;
  ShardChange& change = *shard->change;
  Extent& extent = *ExtentOf(shard, first);
  std::vector<NodeSet> sets = shard->committed;
  sets.push_back(shard->live);
  const NodeId home_before = placement_.HomeOf(number, shard->committed.back());
  const bool was_home = home_before == config_.self;
  const NodeSet gone(shard->committed.back().bits() & ~shard->live.bits());
  // A home that lives has handed over all that is known of it, whatever was forgotten before it was the home.
  const bool known = change.handed_over.contains(number);
  const bool forgotten = !known && placement_.IsForgotten(number, sets);
  const bool home_moved = !was_home && (gone.bits() & ~change.left.bits()) == 0 &&
                          (!forgotten || HK_MUTANT(engine_left_home_knew_all)) &&
                          (!known || !HK_MUTANT(engine_moved_home_is_lost));
  const auto reports = change.reports.find(number);
  auto rebuilt = std::make_unique<ExtentDirectory>();
  PageBits written{};
  std::map<NodeId, std::vector<PageRun>> told;
  const uint64_t end = std::min(kExtentPages, config_.pages - first.value());
  for (size_t page = 0; page < end; ++page) {
    const uint64_t gfn = first.value() + page;
    DirectoryEntry before;
    if (was_home) {
      const auto busy = shard->busy.find(gfn);
      before = busy != shard->busy.end() ? busy->second->entry : EntryOf(extent.home.Get(page));
    } else {
      before.state = DirectoryState::kElsewhere;
      before.ever_written = forgotten || (extent.written != nullptr && HasBit(*extent.written, page));
      if (HK_MUTANT(engine_second_knows_nothing)) before.ever_written = forgotten;
      if (const auto handed = change.handed.find(gfn); handed != change.handed.end()) {
        before.state = DirectoryState::kLost;
        before.owner = handed->second;
      }
    }
    std::vector<PageReport> said;
    if (reports != change.reports.end()) {
      for (const auto& [node, rights] : reports->second->rights) {
        PageReport report{.node = node, .right = rights[page]};
        for (const ExtentReports::Kept& kept : reports->second->kept) {
          if (kept.page == page && kept.report.node == node) report = kept.report;
        }
        said.push_back(report);
      }
    }
    const DirectoryResult result = Step(before,
                                        {.type = DirectoryEventType::kRebuild,
                                         .message = {},
                                         .reports = said,
                                         .survivors = shard->live,
                                         .lost = change.lost_nodes,
                                         .home_moved = home_moved},
                                        config_.self);
    if (result.verdict != DirectoryVerdict::kDone) {
      return FailPage(Gfn(gfn), absl::StatusCode::kInternal,
                      fmt::format("coherence violation: what the nodes have of it does not fit together, nor the "
                                  "home's state {}",
                                  Name(before.state)));
    }
    const DirectoryEntry& entry = result.entry;
    rebuilt->Set(page, RestOf(entry));
    if (entry.ever_written) written[page / 64] |= uint64_t{1} << (page % 64);
    if (entry.state == DirectoryState::kLost) {
      ++change.lost;
      if (!shard->live.Contains(entry.owner)) ++change.lost_with[entry.owner];
    }
    for (const PageReport& report : said) {
      const PageRight right = RightAt(entry, report.node);
      if (right == report.right) continue;
      if (report.node == config_.self) {
        change.told[gfn] = right;
      } else {
        Append(&told[report.node], {.first = static_cast<uint16_t>(page), .count = 1, .right = right});
      }
    }
  }
  change.rebuilt[number] = std::move(rebuilt);
  for (const auto& [node, runs] : told) {
    for (std::string& body : EncodeRuns(runs)) PumpOne(node, kReconcileType, number, std::move(body));
  }
  const std::optional<NodeId> second = placement_.SecondOf(number, shard->live);
  const bool knows = was_home && second == placement_.SecondOf(number, shard->committed.back());
  if (!second.has_value() || knows) return;
  if (written != PageBits{}) PumpOne(*second, kWrittenType, number, EncodeBits(written));
  extent.written = std::make_unique<PageBits>(written);
}

void Engine::OnRecoveryMessage(NodeId from, const Message& message) {
  absl::Status bad;
  if (message.slot != SlotId() || message.answer || message.transaction != 0) {
    bad = absl::InvalidArgumentError("it has a slot or a transaction");
  } else if (message.type == kReportEndType || message.type == kReconcileEndType) {
    MutexLock lock(&change_mutex_);
    if (message.epoch == epoch_ && live_.Contains(from)) {
      (message.type == kReportEndType ? report_ends_ : reconcile_ends_).Add(from);
    }
  } else if (!InSpace(message.gfn)) {
    bad = absl::InvalidArgumentError("the page is not in the space");
  } else {
    Shard& shard = ShardOf(message.gfn);
    MutexLock lock(&shard.mutex);
    if (stopped() || message.epoch != shard.epoch || !shard.live.Contains(from)) return;
    bad = HandleRecovery(&shard, from, message);
    if (bad.ok()) Drain(&shard);
  }
  if (!bad.ok() && IsJoining(from)) {
    // It is as if it were gone.
    return OnPeerFailed(from, PeerFailure::kMalformed,
                        fmt::format("it sent a message of type {}: {}", message.type, MessageOf(bad)));
  }
  if (!bad.ok()) {
    FailPage(message.gfn, absl::StatusCode::kInternal,
             fmt::format("node {} sent a message of type {}: {}", from.value(), message.type, MessageOf(bad)));
  } else if (pumping_.load(std::memory_order_acquire)) {
    SchedulePump();
  }
  Finish();
}

absl::Status Engine::HandleRecovery(Shard* shard, NodeId from, const Message& message) {
  const uint64_t number = message.gfn.value() / kExtentPages;
  const bool handed = message.type == kHandedWrittenType || message.type == kHandedLostType;
  const bool to_home = handed || message.type == kReportType || message.type == kMirroredType;
  const NodeId home = HomeIn(*shard, message.gfn);
  if (to_home ? home != config_.self : home != from) {
    return absl::InvalidArgumentError(fmt::format("the page's home is node {}", home.value()));
  }
  const bool changes = message.type == kReportType || message.type == kReconcileType;
  if (changes && shard->change == nullptr) return absl::InvalidArgumentError("no epoch changes");
  if (handed) return TakeOver(shard, from, message);
  if (changes && to_home && !shard->committed.back().Contains(from)) {
    return absl::InvalidArgumentError("a node that is to join has pages");
  }
  switch (message.type) {
    case kReportType: {
      HK_ASSIGN_OR_RETURN(const std::vector<PageRun> runs, DecodeRuns(message.body));
      AddReport(shard, number, from, runs);
      return absl::OkStatus();
    }
    case kReconcileType: {
      HK_ASSIGN_OR_RETURN(const std::vector<PageRun> runs, DecodeRuns(message.body));
      for (const PageRun& run : runs) {
        for (uint64_t i = 0; i < run.count; ++i) {
          const Gfn page(number * kExtentPages + run.first + i);
          if (!InSpace(page)) return absl::InvalidArgumentError("a page that is not in the space");
          shard->change->told[page.value()] = run.right;
        }
      }
      return absl::OkStatus();
    }
    case kWrittenType:
    case kMirrorType: {
      Extent* const extent = ExtentOf(shard, message.gfn);
      PageBits bits{};
      if (message.type == kWrittenType) {
        HK_ASSIGN_OR_RETURN(bits, DecodeBits(message.body));
      } else {
        HK_ASSIGN_OR_RETURN(bits[message.gfn.value() % kExtentPages / 64], DecodeMask(message.body));
      }
      if (extent->written == nullptr) extent->written = std::make_unique<PageBits>();
      for (size_t i = 0; i < bits.size(); ++i) (*extent->written)[i] |= bits[i];
      if (message.type == kMirrorType) {
        PostMirror(shard, from, kMirroredType, message.gfn, bits[message.gfn.value() % kExtentPages / 64]);
      }
      return absl::OkStatus();
    }
    default: {
      HK_ASSIGN_OR_RETURN(const uint64_t mask, DecodeMask(message.body));
      Extent* const extent = ExtentOf(shard, message.gfn);
      if (extent->written == nullptr) extent->written = std::make_unique<PageBits>();
      (*extent->written)[message.gfn.value() % kExtentPages / 64] |= mask;
      const uint64_t group = message.gfn.value() / 64 * 64;
      for (uint64_t i = 0; i < 64; ++i) {
        if ((mask >> i & 1) == 0) continue;
        const auto busy = shard->busy.find(group + i);
        if (busy == shard->busy.end() || busy->second->entry.state != DirectoryState::kMirroring) continue;
        BusyEntry* const entry = busy->second.get();
        if (!StepHome(shard, Gfn(group + i), entry, {.type = DirectoryEventType::kMirrored})) break;
        RestHome(shard, Gfn(group + i), entry);
      }
      return absl::OkStatus();
    }
  }
}

bool Engine::Mirror(Shard* shard, Gfn page) {
  if (!config_.coordinator.has_value()) return true;  // after a loss nobody asks
  // Nor of a home that never moves, since the space ends with it.
  if (config_.homes_at_coordinator && config_.coordinator == config_.self) return true;
  const std::optional<NodeId> second = placement_.SecondOf(page.value() / kExtentPages, shard->live);
  if (!second.has_value() || HK_MUTANT(engine_never_mirrors)) return true;
  const Extent& extent = *ExtentOf(shard, page);
  const size_t index = page.value() % kExtentPages;
  if (extent.written != nullptr && HasBit(*extent.written, index)) return true;
  PostMirror(shard, *second, kMirrorType, page, uint64_t{1} << (index % 64));
  return false;
}

void Engine::PostMirror(Shard* shard, NodeId to, uint16_t type, Gfn page, uint64_t mask) {
  Message header;
  header.message_class = MessageClass::kFault;
  header.type = type;
  header.guest = config_.guest;
  header.generation = config_.generation;
  header.epoch = shard->epoch;
  header.gfn = page;
  const absl::Status sent = outbox_.Send(to, header, EncodeMask(mask), {}, {}, {});
  if (!sent.ok()) OnSendFailed(to, sent);
}

}  // namespace hk::space
