// CHECK for broken invariants of our own: prints where and what, and aborts. Never for input from a guest, a peer, an
// operator or a disk; those are absl::Status. (Debian 12's abseil has no absl/log.)
#pragma once

#include <cstdio>
#include <cstdlib>

#define HK_CHECK(condition)                                                                  \
  do {                                                                                       \
    if (!(condition)) [[unlikely]] {                                                         \
      std::fprintf(stderr, "%s:%d: invariant broken: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                          \
    }                                                                                        \
  } while (false)

// HK_DCHECK is HK_CHECK in builds with asserts, and nothing (its operand is not evaluated) in release builds.
#ifdef NDEBUG
#define HK_DCHECK(condition) static_cast<void>(sizeof(!(condition)))
#else
#define HK_DCHECK(condition) HK_CHECK(condition)
#endif
