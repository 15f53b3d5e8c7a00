// Litmus tests of x86-TSO on memory of several nodes: threads on the views of the nodes, or on their vCPUs, run them,
// many instances at a time, and every outcome is held against what x86-TSO forbids.
//
// The names are those of the literature (Alglave et al., "Herding cats"; Sewell et al., "x86-TSO"). One round runs each
// instance of a test once. A variable is never reset: its values grow with the round, and what is smaller than the
// round's is "old". A variable has two halves of the same value, which are variables of their own where an access
// crosses pages: x86 keeps the order of accesses, not that of an access's halves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace hk {

// Where x and y of an instance are. kStraddle: each across two pages, all four different.
enum class Placement : uint8_t { kLine, kPage, kPages, kStraddle };
// How they are accessed. kLocked: xchg, and lock xadd of 0.
enum class Access : uint8_t { kPlain, kLocked };

// A test: what each thread does, and what must not come of it.
struct Litmus {
  // One access. `x`: of x, else of y.
  struct Op {
    enum class Kind : uint8_t { kStore, kLoad, kFence };
    Kind kind = Kind::kFence;
    bool x = false;
    uint8_t which = 0;  // store: value, 1 or 2; load: register
  };
  // Registers and the variables' values at the end: 0 old, else what was stored.
  struct Outcome {
    uint8_t registers[4] = {};
    uint8_t x = 0, y = 0;
  };
  std::string name;
  std::vector<std::vector<Op>> threads;
  bool (*forbidden)(const Outcome&);
};
// MP, LB, SB with mfence, IRIW, R with mfence, S, 2+2W.
const std::vector<Litmus>& AllLitmus();

// What became of a test. Plain value.
struct LitmusResult {
  uint64_t runs = 0;
  uint64_t forbidden = 0;                    // outcomes that x86-TSO does not have
  uint64_t torn = 0;                         // halves that differ where one access may not be divided
  std::map<std::string, uint64_t> outcomes;  // registers, then x and y at the end; of the first halves
  std::string first_forbidden;
};
// Pages of the memory that tests are run in.
inline constexpr uint64_t kLitmusPages = 4096;
// At least `runs` runs, each thread on a view of its own as far as there are: `views` are the same memory as its nodes
// have it. `begin`: called by each thread, with its number, before anything else.
LitmusResult RunLitmus(std::span<std::byte* const> views, const Litmus& litmus, Placement placement, Access access,
                       uint64_t runs, uint64_t seed, const std::function<void(size_t thread)>& begin);

const char* Name(Placement placement);
const char* Name(Access access);

}  // namespace hk
