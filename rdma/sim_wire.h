// The simulated back end's part below the engine: dialling, hellos, strangers, and the engine's turns, as events of a
// Simulation.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "rdma/engine.h"
#include "rdma/link.h"
#include "rdma/sim_link.h"
#include "rdma/sim_network.h"

namespace hk {

class SimHandshake;

// One node's. Not thread-safe: the simulation's thread.
class SimWire final : public Wire, public SimHost {
 public:
  SimWire(SimNetwork* network, const TransportSettings& settings);
  ~SimWire() override;

  // Wire.
  absl::Status Start(Engine* engine) override;
  void Stop() override;
  void Dial(NodeId peer, const std::string& address, const Hello& hello, uint64_t attempt) override;
  absl::Status CheckAddress(const std::string& address) const override;
  void WakeClass(MessageClass message_class) override;
  void WakeControl() override;
  uint64_t Random() override;

  // SimHost.
  void OnConnection(std::unique_ptr<SimSocket> socket) override;
  void SetBusy(MessageClass message_class, bool busy) override;

  // For links and handshakes.
  Engine& engine() const { return *engine_; }
  SimNetwork& network() const { return *network_; }
  Simulation& simulation() const { return network_->simulation(); }
  bool busy(MessageClass message_class) const { return busy_[static_cast<size_t>(message_class)]; }
  // Unless the wire was stopped before.
  void After(Simulation::Duration delay, std::function<void()> event);
  // Now, or when the class's handlers are no longer busy.
  void WhenFree(MessageClass message_class, std::function<void()> event);
  void ClassDue(MessageClass message_class);
  void Written(SlotId slot, std::span<const std::byte> payload);
  void Forget(SimLink* link);
  void TakeHello(const std::shared_ptr<SimHandshake>& handshake);
  void TakeReply(const std::shared_ptr<SimHandshake>& handshake);
  void HandshakeEnded(const std::shared_ptr<SimHandshake>& handshake, StrangerEnd why, const std::string& detail);

 private:
  void Expect(const std::shared_ptr<SimHandshake>& handshake);
  void Attach(const LinkTicket& ticket, const std::shared_ptr<SimHandshake>& handshake);
  void RunClass(MessageClass message_class);
  void RunControl();

  SimNetwork* const network_;
  const TransportSettings settings_;
  Engine* engine_ = nullptr;
  std::shared_ptr<bool> alive_;                                    // expires with Stop
  std::deque<std::shared_ptr<SimHandshake>> dialled_, strangers_;  // oldest first
  std::vector<std::shared_ptr<SimLink>> links_;                    // not closed
  std::array<bool, kMessageClasses> busy_{};
  std::array<std::vector<std::function<void()>>, kMessageClasses> when_free_;
  std::array<bool, kMessageClasses> class_due_{};  // an event for now is there
  bool control_due_ = false;
};

// A connection until it is a peer's. Not thread-safe.
class SimHandshake final : public SimSocketHandler, public std::enable_shared_from_this<SimHandshake> {
 public:
  explicit SimHandshake(SimWire* wire) : wire_(wire) {}

  // SimSocketHandler.
  void OnConnected() override { socket->Send(EncodeHello(hello)); }
  void OnBytes(std::span<const std::byte> bytes) override;
  void OnWrite(SlotId /*slot*/, std::span<const std::byte> /*payload*/) override {}
  void OnClosed() override;

  std::unique_ptr<SimSocket> socket;
  std::vector<std::byte> received;
  bool dialled = false;
  NodeId peer;           // dialled
  Hello hello;           // dialled: what is said
  uint64_t attempt = 0;  // dialled
  bool over = false;

 private:
  SimWire* const wire_;
};

}  // namespace hk
