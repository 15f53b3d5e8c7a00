// A node that joins a space, and the homes that move to it: what only the home before knows it hands over. README.md,
// "Joining".
#include <algorithm>
#include <map>
#include <memory>
#include <utility>

#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/memory/space_engine_impl.h"

namespace hk::space {

bool Engine::IsJoining(NodeId node) const {
  MutexLock lock(&change_mutex_);
  return live_.Contains(node) && !members_.Contains(node);
}

// Before this node's ReportEnd, by the same way: so the new home has it when it rebuilds.
void Engine::HandOver(Shard* shard, uint64_t number) {
  const Gfn first(number * kExtentPages);
  const NodeId home = HomeIn(*shard, first);
  if (home == config_.self || placement_.HomeOf(number, shard->committed.back()) != config_.self) return;
  const Extent& extent = *ExtentOf(shard, first);
  PageBits written{};
  std::map<NodeId, PageBits> lost;
  // What is behind the space's end is of no concern: it may be Lost there (ExtentOf).
  const uint64_t end = std::min(kExtentPages, config_.pages - first.value());
  for (size_t page = 0; page < end; ++page) {
    const DirectoryEntry entry = EntryOf(extent.home.Get(page));
    const uint64_t bit = uint64_t{1} << (page % 64);
    const bool mirrored = extent.written != nullptr && HasBit(*extent.written, page);
    if (entry.ever_written || mirrored) written[page / 64] |= bit;
    if (entry.state == DirectoryState::kLost) lost[entry.owner][page / 64] |= bit;
  }
  if (HK_MUTANT(engine_written_not_handed)) written = PageBits{};
  PumpOne(home, kHandedWrittenType, number, EncodeBits(written));  // also if it is nothing: that is known
  for (const auto& [owner, pages] : lost) {
    if (HK_MUTANT(engine_lost_pages_not_handed)) break;
    PumpOne(home, kHandedLostType, number, EncodeLost(owner, pages));
  }
}

absl::Status Engine::TakeOver(Shard* shard, NodeId from, const Message& message) {
  const uint64_t number = message.gfn.value() / kExtentPages;
  if (shard->change == nullptr || placement_.HomeOf(number, shard->committed.back()) != from) {
    return absl::InvalidArgumentError("what a home hands over that it was not, or at no change of epoch");
  }
  Extent* const extent = ExtentOf(shard, message.gfn);
  if (message.type == kHandedWrittenType) {
    HK_ASSIGN_OR_RETURN(const PageBits bits, DecodeBits(message.body));
    if (extent->written == nullptr) extent->written = std::make_unique<PageBits>();
    for (size_t i = 0; i < bits.size(); ++i) (*extent->written)[i] |= bits[i];
    shard->change->handed_over.insert(number);
    return absl::OkStatus();
  }
  HK_ASSIGN_OR_RETURN(const auto lost, DecodeLost(message.body));
  const auto& [owner, pages] = lost;
  if (!IsNode(owner)) return absl::InvalidArgumentError("a page that a stranger had");
  for (size_t page = 0; page < kExtentPages; ++page) {
    if (!HasBit(pages, page)) continue;
    const Gfn gfn(number * kExtentPages + page);
    if (!InSpace(gfn)) return absl::InvalidArgumentError("a page that is not in the space");
    // A home that names itself does not know it (README, "Recovery", 7): nor does this one.
    shard->change->handed[gfn.value()] = owner == from ? config_.self : owner;
  }
  return absl::OkStatus();
}

}  // namespace hk::space
