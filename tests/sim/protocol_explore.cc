// The walk through all that can happen in a world.
#include <algorithm>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "tests/sim/protocol_world.h"

namespace hk::sim {
namespace {

// 128 bits of a state: two states with the same are taken for one; at 10^8 states that is one chance in 10^22.
struct Fingerprint {
  uint64_t low = 0, high = 0;
  friend bool operator==(const Fingerprint&, const Fingerprint&) = default;
};
struct FingerprintHash {
  size_t operator()(const Fingerprint& f) const { return f.low; }
};

Fingerprint FingerprintOf(const std::string& bytes) {
  uint64_t a = 0x9e3779b97f4a7c15, b = 0xc2b2ae3d27d4eb4f;
  for (unsigned char byte : bytes) {
    a = (a ^ byte) * 0x100000001b3;
    a ^= a >> 29;
    b = (b + byte) * 0xff51afd7ed558ccd;
    b ^= b >> 32;
  }
  return {a * 0x9e3779b97f4a7c15 ^ a >> 31, b * 0xc4ceb9fe1a85ec53 ^ b >> 33};
}

struct Frame {
  World world;
  std::vector<Choice> choices;
  size_t next = 0;
  std::string how;
};

}  // namespace

Exploration Explore(const WorldConfig& config, uint64_t max_states, SeenRows* seen) {
  Exploration found;
  std::unordered_set<Fingerprint, FingerprintHash> visited;
  std::string bytes;
  std::vector<Frame> stack;
  const auto violated = [&](const std::string& what, const std::string& last, const World& world) {
    found.violation = what;
    for (const Frame& frame : stack) found.trace.push_back(frame.how + "\n" + frame.world.Describe());
    found.trace.push_back(last + "\n" + world.Describe());
  };
  const auto enter = [&](World world, const std::string& how) {
    world.Serialize(&bytes);
    if (!visited.insert(FingerprintOf(bytes)).second) return true;
    ++found.states;
    std::vector<Choice> choices = world.Choices();
    if (auto what = world.Check(choices.empty())) {
      violated(*what, how, world);
      return false;
    }
    stack.push_back({std::move(world), std::move(choices), 0, how});
    found.depth = std::max(found.depth, stack.size());
    return true;
  };
  if (!enter(World(&config), "start")) return found;
  while (!stack.empty()) {
    if (found.states >= max_states) return found;
    Frame& top = stack.back();
    if (top.next == top.choices.size()) {
      stack.pop_back();
      continue;
    }
    const Choice choice = top.choices[top.next++];
    World world = top.world;
    ++found.transitions;
    const std::string how = top.world.Describe(choice);
    if (auto what = world.Do(choice, seen)) {
      violated(*what, how, world);
      return found;
    }
    if (!enter(std::move(world), how)) return found;
  }
  found.complete = true;
  return found;
}

}  // namespace hk::sim
