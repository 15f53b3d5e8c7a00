#include "hyperkernel/node/guest.h"

namespace hk {

const char* NameOf(v1::VmState state) {
  switch (state) {
    case v1::VM_STATE_STOPPED:
      return "stopped";
    case v1::VM_STATE_STARTING:
      return "starting";
    case v1::VM_STATE_RUNNING:
      return "running";
    case v1::VM_STATE_PAUSED:
      return "paused";
    case v1::VM_STATE_STOPPING:
      return "stopping";
    case v1::VM_STATE_CRASHED:
      return "crashed";
    default:
      return "unknown";
  }
}

bool IsLive(v1::VmState state) {
  return state == v1::VM_STATE_RUNNING || state == v1::VM_STATE_PAUSED || state == v1::VM_STATE_STOPPING;
}

}  // namespace hk
