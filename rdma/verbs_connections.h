// The connection manager of verbs: dials and accepts through rdma_cm, with hellos as private data, and gives the engine
// its threads. One control thread handles all events of rdma_cm and of the device, and destroys what is over.
//
// Life of a connection: identifier and queue pair are made here; when rdma_cm says that it is established it becomes a
// link of the engine and of its class's poller; when the poller has forgotten the link, both are destroyed here.
#pragma once

#include <rdma/rdma_cma.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "hyperkernel/base/address.h"
#include "hyperkernel/base/mutex.h"
#include "rdma/engine.h"
#include "rdma/link.h"
#include "rdma/thread_wake.h"
#include "rdma/verbs_link.h"
#include "rdma/verbs_poller.h"
#include "rdma/verbs_port.h"
#include "rdma/verbs_queue_pair.h"

namespace hk {

// A transport's wire over verbs. Wire's methods and Break are thread-safe; all else is the control thread's.
class VerbsWire final : public Wire {
 public:
  // `listen`: an IP literal, not a wildcard.
  VerbsWire(const TransportSettings& settings, const Address& listen);
  ~VerbsWire() override;

  // Wire.
  absl::Status Start(Engine* engine) override;
  void Stop() override;
  void Dial(NodeId peer, const std::string& address, const Hello& hello, uint64_t attempt) override;
  absl::Status CheckAddress(const std::string& address) const override;
  void WakeClass(MessageClass message_class) override;
  void WakeControl() override;
  uint64_t Random() override;

  // All connections of the peer break, as exhausted retries break them, before this returns. For tests.
  void Break(NodeId peer);

 private:
  // Where a connection is on its way.
  enum class Phase : uint8_t { kAddress, kRoute, kConnecting, kAccepted, kLive };
  // One connection. Members in this order: the queue pair goes before its identifier.
  struct Connection {
    RdmaId id;
    Phase phase = Phase::kAddress;
    NodeId peer;
    MessageClass message_class = MessageClass::kFault;
    Hello hello;                       // dialled: what we say
    uint64_t attempt = 0;              // dialled: the engine's number; 0: it was told how it ended
    std::optional<LinkTicket> ticket;  // accepted
    Monotonic deadline{};              // of the handshake
    std::unique_ptr<QueuePair> pair;   // until it is the link's
    std::shared_ptr<VerbsLink> link;
  };
  // What rdma_cm told, copied, so that identifiers can be destroyed while it is handled.
  struct Event {
    rdma_cm_event_type type;
    int status;
    rdma_cm_id* id;  // new: kConnectRequest only
    uint64_t key;
    std::vector<std::byte> private_data;
  };

  void Run();
  void Sleep(Monotonic due);
  // Events.
  void TakeEvents();
  void TakeDeviceEvents();
  void TakeEarly();
  void OnEvent(Event* event);
  void OnEarlyMessage(Connection* connection);
  void OnRequest(Event* event);
  void OnDialling(uint64_t key, Connection* connection, const Event& event);
  void OnEstablished(uint64_t key, Connection* connection, const Event& event);
  // Steps.
  absl::Status BeginDial(NodeId peer, const std::string& address, const Hello& hello, uint64_t attempt);
  absl::Status MakePair(uint64_t key, Connection* connection);
  absl::Status Say(Connection* connection);
  void MakeLink(uint64_t key, Connection* connection, const LinkTicket& ticket);
  void DialFailed(Connection* connection, const std::string& detail);
  // The connection was never a link: ends it, tells the engine.
  void GiveUp(uint64_t key, const std::string& detail);
  void Destroy(uint64_t key);
  rdma_conn_param Parameters(std::span<const std::byte> private_data) const;
  Monotonic EndOverdue();
  // When to call again.
  Monotonic DestroyGone();
  void BoundAccepted();
  // The device.
  void DeviceGone(const std::string& detail);
  Monotonic TendPort();

  VerbsPoller& PollerOf(MessageClass message_class) { return *pollers_[static_cast<size_t>(message_class)]; }

  const TransportSettings settings_;
  const Address listen_;
  Engine* engine_ = nullptr;
  WakeFlag wake_;
  std::thread thread_;
  std::atomic<bool> stop_{false};

  Mutex mutex_;
  std::vector<uint64_t> gone_ ABSL_GUARDED_BY(mutex_);   // links that pollers have forgotten
  std::vector<uint64_t> early_ ABSL_GUARDED_BY(mutex_);  // queue pairs that received before they were links
  std::map<uint64_t, VerbsLink*> live_ ABSL_GUARDED_BY(mutex_);

  RdmaEvents events_;
  SpinPermits permits_;
  std::unique_ptr<VerbsPort> port_;
  bool device_gone_ = false;  // the port is to be closed when nothing uses it any more
  Monotonic reopen_{};        // without a port: when to try next
  std::chrono::milliseconds reopen_pause_{0};
  // Dials that could not begin: the engine is told outside of its call.
  std::vector<std::tuple<NodeId, MessageClass, uint64_t, std::string>> failed_dials_;
  uint64_t next_key_ = 1;
  std::map<uint64_t, Connection> connections_;
  std::array<std::unique_ptr<VerbsPoller>, kMessageClasses> pollers_;
};

}  // namespace hk
