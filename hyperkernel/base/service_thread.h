// The priority of threads that others wait for: those that serve faults and carry messages.
#pragma once

namespace hk {

// The calling thread is given the processor before vCPUs and programs when it has something to do: on a host with fewer
// processors than vCPUs, a fault's four wake-ups would else each wait for the end of a vCPU's slice. It needs the
// privilege to do so (CAP_SYS_NICE); without, the thread stays as it is. Threads that poll without sleeping must not
// ask for it: they would keep all else from their processor.
void ServeFirst();

}  // namespace hk
