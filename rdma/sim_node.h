// Inside of the simulated back end: one node. Connections and handshakes are in sim_connections.cc, messages in
// sim_messages.cc, the methods of Transport in sim_transport.cc.
#pragma once

#include <array>
#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "rdma/epoch_floors.h"
#include "rdma/sequence.h"
#include "rdma/session.h"
#include "rdma/sim_network.h"
#include "rdma/slots.h"
#include "rdma/wire.h"

namespace hk {

class SimNode;

// One connection, from its first byte on. Not thread-safe, as all here.
class SimChannel final : public SimSocketHandler, public std::enable_shared_from_this<SimChannel> {
 public:
  enum class State : uint8_t { kStranger, kDialling, kSaidHello, kJoined, kOver };

  explicit SimChannel(SimNode* owner) : node(owner) {}
  void OnConnected() override;
  void OnBytes(std::span<const std::byte> bytes) override;
  void OnWrite(SlotId slot, std::span<const std::byte> payload) override;
  void OnClosed() override;

  SimNode* const node;
  std::unique_ptr<SimSocket> socket;
  State state = State::kStranger;
  NodeId peer;  // but for strangers
  MessageClass message_class = MessageClass::kFault;
  std::vector<std::byte> received;  // and not yet taken
  bool setup_received = false;
};

// One node's end of everything.
class SimNode final : public Transport, public SimHost {
 public:
  SimNode(SimNetwork* network, const TransportSettings& settings, TransportHandler* handler);
  ~SimNode() override { Stop(); }

  // Transport
  absl::Status Start() override;
  void Stop() override;
  absl::Status AddPeer(NodeId peer, const std::string& address) override;
  void RemovePeer(NodeId peer) override;
  void ResetPeer(NodeId peer, Epoch admit_from) override;
  void SetNodeEpoch(Epoch epoch) override;
  absl::Status SetEpoch(GuestId guest, uint32_t generation, Epoch epoch) override;
  void ForgetGuest(GuestId guest) override;
  absl::Status Send(NodeId to, const Message& message, const SendOptions& options) override;
  absl::StatusOr<SlotId> AcquireSlot(MessageClass message_class, SlotUse use) override;
  std::span<std::byte> SlotBytes(SlotId slot) override;
  void ReleaseSlot(SlotId slot) override;
  absl::Status CancelRequest(SlotId slot) override;
  absl::StatusOr<PeerStatistics> Statistics(NodeId peer) const override;
  TransportStatistics Statistics() const override;

  // SimHost
  void OnConnection(std::unique_ptr<SimSocket> socket) override;
  void SetBusy(MessageClass message_class, bool busy) override;

 private:
  friend class SimChannel;
  using ChannelPointer = std::shared_ptr<SimChannel>;
  using Duration = Simulation::Duration;

  // The memory of the slots of one class and use.
  struct Pool {
    // Frees aligned memory.
    struct Free {
      void operator()(std::byte* bytes) const;
    };
    Pool(size_t count, size_t bytes);

    size_t slots, slot_bytes;
    std::unique_ptr<std::byte[], Free> memory;
  };
  // A message in a send queue.
  struct Entry {
    Message message;  // its body is `body`
    std::vector<std::byte> body;
    SlotId payload;
    uint32_t payload_bytes = 0;
    bool counted = false;  // in sent_messages
  };
  // One class of a peer.
  struct PeerClass {
    explicit PeerClass(const TransportSettings& settings);

    SendWindow<Entry> out;
    ReceiveSequence in;
    uint64_t told = 0;       // the number that was acknowledged to the peer last
    ChannelPointer channel;  // joined
    ChannelPointer dialling;
    uint64_t breaks = 0;  // tells one break from the next
    Duration backoff{};
    bool dial_due = false, ack_due = false;  // a timer runs
    bool ready = false;                      // a Setup was received in this session
    ClassStatistics statistics;
  };
  // A peer. `life` changes when its session ends: timers of before do nothing.
  struct Peer {
    Peer(NodeId self, NodeId peer, const TransportSettings& settings);

    const NodeId id;
    NodeId address;
    PeerSession session;
    std::array<PeerClass, kMessageClasses> classes;
    uint64_t life = 0;
    bool in_session = false;  // from before our first Setup of it until it failed
    bool up = false;
    bool removed = false;
    uint64_t sessions = 0;
    uint64_t first_counter = 0;  // the peer's slots below are void; 0: not told yet
    Monotonic heard{};
  };
  using PeerPointer = std::shared_ptr<Peer>;
  static PeerClass& ClassOf(Peer& peer, MessageClass message_class) {
    return peer.classes[static_cast<size_t>(message_class)];
  }

