// Which pages a program will want next, from those that it wanted: sequential and strided streams of faults. Pure: no
// page, clock or lock of its own.
//
// A stream is seen when two steps of the same length follow one another (one, if it is the next page); then pages ahead
// of it are named, a few at first. A page in the middle of what was named is left out: it is wanted when the program
// comes there, and so shows that what lies before it was used; then twice as many are named, up to kMostAhead. What is
// taken away before, or left behind by a stream that ends, was named in vain: the stream names half as many from then
// on, and a detector whose pages are mostly in vain names none for new streams, but for a trial now and then.
//
// Not thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "hyperkernel/base/types.h"

namespace hk {

// The streams of one space on one node.
class PrefetchStreams {
 public:
  // A program's threads and a few more; beyond them the one that was quiet longest is forgotten.
  static constexpr size_t kStreams = 8;
  // Pages ahead of a stream: 1 MiB. What is left of it when more is asked for, a third, lasts longer than a request
  // takes.
  static constexpr uint64_t kMostAhead = 256;
  static constexpr uint64_t kFirstAhead = 4;
  // Longest step: farther apart, pages are not one array's rows any more.
  static constexpr int64_t kMostStep = 256;

  // What became of the named pages, so far. Plain value.
  struct Counts {
    uint64_t useful = 0, wasted = 0;
  };

  // The page was wanted and is not here, or still on its way. Appends the pages that should be fetched, nearest first;
  // below `pages`. Each of them is named once.
  void OnWanted(Gfn page, uint64_t pages, std::vector<Gfn>* fetch);
  // A named page is not here any more; it was not fetched at all.
  void OnGone(Gfn page);
  void OnDeclined(Gfn page);
  Counts counts() const { return counts_; }

 private:
  // Faults at regular distance.
  struct Stream {
    int64_t last = -1;  // page that was wanted last; -1: no stream
    int64_t step = 0;   // 0: not known yet
    int steps = 0;      // of that length, one after the other
    int64_t ahead = 0;  // next page to be named
    int64_t skip = -1;  // page that was left out
    uint64_t window = 0;
    uint64_t lost = 0;  // named pages after `last` that are gone
    uint64_t used = 0;  // for the choice of whom to forget

    bool runs() const { return window > 0; }
    // Steps from `last` to the page; 0: it is not on the way.
    int64_t StepsTo(int64_t page) const;
    // The page was named, and is not behind.
    bool Has(int64_t page) const { return runs() && page != skip && page != ahead && StepsTo(page) > 0; }
    // Named pages after `last` and before the page `steps` steps on.
    int64_t Named(int64_t steps_on) const;
  };
  // How far new streams are trusted: pages.
  static constexpr int64_t kMostTrust = 64;
  // Streams without trust that are tried all the same: one of so many.
  static constexpr uint64_t kTrial = 32;

  void Judge(uint64_t useful, uint64_t wasted);
  void End(Stream* stream);
  void Name(Stream* stream, uint64_t pages, std::vector<Gfn>* fetch);

  std::array<Stream, kStreams> streams_;
  uint64_t clock_ = 0;
  int64_t trust_ = kMostTrust / 2;
  uint64_t refused_ = 0;
  Counts counts_;
};

}  // namespace hk
