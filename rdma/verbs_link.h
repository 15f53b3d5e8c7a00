// One connection of one class over verbs: messages to and from a queue pair. Control messages are sends, inline where
// the device takes it; an answer with its page is one write with immediate into the slot that the request named.
#pragma once

#include <infiniband/verbs.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "rdma/engine.h"
#include "rdma/link.h"
#include "rdma/verbs_message.h"
#include "rdma/verbs_pool.h"
#include "rdma/verbs_queue_pair.h"

namespace hk {

class VerbsPoller;

// Thread safety: see Link; the second part is the class's thread's.
class VerbsLink final : public Link {
 public:
  // `key`: the queue pair's. All others outlive the link.
  VerbsLink(const LinkTicket& ticket, uint64_t key, std::unique_ptr<QueuePair> pair, const VerbsPool& pool,
            Engine* engine, VerbsPoller* poller);
  ~VerbsLink() override;

  // Link.
  Sent Send(const Header& header, std::span<const std::byte> body, std::span<const std::byte> payload,
            bool more) override;
  Sent Continue() override;
  void Close(bool abort) override;
  bool ReadsPayloads() const override { return says_farewell_; }
  void Resume() override;
  void FillSetup(SetupBody* setup) const override;
  void OnSetup(const SetupBody& setup) override;

  // What became of polling.
  enum class PollResult : uint8_t {
    kIdle,    // nothing more is there
    kMore,    // there is more, others first
    kPaused,  // nothing may be taken before Resume
    kClosed,  // forget the link
  };
  // Takes and delivers what is there, up to a bound. `progress`: set if messages came.
  PollResult Poll(bool* progress);
  // An event will tell of what comes next; Poll once more after it. False: it cannot.
  bool Arm() { return pair_->ArmReceives(); }
  bool IsReceiveQueue(const ibv_cq* queue) const { return pair_->IsReceiveQueue(queue); }
  // Closed, and what was sent before has arrived or never will. Asks for an event otherwise.
  bool Farewell();
  // After Close: ends Farewell.
  void CutOff() { pair_->Reset(); }

  // The peer ended the connection: it is broken as soon as what came before is delivered. Any thread.
  void PeerClosed() { peer_closed_.store(true); }
  // The connection breaks as if the peer did not answer. Any thread, while the link is not closed.
  void Break() { pair_->Fail(); }

  const LinkTicket& ticket() const { return ticket_; }
  uint64_t key() const { return key_; }
  bool closed() const { return closed_.load(std::memory_order_acquire); }

 private:
  // What became of one completion.
  enum class Step : uint8_t { kGoOn, kPaused, kClosed };
  Step Handle(const ibv_wc& completion);
  // Empty: message_ has it; else the rule that it breaks.
  std::string Read(const ibv_wc& completion);
  Step Malformed(const std::string& detail);
  Step Broken(const std::string& detail);

  const LinkTicket ticket_;
  const uint64_t key_;
  const std::unique_ptr<QueuePair> pair_;
  const VerbsPool& pool_;
  Engine* const engine_;
  VerbsPoller* const poller_;
  std::atomic<bool> closed_{false};
  std::atomic<bool> peer_closed_{false};

  // Sending: under the lane's lock; after Close the class's thread's.
  SetupBody peer_setup_;
  bool says_farewell_ = false;

  // Receiving: the class's thread's.
  static constexpr size_t kBatch = 16;
  std::array<ibv_wc, kBatch> batch_;
  size_t batch_next_ = 0, batch_count_ = 0;
  bool read_ = false;  // batch_[batch_next_] is in message_
  VerbsMessage message_;
};

}  // namespace hk
