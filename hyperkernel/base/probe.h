// One answer of a host probe. Each layer asks its own questions (kvm, memory, rdma, ...); the daemon gathers the
// answers.
#pragma once

#include <string>
#include <vector>

namespace hk {

// One thing the host can or cannot do. Plain value.
struct ProbeItem {
  std::string group;      // shown under: "kvm", "userfaultfd", ...
  std::string name;       // what was asked, for people
  bool yes = false;       // the answer
  std::string detail;     // what was found, one line
  std::string lost;       // for no: what does not work without it
  std::string fix;        // for no: how to get it
  bool required = false;  // nothing works without it
};

using ProbeItems = std::vector<ProbeItem>;

}  // namespace hk
