// When a test's wait that would never end is ended: not a measure of how fast anything is.
#pragma once

#include <chrono>
#include <cstdlib>

namespace hk {

// Far beyond what any condition needs, under sanitizers, on emulated processors and beside other work too; with a
// planted bug a hang is expected. Any thread.
inline std::chrono::seconds HangGuard() {
  constexpr std::chrono::seconds kGuard(60), kPlantedGuard(10);
  const char* planted = std::getenv("HK_MUTANT");
  return planted == nullptr || *planted == '\0' ? kGuard : kPlantedGuard;
}

}  // namespace hk
