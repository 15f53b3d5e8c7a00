#include "rdma/sim_network.h"

#include <algorithm>
#include <charconv>

#include "hyperkernel/base/check.h"
#include "rdma/wire.h"

namespace hk {

namespace {

constexpr std::string_view kAddressPrefix = "sim:";

std::string NameOf(NodeId node) {
  return node == SimNetwork::kNowhere ? "?" : std::to_string(node.value());
}

}  // namespace

// Something under way.
struct SimPiece {
  enum class Kind : uint8_t { kConnect, kConnected, kBytes, kWrite, kClose };
  Kind kind = Kind::kBytes;
  Monotonic at{};  // when it arrives
  std::vector<std::byte> bytes{};
  SlotId slot{};                         // kWrite
  std::span<const std::byte> payload{};  // the sender's memory, or `read`
  std::vector<std::byte> read{};

  size_t size() const { return 1 + bytes.size() + payload.size(); }
  // Reads the sender's memory, which may be used for something else from now on.
  void ReadPayload() {
    if (payload.data() == read.data()) return;
    read.assign(payload.begin(), payload.end());
    payload = read;
  }
};

// Both ends of a connection, and what is under way from each.
struct SimSocket::Connection {
  // One end.
  struct End {
    NodeId node;
    std::weak_ptr<SimSocketHandler> handler;
    bool open = false;          // the node holds it, and was not told of its end
    std::deque<SimPiece> sent;  // under way from here, in order of arrival
    Monotonic last{};           // when the last of them arrives
    bool close_sent = false;    // nothing may follow
  };

  std::string Name(int from) const {
    return "c" + std::to_string(id) + " " + NameOf(ends[from].node) + ">" + NameOf(ends[1 - from].node);
  }

