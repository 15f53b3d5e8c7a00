// The network of a simulated cluster: connections that carry bytes in order with delays by seed, and fail on purpose.
// A connection behaves as TCP's or as an RC queue pair's: what arrives is a prefix of what was sent.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "rdma/simulation.h"
#include "rdma/transport.h"

namespace hk {

// What the network does by itself, by seed. Plain value.
struct SimNetworkSettings {
  Simulation::Duration least_delay = std::chrono::microseconds(5);
  Simulation::Duration most_delay = std::chrono::microseconds(50);
  uint32_t spikes_per_million = 0;  // sends that are delayed up to spike_delay, and all behind them
  Simulation::Duration spike_delay = std::chrono::milliseconds(100);
  uint32_t stalls_per_million = 0;  // sends of a message that a link refuses (kFull) for up to stall_delay
  Simulation::Duration stall_delay = std::chrono::milliseconds(1);
  uint32_t splits_per_million = 0;  // sends that arrive in two parts
  uint32_t flips_per_million =
      0;  // sends with one bit flipped; none with direct_writes: a fabric has checks of its own
  // Numbered messages behind which an earlier one of the same connection comes again. None with direct_writes: a queue
  // pair does not repeat, and a repeated write would land in another use of its slot.
  uint32_t repeats_per_million = 0;
  // Payloads land in the slot's memory when they arrive, before anyone looks, as RDMA writes do, and are read from the
  // sender's memory no earlier than a device might. Else they are part of the stream, as over TCP.
  bool direct_writes = false;
};

// How often the network did what it does by itself, or was told to do. Plain value.
struct SimNetworkCounters {
  uint64_t spikes = 0, stalls = 0, splits = 0, flips = 0, repeats = 0;
  uint64_t broken = 0;      // connections
  uint64_t lost_bytes = 0;  // that were under way then
  uint64_t refused = 0;     // connections, because of a cut or since nobody listens
  uint64_t held = 0;        // times that something stood before a silence
};

// Where a connection's end is told of things. Called by events only, never inside a call of the socket's.
class SimSocketHandler {
 public:
  virtual ~SimSocketHandler() = default;
  virtual void OnConnected() = 0;  // the connecting end: the other end listens
  virtual void OnBytes(std::span<const std::byte> bytes) = 0;
  virtual void OnWrite(SlotId slot, std::span<const std::byte> payload) = 0;  // direct_writes
  virtual void OnClosed() = 0;  // the connection ended, and not by this end; the last call
};

class SimNetwork;
struct SimPiece;

// One end of a connection. Destroying it aborts.
class SimSocket {
 public:
  ~SimSocket() { Abort(); }
  SimSocket(const SimSocket&) = delete;
  SimSocket& operator=(const SimSocket&) = delete;

  void SetHandler(std::weak_ptr<SimSocketHandler> handler);
  // False: the connection is known to have ended; OnClosed follows all the same.
  bool Send(std::span<const std::byte> bytes);
  // direct_writes: `payload` lands in the other end's `slot`, then `bytes` arrive. The memory is read when it lands, or
  // when this end gives the connection up or loses it: until then it stays as it is.
  bool SendWrite(SlotId slot, std::span<const std::byte> payload, std::span<const std::byte> bytes);
  // Ends the connection after everything sent has arrived, or at once; nothing is received any more.
  void Close();
  void Abort();

 private:
  friend class SimNetwork;
  struct Connection;
  SimSocket(SimNetwork* network, std::shared_ptr<Connection> connection, int end)
      : network_(network), connection_(std::move(connection)), end_(end) {}

