// The probes of what belongs to no layer of its own. Each answers for one group, never fails (errors are answers), is
// thread-safe, leaves nothing behind and takes at most a few milliseconds.
#pragma once

#include "hyperkernel/base/probe.h"

namespace hk {

// Group "host": kernel version, CPU, memory, descriptors.
ProbeItems ProbeHostFacts();
// Group "io_uring": a ring can be made, and the operations that block devices use.
ProbeItems ProbeIoUring();
// Group "network": a tap interface can be made; it is gone on return.
ProbeItems ProbeNetwork();
// Group "clock": the host's TSC and its synchronisation.
ProbeItems ProbeClock();

}  // namespace hk
