// What this host's userfaultfd can do for guest memory: privilege, features one by one, and a trial of each fault.
#pragma once

#include "hyperkernel/base/probe.h"

namespace hk {

// All answers of group "userfaultfd". If none can be opened, that is the only answer. Never fails: errors are answers.
// Thread-safe; leaves nothing behind. Takes a few milliseconds, at most 2 s if fault events do not come.
ProbeItems ProbeUserfaultfd();

}  // namespace hk
