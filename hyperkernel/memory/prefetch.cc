#include "hyperkernel/memory/prefetch.h"

#include <algorithm>
#include <cstdlib>

#include "hyperkernel/base/mutant.h"

namespace hk {

int64_t PrefetchStreams::Stream::StepsTo(int64_t page) const {
  if (step == 0) return 0;
  const int64_t distance = page - last;
  if (distance % step != 0 || distance / step <= 0) return 0;
  const int64_t steps_on = distance / step;
  // Up to the first page that was not named: there a program comes that is faster than what it is brought.
  const int64_t most = runs() ? (ahead - last) / step : 1;
  return steps_on <= most ? steps_on : 0;
}

int64_t PrefetchStreams::Stream::Named(int64_t steps_on) const {
  int64_t named = std::min(steps_on - 1, (ahead - last) / step - 1);
  const int64_t skipped = skip < 0 ? 0 : (skip - last) / step;
  if (skipped > 0 && skipped < steps_on) --named;
  return std::max<int64_t>(named - static_cast<int64_t>(lost), 0);
}

void PrefetchStreams::Judge(uint64_t useful, uint64_t wasted) {
  counts_.useful += useful;
  counts_.wasted += wasted;
  trust_ += static_cast<int64_t>(useful) - 2 * static_cast<int64_t>(wasted);
  trust_ = std::clamp<int64_t>(trust_, 0, kMostTrust);
}

void PrefetchStreams::End(Stream* stream) {
  if (stream->runs()) Judge(0, static_cast<uint64_t>(stream->Named((stream->ahead - stream->last) / stream->step)));
  *stream = Stream();
}

void PrefetchStreams::Name(Stream* stream, uint64_t pages, std::vector<Gfn>* fetch) {
  const auto window = static_cast<int64_t>(stream->window);
  const int64_t end = stream->last + (window + 1) * stream->step;
  // Nothing new before half of what was named is used: then they go together.
  if (stream->skip >= 0 && (stream->skip - stream->last) / stream->step > 0) return;
  const int64_t left = (end - stream->ahead) / stream->step;
  if (left <= 0) return;
  stream->skip = window >= 2 ? stream->ahead + (left / 2) * stream->step : -1;
  for (; stream->ahead != end; stream->ahead += stream->step) {
    if (stream->ahead < 0 || stream->ahead >= static_cast<int64_t>(pages)) break;
    if (stream->ahead != stream->skip) fetch->push_back(Gfn(static_cast<uint64_t>(stream->ahead)));
  }
}

void PrefetchStreams::OnWanted(Gfn gfn, uint64_t pages, std::vector<Gfn>* fetch) {
  const auto page = static_cast<int64_t>(gfn.value());
  ++clock_;
  Stream* oldest = &streams_[0];
  for (Stream& stream : streams_) {
    if (stream.last == page) return;  // the same again, for more
    if (const int64_t on = stream.StepsTo(page); on > 0) {
      stream.used = clock_;
      if (!stream.runs()) {
        stream.last = page;
        if (++stream.steps < (stream.step == 1 ? 1 : 2)) return;
        if (trust_ == 0 && ++refused_ % kTrial != 0) return;
        stream.window = kFirstAhead;
        stream.ahead = page + stream.step;
      } else {
        const bool waits = stream.ahead != page && stream.skip != page;  // for a page that is on its way
        Judge(static_cast<uint64_t>(stream.Named(on)) + (waits ? 1 : 0), 0);
        stream.last = page;
        stream.lost = 0;
        if (stream.ahead == page) stream.ahead += stream.step;
        stream.window = std::min(stream.window * 2, kMostAhead);
      }
      return Name(&stream, pages, fetch);
    }
    if (stream.used < oldest->used) oldest = &stream;
  }
  // The second page of what may be a stream.
  for (Stream& stream : streams_) {
    const int64_t step = page - stream.last;
    if (stream.last < 0 || stream.runs() || std::abs(step) > kMostStep) continue;
    stream.used = clock_;
    stream.last = page;
    stream.step = step;
    stream.steps = 1;
    if (step != 1) return;
    if (trust_ == 0 && ++refused_ % kTrial != 0) return;
    stream.window = kFirstAhead;
    stream.ahead = page + 1;
    return Name(&stream, pages, fetch);
  }
  End(oldest);
  oldest->last = page;
  oldest->used = clock_;
}

void PrefetchStreams::OnGone(Gfn gfn) {
  for (Stream& stream : streams_) {
    if (!stream.Has(static_cast<int64_t>(gfn.value()))) continue;
    ++stream.lost;
    Judge(0, 1);
    if (HK_MUTANT(prefetch_goes_on_in_vain)) return;
    if (stream.window == 1) {
      End(&stream);
    } else {
      stream.window /= 2;
    }
    return;
  }
}

void PrefetchStreams::OnDeclined(Gfn gfn) {
  for (Stream& stream : streams_) {
    if (!stream.Has(static_cast<int64_t>(gfn.value()))) continue;
    ++stream.lost;
    return;
  }
}

}  // namespace hk