  uint64_t id = 0;
  std::array<End, 2> ends;  // [0] connects
};

void SimSocket::SetHandler(std::weak_ptr<SimSocketHandler> handler) {
  if (connection_ != nullptr) connection_->ends[end_].handler = std::move(handler);
}

bool SimSocket::Send(std::span<const std::byte> bytes) {
  return connection_ != nullptr && network_->Send(connection_, end_, SlotId(), {}, bytes);
}

bool SimSocket::SendWrite(SlotId slot, std::span<const std::byte> payload, std::span<const std::byte> bytes) {
  return connection_ != nullptr && network_->Send(connection_, end_, slot, payload, bytes);
}

void SimSocket::Close() {
  if (connection_ == nullptr) return;
  network_->End(connection_, end_, false);
  connection_.reset();
}

void SimSocket::Abort() {
  if (connection_ == nullptr) return;
  network_->End(connection_, end_, true);
  connection_.reset();
}

SimNetwork::SimNetwork(Simulation* simulation, const SimNetworkSettings& settings)
    : simulation_(simulation), settings_(settings) {}

SimNetwork::~SimNetwork() = default;

std::string SimNetwork::AddressOf(NodeId node) {
  return std::string(kAddressPrefix) + std::to_string(node.value());
}

NodeId SimNetwork::NodeOf(const std::string& address) {
  if (!address.starts_with(kAddressPrefix)) return kNowhere;
  uint16_t node = 0;
  const char* const end = address.data() + address.size();
  const auto [read, error] = std::from_chars(address.data() + kAddressPrefix.size(), end, node);
  return error == std::errc() && read == end && node < kMaxNodes ? NodeId(node) : kNowhere;
}

bool SimNetwork::Listen(NodeId node, SimHost* host) {
  return hosts_.emplace(node, host).second;
}

void SimNetwork::StopListening(NodeId node, const SimHost* host) {
  const auto found = hosts_.find(node);
  if (found != hosts_.end() && found->second == host) hosts_.erase(found);
}

std::unique_ptr<SimSocket> SimNetwork::Connect(NodeId from, NodeId to, std::weak_ptr<SimSocketHandler> handler) {
  auto connection = std::make_shared<Connection>();
  connection->id = next_connection_++;
  connection->ends[0].node = from;
  connection->ends[0].handler = std::move(handler);
  connection->ends[0].open = true;
  connection->ends[1].node = to;
  connections_.emplace(connection->id, connection);
  Put(connection, 0, {.kind = SimPiece::Kind::kConnect});
  return std::unique_ptr<SimSocket>(new SimSocket(this, std::move(connection), 0));
}

Simulation::Duration SimNetwork::Delay() {
  Simulation::Duration delay = simulation_->Between(settings_.least_delay, settings_.most_delay);
  if (settings_.spikes_per_million != 0 && simulation_->Chance(settings_.spikes_per_million)) {
    delay += simulation_->Between({}, settings_.spike_delay);
    ++counters_.spikes;
  }
  return delay;
}

void SimNetwork::Put(const std::shared_ptr<Connection>& connection, int end, SimPiece piece) {
  Connection::End& from = connection->ends[end];
  HK_CHECK(!from.close_sent);
  from.close_sent = piece.kind == SimPiece::Kind::kClose;
  from.last = std::max(from.last, simulation_->Now() + Delay());
  piece.at = from.last;
  from.sent.push_back(std::move(piece));
  Wake(connection, end, from.last);
}

bool SimNetwork::Send(const std::shared_ptr<Connection>& connection, int end, SlotId slot,
                      std::span<const std::byte> payload, std::span<const std::byte> bytes) {
  if (!connection->ends[end].open) return true;  // a crashed node's
  // It broke: the sender learns it here first, or from OnClosed.
  if (connection->ends[end].close_sent) return !simulation_->Chance(500'000);
  simulation_->Trace(connection->Name(end) + " send " + std::to_string(bytes.size()) + "+" +
                     std::to_string(payload.size()) + " " + std::to_string(Crc32c(payload, Crc32c(bytes))));
  SimPiece piece;
  piece.bytes.assign(bytes.begin(), bytes.end());
  if (slot != SlotId()) {
    HK_CHECK(settings_.direct_writes);
    piece.kind = SimPiece::Kind::kWrite;
    piece.slot = slot;
    piece.payload = payload;
    Put(connection, end, std::move(piece));
    return true;
  }
  if (!settings_.direct_writes && settings_.flips_per_million != 0 &&
      simulation_->Chance(settings_.flips_per_million)) {
    const uint64_t bit = simulation_->Below(piece.bytes.size() * 8);
    piece.bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    ++counters_.flips;
    simulation_->Trace(connection->Name(end) + " flipped bit " + std::to_string(bit));
  }
  if (piece.bytes.size() > 1 && settings_.splits_per_million != 0 &&
      simulation_->Chance(settings_.splits_per_million)) {
    const auto at = static_cast<ptrdiff_t>(1 + simulation_->Below(piece.bytes.size() - 1));
    ++counters_.splits;
    SimPiece second;
    second.bytes.assign(piece.bytes.begin() + at, piece.bytes.end());
    piece.bytes.erase(piece.bytes.begin() + at, piece.bytes.end());
    Put(connection, end, std::move(piece));
    // Long enough after it for others to arrive between the two.
    connection->ends[end].last += simulation_->Between({}, 4 * settings_.most_delay);
    piece = std::move(second);
  }
  Put(connection, end, std::move(piece));
  return true;
}

void SimNetwork::End(const std::shared_ptr<Connection>& connection, int end, bool abort) {
  if (!connection->ends[end].open) return;
  connection->ends[end].open = false;
  connection->ends[end].handler.reset();
  if (abort) {
    Truncate(connection, end);
  } else if (!connection->ends[end].close_sent) {
    for (SimPiece& piece : connection->ends[end].sent) piece.ReadPayload();
    Put(connection, end, {.kind = SimPiece::Kind::kClose});
  }
}

void SimNetwork::Truncate(const std::shared_ptr<Connection>& connection, int end) {
  Connection::End& from = connection->ends[end];
  size_t bytes = 0;
  for (SimPiece& piece : from.sent) {
    bytes += piece.size();
    piece.ReadPayload();
  }
  size_t kept = simulation_->Below(bytes + 1), index = 0;
  counters_.lost_bytes += bytes - kept;
  while (index < from.sent.size() && kept >= from.sent[index].size()) kept -= from.sent[index++].size();
  if (index < from.sent.size() && kept > 0) {
    // Part of a piece: of a write the first bytes land, and nobody is told.
    SimPiece& piece = from.sent[index++];
    if (piece.kind == SimPiece::Kind::kWrite) {
      piece.payload = piece.payload.first(std::min(kept, piece.payload.size()));
      piece.bytes.clear();
    } else {
      piece.bytes.resize(std::min(kept, piece.bytes.size()));
    }
  }
  from.sent.erase(from.sent.begin() + static_cast<ptrdiff_t>(index), from.sent.end());
  from.close_sent = false;
  Put(connection, end, {.kind = SimPiece::Kind::kClose});
}

void SimNetwork::Wake(const std::shared_ptr<Connection>& connection, int end, Monotonic at) {
  simulation_->At(at, [this, connection, end] { Deliver(connection, end); });
}

void SimNetwork::Deliver(const std::shared_ptr<Connection>& connection, int end) {
  Connection::End& from = connection->ends[end];
  Connection::End& to = connection->ends[1 - end];
  while (!from.sent.empty() && from.sent.front().at <= simulation_->Now()) {
    if (silenced_.count({from.node, to.node}) != 0) {
      ++counters_.held;
      return;
    }
    const SimPiece piece = std::move(from.sent.front());
    from.sent.pop_front();
    if (piece.kind == SimPiece::Kind::kConnect) {
      Arrive(connection);
      continue;
    }
    if (!to.open) {
      // The node that held this end crashed, and a new process answers for its host: no such connection.
      if (!to.close_sent && hosts_.count(to.node) != 0) Put(connection, 1 - end, {.kind = SimPiece::Kind::kClose});
      continue;
    }
    const std::shared_ptr<SimSocketHandler> handler = to.handler.lock();
    switch (piece.kind) {
      case SimPiece::Kind::kConnected:
        if (handler != nullptr) handler->OnConnected();
        break;
      case SimPiece::Kind::kWrite:
        if (handler != nullptr) handler->OnWrite(piece.slot, piece.payload);
        [[fallthrough]];
      case SimPiece::Kind::kBytes:
        simulation_->Trace(connection->Name(end) + " arrived " + std::to_string(piece.bytes.size()) + "+" +
                           std::to_string(piece.payload.size()));
        if (handler != nullptr && !piece.bytes.empty()) handler->OnBytes(piece.bytes);
        break;
      case SimPiece::Kind::kConnect:
        break;
      case SimPiece::Kind::kClose:
        simulation_->Trace(connection->Name(end) + " closed");
        to.open = false;
        to.handler.reset();
        if (handler != nullptr) handler->OnClosed();
        break;
    }
  }
}

void SimNetwork::Arrive(const std::shared_ptr<Connection>& connection) {
  Connection::End& to = connection->ends[1];
  const auto host = hosts_.find(to.node);
  if (!connection->ends[0].open) return;
  if (host == hosts_.end() || cut_.count({connection->ends[0].node, to.node}) != 0) {
    simulation_->Trace(connection->Name(0) + " refused");
    ++counters_.refused;
    Put(connection, 1, {.kind = SimPiece::Kind::kClose});
    return;
  }
  simulation_->Trace(connection->Name(0) + " connected");
  to.open = true;
  Put(connection, 1, {.kind = SimPiece::Kind::kConnected});
  host->second->OnConnection(std::unique_ptr<SimSocket>(new SimSocket(this, connection, 1)));
}

std::vector<std::shared_ptr<SimSocket::Connection>> SimNetwork::Between(NodeId a, NodeId b) {
  std::vector<std::shared_ptr<Connection>> found;
  for (auto it = connections_.begin(); it != connections_.end();) {
    const std::shared_ptr<Connection> connection = it->second.lock();
    if (connection == nullptr) {
      it = connections_.erase(it);
      continue;
    }
    const NodeId from = connection->ends[0].node, to = connection->ends[1].node;
    if ((from == a && to == b) || (from == b && to == a)) found.push_back(connection);
    ++it;
  }
  return found;
}

void SimNetwork::BreakConnection(const std::shared_ptr<Connection>& connection) {
  ++counters_.broken;
  for (const int end : {0, 1}) {
    if (connection->ends[end].open) Truncate(connection, end);
  }
}

void SimNetwork::Break(NodeId a, NodeId b) {
  simulation_->Trace("break " + NameOf(a) + " " + NameOf(b));
  for (const auto& connection : Between(a, b)) BreakConnection(connection);
}

void SimNetwork::BreakOne(NodeId a, NodeId b) {
  const auto connections = Between(a, b);
  if (connections.empty()) return;
  const auto& connection = connections[simulation_->Below(connections.size())];
  simulation_->Trace("break c" + std::to_string(connection->id));
  BreakConnection(connection);
}

void SimNetwork::Cut(NodeId a, NodeId b) {
  simulation_->Trace("cut " + NameOf(a) + " " + NameOf(b));
  cut_.insert({a, b});
  cut_.insert({b, a});
  for (const auto& connection : Between(a, b)) BreakConnection(connection);
}

void SimNetwork::Silence(NodeId from, NodeId to) {
  simulation_->Trace("silence " + NameOf(from) + ">" + NameOf(to));
  silenced_.insert({from, to});
}

void SimNetwork::Heal(NodeId a, NodeId b) {
  simulation_->Trace("heal " + NameOf(a) + " " + NameOf(b));
  for (const Pair& pair : {Pair(a, b), Pair(b, a)}) {
    cut_.erase(pair);
    silenced_.erase(pair);
  }
  for (const auto& connection : Between(a, b)) {
    // What was held back is under way again.
    for (const int end : {0, 1}) {
      Connection::End& from = connection->ends[end];
      Monotonic last = simulation_->Now();
      for (SimPiece& piece : from.sent) {
        if (piece.at <= simulation_->Now()) piece.at = simulation_->Now() + Delay();
        piece.at = last = std::max(piece.at, last);
        Wake(connection, end, last);
      }
      from.last = std::max(from.last, last);
    }
  }
}

void SimNetwork::Crash(NodeId node, bool silently) {
  simulation_->Trace("crash " + NameOf(node) + (silently ? " silently" : ""));
  hosts_.erase(node);
  for (const auto& [id, weak] : connections_) {
    const std::shared_ptr<Connection> connection = weak.lock();
    if (connection == nullptr) continue;
    for (const int end : {0, 1}) {
      Connection::End& here = connection->ends[end];
      if (here.node != node || !here.open) continue;
      here.open = false;
      here.handler.reset();
      Truncate(connection, end);
      if (silently) {
        here.sent.pop_back();
        here.close_sent = false;
      }
    }
  }
}

void SimNetwork::SetBusy(NodeId node, MessageClass message_class, bool busy) {
  const auto host = hosts_.find(node);
  if (host != hosts_.end()) host->second->SetBusy(message_class, busy);
}

}  // namespace hk
