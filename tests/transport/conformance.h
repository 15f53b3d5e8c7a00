// The conformance suite of rdma/transport.h: every promise of the contract as a test, the same for all back ends, over
// real threads and over virtual time. A back end brings a BackEnd and instantiates the suite:
//
//   INSTANTIATE_TEST_SUITE_P(Tcp, TransportConformance, testing::Values(BackEndMaker{[] { return
//   std::make_unique<...>(); }}));
//
// No test sleeps or measures time. A wait ends when its condition holds; the limit of a wait only ends a hang. What a
// back end cannot do (a fault of the network, a stranger) is skipped.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/hang_guard.h"
#include "hyperkernel/base/mutex.h"
#include "rdma/transport.h"

namespace hk {

// A connection of nobody in particular to a node's port: bytes, as the wire carries them over TCP. Destroying it closes
// it.
class Stranger {
 public:
  virtual ~Stranger() = default;
  virtual void Write(std::span<const std::byte> bytes) = 0;
  // Everything that came until now.
  virtual std::vector<std::byte> Read() = 0;
  // The node closed the connection.
  virtual bool Closed() = 0;
};

// What the suite needs of a back end: transports, waiting, and a network that can be made to fail. Faults return false
// where the back end has no such thing; the test is skipped then. Called from the test's thread unless said otherwise.
class BackEnd {
 public:
  virtual ~BackEnd() = default;

  // A transport of node settings.self, not started. The factory's errors. May be called again for a node whose
  // transport was destroyed.
  virtual absl::StatusOr<std::unique_ptr<Transport>> Make(const TransportSettings& settings,
                                                          TransportHandler* handler) = 0;
  // What `from` gives to AddPeer to reach `to`. Known before `to` is made.
  virtual std::string Address(NodeId from, NodeId to) = 0;

  // Runs until the condition holds. False: the hang guard ended it. The condition may call transports.
  virtual bool RunUntil(const std::function<bool()>& condition) = 0;
  // Something that conditions look at has changed. From any thread.
  virtual void Wake() {}
  // Starts work beside the test's thread; the returned function waits for its end.
  virtual std::function<void()> Spawn(std::function<void()> work) = 0;
  // From now on Pause of this node's class, which every handler of a message calls last, comes to no end (threads), or
  // is followed by no other call of the class (virtual time), until Resume.
  virtual void Hold(NodeId node, MessageClass message_class) = 0;
  virtual void Pause(NodeId node, MessageClass message_class) = 0;
  virtual void Resume(NodeId node, MessageClass message_class) = 0;

  // The connections between the two end now, without a word; new ones may be made at once.
  virtual bool Break(NodeId /*a*/, NodeId /*b*/) { return false; }
  // The same, and none can be made until healed.
  virtual bool Cut(NodeId /*a*/, NodeId /*b*/) { return false; }
  // Connections stay, and carry nothing until healed.
  virtual bool Silence(NodeId /*a*/, NodeId /*b*/) { return false; }
  virtual void Heal(NodeId /*a*/, NodeId /*b*/) {}
  // Null: the back end has no strangers.
  virtual std::unique_ptr<Stranger> Connect(NodeId /*to*/) { return nullptr; }
  // A stranger is known as node 0 before its hello, and turned away if that says something else.
  virtual bool ProvesNames() const { return false; }
};

// The half that all back ends with real threads share. Thread-safe where BackEnd says so.
class ThreadedBackEnd : public BackEnd {
 public:
  bool RunUntil(const std::function<bool()>& condition) override;
  void Wake() override;
  std::function<void()> Spawn(std::function<void()> work) override;
  void Hold(NodeId node, MessageClass message_class) override;
  void Pause(NodeId node, MessageClass message_class) override;
  void Resume(NodeId node, MessageClass message_class) override;

 private:
  Mutex mutex_;
  CondVar changed_;
  uint64_t changes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::set<std::pair<NodeId, MessageClass>> held_ ABSL_GUARDED_BY(mutex_);
};

// The suite's parameter.
struct BackEndMaker {
  std::function<std::unique_ptr<BackEnd>()> make;
};

// One call of a handler. Plain value; `message.body` is empty, `body` has it.
struct Seen {
  enum class Kind { kMessage, kUp, kFailed, kWritable, kSlotsFree, kExpired };
  Kind kind = Kind::kMessage;
  NodeId peer;
  Message message;
  std::string body, payload;
  const std::byte* payload_at = nullptr;
  bool late = false;
  PeerFailure failure{};
  std::string detail;
  MessageClass message_class{};
  SlotUse use{};
  uint64_t transaction = 0;
  SlotId slot;
  RequestFailure expired{};
};

// A node: its transport, and a handler that writes down what it is told and checks what holds always (calls of a class
// and of a peer's events are serial, ups and failures alternate, nothing comes after Stop). Handler side thread-safe,
// the rest for the test's thread.
class Node final : public TransportHandler {
 public:
  Node(BackEnd* back_end, const TransportSettings& settings);
  ~Node() override;

  NodeId id() const { return settings_.self; }
  const TransportSettings& settings() const { return settings_; }
  Transport* operator->() { return transport_.get(); }
  // Called inside the handler, after the call was written down. Set before Start.
  std::function<void(const Seen&)> react;
  absl::Status Start();
  // Stop, and nothing may be seen any more.
  void Stop();