  // Time and handlers.
  Simulation& simulation() const { return network_->simulation(); }
  Monotonic Now() const { return simulation().Now(); }
  // Unless the transport was stopped or destroyed before.
  void After(Duration delay, std::function<void()> event);
  // The same, unless the peer's session ended before.
  void AfterInLife(const PeerPointer& peer, Duration delay, std::function<void()> event);
  // Handlers are called by an event of their own, in the order of these calls.
  void Tell(std::function<void()> call);
  void TellExpired(const std::vector<ExpiredRequest>& expired);
  void TellSlotsFree();
  void TellAll();
  uint64_t NewNumber();

  // sim_connections.cc
  PeerPointer Find(NodeId peer) const;
  NodeIdentity Identity() const { return {cluster_, settings_.self, node_epoch_}; }
  void DialAll(const PeerPointer& peer);
  void DialLater(const PeerPointer& peer, MessageClass message_class);
  void Dial(const PeerPointer& peer, MessageClass message_class);
  void GiveUpDial(const ChannelPointer& channel);
  void Connected(const ChannelPointer& channel);
  void TakeReply(const ChannelPointer& channel);
  void TakeHello(const ChannelPointer& channel);
  void Answer(const ChannelPointer& channel, const Hello& reply);
  void CloseStranger(const ChannelPointer& channel, bool counted);
  void Join(const PeerPointer& peer, const ChannelPointer& channel, MessageClass message_class);
  void BeginSession(const PeerPointer& peer);
  void WatchLease(const PeerPointer& peer);
  void Beat(const PeerPointer& peer);
  void Broken(const ChannelPointer& channel);
  // What a hello says was received: all, or (SimNetworkSettings) less, but never less than was acknowledged.
  uint64_t SaidReceived(PeerClass* one);
  // How a failed peer's connections end.
  enum class Parting : uint8_t { kGoodbye, kAbort };
  // Ends the session, and tells if the peer was up. `restart`: our number is not new yet.
  void Fail(const PeerPointer& peer, PeerFailure why, const std::string& detail, Parting parting, bool restart = true);
  void CloseChannel(ChannelPointer* channel, Parting parting);

  // sim_messages.cc
  void Done(const Entry& entry);
  void PushBarrier(const PeerPointer& peer, const EpochFloors::Entry& floor);
  void Transmit(const PeerPointer& peer, MessageClass message_class);
  void SendOwn(PeerClass& one, MessageClass message_class, OwnType type, uint8_t flags = 0,
               std::span<const std::byte> body = {});
  void SendFrame(PeerClass& one, Header header, std::span<const std::byte> body, std::span<const std::byte> payload);
  void SendSetup(const PeerPointer& peer, MessageClass message_class);
  void AckSoon(const PeerPointer& peer, MessageClass message_class);
  void TakeMessages(const PeerPointer& peer, MessageClass message_class);
  void TakeAllMessages();
  // False: the peer failed, or its connection is another now.
  bool Take(const PeerPointer& peer, SimChannel* channel, const Header& header, std::span<const std::byte> body,
            std::span<const std::byte> payload);
  bool TakeSetup(const PeerPointer& peer, SimChannel* channel, std::span<const std::byte> body);
  bool Deliver(const PeerPointer& peer, const Message& message, std::span<const std::byte> payload,
               size_t payload_bytes);
  void Malformed(const PeerPointer& peer, const std::string& detail);
  std::span<std::byte> BytesOf(const SlotName& name);
  // `state`: the slot's before the payload came.
  void WriteSlot(SlotId slot, std::span<const std::byte> payload, SlotTable::State state);

  // sim_transport.cc
  // Send's part for a request.
  absl::Status Ask(NodeId to, const Message& message, const SendOptions& options);

  SimNetwork* const network_;
  const TransportSettings settings_;
  TransportHandler* const handler_;
  const uint64_t cluster_;
  Epoch node_epoch_;
  std::shared_ptr<bool> alive_;  // expires with Stop
  bool started_ = false;

  SlotTable slots_;
  std::array<Pool, 4> pools_;  // index: bulk * 2 + send
  EpochFloors floors_;
  std::map<NodeId, PeerPointer> peers_;
  std::deque<ChannelPointer> strangers_;  // oldest first
  std::array<bool, kMessageClasses> busy_{};
  std::deque<std::function<void()>> to_tell_;
  TransportStatistics statistics_;
};

}  // namespace hk
