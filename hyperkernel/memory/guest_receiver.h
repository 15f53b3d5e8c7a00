// The seam between SpaceRouter and those who have messages of one guest.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "hyperkernel/base/types.h"
#include "rdma/transport.h"

namespace hk {

// Gets the transport's calls (TransportHandler, with its rules): messages of its guest and generation only, events of
// all peers and classes, whoever they concern.
class GuestReceiver {
 public:
  virtual ~GuestReceiver() = default;
  virtual void OnMessage(NodeId from, const Message& message, std::span<const std::byte> payload, bool late) = 0;
  virtual void OnWritable(NodeId peer, MessageClass message_class) = 0;
  virtual void OnSlotsFree(MessageClass message_class, SlotUse use) = 0;
  virtual void OnRequestExpired(NodeId asked, MessageClass message_class, uint64_t transaction, SlotId slot,
                                RequestFailure why) = 0;
  virtual void OnPeerFailed(NodeId peer, PeerFailure why, const std::string& detail) = 0;
};

}  // namespace hk
