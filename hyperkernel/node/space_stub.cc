// TEMPORARY: until GuestSpace and SpaceRouter are merged.
#include "hyperkernel/memory/guest_space.h"
namespace hk {
struct SpaceRouter::Table {
  Transport* transport = nullptr;
};
SpaceRouter::SpaceRouter(Watch watch) : watch_(std::move(watch)), table_(std::make_unique<Table>()) {}
SpaceRouter::~SpaceRouter() = default;
void SpaceRouter::SetTransport(Transport* transport) {
  table_->transport = transport;
}
absl::Status SpaceRouter::Add(GuestId, uint32_t, SpaceEngine*) {
  return absl::OkStatus();
}
void SpaceRouter::Remove(GuestId, uint32_t) {}
void SpaceRouter::OnMessage(NodeId, const Message&, std::span<const std::byte>, bool) {}
void SpaceRouter::OnPeerUp(NodeId peer) {
  if (watch_.up) watch_.up(peer);
}
void SpaceRouter::OnPeerFailed(NodeId peer, PeerFailure why, const std::string& detail) {
  if (watch_.failed) watch_.failed(peer, why, detail);
}
void SpaceRouter::OnWritable(NodeId, MessageClass) {}
void SpaceRouter::OnSlotsFree(MessageClass, SlotUse) {}
void SpaceRouter::OnRequestExpired(NodeId, MessageClass, uint64_t, SlotId, RequestFailure) {}
absl::StatusOr<std::unique_ptr<GuestSpace>> GuestSpace::Attach(Options, const FrameStore&, Transport*, SpaceRouter*,
                                                               const Clock&) {
  return absl::UnimplementedError("spaces are not there yet");
}
}  // namespace hk
