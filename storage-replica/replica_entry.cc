#include "storage-replica/replica_entry.h"

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"

namespace hk {
namespace {

EntryResult Nothing(const ReplicaEntry& entry) {
  return {.verdict = EntryVerdict::kNothing, .entry = entry};
}
EntryResult Becomes(const ReplicaEntry& entry) {
  return {.verdict = EntryVerdict::kDone, .entry = entry};
}
EntryResult BecomesBusy(uint64_t requests) {
  return Becomes({.state = EntryState::kBusy, .requests = requests});
}

// Requests that use the page now.
uint64_t RequestsOf(const ReplicaEntry& entry) {
  switch (entry.state) {
    case EntryState::kPending:
      return 1;
    case EntryState::kBusy:
      return entry.requests;
    case EntryState::kNone:
    case EntryState::kValid:
    case EntryState::kUnchecked:
      return 0;
  }
  HK_CHECK(false);
}

EntryResult WholeBegins(const ReplicaEntry& entry, const EntryEvent& event) {
  const uint64_t requests = RequestsOf(entry);
  if (requests > 0 && !HK_MUTANT(replica_page_shared_by_requests)) return BecomesBusy(requests + 1);
  return Becomes({.state = EntryState::kPending, .node = event.node, .ssa = event.ssa, .generation = event.generation});
}

EntryResult Ends(const ReplicaEntry& entry, const EntryEvent& event) {
  if (entry.state == EntryState::kBusy && entry.requests > 1) return BecomesBusy(entry.requests - 1);
  if (entry.state == EntryState::kBusy) return Becomes({});
  if (entry.state != EntryState::kPending) return {.verdict = EntryVerdict::kImpossible, .entry = entry};
  if (!event.good || entry.generation != event.generation || entry.ssa != event.ssa) return Becomes({});
  ReplicaEntry valid = entry;
  valid.state = EntryState::kValid;
  valid.checksum = event.checksum;
  valid.flush = event.flush;
  return Becomes(valid);
}

// What the entry said is not true any more.
EntryResult Falsified(const ReplicaEntry& entry) {
  if (entry.state == EntryState::kPending) return BecomesBusy(1);
  return IsServed(entry.state) ? Becomes({}) : Nothing(entry);
}

bool IsOf(const ReplicaEntry& entry, const EntryEvent& event) {
  return IsServed(entry.state) && entry.ssa == event.ssa && entry.generation == event.generation;
}

EntryResult Moved(const ReplicaEntry& entry, const EntryEvent& event) {
  // What is not checked yet is not worth a message.
  if (entry.state != EntryState::kValid) return Falsified(entry);
  ReplicaEntry moved = entry;
  moved.node = event.node;
  return Becomes(moved);
}

EntryResult Given(EntryState state, const EntryEvent& event) {
  return Becomes({.state = state,
                  .node = event.node,
                  .ssa = event.ssa,
                  .generation = event.generation,
                  .checksum = event.checksum,
                  .flush = event.flush});
}

EntryResult Came(const ReplicaEntry& entry, const EntryEvent& event) {
  // Requests use the page already: which bytes they move is not known.
  if (RequestsOf(entry) > 0) return Falsified(entry);
  return Given(EntryState::kValid, event);
}

EntryResult Checked(const ReplicaEntry& entry, const EntryEvent& event) {
  if (entry.state != EntryState::kUnchecked || entry.generation != event.generation) return Nothing(entry);
  ReplicaEntry checked = entry;
  checked.state = EntryState::kValid;
  return Becomes(checked);
}

}  // namespace

EntryResult Step(const ReplicaEntry& entry, const EntryEvent& event) {
  switch (event.type) {
    case EntryEventType::kWholeBegins:
      return WholeBegins(entry, event);
    case EntryEventType::kPartBegins:
      return BecomesBusy(RequestsOf(entry) + 1);
    case EntryEventType::kEnds:
      return Ends(entry, event);
    case EntryEventType::kWritten:
      if (HK_MUTANT(replica_write_leaves_entry)) return Nothing(entry);
      if (HK_MUTANT(replica_write_during_request_unseen) && entry.state == EntryState::kPending) return Nothing(entry);
      return Falsified(entry);
    case EntryEventType::kOverwritten:
      if (HK_MUTANT(replica_overwritten_block_served)) return Nothing(entry);
      return Falsified(entry);
    case EntryEventType::kMoved:
      return Moved(entry, event);
    case EntryEventType::kMovedIf:
      return IsOf(entry, event) ? Moved(entry, event) : Nothing(entry);
    case EntryEventType::kReturned:
      return IsOf(entry, event) ? Moved(entry, event) : Falsified(entry);
    case EntryEventType::kCame:
      return Came(entry, event);
    case EntryEventType::kChecked:
      return Checked(entry, event);
    case EntryEventType::kRestored:
      return entry.state == EntryState::kNone ? Given(EntryState::kUnchecked, event) : Nothing(entry);
  }
  HK_CHECK(false);
}

const char* Name(EntryState state) {
  switch (state) {
    case EntryState::kNone:
      return "none";
    case EntryState::kPending:
      return "pending";
    case EntryState::kBusy:
      return "busy";
    case EntryState::kValid:
      return "valid";
    case EntryState::kUnchecked:
      return "unchecked";
  }
  HK_CHECK(false);
}

}  // namespace hk
