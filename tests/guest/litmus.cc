// The litmus tests of tests/host/space_litmus.h as a program of a Linux guest: each thread is pinned to a CPU of its
// own, so that threads are on different nodes where the guest's vCPUs are.
//
//   guest_litmus RUNS SEED
//
// A line for each test with the outcomes seen; exit status 1 after one that x86-TSO forbids.
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "fmt/format.h"
#include "hyperkernel/base/types.h"
#include "tests/host/space_litmus.h"

namespace hk {
namespace {

bool PinTo(size_t cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  return pthread_setaffinity_np(pthread_self(), sizeof(set), &set) == 0;
}

// False: an outcome that may not be.
bool RunOne(std::byte* memory, size_t cpus, const Litmus& litmus, Placement placement, Access access, uint64_t runs,
            uint64_t seed) {
  const std::array<std::byte*, 1> views = {memory};
  const LitmusResult result = RunLitmus(views, litmus, placement, access, runs, seed, [&](size_t thread) {
    if (!PinTo((thread + seed) % cpus)) {
      std::perror("guest_litmus: a thread cannot be pinned");
      std::exit(2);
    }
  });
  std::string outcomes;
  for (const auto& [outcome, count] : result.outcomes) outcomes += fmt::format("  {}: {}", outcome, count);
  fmt::print("{:10} {:12} {:6} {:8} runs{}\n", litmus.name, Name(placement), Name(access), result.runs, outcomes);
  std::fflush(stdout);
  if (result.forbidden == 0 && result.torn == 0) return true;
  fmt::print("FORBIDDEN: {} times, torn {} times, first {}\n", result.forbidden, result.torn, result.first_forbidden);
  return false;
}

int Main(int argc, char** argv) {
  if (argc != 3) {
    fmt::print(stderr, "usage: guest_litmus RUNS SEED\n");
    return 2;
  }
  const uint64_t runs = std::strtoull(argv[1], nullptr, 10);
  const uint64_t seed = std::strtoull(argv[2], nullptr, 10);
  const auto cpus = static_cast<size_t>(sysconf(_SC_NPROCESSORS_ONLN));
  void* const memory = mmap(nullptr, kLitmusPages * kPageSize, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  // Pages of their own: 2 MiB at once are more than a small guest has for this.
  if (memory == MAP_FAILED || madvise(memory, kLitmusPages * kPageSize, MADV_NOHUGEPAGE) != 0) {
    std::perror("guest_litmus: no memory");
    return 2;
  }
  bool good = true;
  for (const Access access : {Access::kPlain, Access::kLocked}) {
    for (const Placement placement : {Placement::kLine, Placement::kPage, Placement::kPages, Placement::kStraddle}) {
      // A locked access across two lines stops the machine's buses, and hosts forbid it.
      if (access == Access::kLocked && placement == Placement::kStraddle) continue;
      for (const Litmus& litmus : AllLitmus()) {
        good = RunOne(static_cast<std::byte*>(memory), cpus, litmus, placement, access, runs, seed) && good;
      }
    }
  }
  fmt::print("guest_litmus: {} on {} CPUs, HK_SEED={}\n", good ? "nothing forbidden" : "FORBIDDEN outcomes", cpus,
             seed);
  return good ? 0 : 1;
}

}  // namespace
}  // namespace hk

int main(int argc, char** argv) {
  return hk::Main(argc, argv);
}
