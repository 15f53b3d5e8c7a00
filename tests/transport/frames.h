// Messages as they go over TCP, built byte by byte so that they can be wrong. Pure functions, thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "rdma/wire.h"

namespace hk {

// A header with body and payload. The header's lengths and CRC are set here.
std::vector<std::byte> Frame(Header header, std::span<const std::byte> body = {},
                             std::span<const std::byte> payload = {});
// The header of a user's message.
Header Numbered(MessageClass message_class, uint64_t sequence);
// The hello of a node of the suite's cluster.
Hello GoodHello(NodeId from, NodeId to, MessageClass message_class, uint64_t session, uint64_t peer_session = 0);
// Writes the CRC of a frame's header anew after a byte of it was changed.
void Reseal(std::vector<std::byte>* frame);

}  // namespace hk
