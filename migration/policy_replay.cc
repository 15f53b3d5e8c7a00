#include "migration/policy_replay.h"

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>

#include "fmt/format.h"

namespace hk {
namespace {

using std::chrono::nanoseconds;

constexpr size_t kMostPagesOfVcpu = size_t{64} << 10, kMostMovedPages = size_t{4} << 20;
constexpr std::chrono::seconds kUsedWithin(10);
// A move takes a vCPU there; more of them than seconds in a year is no trace.
constexpr size_t kMostMoves = size_t{1} << 20;

Monotonic TimeOf(uint64_t ns) {
  return Monotonic(nanoseconds(static_cast<int64_t>(ns)));
}

StallKind KindOf(v1::StallKind kind) {
  return kind == v1::STALL_KIND_READ    ? StallKind::kRead
         : kind == v1::STALL_KIND_WRITE ? StallKind::kWrite
                                        : StallKind::kUpgrade;
}

// The pages that one vCPU has had of late.
class PagesUsed {
 public:
  // `kept`: who has the page still.
  void Add(uint64_t page, std::optional<NodeId> kept, Monotonic now) {
    if (now - began_ >= kUsedWithin) {
      before_ = std::exchange(now_, {});
      began_ = now;
    }
    if (now_.size() < kMostPagesOfVcpu) now_[page] = kept;
  }
  // How many of them would have to follow it to that node.
  size_t LeftBehind(NodeId to) const {
    size_t count = 0;
    for (const auto& [page, kept] : now_) count += kept != to;
    for (const auto& [page, kept] : before_) count += kept != to && !now_.contains(page);
    return count;
  }
  void Clear() {
    now_.clear();
    before_.clear();
  }

 private:
  Monotonic began_;
  std::unordered_map<uint64_t, std::optional<NodeId>> now_, before_;
};

// One replay.
class Replay {
 public:
  Replay(const v1::TraceHeader& header, nanoseconds move) : move_s_(Seconds(move)) {
    score_.machine = header.machine();
    score_.recorded_policy = header.policy();
    score_.nodes = static_cast<size_t>(header.nodes_size());
    score_.vcpus = static_cast<size_t>(header.vcpu_nodes_size());
    for (const v1::TraceNode& node : header.nodes()) {
      const NodeId number(static_cast<uint16_t>(node.number()));
      names_[number] = node.name();
      machine_.nodes.push_back({.number = number, .most_vcpus = node.most_vcpus()});
    }
    if (header.has_io_node()) machine_.io_node = NodeId(static_cast<uint16_t>(header.io_node()));
    for (const uint32_t node : header.vcpu_nodes()) machine_.vcpus.push_back(NodeId(static_cast<uint16_t>(node)));
    where_ = machine_.vcpus;
    used_.resize(where_.size());
  }
  absl::Status Choose(std::string_view name) {
    absl::StatusOr<std::unique_ptr<PlacementPolicy>> policy = MakePolicy(name, machine_);
    if (!policy.ok()) return policy.status();
    policy_ = *std::move(policy);
    score_.policy = std::string(policy_->name());
    return absl::OkStatus();
  }
  void On(const v1::TraceRecord& record) {
    for (const v1::Stall& stall : record.stalls().stalls()) OnStall(stall);
    score_.dropped += record.dropped().stalls();
    if (record.dropped().has_node()) {
      policy_->OnDropped(NodeId(static_cast<uint16_t>(record.dropped().node())), record.dropped().stalls());
    }
    if (record.has_tick()) OnTick(record.tick());
  }
  ReplayScore Score(bool torn) {
    score_.torn = torn;
    score_.policy_s += score_.moves_s;
    return std::move(score_);
  }

