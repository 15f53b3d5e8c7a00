// Which stranger loses its connection when there are too many of them. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "rdma/transport.h"

namespace hk {

// Connections without a finished handshake, by where they come from. Not thread-safe.
//
// Invariant: who has few connections here keeps them, however many somebody else opens.
class StrangerQueue {
 public:
  // So many from one source are as good as one: a peer dials all its classes at once.
  static constexpr size_t kShare = kMessageClasses;

  // `id`: larger than all before. `source`: what one party can hardly have many of.
  void Add(uint64_t id, const std::string& source) {
    sources_.emplace(id, source);
    ids_[source].insert(id);
  }
  // Without effect on one that is not here.
  void Remove(uint64_t id);
  // Who is closed for a newer one: the oldest of the source that has most; of several such sources, the oldest of all.
  // As many steps as there are sources, `strangers` of the settings at most.
  std::optional<uint64_t> Victim() const;
  size_t size() const { return sources_.size(); }

 private:
  std::map<uint64_t, std::string> sources_;        // by age
  std::map<std::string, std::set<uint64_t>> ids_;  // no set is empty
};

}  // namespace hk
