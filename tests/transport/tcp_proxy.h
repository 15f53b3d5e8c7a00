// A network between nodes over TCP that can be made to fail: each direction of each pair dials through a port of its
// own, whose bytes are passed on, held back, or lost with their connections.
#pragma once

#include <sys/socket.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/types.h"

namespace hk {

// One thread passes all bytes on. Methods are thread-safe.
class TcpProxy {
 public:
  TcpProxy();
  ~TcpProxy();

  // The address at which `from` reaches `to`, whose own port on this host is `port`.
  std::string Address(NodeId from, NodeId to, uint16_t port);
  // Faults between the two nodes, both directions. When these return, they have happened.
  void Break(NodeId a, NodeId b);
  void Cut(NodeId a, NodeId b, bool cut);
  void Silence(NodeId a, NodeId b, bool silent);

 private:
  // One way of a connection: bytes read from one end and not yet written to the other.
  struct Way {
    std::vector<char> bytes;
    size_t written = 0;
    bool ended = false;
  };
  // A connection through the proxy. Both ends non-blocking.
  struct Connection {
    OwnedFd near, far;
    Way out, back;
    bool connected = false;
  };
  // The port of one direction of one pair.
  struct Route {
    OwnedFd listener;
    uint16_t target = 0;
    bool cut = false, silent = false;
    std::vector<std::unique_ptr<Connection>> connections;
  };
  using Key = std::pair<NodeId, NodeId>;

  void Run();
  // False: the connection is over.
  static bool Serve(Connection* connection);
  static bool Pass(int from, int to, Way* way);
  void Accept(Route* route) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Wake();

  Mutex mutex_;
  std::map<Key, Route> routes_ ABSL_GUARDED_BY(mutex_);
  OwnedFd wake_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace hk
