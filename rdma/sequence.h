// Sequence numbers of one class of one peer, shared by all back ends: what was sent and must be kept until the peer has
// it, and what of the peer's was received. With both ends' numbers a broken connection goes on where it stopped,
// nothing lost and nothing twice. Pure: no time, memory of messages or thread of its own. Rules: rdma/README.md,
// Sequence.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <utility>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"

namespace hk {

// Messages sent, waiting to be sent, or waiting for their acknowledgement, in order. Entry is the back end's; it is
// kept until acknowledged. Numbers start at 1; 64 bits do not wrap. Not thread-safe.
//
// Invariants: acknowledged <= sent <= pushed; sent - acknowledged <= window; pushed - acknowledged <= queue_limit +
// reserve.
template <typename Entry>
class SendWindow {
 public:
  // `queue_limit`: entries kept at most; `window`: entries sent and not acknowledged at most; `reserve`: entries beyond
  // the limit for the transport's own messages. The window is the peer's promise (Setup) and may be lowered before the
  // first send.
  SendWindow(size_t queue_limit, size_t window, size_t reserve)
      : queue_limit_(queue_limit), window_(window), reserve_(reserve) {}

  // Appends. False, and nothing is taken: the queue is full (`own`: so is the reserve).
  bool Push(Entry entry, bool own = false) {
    if (entries_.size() >= queue_limit_ + (own ? reserve_ : 0)) {
      if (!own) refused_ = true;
      return false;
    }
    entries_.push_back(std::move(entry));
    return true;
  }
  // True if Push takes an entry. False counts as a refused Push.
  bool HasRoom() {
    if (entries_.size() < queue_limit_) return true;
    refused_ = true;
    return false;
  }
  // True once after a refused Push (not `own`), when half of the queue is free.
  bool TakeWritable() {
    if (!refused_ || entries_.size() > queue_limit_ / 2) return false;
    refused_ = false;
    return true;
  }

  // The next entry to put on the wire, with its number, or null: nothing waits, or the window is full. Sent() says it
  // is done.
  Entry* Next(uint64_t* sequence) {
    const uint64_t waiting = sent_ - acknowledged_;
    if (waiting >= entries_.size() || (waiting >= window_ && !HK_MUTANT(send_window_ignored))) return nullptr;
    *sequence = sent_ + 1;
    return &entries_[waiting];
  }
  // True if Next would give another entry after that.
  bool MoreAfterNext() const {
    const uint64_t waiting = sent_ + 1 - acknowledged_;
    return waiting < entries_.size() && waiting < window_;
  }
  // The entry of the last Next is on its way. True: an earlier connection has carried it already.
  bool Sent() {
    HK_CHECK(sent_ - acknowledged_ < entries_.size());
    return ++sent_ <= resent_until_;
  }

  // The peer has everything up to `through`: done(entry) for each entry that is no longer needed. False, nothing
  // changed: it acknowledges what was never sent (a malformed peer). An old number is no error: it changes nothing.
  template <typename Done>
  bool Acknowledge(uint64_t through, Done done) {
    if (through > sent_) return false;
    for (; acknowledged_ < through; ++acknowledged_) {
      Entry entry = std::move(entries_.front());
      entries_.pop_front();
      done(entry);
    }
    return true;
  }
  // A connection replaces the broken one, and the peer received everything up to `through`: the rest is sent again.
  // False, nothing changed: it never got what it acknowledged, or got what was never sent; the session cannot be
  // resumed.
  template <typename Done>
  bool Resume(uint64_t through, Done done) {
    if (through < acknowledged_ || through > sent_) return false;
    resent_until_ = sent_ > resent_until_ ? sent_ : resent_until_;
    if (!Acknowledge(through, done)) return false;
    if (!HK_MUTANT(resume_forgets_unacknowledged)) sent_ = through;
    if (HK_MUTANT(resume_swaps) && entries_.size() > 1) std::swap(entries_[0], entries_[1]);
    return true;
  }
  // The session is over: done(entry) for each entry kept; numbers start again.
  template <typename Done>
  void Clear(Done done) {
    for (Entry& entry : entries_) done(entry);
    *this = SendWindow(queue_limit_, window_, reserve_);
  }

  // Entries that wait to be sent.
  size_t waiting() const { return entries_.size() - (sent_ - acknowledged_); }
  // Nothing waits to be sent.
  bool AllSent() const { return sent_ - acknowledged_ == entries_.size(); }
  void SetWindow(size_t window) { window_ = window; }
  size_t size() const { return entries_.size(); }
  uint64_t sent() const { return sent_; }
  uint64_t acknowledged() const { return acknowledged_; }

 private:
  size_t queue_limit_, window_, reserve_;
  std::deque<Entry> entries_;  // [0] has number acknowledged_ + 1
  uint64_t acknowledged_ = 0;
  uint64_t sent_ = 0;          // on the present connection, or acknowledged
  uint64_t resent_until_ = 0;  // highest number that an earlier connection carried
  bool refused_ = false;
};

// What to do with a message that arrived.
enum class Arrival : uint8_t {
  kDeliver,    // the next one
  kDuplicate,  // received before: drop, count, and let its acknowledgement be repeated
  kGap,        // one is missing: no back end loses messages within a connection, so the peer is malformed
};

// The receiving half. Not thread-safe.
class ReceiveSequence {
 public:
  // REQUIRES: sequence > 0 (0 is for messages without a number; the decoder has sorted them out).
  Arrival Receive(uint64_t sequence) {
    if (sequence <= received_) {
      ++unacknowledged_;
      return HK_MUTANT(duplicates_delivered) ? Arrival::kDeliver : Arrival::kDuplicate;
    }
    if (sequence != received_ + 1) return Arrival::kGap;
    ++received_;
    ++unacknowledged_;
    return Arrival::kDeliver;
  }
  // Goes into every header as acknowledged number, and into hellos; AckSent when it did.
  uint64_t received() const { return received_; }
  void AckSent() { unacknowledged_ = 0; }
  // Messages received since an acknowledgement was sent: an Ack of its own is due at a quarter of the window, or when a
  // timer finds the number not 0.
  uint64_t unacknowledged() const { return unacknowledged_; }
  // The session is over.
  void Clear() { *this = ReceiveSequence(); }

 private:
  uint64_t received_ = 0;
  uint64_t unacknowledged_ = 0;
};

}  // namespace hk
