// What an engine sends: straight to the transport while it takes it, and in order behind what it did not take.
// Thread-safe.
#pragma once

#include <functional>
#include <list>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/page_wire.h"
#include "rdma/transport.h"

namespace hk {

// A slot that is ours, released with this. Not thread-safe.
class LentSlot {
 public:
  LentSlot() = default;
  LentSlot(Transport* transport, SlotId slot) : transport_(transport), slot_(slot) {}
  LentSlot(LentSlot&& other) noexcept : transport_(other.transport_), slot_(std::exchange(other.slot_, SlotId())) {}
  LentSlot& operator=(LentSlot&& other) noexcept {
    if (this != &other) {
      Release();
      transport_ = other.transport_;
      slot_ = std::exchange(other.slot_, SlotId());
    }
    return *this;
  }
  ~LentSlot() { Release(); }

  SlotId id() const { return slot_; }
  explicit operator bool() const { return slot_ != SlotId(); }
  std::span<std::byte> bytes() const { return transport_->SlotBytes(slot_); }
  void Release() {
    if (slot_ != SlotId()) transport_->ReleaseSlot(std::exchange(slot_, SlotId()));
  }
  // It is somebody else's now.
  void GiveAway() { slot_ = SlotId(); }

 private:
  Transport* transport_ = nullptr;
  SlotId slot_;
};

// The messages of one space that the transport has not taken yet, by peer and class.
class SpaceOutbox {
 public:
  // `nodes`: ascending.
  SpaceOutbox(Transport* transport, const std::vector<NodeId>& nodes);

  // Sends the message, or keeps it until there is room. `request` is the slot that it names if it is a request of this
  // node, `payload` the one in `options` if it is to be released afterwards; both are empty otherwise. Errors are the
  // transport's, but for kResourceExhausted; the message and its slots are gone then. REQUIRES: `to` is in nodes.
  absl::Status Send(NodeId to, const Message& message, const PageBody& body, const SendOptions& options,
                    LentSlot request, LentSlot payload);
  // There is room: sends what waits. `failed` is told of each message that the transport refuses for another reason.
  void Flush(NodeId to, MessageClass message_class, const std::function<void(const absl::Status&)>& failed);
  // Forgets all that waits.
  void Clear();
  // Forgets all that waits, and what comes.
  void Close();
  size_t waiting() const;
  size_t waiting(NodeId to, MessageClass message_class) const;

 private:
  // A message with its memory.
  struct Entry {
    Message message;
    PageBody body;
    SendOptions options;
    LentSlot request, payload;
  };
  // To one peer on one class.
  struct Lane {
    mutable Mutex mutex;
    std::list<Entry> waiting ABSL_GUARDED_BY(mutex);
    bool closed ABSL_GUARDED_BY(mutex) = false;
  };
  Lane* Find(NodeId to, MessageClass message_class);

  Transport* const transport_;
  const std::vector<NodeId> nodes_;
  std::vector<Lane> lanes_;  // nodes x classes
};

}  // namespace hk
