#include "migration/balance_policy.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "hyperkernel/base/mutant.h"

namespace hk {
namespace {

using std::chrono::nanoseconds;

// A share that is not told from none any more.
constexpr double kNoShare = 1e-4;

double Ns(nanoseconds time) {
  return static_cast<double>(time.count());
}

// After so many moves of no use.
uint64_t StayAfter(uint64_t doubts) {
  uint64_t stay = BalancePolicy::kLeastStay;
  for (uint64_t i = 0; i < doubts && !HK_MUTANT(policy_never_doubts); ++i) stay *= BalancePolicy::kLonger;
  return stay;
}

}  // namespace

BalancePolicy::BalancePolicy(const PolicyMachine& machine) : io_node_(machine.io_node), vcpus_(machine.vcpus.size()) {
  for (const PolicyNode& node : machine.nodes) nodes_[node.number].most_vcpus = node.most_vcpus;
  for (size_t i = 0; i < vcpus_.size(); ++i) vcpus_[i].node = vcpus_[i].placed = machine.vcpus[i];
}

BalancePolicy::Lack* BalancePolicy::LackOf(Vcpu* vcpu, NodeId holder) const {
  Lack* least = nullptr;
  for (Lack& lack : vcpu->lacks) {
    if (lack.holder == holder) return &lack;
    if (!lack.holder.has_value()) {
      if (least == nullptr || least->holder.has_value()) least = &lack;
    } else if (lack.window_ns == 0 && (least == nullptr || (least->holder.has_value() && lack.share < least->share))) {
      least = &lack;
    }
  }
  if (least == nullptr) return nullptr;
  *least = Lack();
  least->holder = holder;
  return least;
}

void BalancePolicy::OnStall(const StallEvent& stall) {
  const auto told = nodes_.find(stall.node);
  if (stall.vcpu.value() >= vcpus_.size() || told == nodes_.end()) return;
  Vcpu& vcpu = vcpus_[stall.vcpu.value()];
  if (vcpu.node != stall.node && !HK_MUTANT(policy_counts_what_was_left)) return;
  // A wait that lasted longer than a window fills it; and sums do not overflow, whatever a node says.
  const auto ns = static_cast<uint64_t>(std::clamp<int64_t>(stall.waited.count(), 0, nanoseconds(kHorizon).count()));
  ++told->second.stalls;
  ++stalls_;
  ns_ += ns;
  vcpu.window_ns += ns;
  if (!stall.holder.has_value() || *stall.holder == vcpu.node || !nodes_.contains(*stall.holder)) return;
  Lack* const lack = LackOf(&vcpu, *stall.holder);
  if (lack == nullptr) return;
  lack->window_ns += ns;
  lack->span.Add(stall.page);
  ++lack->stalls;
}

void BalancePolicy::OnDropped(NodeId node, uint64_t stalls) {
  if (const auto told = nodes_.find(node); told != nodes_.end()) told->second.dropped += stalls;
}

// A window that was not told of is one in which it did nothing.
void BalancePolicy::OnRan(VcpuId id, nanoseconds running, nanoseconds ready) {
  if (id.value() >= vcpus_.size()) return;
  Vcpu& vcpu = vcpus_[id.value()];
  const auto ns = [](nanoseconds time) {
    return static_cast<uint64_t>(std::clamp<int64_t>(time.count(), 0, nanoseconds(kHorizon).count()));
  };
  vcpu.ran_ns += ns(running);
  vcpu.ready_ns += ns(ready);
  if (!vcpu.running.has_value()) vcpu.running = 1;
}

// What it lacks of the node that it goes to, it uses there: it would leave that if it went on.
void BalancePolicy::OnMoved(VcpuId id, NodeId to, Monotonic /*now*/) {
  if (id.value() >= vcpus_.size() || !nodes_.contains(to) || vcpus_[id.value()].node == to) return;
  Vcpu& vcpu = vcpus_[id.value()];
  double known = 0;
  for (Lack& lack : vcpu.lacks) {
    if (lack.holder == to) known = lack.pages();
    lack = Lack();
  }
  const NodeId from = std::exchange(vcpu.node, to);
  vcpu.known_here = known;
  vcpu.parted = parting_.has_value() && parting_->vcpu == id && parting_->to == to;
  vcpu.lost_before = vcpu.share + vcpu.ready;
  vcpu.lost_since = vcpu.share = vcpu.ready = 0;
  vcpu.window_ns = vcpu.ran_ns = vcpu.ready_ns = 0;
  vcpu.judged = window_ + kLeastStay;
  vcpu.stays_until = window_ + StayAfter(vcpu.parted ? 0 : vcpu.doubts);
  vcpu.parts_from = window_ + StayAfter(vcpu.vain_partings + 1);
  settled_ = window_ + (vcpu.parted ? kLeastStay : kSettle);
  comes_after_[{to, from}] = window_ + (vcpu.parted ? 0 : kComeAfter);
  follow_.reset();
  if (!vcpu.parted) follow_ = to;
  for (Vcpu& each : vcpus_) {
    const bool follows = each.node != to && (each.wants == to || each.wants == from);
    if (!follows || vcpu.parted) each.sustained = 0;
    each.ready_for = 0;
  }
}

void BalancePolicy::OnRefused(VcpuId id, NodeId to, Monotonic /*now*/) {
  if (id.value() >= vcpus_.size() || !nodes_.contains(to)) return;
  vcpus_[id.value()].refused[to] = window_ + kRefused;
}

void BalancePolicy::Judge(Vcpu* vcpu) const {
  const double since = vcpu->lost_since / static_cast<double>(kLeastStay);
  const bool of_use = since < kStillWaits * vcpu->lost_before || vcpu->lost_before < kNoShare;
  uint64_t& vain = vcpu->parted ? vcpu->vain_partings : vcpu->doubts;
  vcpu->judged.reset();
  vain = of_use ? 0 : std::min(vain + 1, kMostDoubts);
  if (of_use || vcpu->parted) return;
  vcpu->stays_until = window_ + StayAfter(vcpu->doubts);
}

void BalancePolicy::EndWindow(Vcpu* vcpu, nanoseconds length) {
  const Told& told = nodes_.at(vcpu->node);
  const double lost = told.stalls == 0 ? 0 : static_cast<double>(told.dropped) / static_cast<double>(told.stalls);
  const double waited = static_cast<double>(vcpu->window_ns);
  const double all = std::min(1.0, waited * (1 + lost) / Ns(length));
  vcpu->share = (vcpu->share + all) / 2;
  const double ready = std::min(1.0, static_cast<double>(std::exchange(vcpu->ready_ns, 0)) / Ns(length));
  const double ran = std::min(1.0, static_cast<double>(std::exchange(vcpu->ran_ns, 0)) / Ns(length));
  vcpu->ready = (vcpu->ready + ready) / 2;
  if (vcpu->running.has_value()) vcpu->running = (*vcpu->running + ran) / 2;
  if (vcpu->judged.has_value()) {
    vcpu->lost_since += all + ready;
    if (window_ >= *vcpu->judged) Judge(vcpu);
  }
  vcpu->known_here *= std::exp2(-1.0 / kForget);
  for (Lack& lack : vcpu->lacks) {
    if (!lack.holder.has_value()) continue;
    const double part = lack.window_ns == 0 ? 0 : all * static_cast<double>(lack.window_ns) / waited;
    lack.share = (lack.share + part) / 2;
    lack.window_ns = 0;
    if (window_ % kSpan == 0) {
      lack.last_span = lack.span;
      lack.last_stalls = std::exchange(lack.stalls, 0);
      lack.span.Clear();
    }
    if (lack.share < kNoShare && lack.pages() < 1) lack = Lack();
  }
  vcpu->window_ns = 0;
}

void BalancePolicy::EndWindow(nanoseconds length) {
  ++window_;
  for (Vcpu& vcpu : vcpus_) EndWindow(&vcpu, length);
  for (auto& [node, told] : nodes_) told.stalls = told.dropped = 0;
  if (stalls_ > 0) {
    const double mean = static_cast<double>(ns_) / static_cast<double>(stalls_);
    mean_ns_ = mean_ns_ == 0 ? mean : (mean_ns_ + mean) / 2;
  }
  stalls_ = ns_ = 0;
}

BalancePolicy::Weights BalancePolicy::Weigh(const Vcpu& vcpu, const Lack& lack) const {
  PageSketch there, all;
  lack.AddTo(&there);
  all = there;
  Weights weights{.left = vcpu.known_here, .share = lack.share};
  for (const Lack& other : vcpu.lacks) {
    if (!other.holder.has_value() || other.holder == lack.holder) continue;
    other.AddTo(&all);
    PageSketch both = there;
    other.AddTo(&both);
    const double pages = other.pages(), common = pages + there.Count() - both.Count();
    if (pages >= 1 && !HK_MUTANT(policy_pages_do_not_go_round)) {
      weights.share += other.share * std::clamp(common / pages, 0.0, 1.0);
    }
  }
  weights.left += all.Count() - there.Count();
  return weights;
}

std::optional<double> BalancePolicy::Gain(const Vcpu& vcpu, const Lack& lack) const {
  const Weights weights = Weigh(vcpu, lack);
  if (weights.share < kLeastShare || weights.share < kMajority * vcpu.share) return std::nullopt;
  const double there = lack.pages();
  if (there < kLeastPages || there < kOutweighs * weights.left) return std::nullopt;
  const double gain = lack.share * Ns(kHorizon), cost = Ns(kMoveCost) + weights.left * mean_ns_;
  if (gain < kGainOverCost * cost) return std::nullopt;
  return (gain - cost) / Ns(kHorizon) * (vcpu.node == io_node_ ? kStaysAtDevices : 1);
}

size_t BalancePolicy::VcpusOn(NodeId node) const {
  const auto there = std::count_if(vcpus_.begin(), vcpus_.end(), [&](const Vcpu& vcpu) { return vcpu.node == node; });
  return static_cast<size_t>(there);
}

double BalancePolicy::RunningOn(NodeId node) const {
  double run = 0;
  for (const Vcpu& each : vcpus_) {
    if (each.node == node) run += each.running.value_or(1);
  }
  return run;
}

bool BalancePolicy::Takes(const Lack& lack, const Vcpu& vcpu) const {
  const uint32_t cores = nodes_.at(*lack.holder).most_vcpus;
  const size_t there = VcpusOn(*lack.holder);
  if (there < cores || HK_MUTANT(policy_crowds_nodes)) return true;
  if (!vcpu.running.has_value() || !(ToAndFro(lack) || HK_MUTANT(policy_crowds_for_data))) return false;
  const double run = *vcpu.running + RunningOn(*lack.holder);
  return run < kCrowd * cores || kLikelier * *vcpu.running * static_cast<double>(there + 1) <= cores;
}

bool BalancePolicy::WasRefused(const Vcpu& vcpu, NodeId node) const {
  const auto refused = vcpu.refused.find(node);
  return refused != vcpu.refused.end() && window_ < refused->second;
}

bool BalancePolicy::OthersCome(const Vcpu& vcpu, const Lack& lack) const {
  return vcpu.node == io_node_ && ToAndFro(lack) && VcpusOn(*lack.holder) > 0 && !HK_MUTANT(policy_leaves_devices);
}

bool BalancePolicy::ComesAfter(NodeId from, NodeId to) const {
  const auto comes = comes_after_.find({from, to});
  return comes != comes_after_.end() && window_ < comes->second && !HK_MUTANT(policy_goes_where_others_left);
}

std::vector<PolicyMove> BalancePolicy::Decide(Monotonic now) {
  if (!window_began_.has_value()) window_began_ = now;
  const nanoseconds length = now - *window_began_;
  if (length < kInterval) return {};
  window_began_ = now;
  EndWindow(length);
  parting_.reset();
  if (const std::optional<PolicyMove> move = Approach(); move.has_value()) return {*move};
  parting_ = Part();
  if (parting_.has_value()) return {*parting_};
  return {};
}

std::optional<PolicyMove> BalancePolicy::Approach() {
  std::optional<PolicyMove> best;
  double most = 0;
  for (size_t i = 0; i < vcpus_.size(); ++i) {
    Vcpu& vcpu = vcpus_[i];
    const Lack* wants = nullptr;
    double gain = 0;
    for (const Lack& lack : vcpu.lacks) {
      if (!lack.holder.has_value()) continue;
      const std::optional<double> gained = Gain(vcpu, lack);
      if (!gained.has_value() || *gained <= gain) continue;
      wants = &lack;
      gain = *gained;
    }
    vcpu.sustained = wants != nullptr ? vcpu.sustained + 1 : 0;
    vcpu.wants = wants != nullptr ? wants->holder : std::nullopt;
    if (vcpu.sustained < kSustained || window_ < vcpu.stays_until) continue;
    if (window_ < settled_ && (vcpu.wants != follow_ || HK_MUTANT(policy_none_follows))) continue;
    if (gain <= most || WasRefused(vcpu, *wants->holder) || !Takes(*wants, vcpu)) continue;
    if (ComesAfter(vcpu.node, *wants->holder) || OthersCome(vcpu, *wants)) continue;
    most = gain;
    best = PolicyMove{.vcpu = VcpuId(static_cast<uint32_t>(i)), .to = *wants->holder, .waited = wants->share};
  }
  return best;
}

std::optional<PolicyMove> BalancePolicy::Part() {
  std::optional<PolicyMove> best;
  double most = 0;
  for (size_t i = 0; i < vcpus_.size(); ++i) {
    Vcpu& vcpu = vcpus_[i];
    const uint32_t cores = nodes_.at(vcpu.node).most_vcpus;
    const bool crowded = VcpusOn(vcpu.node) > cores && RunningOn(vcpu.node) >= kFull * cores;
    const bool lacks_core = crowded && vcpu.node != vcpu.placed && vcpu.ready >= kLeastReady;
    vcpu.ready_for = lacks_core ? vcpu.ready_for + 1 : 0;
    if (vcpu.ready_for < kSustained || window_ < vcpu.parts_from || window_ < settled_ || vcpu.ready <= most) continue;
    std::optional<NodeId> to;
    size_t most_free = 0;
    for (const auto& [node, told] : nodes_) {
      const size_t there = VcpusOn(node);
      if (node == vcpu.node || there >= told.most_vcpus || WasRefused(vcpu, node)) continue;
      const size_t free = node == vcpu.placed ? SIZE_MAX : told.most_vcpus - there;
      if (free > most_free) to = node, most_free = free;
    }
    if (!to.has_value()) continue;
    most = vcpu.ready;
    best = PolicyMove{.vcpu = VcpuId(static_cast<uint32_t>(i)), .to = *to, .ready = vcpu.ready};
  }
  return best;
}

}  // namespace hk
