// Planted bugs. In a build with -DHK_MUTANTS=ON the bug named by the environment variable HK_MUTANT is active; in every
// other build HK_MUTANT(name) is the constant false and the bug is not in the program. tests/mutants lists them, with
// the check that must catch each.
#pragma once

#include <string_view>

namespace hk {

// True if HK_MUTANT in the environment is `name`; read once. Thread-safe.
bool MutantIsActive(std::string_view name);

}  // namespace hk

#ifdef HK_MUTANTS
#define HK_MUTANT(name) (::hk::MutantIsActive(#name))
#else
#define HK_MUTANT(name) (false)
#endif
