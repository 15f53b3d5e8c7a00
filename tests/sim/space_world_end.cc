// What is left when all programs of a world have ended, and what they did.
#include "fmt/format.h"
#include "tests/sim/space_world.h"
#include "tests/sim/space_world_node.h"

namespace hk::sim {

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
    const SpaceStatistics kept = node->engine().Statistics();
    const uint64_t here = kept.pages_shared + kept.pages_owned + kept.pages_exclusive - kept.pages_swapped;
    if (node->stopped().ok() && (residue.prefetches != 0 || residue.frames != here)) {
      report(fmt::format("keeps {} prefetches, and counts {} frames for {} pages", residue.prefetches, residue.frames,
                         here));
    }
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
    totals_.peeks += statistics.peeks;
    totals_.peeks_used += statistics.peeks_used;
    totals_.peeks_refused += statistics.peeks_refused;
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
  totals->peeks += totals_.peeks;
  totals->peeks_used += totals_.peeks_used;
  totals->peeks_refused += totals_.peeks_refused;
  totals->both += totals_.both;
  totals->both_faults += totals_.both_faults;
  totals->most_faults = std::max(totals->most_faults, totals_.most_faults);
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
  totals->left += totals_.left;
  totals->joined += totals_.joined;
  totals->joiners_troubled += totals_.joiners_troubled;
  totals->joiners_refused += totals_.joiners_refused;
  totals->joiners_lost += totals_.joiners_lost;
  totals->stopped_by_lost += totals_.stopped_by_lost;
  totals->broken += const_cast<SpaceWorld*>(this)->network_.counters().broken;
  totals->stalls += const_cast<SpaceWorld*>(this)->network_.counters().stalls;
}

}  // namespace hk::sim
