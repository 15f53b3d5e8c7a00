// For unit tests of what uses a transport without a network.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "rdma/transport.h"

namespace hk {

// A transport without peers: notes released slots and forgotten guests. Not thread-safe.
class NotingTransport : public Transport {
 public:
  absl::Status Start() override { return absl::OkStatus(); }
  void Stop() override {}
  absl::Status AddPeer(NodeId, const std::string&) override { return absl::OkStatus(); }
  void RemovePeer(NodeId) override {}
  void ResetPeer(NodeId, Epoch) override {}
  void SetNodeEpoch(Epoch) override {}
  absl::Status SetEpoch(GuestId, uint32_t, Epoch) override { return absl::OkStatus(); }
  void ForgetGuest(GuestId guest) override { forgotten.push_back(guest.value()); }
  absl::Status Send(NodeId, const Message&, const SendOptions&) override { return absl::OkStatus(); }
  absl::StatusOr<SlotId> AcquireSlot(MessageClass, SlotUse) override { return absl::ResourceExhaustedError(""); }
  std::span<std::byte> SlotBytes(SlotId) override { return {}; }
  void ReleaseSlot(SlotId slot) override { released.push_back(slot.value()); }
  absl::Status CancelRequest(SlotId) override { return absl::OkStatus(); }
  absl::StatusOr<PeerStatistics> Statistics(NodeId) const override { return PeerStatistics(); }
  TransportStatistics Statistics() const override { return {}; }

  std::vector<uint64_t> released, forgotten;
};

}  // namespace hk
