#include "hyperkernel/memory/hot_pages.h"

#include <algorithm>

#include "hyperkernel/base/mutant.h"

namespace hk {

// The page's record. Without one: a free one, or that of the page that was lost least, whose weight it takes over:
// so much the page may have been lost before it was noticed.
HotPages::Tracked* HotPages::Find(Gfn page, Monotonic now) {
  const auto end = tracked_.begin() + static_cast<ptrdiff_t>(used_);
  const auto found =
      std::find_if(tracked_.begin(), end, [page](const Tracked& tracked) { return tracked.page.page == page; });
  if (found != end) return &*found;
  Tracked* taken = nullptr;
  if (used_ < kTracked) {
    taken = &tracked_[used_++];
  } else {
    taken = &*std::min_element(tracked_.begin(), end, [now](const Tracked& left, const Tracked& right) {
      return HK_MUTANT(hot_pages_never_cool) ? left.page.losses < right.page.losses
                                             : left.weight.At(now) < right.weight.At(now);
    });
  }
  taken->page = HotPage{.page = page};
  return taken;
}

void HotPages::Lost(Gfn page, bool owner, NodeId taker, Monotonic now) {
  Tracked* const tracked = Find(page, now);
  tracked->weight.Add(now);
  ++tracked->page.losses;
  if (owner) ++tracked->page.owner_losses;
  tracked->page.taker = taker;
}

void HotPages::AppendTo(Monotonic now, std::vector<HotPage>* pages) const {
  for (size_t i = 0; i < used_; ++i) {
    HotPage page = tracked_[i].page;
    page.lately = tracked_[i].weight.At(now);
    pages->push_back(page);
  }
}

}  // namespace hk
