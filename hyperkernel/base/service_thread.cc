#include "hyperkernel/base/service_thread.h"

#include <sys/resource.h>
#include <unistd.h>

namespace hk {
namespace {

// A tenfold weight (sched(7), nice): a waking thread preempts one at 0 at once, and even several of them that are busy
// leave others a twentieth and more. At the end of the scale are the kernel's own workers.
constexpr int kServiceNice = -10;

}  // namespace

void ServeFirst() {
  // Of the thread, as Linux has it; other systems' nice values are the process's.
  static_cast<void>(::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), kServiceNice));
}

}  // namespace hk
