// A small cluster as one value, for the explorer: the production page and directory machines of a few nodes and one
// page, every message under way, what the hardware lets each node do, and which store each copy is from. No thread
// safety. Versions stand for bytes: 0 is a zero page, each store makes the next.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "hyperkernel/memory/page_directory.h"
#include "hyperkernel/memory/page_protocol.h"

namespace hk::sim {

inline constexpr int kMaxExplorerNodes = 4;

// What may happen in an exploration, and how often. Plain value.
struct WorldConfig {
  std::string name{};
  int nodes = 3;
  int ops_per_node = 2;  // local wishes of each node
  int ops = 5;           // of all nodes together
  bool write = true, overwrite = false, adopt = false, drop = false, evict = false, pin = false, store = false;
  bool holds = false;   // HoldOver comes at any time later; otherwise at once
  bool rehome = false;  // from node 0 to node 1, once
  int crashes = 0;      // of any nodes, one after another, at any time
  int leaves = 0;       // of any nodes, as soon as they own nothing and nothing is under way there
  int joins = 0;        // of nodes that take no part; the home stays, or moves there
  int absent = 0;       // the last of the nodes take no part at first
  bool bulk = false;    // reads are prefetches: they and their answers go by the bulk class
  bool stored = false;  // the page begins Stored
  bool peeks = false;   // each read may ask any node beside the home
};

// Every transition that was taken: (machine: 'p' or 'd', state, event, state).
using SeenRows = std::set<std::tuple<char, int, int, int>>;

// A message under way. Plain value.
struct Flight {
  uint8_t channel_class = 0;  // 0 fault, 1 invalidate, 2 bulk, 3 the mirror's answer
  PageMessage message{};
  int version = 0;  // of the payload
};

// One node. Plain value.
struct WorldNode {
  Page page;
  PageRight hardware = PageRight::kNone;
  int frame = 0;       // version, if the node has bytes
  int retained = 0;    // version
  int kept = 0;        // version of an answer's payload, or of what was peeked
  uint64_t heard = 0;  // the highest serial
  int ops = 0;
  uint64_t transaction = 0;
  NodeId home;
  bool alive = true;
  RequestKind wish = RequestKind::kRead;  // of the request under way
};

// One thing that can happen next. Plain value.
struct Choice {
  enum Kind { kOp, kDeliver, kHoldOver, kFreeze, kMoveOut, kCrash, kLeave, kJoin } kind = kOp;
  int node = 0;
  PageEventType op = PageEventType::kRead;
  bool store = false;
  bool moves = false;  // the home, to the node that joins
  size_t flight = 0;
  int asked = -1;  // whom a read peeks
};

// The channel class of what a home tells its second, beside the transport's three.
inline constexpr uint8_t kMirrorClass = 3;

// A transaction of the entry goes on.
inline bool IsUnderWay(const DirectoryEntry& entry) {
  return entry.state == DirectoryState::kMirroring || entry.state == DirectoryState::kBusy ||
         entry.state == DirectoryState::kSettling;
}

// The cluster.
class World {
 public:
  explicit World(const WorldConfig* config);
  // What can happen; empty: nothing, and everything must have come to rest.
  std::vector<Choice> Choices() const;
  // Does it. On a violation: the text, and the world is no more to be used.
  std::optional<std::string> Do(const Choice& choice, SeenRows* seen);
  // Violated invariants of this state, if any. `rest`: Choices is empty.
  std::optional<std::string> Check(bool rest) const;
  // All of the state, as bytes: equal worlds have equal texts.
  void Serialize(std::string* out) const;
  std::string Describe(const Choice& choice) const;
  std::string Describe() const;

 private:
  std::optional<std::string> StepNode(int node, const PageEvent& event, int version, SeenRows* seen);
  std::optional<std::string> StepHome(int home, const DirectoryEvent& event, SeenRows* seen);
  std::optional<std::string> Deliver(size_t flight, SeenRows* seen);
  std::optional<std::string> Crash(int node, SeenRows* seen);
  std::optional<std::string> Leave(int node, SeenRows* seen);
  std::optional<std::string> Join(int node, bool moves, SeenRows* seen);
  std::optional<std::string> ChangeEpoch(bool home_moved, SeenRows* seen);
  int NextHome() const;
  void MoveHome(int to);
  bool MayLeave(int node) const;
  bool MayMoveHome() const;
  void Post(uint8_t channel_class, const PageMessage& message, int version);

  const WorldConfig* config_;
  std::vector<WorldNode> nodes_;
  DirectoryEntry homes_[kMaxExplorerNodes];  // of each node
  std::vector<Flight> flights_;              // sorted by channel, in order within each
  int latest_ = 0;
  int stored_ = 0;
  int ops_ = 0;
  bool mirrored_ = false;
  bool moved_ = false;
  int crashed_ = 0, left_ = 0, joined_ = 0;
  bool lost_ = false;
  int home_ = 0;
  uint64_t serial_ = 0;
  uint64_t owned_ = 0;  // the last serial that made an owner or a writer
};

// What an exploration found. Plain value.
struct Exploration {
  uint64_t states = 0, transitions = 0;
  size_t depth = 0;
  bool complete = false;
  std::string violation;           // empty: none
  std::vector<std::string> trace;  // to the violation
};

// Visits every state reachable from the first, up to `max_states`.
Exploration Explore(const WorldConfig& config, uint64_t max_states, SeenRows* seen);

}  // namespace hk::sim
