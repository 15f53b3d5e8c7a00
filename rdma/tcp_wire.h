// TCP's part of a transport but for the data: listens, dials, shakes hands, each with its deadline, and gives finished
// connections to the loop of their class. One thread, the control thread of engine.h.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/mutex.h"
#include "rdma/engine.h"
#include "rdma/link.h"
#include "rdma/stranger_queue.h"
#include "rdma/tcp_handshake.h"
#include "rdma/tcp_loop.h"
#include "rdma/tcp_partings.h"
#include "rdma/tcp_socket.h"
#include "rdma/tcp_transport.h"

namespace hk {

// Looks up host names without keeping anybody waiting. Thread-safe.
class HostResolver {
 public:
  // Look-ups at once; a name server that does not answer keeps each for half a minute.
  static constexpr int kMaxLookups = 8;

  // The result of one look-up.
  struct Found {
    DialTarget target;
    absl::StatusOr<SocketAddress> address;
  };

  // `wake` is called when a result is there, until Stop.
  explicit HostResolver(std::function<void()> wake);
  ~HostResolver() { Stop(); }
  // False: too many are under way.
  bool Look(const Address& address, const DialTarget& target);
  std::vector<Found> Take();
  // Does not wait for look-ups: their results are dropped.
  void Stop();

 private:
  // Shared with the look-ups' threads, which may outlive the resolver.
  struct Shared {
    Mutex mutex;
    std::function<void()> wake ABSL_GUARDED_BY(mutex);
    std::vector<Found> found ABSL_GUARDED_BY(mutex);
    int running ABSL_GUARDED_BY(mutex) = 0;
  };
  const std::shared_ptr<Shared> shared_;
};

// The wire. Thread safety: see Wire.
class TcpWire final : public Wire {
 public:
  // `cpus`: how many this process may use.
  TcpWire(const TransportSettings& settings, TcpOptions options, std::unique_ptr<TlsContext> tls, unsigned cpus);
  ~TcpWire() override;

  // Wire.
  absl::Status Start(Engine* engine) override;
  void Stop() override;
  void Dial(NodeId peer, const std::string& address, const Hello& hello, uint64_t attempt) override;
  absl::Status CheckAddress(const std::string& address) const override;
  void WakeClass(MessageClass message_class) override;
  void WakeControl() override;
  uint64_t Random() override;

 private:
  // A dial that ended before it began; told from the thread's loop.
  struct Failed {
    DialTarget target;
    std::string detail;
  };

  void Run();
  Monotonic NextDeadline() const;
  Monotonic BreakDead(Monotonic now);
  Monotonic Listen(Monotonic now);
  // The listener is not looked at for a while.
  void Rest(const std::string& why);
  void Accept();
  bool AcceptOne();
  void Connect(const SocketAddress& address, const DialTarget& target);
  void TakeDials();
  // `source`: of an accepted one. Returns its number.
  uint64_t Add(std::unique_ptr<TcpHandshake> handshake, const std::string& source);
  void Progress(uint64_t id);
  void OnHello(TcpHandshake* handshake);
  void OnReply(TcpHandshake* handshake);
  void Finish(const LinkTicket& ticket, TcpHandshake* handshake);
  void CloseLate();
  // Closes one stranger so that others have room. False: there is none.
  bool MakeRoom(StrangerEnd reason);
  void End(uint64_t id, StrangerEnd reason, const std::string& detail);

  const TransportSettings settings_;
  const std::string listen_;
  OwnedFd listener_;
  const std::function<std::string(NodeId)> name_of_;
  const std::unique_ptr<TlsContext> tls_;
  SpinPermits permits_;
  TcpPartings partings_;
  std::array<std::unique_ptr<TcpLoop>, kMessageClasses> loops_;
  Engine* engine_ = nullptr;
  OwnedFd epoll_;
  WakeFlag wake_;
  HostResolver resolver_;
  std::thread thread_;
  std::atomic<bool> stop_{false};

  // The thread's own.
  std::map<uint64_t, std::unique_ptr<TcpHandshake>> handshakes_;  // by age
  StrangerQueue strangers_;                                       // accepted ones among them
  uint64_t next_id_;
  std::vector<Failed> failed_;
  Monotonic accept_after_{};  // the listener rests until then
  bool listening_ = false;
  Monotonic dead_due_{};  // when to look for dead connections
};

}  // namespace hk