 private:
  static double Seconds(nanoseconds time) { return std::chrono::duration<double>(time).count(); }
  void Pass(uint64_t time_ns) { score_.length = std::max(score_.length, nanoseconds(static_cast<int64_t>(time_ns))); }
  // Where the page is, as the model has it.
  std::optional<NodeId> HolderOf(const v1::Stall& stall) const {
    if (const auto moved = moved_.find(stall.page()); moved != moved_.end()) return moved->second;
    if (!stall.has_holder()) return std::nullopt;
    return NodeId(static_cast<uint16_t>(stall.holder()));
  }
  void OnStall(const v1::Stall& stall) {
    Pass(stall.time_ns());
    const NodeId at = where_[stall.vcpu()];
    const bool moved = at != NodeId(static_cast<uint16_t>(stall.node()));
    const std::optional<NodeId> holder = HolderOf(stall);
    const nanoseconds waited(static_cast<int64_t>(stall.waited_ns()));
    ++score_.stalls;
    score_.recorded_s += Seconds(waited);
    // Also a vCPU that was not moved may find what one that was has brought.
    const bool here = holder == at && (moved || moved_.contains(stall.page()));
    if (moved && moved_.size() < kMostMovedPages) moved_[stall.page()] = at;
    if (here) return;
    if (!moved) moved_.erase(stall.page());
    score_.policy_s += Seconds(waited);
    const StallKind kind = KindOf(stall.kind());
    used_[stall.vcpu()].Add(stall.page(), kind == StallKind::kRead ? holder : std::nullopt, TimeOf(stall.time_ns()));
    policy_->OnStall({.end = TimeOf(stall.time_ns()),
                      .vcpu = VcpuId(stall.vcpu()),
                      .node = at,
                      .page = Gfn(stall.page()),
                      .kind = kind,
                      .holder = holder,
                      .waited = waited});
  }
  void OnTick(const v1::TraceTick& tick) {
    Pass(tick.time_ns());
    const Monotonic now = TimeOf(tick.time_ns());
    if (last_tick_.has_value() && now < *last_tick_) return;
    last_tick_ = now;
    for (const v1::TraceRan& ran : tick.ran()) {
      policy_->OnRan(VcpuId(ran.vcpu()), nanoseconds(static_cast<int64_t>(ran.running_ns())),
                     nanoseconds(static_cast<int64_t>(ran.ready_ns())));
    }
    for (const PolicyMove& move : policy_->Decide(now)) {
      NodeId& at = where_[move.vcpu.value()];
      PagesUsed& used = used_[move.vcpu.value()];
      const double mean = score_.stalls == 0 ? 0 : score_.recorded_s / static_cast<double>(score_.stalls);
      score_.moves_s += move_s_ + static_cast<double>(used.LeftBehind(move.to)) * mean;
      used.Clear();
      if (score_.moves.size() < kMostMoves) {
        score_.moves.push_back({.time = now.time_since_epoch(),
                                .vcpu = move.vcpu,
                                .from = names_[at],
                                .to = names_[move.to],
                                .waited = move.waited});
      }
      at = move.to;
      policy_->OnMoved(move.vcpu, move.to, now);
    }
  }

  const double move_s_;
  ReplayScore score_;
  std::map<NodeId, std::string> names_;
  PolicyMachine machine_;
  std::unique_ptr<PlacementPolicy> policy_;
  std::vector<NodeId> where_;
  std::vector<PagesUsed> used_;
  std::unordered_map<uint64_t, NodeId> moved_;  // rule 3
  std::optional<Monotonic> last_tick_;
};

}  // namespace

absl::StatusOr<ReplayScore> ReplayTrace(TraceReader* trace, std::string_view policy, nanoseconds move) {
  v1::TraceRecord record;
  if (!trace->Next(&record)) return absl::InvalidArgumentError(trace->error());
  Replay replay(record.header(), move);
  if (const absl::Status status = replay.Choose(policy); !status.ok()) return status;
  while (trace->Next(&record)) replay.On(record);
  if (!trace->error().empty()) return absl::InvalidArgumentError(trace->error());
  return replay.Score(trace->torn());
}

std::string ScoreText(const ReplayScore& score) {
  const auto seconds = [](nanoseconds time) { return std::chrono::duration<double>(time).count(); };
  std::string out = fmt::format("machine {}, {} nodes, {} vCPUs, {:.1f} s under {}: {} stalls{}{}\n", score.machine,
                                score.nodes, score.vcpus, seconds(score.length), score.recorded_policy, score.stalls,
                                score.dropped == 0 ? "" : fmt::format(", {} not recorded", score.dropped),
                                score.torn ? "; the trace ends within a record" : "");
  out += fmt::format("waited as recorded:   {:.3f} s\n", score.recorded_s);
  out += fmt::format("waited under {:<9} {:.3f} s, {:.3f} s of it for {} moves\n", score.policy + ":", score.policy_s,
                     score.moves_s, score.moves.size());
  for (const ReplayMove& move : score.moves) {
    const std::string why = move.waited > 0
                                ? fmt::format("{:.0f}% of its time it waited for {}", 100 * move.waited, move.to)
                                : "it lacked a core";
    out += fmt::format("{:>8.1f} s  vCPU {}  {} -> {}  ({})\n", seconds(move.time), move.vcpu.value(), move.from,
                       move.to, why);
  }
  return out;
}

// Names are [a-z0-9-]: nothing has to be escaped.
std::string ScoreJson(const ReplayScore& score) {
  std::string moves;
  for (const ReplayMove& move : score.moves) {
    moves +=
        fmt::format("{}{{\"time_ns\":{},\"vcpu\":{},\"from\":\"{}\",\"to\":\"{}\",\"waited\":{:.4f}}}",
                    moves.empty() ? "" : ",", move.time.count(), move.vcpu.value(), move.from, move.to, move.waited);
  }
  return fmt::format(
      "{{\"machine\":\"{}\",\"recorded_policy\":\"{}\",\"policy\":\"{}\",\"nodes\":{},\"vcpus\":{},\"length_ns\":{},"
      "\"stalls\":{},\"dropped\":{},\"recorded_s\":{:.6f},\"policy_s\":{:.6f},\"moves_s\":{:.6f},\"torn\":{},"
      "\"moves\":[{}]}}\n",
      score.machine, score.recorded_policy, score.policy, score.nodes, score.vcpus, score.length.count(), score.stalls,
      score.dropped, score.recorded_s, score.policy_s, score.moves_s, score.torn, moves);
}

}  // namespace hk
