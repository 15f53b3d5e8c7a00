#include "hyperkernel/device/dma_space.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

constexpr uint64_t kSharedPin = 1, kExclusivePin = uint64_t{1} << 32;
constexpr size_t kBitsPerWord = 64;

absl::StatusOr<Mapping> SparseArray(size_t bytes, std::string_view what) {
  return Mapping::Create(std::max<size_t>(bytes, 1), PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, what);
}

uint64_t PinOf(DmaAccess access) {
  return access == DmaAccess::kWrite ? kExclusivePin : kSharedPin;
}

// Number of pages that a piece touches. REQUIRES: bytes > 0.
size_t PagesOf(Gpa gpa, uint64_t bytes) {
  return (gpa.value() % kPageSize + bytes - 1) / kPageSize + 1;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DmaPins>> DmaPins::Create(const GuestMemory& memory) {
  std::vector<RamRange> ranges;
  for (const GuestMemory::Slot& slot : memory.slots()) ranges.push_back({.start = slot.start, .bytes = slot.bytes});
  std::unique_ptr<DmaPins> pins(new DmaPins(std::move(ranges)));
  for (const RamRange& range : pins->ranges_) pins->pages_ += range.bytes / kPageSize;
  HK_ASSIGN_OR_RETURN(pins->counts_, SparseArray(pins->pages_ * sizeof(uint64_t), "pin counts"));
  return pins;
}

bool DmaPins::Find(Gpa gpa, Place* place) const {
  size_t page = 0;
  for (const RamRange& range : ranges_) {
    const uint64_t offset = gpa.value() - range.start.value();
    if (gpa >= range.start && offset < range.bytes) {
      *place = {.page = page + offset / kPageSize, .bytes_left = range.bytes - offset};
      return true;
    }
    page += range.bytes / kPageSize;
  }
  return false;
}

std::atomic_ref<uint64_t> DmaPins::Word(size_t page) const {
  HK_DCHECK(page < pages_);
  return std::atomic_ref<uint64_t>(reinterpret_cast<uint64_t*>(counts_.data())[page]);
}

DmaPins::Count DmaPins::Of(Gfn gfn) const {
  Place place;
  if (!Find(GpaOf(gfn), &place)) return {};
  const uint64_t word = Word(place.page).load(std::memory_order_acquire);
  return {.shared = static_cast<uint32_t>(word), .exclusive = static_cast<uint32_t>(word >> 32)};
}

void DmaChain::Release() {
  if (space_ == nullptr) return;
  for (const Piece& piece : pieces_) {
    if (piece.access == DmaAccess::kWrite) space_->SetDirty(piece);
  }
  pins_.clear();
  for (const Piece& piece : pieces_) space_->Unpin(piece);
  pieces_.clear();
  std::exchange(space_, nullptr)->Leave();
}

void DmaChain::ForEachWrittenByOthers(const std::function<void(Gfn)>& page) const {
  if (space_ == nullptr) return;
  for (const Piece& piece : pieces_) {
    DmaPins::Place place;
    HK_CHECK(space_->pins_->Find(piece.gpa, &place));
    const uint64_t own = piece.access == DmaAccess::kWrite ? 1 : 0;
    const size_t pages = PagesOf(piece.gpa, piece.bytes.size());
    for (size_t i = 0; i < pages; ++i) {
      const uint64_t word = space_->pins_->Word(place.page + i).load();
      if (word >> 32 > own && !HK_MUTANT(replica_other_writers_unseen)) page(Gfn(GfnOf(piece.gpa).value() + i));
    }
  }
}

absl::StatusOr<std::unique_ptr<DmaSpace>> DmaSpace::Create(GuestMemory* memory, DmaPins* pins,
                                                           std::vector<Window> windows) {
  if (windows.empty()) {
    for (const GuestMemory::Slot& slot : memory->slots()) {
      windows.push_back({.iova = slot.start.value(), .gpa = slot.start, .bytes = slot.bytes});
    }
  }
  std::unique_ptr<DmaSpace> space(new DmaSpace(memory, pins, std::move(windows)));
  const size_t words = (pins->pages_ + kBitsPerWord - 1) / kBitsPerWord;
  HK_ASSIGN_OR_RETURN(space->dirty_, SparseArray(words * sizeof(uint64_t), "dirty log"));
  return space;
}

DmaSpace::~DmaSpace() {
  HK_CHECK(open_chains_ == 0);
}

// The counter goes up before the flag is looked at, and Block() sets the flag before it looks at the counter (both in
// the one order of sequentially consistent operations), so one of the two sees the other.
bool DmaSpace::Enter() {
  open_chains_.fetch_add(1);
  if (!blocked_.load()) return true;
  Leave();
  return false;
}

void DmaSpace::Leave() {
  if (open_chains_.fetch_sub(1) == 1 && blocked_.load()) {
    MutexLock lock(&mutex_);
    idle_.SignalAll();
  }
}

absl::Status DmaSpace::Block(Monotonic deadline) {
  MutexLock lock(&mutex_);
  blocked_.store(true);
  while (open_chains_.load() != 0) {
    if (!idle_.WaitUntil(&mutex_, deadline) && open_chains_.load() != 0) {
      return absl::DeadlineExceededError(fmt::format("{} device accesses to memory still open", open_chains_.load()));
    }
  }
  return absl::OkStatus();
}

void DmaSpace::Unblock() {
  blocked_.store(false);
}

absl::Status DmaSpace::Map(DmaChain* chain, uint64_t iova, uint64_t bytes, DmaAccess access) {
  if (bytes == 0) return absl::OkStatus();
  const bool opened = chain->space_ == nullptr;
  HK_DCHECK(opened || chain->space_ == this);
  if (opened) {
    if (!Enter()) return absl::UnavailableError("device access to memory is blocked");
    chain->space_ = this;
  }
  const size_t pieces_before = chain->pieces_.size();
  absl::Status status;
  while (bytes > 0 && status.ok()) {
    uint64_t mapped = 0;
    status = MapPiece(chain, iova, bytes, access, &mapped);
    iova += mapped;  // may wrap to 0 only if bytes is 0 then or the next piece fails
    bytes -= mapped;
  }
  if (status.ok()) return status;
  while (chain->pieces_.size() > pieces_before) {
    Unpin(chain->pieces_.back());
    chain->pieces_.pop_back();
  }
  if (chain->pins_.size() > pieces_before) chain->pins_.resize(pieces_before);
  if (opened) {
    chain->space_ = nullptr;
    Leave();
  }
  return status;
}

absl::Status DmaSpace::MapPiece(DmaChain* chain, uint64_t iova, uint64_t bytes, DmaAccess access, uint64_t* mapped) {
  const auto window = std::find_if(windows_.begin(), windows_.end(),
                                   [&](const Window& w) { return iova >= w.iova && iova - w.iova < w.bytes; });
  if (window == windows_.end()) return absl::OutOfRangeError(fmt::format("device address {:#x} is not mapped", iova));
  if (!(access == DmaAccess::kWrite ? window->device_may_write : window->device_may_read)) {
    return absl::PermissionDeniedError(fmt::format("device address {:#x} may not be accessed so", iova));
  }
  const uint64_t offset = iova - window->iova;
  const Gpa gpa(window->gpa.value() + offset);
  DmaPins::Place place;
  if (!pins_->Find(gpa, &place)) return absl::OutOfRangeError(fmt::format("address {:#x} is not RAM", gpa.value()));
  const uint64_t take = std::min({bytes, window->bytes - offset, place.bytes_left});
  if (chain->pieces_.size() == chain->pieces_.capacity()) {
    return absl::InvalidArgumentError(fmt::format("more than {} pieces of memory", chain->pieces_.capacity()));
  }
  const size_t pages = PagesOf(gpa, take);
  for (size_t i = 0; i < pages; ++i) pins_->Word(place.page + i).fetch_add(PinOf(access), std::memory_order_acq_rel);
  chain->pieces_.push_back({.bytes = {}, .gpa = gpa, .access = access});
  chain->pieces_.back().bytes = {static_cast<std::byte*>(nullptr), take};
  PinnedPages pins;
  absl::StatusOr<std::byte*> start =
      memory_->Pin(gpa, take, access == DmaAccess::kWrite ? PageAccess::kWrite : PageAccess::kRead, &pins);
  if (!start.ok()) return start.status();  // the caller unpins what was added
  chain->pieces_.back().bytes = {*start, take};
  if (memory_->most_pinned_bytes() != 0) chain->pins_.push_back(std::move(pins));
  *mapped = take;
  return absl::OkStatus();
}

void DmaSpace::Unpin(const DmaChain::Piece& piece) {
  DmaPins::Place place;
  HK_CHECK(pins_->Find(piece.gpa, &place));
  const size_t pages = PagesOf(piece.gpa, piece.bytes.size());
  for (size_t i = 0; i < pages; ++i) {
    const uint64_t old = pins_->Word(place.page + i).fetch_sub(PinOf(piece.access), std::memory_order_acq_rel);
    HK_DCHECK((piece.access == DmaAccess::kWrite ? old >> 32 : old & 0xffffffff) != 0);
    static_cast<void>(old);
  }
}

void DmaSpace::SetDirty(const DmaChain::Piece& piece) {
  DmaPins::Place place;
  HK_CHECK(pins_->Find(piece.gpa, &place));
  const size_t pages = PagesOf(piece.gpa, piece.bytes.size());
  auto* words = reinterpret_cast<uint64_t*>(dirty_.data());
  for (size_t page = place.page; page < place.page + pages; ++page) {
    std::atomic_ref<uint64_t>(words[page / kBitsPerWord])
        .fetch_or(uint64_t{1} << (page % kBitsPerWord), std::memory_order_release);
  }
}

void DmaSpace::HarvestDirty(const std::function<void(Gfn)>& page) {
  auto* words = reinterpret_cast<uint64_t*>(dirty_.data());
  size_t first = 0;  // of the range, in pages
  for (const RamRange& range : pins_->ranges_) {
    const size_t end = first + range.bytes / kPageSize;
    for (size_t at = first; at < end;) {
      const size_t in_word = at % kBitsPerWord;
      const size_t count = std::min(kBitsPerWord - in_word, end - at);
      const uint64_t mask = (count == kBitsPerWord ? ~uint64_t{0} : (uint64_t{1} << count) - 1) << in_word;
      std::atomic_ref<uint64_t> word(words[at / kBitsPerWord]);
      uint64_t bits = 0;
      // Most words are zero: look before writing, so that the log stays sparse. A word may be shared by two ranges.
      if (word.load(std::memory_order_relaxed) & mask) bits = word.fetch_and(~mask, std::memory_order_acq_rel) & mask;
      for (; bits != 0; bits &= bits - 1) {
        const size_t index = at - in_word + static_cast<size_t>(std::countr_zero(bits));
        page(Gfn(GfnOf(range.start).value() + (index - first)));
      }
      at += count;
    }
    first = end;
  }
}

}  // namespace hk
