// For unit tests of the fault engine: one engine between a transport, frames, timers and a clock that do what the test
// says. No thread safety.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "hyperkernel/memory/engine_testing.h"
#include "hyperkernel/memory/page_batch.h"
#include "hyperkernel/memory/page_wire.h"
#include "hyperkernel/memory/space_engine.h"
#include "hyperkernel/memory/space_testing.h"

namespace hk {

// Sends to nobody.
class FakeTransport final : public NotingTransport {
 public:
  // A message about a page, as its receiver sees it. Plain value.
  struct Sent {
    NodeId to;
    Message message;
    PageMessage page;
    SendOptions options;
    char payload = 0;  // its first byte
    PageBatch batch;   // if there are pages in it, and not `page`
  };

  explicit FakeTransport(CallLog* log) : log_(log) {}
  absl::Status Send(NodeId to, const Message& message, const SendOptions& options) override;
  absl::StatusOr<SlotId> AcquireSlot(MessageClass message_class, SlotUse use) override;
  std::span<std::byte> SlotBytes(SlotId slot) override;
  void ReleaseSlot(SlotId slot) override;

  std::vector<Sent> sent;
  std::vector<std::string> told;     // that the space has stopped
  std::vector<std::string> hurried;  // whose transaction
  std::vector<uint64_t> pings;       // and pongs: whose number
  std::vector<uint64_t> rooms;       // what was said of it
  std::set<uint64_t> lent;
  std::map<uint64_t, std::vector<std::byte>> memory;
  absl::Status refusal;
  int receive_slots = 100, send_slots = 100;

 private:
  absl::Status SendBatch(NodeId to, const Message& message, const SendOptions& options);

  CallLog* const log_;
  uint64_t next_slot_ = 100;
};

// One engine, kSelf, of a space of four extents.
class SpaceEngineTest : public testing::Test {
 protected:
  using Type = PageMessageType;
  static constexpr NodeId kSelf{0}, kPeer{1}, kThird{2};
  // With two nodes: the home of even extents is this node, of odd ones the peer.
  static constexpr Gfn kHere{7}, kThere{kExtentPages + 7};

  SpaceEngineTest() { Make({kSelf, kPeer}); }
  ~SpaceEngineTest() override;
  void Make(const std::vector<NodeId>& nodes);
  // This node coordinates, is the home of all, has 64 frames, and fills that many pages around a first write.
  void MakeOwnHomes(uint32_t fill_around);

  void Want(Gfn page, PageAccess access, Wish* wish, bool overwrite = false);
  static PageMessage Of(Type type);
  // A message of a peer about a page.
  void Receive(NodeId from, Gfn page, PageMessage m, SlotId slot = {}, NodeId slot_node = {}, char byte = 0);
  void ReceiveRequest(NodeId from, Gfn page, RequestKind kind, uint64_t transaction);
  void ReceiveForward(Gfn page, RequestKind kind, NodeId requester, uint64_t transaction, uint64_t serial);
  // The peer confirms the last answer, which was to its transaction.
  void ReceiveDone(Gfn page, uint64_t transaction);
  // The peer, home of kThere, grants or refuses what it was asked for.
  void GrantTo(const FakeTransport::Sent& request, PageRight right, PageSource source, char byte = 0,
               NodeSet acks = {});
  void Refuse(const FakeTransport::Sent& request);
  // Grants the last request, which is for this page.
  void Grant(Gfn page, PageRight right, PageSource source, char byte = 0, NodeSet acks = {});
  // The peer answers the batch that was sent then.
  void AnswerBatch(size_t sent, const std::vector<BatchFate>& fates);
  void ReceiveEmpty(Gfn page, uint64_t transaction);
  void Deliver(Gfn page, Message message, const PageBody& body, std::span<const std::byte> payload);
  void ExpectStopped(const std::string& reason);
  std::chrono::microseconds LongestHold() const { return LongestOf(config_.hold); }

  CallLog log_;
  std::array<std::byte, kPageSize> replacement_{};
  FakeClock clock_;
  FakeTimers timers_{&clock_};
  FakeFrames frames_{&log_};
  FakeTransport transport_{&log_};
  SpaceConfig config_;
  std::vector<absl::Status> stops_;
  std::unique_ptr<SpaceEngine> engine_;
};

}  // namespace hk
