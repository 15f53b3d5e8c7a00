// Version of what the nodes of a space say to each other: the messages of README.md ("Messages", "Bytes", "Recovery"),
// their classes, order and meaning, where homes are, and the steps of an epoch change.
//
// Nothing of it is negotiated: all nodes of a space speak the same version, and who speaks another one is refused when
// the space is made. (The transport below reads N and N-1 of its own format, rdma/README.md: nodes of two releases are
// one cluster, and share no space.)
#pragma once

#include <cstdint>

namespace hk {

// Raised by every change that a node without it would misread or not expect. 0: of releases that do not say.
inline constexpr uint32_t kSpaceProtocolVersion = 7;

}  // namespace hk
