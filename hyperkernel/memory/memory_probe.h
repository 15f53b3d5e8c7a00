// What this host offers for the frame store: memfd and tmpfs, huge page policy, swap.
#pragma once

#include "hyperkernel/base/probe.h"

namespace hk {

// All answers of group "memory". Never fails: errors are answers. Thread-safe; leaves nothing behind; takes under a
// millisecond.
ProbeItems ProbeMemory();

}  // namespace hk
