#include "hyperkernel/cli/space_rates.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "proto/fault_latency.h"

namespace hk::cli {
namespace {

// More are not read on a screen.
constexpr int kMostPingPong = 20;
// A page that moved once, as each of a scan does, does not go to and fro.
constexpr uint64_t kLeastLosses = 2;

using Node = v1::SpaceNodeCounters;
using Buckets = std::vector<uint64_t>;

// As the daemon tells of its own.
v1::FaultLatency LatencyOf(const Buckets& buckets) {
  v1::FaultLatency latency;
  latency.mutable_buckets()->Assign(buckets.begin(), buckets.end());
  SummarizeBuckets(&latency);
  return latency;
}

v1::FaultLatency Between(const v1::FaultLatency& before, const v1::FaultLatency& after) {
  Buckets buckets(after.buckets().begin(), after.buckets().end());
  for (int i = 0; i < before.buckets_size() && i < after.buckets_size(); i++)
    buckets[static_cast<size_t>(i)] -= std::min(before.buckets(i), after.buckets(i));
  return LatencyOf(buckets);
}

const Node* Find(const v1::SpaceTopResponse& top, const std::string& name) {
  const auto found = std::find_if(top.nodes().begin(), top.nodes().end(),
                                  [&name](const Node& node) { return node.part().node() == name; });
  return found == top.nodes().end() || !found->has_counters() ? nullptr : &*found;
}

// Seconds between the two, by the node's own clock. 0: they do not belong together (another daemon by now).
double Seconds(const v1::SpaceCounters& before, const v1::SpaceCounters& after) {
  if (after.counted_at_ns() <= before.counted_at_ns() || after.read_faults() < before.read_faults() ||
      after.write_faults() < before.write_faults() || after.revoked() < before.revoked()) {
    return 0;
  }
  return static_cast<double>(after.counted_at_ns() - before.counted_at_ns()) / 1e9;
}

// That were ended, and measured.
uint64_t FaultsOf(const v1::SpaceRates& rates) {
  return rates.read_latency().count() + rates.write_latency().count();
}

void FillRates(const v1::SpaceCounters& before, const v1::SpaceCounters& after, double seconds, v1::SpaceRates* rates) {
  const auto rate = [seconds](uint64_t from, uint64_t to) {
    return static_cast<double>(to - std::min(from, to)) / seconds;
  };
  rates->set_read_faults(rate(before.read_faults(), after.read_faults()));
  rates->set_write_faults(rate(before.write_faults(), after.write_faults()));
  rates->set_upgrades(rate(before.upgrades(), after.upgrades()));
  rates->set_served(rate(before.served(), after.served()));
  rates->set_revoked(rate(before.revoked(), after.revoked()));
  rates->set_retries(rate(before.retries(), after.retries()));
  *rates->mutable_read_latency() = Between(before.read_latency(), after.read_latency());
  *rates->mutable_write_latency() = Between(before.write_latency(), after.write_latency());
  const uint64_t faults = FaultsOf(*rates);
  const uint64_t fetched = after.fetched() - std::min(before.fetched(), after.fetched());
  if (faults > 0) rates->set_fetched_share(std::min(1.0, static_cast<double>(fetched) / static_cast<double>(faults)));
}

// A page as all nodes saw it.
struct Moves {
  uint64_t losses = 0;
  double losses_per_second = 0, owner_changes_per_second = 0;
  std::set<std::string> nodes;
  std::vector<v1::GuestAccess> accesses;
};

// A page that is not in `before` was not noticed then: all of its losses are later. So it is with one whose count is
// less than before: it was forgotten and noticed again.
void AddMoves(const Node& before, const Node& after, double seconds, std::map<uint64_t, Moves>* moves) {
  std::map<uint64_t, const v1::HotPage*> known;
  for (const v1::HotPage& page : before.hot_pages()) known[page.address()] = &page;
  for (const v1::HotPage& page : after.hot_pages()) {
    uint64_t losses = page.losses(), owner = page.owner_losses();
    const auto found = known.find(page.address());
    if (found != known.end() && found->second->losses() <= losses) {
      losses -= found->second->losses();
      owner -= std::min(owner, found->second->owner_losses());
    }
    if (losses == 0) continue;
    Moves& sum = (*moves)[page.address()];
    sum.losses += losses;
    sum.losses_per_second += static_cast<double>(losses) / seconds;
    sum.owner_changes_per_second += static_cast<double>(owner) / seconds;
    sum.nodes.insert(after.part().node());
    if (!page.taker().empty()) sum.nodes.insert(page.taker());
    if (!page.has_access()) continue;
    sum.accesses.push_back(page.access());
    sum.accesses.back().set_node(after.part().node());
  }
}

}  // namespace

void AddRates(const v1::SpaceTopResponse& before, v1::SpaceTopResponse* after) {
  std::map<uint64_t, Moves> moves;
  for (Node& node : *after->mutable_nodes()) {
    const Node* const earlier = Find(before, node.part().node());
    const double seconds =
        earlier == nullptr || !node.has_counters() ? 0 : Seconds(earlier->counters(), node.counters());
    if (seconds > 0) {
      FillRates(earlier->counters(), node.counters(), seconds, node.mutable_rates());
      AddMoves(*earlier, node, seconds, &moves);
      after->set_interval_seconds(std::max(after->interval_seconds(), seconds));
    }
  }
  std::vector<std::pair<uint64_t, Moves>> sorted;
  for (auto& [address, one] : moves) {
    if (one.losses >= kLeastLosses) sorted.emplace_back(address, std::move(one));
  }
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& left, const auto& right) {
    return left.second.losses_per_second > right.second.losses_per_second;
  });
  for (const auto& [address, one] : sorted) {
    if (after->ping_pong_size() == kMostPingPong) break;
    v1::PingPongPage& page = *after->add_ping_pong();
    page.set_address(address);
    page.set_losses_per_second(one.losses_per_second);
    page.set_owner_changes_per_second(one.owner_changes_per_second);
    for (const std::string& node : one.nodes) page.add_nodes(node);
    for (const v1::GuestAccess& access : one.accesses) *page.add_accesses() = access;
  }
}

v1::SpaceRates SumOfRates(const v1::SpaceTopResponse& top) {
  v1::SpaceRates sum;
  Buckets reads, writes;
  double fetched = 0;
  const auto add = [](const v1::FaultLatency& latency, Buckets* buckets) {
    buckets->resize(std::max(buckets->size(), static_cast<size_t>(latency.buckets_size())));
    for (int i = 0; i < latency.buckets_size(); i++) (*buckets)[static_cast<size_t>(i)] += latency.buckets(i);
  };
  for (const Node& node : top.nodes()) {
    const v1::SpaceRates& rates = node.rates();
    sum.set_read_faults(sum.read_faults() + rates.read_faults());
    sum.set_write_faults(sum.write_faults() + rates.write_faults());
    sum.set_upgrades(sum.upgrades() + rates.upgrades());
    sum.set_served(sum.served() + rates.served());
    sum.set_revoked(sum.revoked() + rates.revoked());
    sum.set_retries(sum.retries() + rates.retries());
    fetched += rates.fetched_share() * static_cast<double>(FaultsOf(rates));
    add(rates.read_latency(), &reads);
    add(rates.write_latency(), &writes);
  }
  *sum.mutable_read_latency() = LatencyOf(reads);
  *sum.mutable_write_latency() = LatencyOf(writes);
  if (FaultsOf(sum) > 0) sum.set_fetched_share(fetched / static_cast<double>(FaultsOf(sum)));
  return sum;
}

}  // namespace hk::cli
