#include "migration/balance_policy.h"

#include <algorithm>
#include <cmath>

#include "hyperkernel/base/mutant.h"

namespace hk {
namespace {

using std::chrono::nanoseconds;

// A share that is not told from none any more.
constexpr double kNoShare = 1e-4;

double Ns(nanoseconds time) {
  return static_cast<double>(time.count());
}

}  // namespace

BalancePolicy::BalancePolicy(const PolicyMachine& machine) : vcpus_(machine.vcpus.size()) {
  for (const PolicyNode& node : machine.nodes) nodes_[node.number].most_vcpus = node.most_vcpus;
  for (size_t i = 0; i < vcpus_.size(); ++i) vcpus_[i].node = machine.vcpus[i];
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
}

void BalancePolicy::OnDropped(NodeId node, uint64_t stalls) {
  if (const auto told = nodes_.find(node); told != nodes_.end()) told->second.dropped += stalls;
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
  vcpu.node = to;
  vcpu.known_here = known;
  vcpu.share_before = vcpu.share;
  vcpu.share_since = vcpu.share = 0;
  vcpu.window_ns = 0;
  vcpu.judged = window_ + kLeastStay;
  uint64_t stay = kLeastStay;
  for (uint64_t i = 0; i < vcpu.doubts && !HK_MUTANT(policy_never_doubts); ++i) stay *= kLonger;
  vcpu.stays_until = window_ + stay;
  settled_ = window_ + kSettle;
  for (Vcpu& each : vcpus_) each.sustained = 0;
}

void BalancePolicy::OnRefused(VcpuId id, NodeId to, Monotonic /*now*/) {
  if (id.value() >= vcpus_.size() || !nodes_.contains(to)) return;
  vcpus_[id.value()].refused[to] = window_ + kRefused;
}

void BalancePolicy::Judge(Vcpu* vcpu) const {
  const double since = vcpu->share_since / static_cast<double>(kLeastStay);
  vcpu->judged.reset();
  if (since < kStillWaits * vcpu->share_before || vcpu->share_before < kNoShare) {
    vcpu->doubts = 0;
    return;
  }
  vcpu->doubts = std::min(vcpu->doubts + 1, kMostDoubts);
  uint64_t stay = kLeastStay;
  for (uint64_t i = 0; i < vcpu->doubts && !HK_MUTANT(policy_never_doubts); ++i) stay *= kLonger;
  vcpu->stays_until = window_ + stay;
}

void BalancePolicy::EndWindow(Vcpu* vcpu, nanoseconds length) {
  const Told& told = nodes_.at(vcpu->node);
  const double lost = told.stalls == 0 ? 0 : static_cast<double>(told.dropped) / static_cast<double>(told.stalls);
  const double waited = static_cast<double>(vcpu->window_ns);
  const double all = std::min(1.0, waited * (1 + lost) / Ns(length));
  vcpu->share = (vcpu->share + all) / 2;
  if (vcpu->judged.has_value()) {
    vcpu->share_since += all;
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

double BalancePolicy::LeavesBehind(const Vcpu& vcpu, const Lack& lack) const {
  double pages = vcpu.known_here;
  for (const Lack& other : vcpu.lacks) {
    if (other.holder.has_value() && other.holder != lack.holder) pages += other.pages();
  }
  return pages;
}

std::optional<double> BalancePolicy::Gain(const Vcpu& vcpu, const Lack& lack) const {
  if (lack.share < kLeastShare || lack.share < kMajority * vcpu.share) return std::nullopt;
  const double there = lack.pages(), left = LeavesBehind(vcpu, lack);
  if (there < kLeastPages || there < kOutweighs * left) return std::nullopt;
  const double gain = lack.share * Ns(kHorizon), cost = Ns(kMoveCost) + left * mean_ns_;
  if (gain < kGainOverCost * cost) return std::nullopt;
  return (gain - cost) / Ns(kHorizon);
}

bool BalancePolicy::HasRoom(NodeId node) const {
  const auto there = std::count_if(vcpus_.begin(), vcpus_.end(), [&](const Vcpu& vcpu) { return vcpu.node == node; });
  return static_cast<uint64_t>(there) < nodes_.at(node).most_vcpus || HK_MUTANT(policy_crowds_nodes);
}

std::vector<PolicyMove> BalancePolicy::Decide(Monotonic now) {
  if (!window_began_.has_value()) window_began_ = now;
  const nanoseconds length = now - *window_began_;
  if (length < kInterval) return {};
  window_began_ = now;
  EndWindow(length);
  std::optional<PolicyMove> best;
  double most = 0;
  for (size_t i = 0; i < vcpus_.size(); ++i) {
    Vcpu& vcpu = vcpus_[i];
    std::optional<NodeId> wants;
    double gain = 0, share = 0;
    for (const Lack& lack : vcpu.lacks) {
      // More than half is of one node at most.
      if (!lack.holder.has_value()) continue;
      const std::optional<double> gained = Gain(vcpu, lack);
      if (!gained.has_value()) continue;
      wants = lack.holder;
      gain = *gained;
      share = lack.share;
    }
    vcpu.sustained = wants.has_value() && wants == vcpu.wants ? vcpu.sustained + 1 : wants.has_value() ? 1 : 0;
    vcpu.wants = wants;
    if (vcpu.sustained < kSustained || window_ < vcpu.stays_until || window_ < settled_ || !HasRoom(*wants)) continue;
    const auto refused = vcpu.refused.find(*wants);
    if (refused != vcpu.refused.end() && window_ < refused->second) continue;
    if (gain <= most) continue;
    most = gain;
    best = PolicyMove{.vcpu = VcpuId(static_cast<uint32_t>(i)), .to = *wants, .waited = share};
  }
  if (!best.has_value()) return {};
  return {*best};
}

}  // namespace hk
