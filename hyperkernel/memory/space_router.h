// Which space, or machine, a message is for: the one transport of a node serves them all.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/guest_receiver.h"
#include "rdma/transport.h"

namespace hk {

// The transport's handler of a node: gives each receiver what is its own by guest and generation, and the peers' events
// to all. Made before the transport, outlives it. Thread-safe.
class SpaceRouter final : public TransportHandler {
 public:
  // Peer events, for whoever keeps an eye on peers. May be empty.
  struct Watch {
    std::function<void(NodeId)> up;
    std::function<void(NodeId, PeerFailure, const std::string&)> failed;
  };
  explicit SpaceRouter(Watch watch = {});
  ~SpaceRouter() override;

  // Once, before the transport starts: where slots of answers go that nobody takes any more.
  void SetTransport(Transport* transport);

  // From now on the receiver gets what belongs to (guest, generation). kAlreadyExists.
  absl::Status Add(GuestId guest, uint32_t generation, GuestReceiver* receiver);
  // When it returns, no call of the receiver is under way. Not inside a handler.
  void Remove(GuestId guest, uint32_t generation);

  void OnMessage(NodeId from, const Message& message, std::span<const std::byte> payload, bool late) override;
  void OnPeerUp(NodeId peer) override;
  void OnPeerFailed(NodeId peer, PeerFailure why, const std::string& detail) override;
  void OnWritable(NodeId peer, MessageClass message_class) override;
  void OnSlotsFree(MessageClass message_class, SlotUse use) override;
  void OnRequestExpired(NodeId asked, MessageClass message_class, uint64_t transaction, SlotId slot,
                        RequestFailure why) override;

 private:
  struct Table;
  Watch watch_;
  std::unique_ptr<Table> table_;
};

}  // namespace hk
