#include "hyperkernel/base/mutant.h"

#include <cstdlib>

namespace hk {

bool MutantIsActive(std::string_view name) {
  static const char* const active = std::getenv("HK_MUTANT");
  return active != nullptr && name == active;
}

}  // namespace hk
