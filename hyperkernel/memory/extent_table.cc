#include "hyperkernel/memory/extent_table.h"

#include <algorithm>

#include "hyperkernel/base/mutant.h"

namespace hk {

bool IsAtRest(const DirectoryEntry& entry) {
  const bool under_way = entry.state == DirectoryState::kMirroring || entry.state == DirectoryState::kBusy ||
                         entry.state == DirectoryState::kSettling;
  return !under_way && !entry.frozen && !entry.releasing && entry.waiting_count == 0;
}

RestingEntry RestOf(const DirectoryEntry& entry) {
  HK_DCHECK(IsAtRest(entry));
  const bool owned = entry.state == DirectoryState::kShared || entry.state == DirectoryState::kExclusive ||
                     entry.state == DirectoryState::kElsewhere || entry.state == DirectoryState::kLost;
  // What means nothing is zero, so that pages which are alike are seen to be.
  return {.state = entry.state,
          .ever_written = entry.ever_written,
          .owner = owned ? entry.owner : NodeId(),
          .copyset = entry.copyset,
          .storage = entry.state == DirectoryState::kStored ? entry.storage : 0};
}

DirectoryEntry EntryOf(const RestingEntry& rest) {
  DirectoryEntry entry;
  entry.state = rest.state;
  entry.ever_written = rest.ever_written;
  entry.owner = rest.owner;
  entry.copyset = rest.copyset;
  entry.storage = rest.storage;
  return entry;
}

RestingEntry ExtentDirectory::Get(size_t page) const {
  return split_ == nullptr ? fused_ : split_->entries[split_->codes[page]];
}

void ExtentDirectory::Set(size_t page, const RestingEntry& entry) {
  if (split_ == nullptr) {
    if (entry == fused_) return;
    split_ = std::make_unique<Split>();
    split_->entries = {fused_, entry};
    split_->uses = {static_cast<uint16_t>(kExtentPages - 1), 1};
    split_->codes[page] = 1;
    return;
  }
  Split& split = *split_;
  const uint16_t before = split.codes[page];
  if (split.entries[before] == entry) return;
  --split.uses[before];
  size_t code = split.entries.size();
  for (size_t i = 0; i < split.entries.size(); ++i) {
    if (split.uses[i] != 0 && split.entries[i] == entry) {
      code = i;
      break;
    }
    if (split.uses[i] == 0) code = std::min(code, i);
  }
  if (code == split.entries.size()) {
    split.entries.emplace_back();
    split.uses.push_back(0);
  }
  split.entries[code] = entry;
  ++split.uses[code];
  split.codes[page] = static_cast<uint16_t>(code);
  if (split.uses[code] == kExtentPages || HK_MUTANT(extent_fuses_unlike)) {
    fused_ = entry;
    split_.reset();
  }
}

size_t ExtentDirectory::heap_bytes() const {
  if (split_ == nullptr) return 0;
  return sizeof(Split) + split_->entries.capacity() * sizeof(RestingEntry) + split_->uses.capacity() * sizeof(uint16_t);
}

}  // namespace hk
