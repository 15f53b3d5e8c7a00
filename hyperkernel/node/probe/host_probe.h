// The operator's one look at what this host can do: all layers' probes, in one list.
#pragma once

#include "hyperkernel/base/probe.h"

namespace hk {

// All answers, in this order of groups: host, kvm, userfaultfd, memory, io_uring, verbs, network, clock. Never fails:
// errors are answers. Thread-safe, may be called in the running daemon at any time; leaves nothing behind. Takes some
// tens of milliseconds on hardware; at most 3 s for kvm and 2 s for userfaultfd where something is broken.
ProbeItems ProbeHost();

}  // namespace hk
