#include "hyperkernel/memory/space_placement.h"

#include <algorithm>
#include <cstddef>

namespace hk {
namespace {

// Home and second of some extent may have been among those that went from the one to the other.
bool MayForget(NodeSet before, NodeSet after) {
  return NodeSet(before.bits() & ~after.bits()).size() >= std::min(2, before.size());
}

}  // namespace

void AddSet(std::vector<NodeSet>* sets, NodeSet next) {
  sets->push_back(next);
  for (size_t i = 0; i + 1 < sets->size();) {
    const auto at = [sets](size_t index) { return (*sets)[index]; };
    const bool first = i == 0;
    const bool of_no_use =
        !MayForget(at(i), at(i + 1)) && (first || (!MayForget(at(i - 1), at(i)) && !MayForget(at(i - 1), at(i + 1))));
    if (of_no_use) {
      sets->erase(sets->begin() + static_cast<ptrdiff_t>(i));
    } else {
      ++i;
    }
  }
}

std::optional<NodeId> SpacePlacement::Nth(uint64_t extent, NodeSet live, int n) const {
  const size_t count = nodes_.size();
  if (first_.has_value() && live.Contains(*first_)) {
    if (n-- == 0) return first_;
    live.Remove(*first_);
  }
  const size_t first = extent % count;
  if (live.Contains(nodes_[first]) && n-- == 0) return nodes_[first];
  if (count == 1) return std::nullopt;
  // The others, in turn; where they begin differs between the extents of one first home.
  const size_t begin = (extent / count) % (count - 1);
  for (size_t i = 0; i + 1 < count; ++i) {
    const NodeId node = nodes_[(first + 1 + (begin + i) % (count - 1)) % count];
    if (live.Contains(node) && n-- == 0) return node;
  }
  return std::nullopt;
}

bool SpacePlacement::IsForgotten(uint64_t extent, std::span<const NodeSet> sets) const {
  for (size_t i = 1; i < sets.size(); ++i) {
    const std::optional<NodeId> second = SecondOf(extent, sets[i - 1]);
    const bool home_left = sets[i].Contains(HomeOf(extent, sets[i - 1]));
    if (!home_left && !(second.has_value() && sets[i].Contains(*second))) return true;
  }
  return false;
}

}  // namespace hk
