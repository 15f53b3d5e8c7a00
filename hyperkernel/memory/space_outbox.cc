#include "hyperkernel/memory/space_outbox.h"

#include <algorithm>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"

namespace hk {

SpaceOutbox::SpaceOutbox(Transport* transport, const std::vector<NodeId>& nodes)
    : transport_(transport), nodes_(nodes), lanes_(nodes.size() * kMessageClasses) {}

SpaceOutbox::Lane* SpaceOutbox::Find(NodeId to, MessageClass message_class) {
  const auto at = std::lower_bound(nodes_.begin(), nodes_.end(), to);
  if (at == nodes_.end() || *at != to) return nullptr;
  return &lanes_[static_cast<size_t>(at - nodes_.begin()) * kMessageClasses + static_cast<size_t>(message_class)];
}

absl::Status SpaceOutbox::Send(NodeId to, const Message& message, const PageBody& body, const SendOptions& options,
                               LentSlot request, LentSlot payload) {
  Lane* const lane = Find(to, message.message_class);
  HK_CHECK(lane != nullptr);
  MutexLock lock(&lane->mutex);
  if (lane->closed) return absl::OkStatus();
  if (lane->waiting.empty() || HK_MUTANT(engine_overtakes_outbox)) {
    Message sent = message;
    sent.body = body.span();
    const absl::Status status = transport_->Send(to, sent, options);
    if (status.ok()) request.GiveAway();
    if (!absl::IsResourceExhausted(status)) return status;
  }
  lane->waiting.push_back({message, body, options, std::move(request), std::move(payload)});
  return absl::OkStatus();
}

void SpaceOutbox::Flush(NodeId to, MessageClass message_class, const std::function<void(const absl::Status&)>& failed) {
  Lane* const lane = Find(to, message_class);
  if (lane == nullptr) return;
  MutexLock lock(&lane->mutex);
  while (!lane->waiting.empty()) {
    Entry& entry = lane->waiting.front();
    entry.message.body = entry.body.span();
    const absl::Status status = transport_->Send(to, entry.message, entry.options);
    if (absl::IsResourceExhausted(status)) return;  // OnWritable comes again
    if (status.ok()) {
      entry.request.GiveAway();
    } else {
      failed(status);
    }
    lane->waiting.pop_front();
  }
}

void SpaceOutbox::Clear() {
  for (Lane& lane : lanes_) {
    MutexLock lock(&lane.mutex);
    lane.waiting.clear();
  }
}

void SpaceOutbox::Close() {
  for (Lane& lane : lanes_) {
    MutexLock lock(&lane.mutex);
    lane.closed = true;
    lane.waiting.clear();
  }
}

size_t SpaceOutbox::waiting(NodeId to, MessageClass message_class) const {
  const Lane* const lane = const_cast<SpaceOutbox*>(this)->Find(to, message_class);
  HK_CHECK(lane != nullptr);
  MutexLock lock(&lane->mutex);
  return lane->waiting.size();
}

size_t SpaceOutbox::waiting() const {
  size_t count = 0;
  for (const Lane& lane : lanes_) {
    MutexLock lock(&lane.mutex);
    count += lane.waiting.size();
  }
  return count;
}

}  // namespace hk
