// The handshake's decisions, shared by all back ends: whether a hello is let in, whether a connection begins a session,
// joins it or resumes it, and when the old session is over. Pure: random numbers, time and connections are the
// caller's. The rules are in rdma/README.md, Handshake.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>

#include "rdma/transport.h"
#include "rdma/wire.h"

namespace hk {

// What every connection of a node goes by.
struct NodeIdentity {
  uint64_t cluster = 0;  // ClusterHash
  NodeId self;
  Epoch node_epoch;
};

// What the caller has to do after a hello or its reply, in this order.
struct HandshakeOutcome {
  std::optional<PeerFailure>
      failed;                // the session until now is over: fail the peer (tell, if it was up), close its connections
  bool connected = false;    // the connection is this class's; one that it had before is replaced. Else: close it
  uint64_t resume_from = 0;  // connected: SendWindow::Resume(resume_from); if that fails, CannotResume
  Hello reply;               // accepting side: send it, whatever the outcome
};

// The session with one peer. The node with the smaller number dials, so two hellos never cross. Not thread-safe.
//
// Invariants: session numbers of both ends change together, so one pair of numbers means one history of messages; a
// class is connected fresh at most once per session.
class PeerSession {
 public:
  PeerSession(NodeId self, NodeId peer) : self_(self), peer_(peer) {}

  bool Dials() const { return self_ < peer_; }
  // Begins a new session: numbers of classes are forgotten. `number`: random, not 0. The dialler calls it before its
  // first hello and after every failure of the peer; the other end after every failure that it found itself.
  void Restart(uint64_t number);
  // Hellos of the peer with a smaller epoch are refused from now on (ResetPeer).
  void AdmitFrom(Epoch epoch) { admit_from_ = std::max(admit_from_, epoch); }

  // Dialler: the hello of a connection of this class. `received`: ReceiveSequence::received of the class. REQUIRES:
  // Restart.
  Hello MakeHello(const NodeIdentity& self, MessageClass message_class, uint64_t received) const;
  // Dialler: the reply came. After `failed`: Restart.
  HandshakeOutcome OnReply(const NodeIdentity& self, MessageClass message_class, const Hello& reply);
  // The other end: a hello came whose `from` is this peer. `number`: as for Restart, used if the hello begins a
  // session.
  HandshakeOutcome OnHello(const NodeIdentity& self, const Hello& hello, uint64_t received, uint64_t number);
  // SendWindow::Resume refused what the outcome said: the other outcome, to be used instead.
  HandshakeOutcome CannotResume(const NodeIdentity& self, MessageClass message_class) const;

  bool Known(MessageClass message_class) const { return known_[static_cast<size_t>(message_class)]; }
  uint64_t session() const { return session_; }

 private:
  Hello Say(const NodeIdentity& self, HelloKind kind, MessageClass message_class) const;
  HandshakeOutcome Reject(const NodeIdentity& self, HelloKind why, MessageClass message_class) const;

  const NodeId self_, peer_;
  Epoch admit_from_;
  uint64_t session_ = 0;                       // ours; 0: none
  uint64_t peer_session_ = 0;                  // the peer's, 0: not told yet
  std::array<bool, kMessageClasses> known_{};  // connected once in this session
};

// The reply to a hello that is nobody's, because `from` is no peer here or something else is wrong; nullopt: ask the
// PeerSession of `hello.from`. `is_peer`: a peer of that number was added.
std::optional<Hello> RefuseStranger(const NodeIdentity& self, const Hello& hello, bool is_peer);
// The reply to a hello that DecodeHello refused for its version.
Hello RefuseVersion(const NodeIdentity& self);

}  // namespace hk
