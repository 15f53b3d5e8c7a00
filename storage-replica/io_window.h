// Requests of one disk that overlap in time: a request during which the same block was written by another tells nothing
// about the block (README.md, "Overlap"). Pure: no descriptor, thread, clock.
//
// Thread safety: none; the owner serialises.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "storage-replica/disk_io.h"

namespace hk {

// The requests in flight of one disk.
class IoWindow {
 public:
  // A request's place here, until End. Places of requests that have ended are used again.
  using Place = uint32_t;

  // A request begins, before anything of it is submitted.
  Place Begin(DiskIoKind kind, BlockRange blocks);
  // It has ended. True if nothing overlapped it: for a read no write or erase, for those no other of them.
  bool End(Place place);

  size_t in_flight() const { return in_flight_; }

 private:
  // A request in flight, or a free place.
  struct Request {
    bool used = false;
    bool clean = false;
    bool changes_blocks = false;
    BlockRange blocks;
  };
  std::vector<Request> requests_;  // as many as were ever in flight together: its owner's queue bounds it
  std::vector<Place> free_;
  size_t in_flight_ = 0;
};

}  // namespace hk
