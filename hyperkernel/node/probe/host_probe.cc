#include "hyperkernel/node/probe/host_probe.h"

#include <iterator>

#include "hyperkernel/kvm/kvm_probe.h"
#include "hyperkernel/memory/memory_probe.h"
#include "hyperkernel/memory/userfaultfd_probe.h"
#include "hyperkernel/node/probe/host_parts.h"
#include "rdma/verbs_probe.h"

namespace hk {

ProbeItems ProbeHost() {
  ProbeItems all;
  for (ProbeItems (*probe)() :
       {ProbeHostFacts, ProbeKvm, ProbeUserfaultfd, ProbeMemory, ProbeIoUring, ProbeVerbs, ProbeNetwork, ProbeClock}) {
    ProbeItems items = probe();
    all.insert(all.end(), std::make_move_iterator(items.begin()), std::make_move_iterator(items.end()));
  }
  return all;
}

}  // namespace hk