  SimNetwork* const network_;
  std::shared_ptr<Connection> connection_;  // null: closed
  const int end_;
};

// A node, as the network sees it.
class SimHost {
 public:
  virtual ~SimHost() = default;
  virtual void OnConnection(std::unique_ptr<SimSocket> socket) = 0;
  // Its handlers of the class are busy: nothing of it is delivered until they are not.
  virtual void SetBusy(MessageClass message_class, bool busy) = 0;
};

// Hears of what no handler sees. For checkers.
class SimObserver {
 public:
  virtual ~SimObserver() = default;
  // Bytes of a payload were written to a receive slot's memory.
  virtual void OnSlotWrite(NodeId node, SlotId slot, std::span<const std::byte> bytes) = 0;
  // More numbered messages are under way to the node than it has buffers for.
  virtual void OnOverrun(NodeId node, NodeId from, MessageClass message_class) = 0;
};

// All connections of a cluster. Outlives its sockets and transports. Not thread-safe.
class SimNetwork {
 public:
  // A connection of nobody in particular comes from here.
  static constexpr NodeId kNowhere{0xffff};

  SimNetwork(Simulation* simulation, const SimNetworkSettings& settings);
  ~SimNetwork();

  Simulation& simulation() const { return *simulation_; }
  SimNetworkSettings& settings() { return settings_; }  // may be changed at any time, direct_writes excepted
  SimNetworkCounters& counters() { return counters_; }
  void SetObserver(SimObserver* observer) { observer_ = observer; }
  SimObserver* observer() const { return observer_; }
  // The address of a node for AddPeer, and the node of such an address (kNowhere: not one).
  static std::string AddressOf(NodeId node);
  static NodeId NodeOf(const std::string& address);

  // False: another listens there.
  bool Listen(NodeId node, SimHost* host);
  void StopListening(NodeId node, const SimHost* host);
  std::unique_ptr<SimSocket> Connect(NodeId from, NodeId to, std::weak_ptr<SimSocketHandler> handler);

  // All connections between the two end: of what is under way a random part still arrives, both ends are told.
  void Break(NodeId a, NodeId b);
  // One random connection between the two.
  void BreakOne(NodeId a, NodeId b);
  // Break, and no new connection until Heal.
  void Cut(NodeId a, NodeId b);
  // What `from` sends to `to` does not arrive, and nobody is told, until Heal.
  void Silence(NodeId from, NodeId to);
  void Heal(NodeId a, NodeId b);
  // The node is gone: nothing it sends or closes has an effect on others any more. Its transport is to be destroyed
  // next. `silently`: the others are not told that its connections ended.
  void Crash(NodeId node, bool silently);
  void SetBusy(NodeId node, MessageClass message_class, bool busy);

 private:
  friend class SimSocket;
  using Connection = SimSocket::Connection;
  using Pair = std::pair<NodeId, NodeId>;

  Simulation::Duration Delay();
  void Put(const std::shared_ptr<Connection>& connection, int end, SimPiece piece);
  bool Send(const std::shared_ptr<Connection>& connection, int end, SlotId slot, std::span<const std::byte> payload,
            std::span<const std::byte> bytes);
  // The end is given up by its node.
  void End(const std::shared_ptr<Connection>& connection, int end, bool abort);
  // Of what is under way from `end` a random part from the front still arrives, then the connection's end.
  void Truncate(const std::shared_ptr<Connection>& connection, int end);
  void BreakConnection(const std::shared_ptr<Connection>& connection);
  void Wake(const std::shared_ptr<Connection>& connection, int end, Monotonic at);
  // Delivers what has arrived from `end` at the other end.
  void Deliver(const std::shared_ptr<Connection>& connection, int end);
  // The connection arrives at the node that listens.
  void Arrive(const std::shared_ptr<Connection>& connection);
  std::vector<std::shared_ptr<Connection>> Between(NodeId a, NodeId b);

  Simulation* const simulation_;
  SimNetworkSettings settings_;
  SimNetworkCounters counters_;
  SimObserver* observer_ = nullptr;
  uint64_t next_connection_ = 1;
  std::map<NodeId, SimHost*> hosts_;
  std::map<uint64_t, std::weak_ptr<Connection>> connections_;
  std::set<Pair> cut_;       // both orders
  std::set<Pair> silenced_;  // from, to
};

}  // namespace hk
