// What this host's verbs devices can do for the transport.
#pragma once

#include "hyperkernel/base/probe.h"

namespace hk {

// All answers of group "verbs": whether there is an active device, rdma_cm, the limit on locked memory, and each
// device's port, addresses and limits. A device is opened and a queue pair made and destroyed on it; nothing is sent.
// Without a device the verbs library is not entered (it would print warnings). Never fails: errors are answers.
// Thread-safe; leaves nothing behind. Takes some milliseconds per device.
ProbeItems ProbeVerbs();

}  // namespace hk
