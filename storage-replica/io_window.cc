#include "storage-replica/io_window.h"

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"

namespace hk {
namespace {

bool Overlap(BlockRange a, BlockRange b) {
  return a.count > 0 && b.count > 0 && a.first < b.first + b.count && b.first < a.first + a.count;
}

}  // namespace

IoWindow::Place IoWindow::Begin(DiskIoKind kind, BlockRange blocks) {
  Request request{.used = true, .clean = true, .changes_blocks = kind != DiskIoKind::kRead, .blocks = blocks};
  if (in_flight_ > 0) {
    for (Request& other : requests_) {
      if (!other.used || !Overlap(other.blocks, blocks) || HK_MUTANT(replica_overlap_allowed)) continue;
      if (request.changes_blocks) other.clean = false;
      if (other.changes_blocks) request.clean = false;
    }
  }
  if (free_.empty()) {
    free_.push_back(static_cast<Place>(requests_.size()));
    requests_.emplace_back();
  }
  const Place place = free_.back();
  free_.pop_back();
  requests_[place] = request;
  ++in_flight_;
  return place;
}

bool IoWindow::End(Place place) {
  HK_CHECK(place < requests_.size() && requests_[place].used);
  requests_[place].used = false;
  free_.push_back(place);
  --in_flight_;
  return requests_[place].clean;
}

}  // namespace hk