  std::vector<Seen> All(Seen::Kind kind) const;
  std::vector<Seen> Messages(NodeId from, MessageClass message_class) const;
  size_t Count(Seen::Kind kind) const;
  size_t Count(Seen::Kind kind, NodeId peer) const;
  size_t CountMessages(NodeId from, MessageClass message_class) const;
  // Messages with this transaction.
  size_t EndedAt(uint64_t transaction) const;
  // True while the peer's last event was an up.
  bool IsUp(NodeId peer) const;
  // From the next message on, handlers of the class do not come to an end. The message that is held is seen.
  void Hold(MessageClass message_class) { back_end_->Hold(id(), message_class); }
  void Release(MessageClass message_class) { back_end_->Resume(id(), message_class); }
  // Messages of TransportConformance::Settle that came.
  size_t Settled(NodeId from, uint64_t number) const;

  // TransportHandler
  void OnMessage(NodeId from, const Message& message, std::span<const std::byte> payload, bool late) override;
  void OnPeerUp(NodeId peer) override;
  void OnPeerFailed(NodeId peer, PeerFailure why, const std::string& detail) override;
  void OnWritable(NodeId peer, MessageClass message_class) override;
  void OnSlotsFree(MessageClass message_class, SlotUse use) override;
  void OnRequestExpired(NodeId asked, MessageClass message_class, uint64_t transaction, SlotId slot,
                        RequestFailure why) override;

 private:
  void Note(Seen seen);
  // Those that are true for `where`, Settle's apart.
  template <typename Predicate>
  size_t CountWhere(Predicate where) const;
  template <typename Predicate>
  std::vector<Seen> AllWhere(Predicate where) const;

  BackEnd* const back_end_;
  const TransportSettings settings_;
  std::unique_ptr<Transport> transport_;
  std::atomic<bool> stopped_ = false;
  std::array<std::atomic<int>, kMessageClasses> in_class_{};  // handlers running
  mutable Mutex mutex_;
  std::vector<Seen> seen_ ABSL_GUARDED_BY(mutex_);
  std::map<NodeId, bool> up_ ABSL_GUARDED_BY(mutex_);
};

// The suite.
class TransportConformance : public ::testing::TestWithParam<BackEndMaker> {
 protected:
  static constexpr MessageClass kFault = MessageClass::kFault;
  static constexpr MessageClass kInvalidate = MessageClass::kInvalidate;
  static constexpr MessageClass kBulk = MessageClass::kBulk;
  static constexpr std::array<MessageClass, kMessageClasses> kClasses = {kFault, kInvalidate, kBulk};
  static constexpr GuestId kGuest{7};

  TransportConformance() : back_end_(GetParam().make()) {}
  void TearDown() override;

  // Small tables, so that their ends are met; times so long that nothing ends by itself, however slow the machine.
  TransportSettings Patient(uint16_t node) const;
  // The same with a short lease, for tests in which it shall end.
  TransportSettings Short(uint16_t node) const;
  // Makes and starts a node.
  Node& StartNode(const TransportSettings& settings, std::function<void(const Seen&)> react = nullptr);
  Node& StartNode(uint16_t node) { return StartNode(Patient(node)); }
  // Each is told of the other; waits until both are up.
  void Join(Node& a, Node& b);
  // The node's process is gone, with everything it knew: its connections end without a word. False: cannot be done.
  bool Kill(NodeId node);

  // Waits; a failure of the test at the hang guard. Use with ASSERT_TRUE.
  bool Await(const std::function<bool()>& condition) { return back_end_->RunUntil(condition); }
  bool AwaitCount(const Node& node, Seen::Kind kind, size_t count) {
    return Await([&] { return node.Count(kind) >= count; });
  }
  bool AwaitMessages(const Node& node, NodeId from, MessageClass message_class, size_t count) {
    return Await([&] { return node.CountMessages(from, message_class) >= count; });
  }

  // A message that is no request.
  static Message Plain(MessageClass message_class, uint64_t transaction);
  // Names `slot` of `node`; sent by `node` it is a request.
  static Message RequestInto(const Node& node, SlotId slot, uint64_t transaction);
  // The answer to a request as it was received or forwarded.
  static Message AnswerTo(const Message& request);
  static SlotId Acquire(Node& node, MessageClass message_class, SlotUse use);
  // Sends an answer with `text` in its payload, padded to `bytes`.
  static absl::Status SendPage(Node& from, const Message& request, const std::string& text, size_t bytes);
  // Both are up for another time. (A hello of an attempt that was given up may arrive late and end a session that has
  // just begun; the next one follows.)
  bool AwaitUpAgain(Node& a, Node& b) {
    return Await([&] {
      return a.Count(Seen::Kind::kUp) >= 2 && b.Count(Seen::Kind::kUp) >= 2 && a.IsUp(b.id()) && b.IsUp(a.id());
    });
  }
  // Waits until everything that `a` sent to `b` before is delivered, by one more message on each class.
  bool Settle(Node& a, Node& b);
  static PeerStatistics Of(Node& node, NodeId peer);
  static uint64_t Dropped(Node& node, NodeId peer, DropReason reason);

  std::unique_ptr<BackEnd> back_end_;
  std::map<NodeId, std::unique_ptr<Node>> nodes_;
};

// Ends the test as skipped if the back end does not have this fault.
#define HK_NEEDS(fault) \
  if (!(fault)) GTEST_SKIP() << "this back end has no such fault"

}  // namespace hk
