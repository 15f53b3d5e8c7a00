// Which pages a node loses to others most often: a sketch of fixed size, since any page may be one ("space saving",
// Metwally, Agrawal, El Abbadi, 2005, over counts that decay). A page that is lost more often than one in kTracked of
// all losses of late is among the tracked ones, whatever the others do.
//
// Not thread-safe: the shard's lock.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/decayed_count.h"

namespace hk {

// A page that was lost. Plain value.
struct HotPage {
  Gfn page;
  uint64_t losses = 0;        // of any right to another node, since the page was noticed
  uint64_t owner_losses = 0;  // of these: it was owned here, and by the other node afterwards
  NodeId taker{};             // who got it last
  float lately = 0;           // losses with decay; an upper bound
};

// The most lost pages of a part of a space.
class HotPages {
 public:
  static constexpr size_t kTracked = 16;

  void Lost(Gfn page, bool owner, NodeId taker, Monotonic now);
  // Appends all that are tracked, in no order.
  void AppendTo(Monotonic now, std::vector<HotPage>* pages) const;

 private:
  struct Tracked {
    HotPage page;  // `lately` is in `weight`
    DecayedCount weight;
  };
  Tracked* Find(Gfn page, Monotonic now);

  std::array<Tracked, kTracked> tracked_{};
  size_t used_ = 0;
};

}  // namespace hk
