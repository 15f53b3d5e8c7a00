#include "rdma/session.h"

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"

namespace hk {

namespace {

HandshakeOutcome Fail(PeerFailure why) {
  HandshakeOutcome outcome;
  outcome.failed = why;
  return outcome;
}

}  // namespace

void PeerSession::Restart(uint64_t number) {
  HK_CHECK(number != 0);
  session_ = number;
  peer_session_ = 0;
  known_ = {};
}

Hello PeerSession::Say(const NodeIdentity& self, HelloKind kind, MessageClass message_class) const {
  Hello hello;
  hello.kind = kind;
  hello.message_class = message_class;
  hello.cluster = self.cluster;
  hello.from = self_;
  hello.to = peer_;
  hello.node_epoch = self.node_epoch;
  hello.session = session_;
  hello.peer_session = peer_session_;
  return hello;
}

HandshakeOutcome PeerSession::Reject(const NodeIdentity& self, HelloKind why, MessageClass message_class) const {
  HandshakeOutcome outcome;
  outcome.reply = Say(self, why, message_class);
  if (why == HelloKind::kRejectEpoch) outcome.reply.node_epoch = admit_from_;
  return outcome;
}

Hello PeerSession::MakeHello(const NodeIdentity& self, MessageClass message_class, uint64_t received) const {
  HK_CHECK(Dials() && session_ != 0);
  Hello hello = Say(self, HelloKind::kHello, message_class);
  hello.received = received;
  return hello;
}

HandshakeOutcome PeerSession::OnReply(const NodeIdentity& self, MessageClass message_class, const Hello& reply) {
  switch (reply.kind) {
    case HelloKind::kAcceptFresh:
    case HelloKind::kAcceptResumed:
      break;
    case HelloKind::kRejectSession:
    case HelloKind::kRejectResume:
      return Fail(PeerFailure::kRestarted);
    case HelloKind::kRejectBusy:
      return {};
    case HelloKind::kHello:
      return Fail(PeerFailure::kMalformed);
    default:
      return Fail(PeerFailure::kRejected);
  }
  if (reply.cluster != self.cluster || reply.from != peer_ || reply.to != self_ || reply.node_epoch < admit_from_) {
    return Fail(PeerFailure::kRejected);
  }
  if (reply.message_class != message_class || reply.peer_session != session_) return Fail(PeerFailure::kMalformed);
  if (peer_session_ != 0 && reply.session != peer_session_) return Fail(PeerFailure::kRestarted);
  bool& known = known_[static_cast<size_t>(message_class)];
  if (reply.kind == HelloKind::kAcceptFresh) {
    if (known) return Fail(PeerFailure::kRestarted);
    if (reply.received != 0) return Fail(PeerFailure::kMalformed);
  }
  peer_session_ = reply.session;
  known = true;
  HandshakeOutcome outcome;
  outcome.connected = true;
  outcome.resume_from = reply.received;
  return outcome;
}

HandshakeOutcome PeerSession::OnHello(const NodeIdentity& self, const Hello& hello, uint64_t received,
                                      uint64_t number) {
  const MessageClass message_class = hello.message_class;
  if (Dials()) return Reject(self, HelloKind::kRejectRole, message_class);
  if (hello.node_epoch < admit_from_ && !HK_MUTANT(fenced_peer_admitted)) {
    return Reject(self, HelloKind::kRejectEpoch, message_class);
  }
  if (hello.peer_session != 0 && (hello.peer_session != session_ || hello.session != peer_session_) &&
      !HK_MUTANT(unknown_session_resumed)) {
    return Reject(self, HelloKind::kRejectSession, message_class);
  }
  HandshakeOutcome outcome;
  if (hello.session != peer_session_) {
    // It begins a session, so it has given up the one that we know.
    if (peer_session_ != 0) outcome.failed = PeerFailure::kRestarted;
    Restart(number);
    peer_session_ = hello.session;
  }
  // A class that we know and the dialler does not was accepted, but the reply got lost: resumed from 0.
  bool& known = known_[static_cast<size_t>(message_class)];
  if (!known && hello.received != 0) {
    HandshakeOutcome rejected = Reject(self, HelloKind::kRejectResume, message_class);
    rejected.failed = outcome.failed;
    return rejected;
  }
  outcome.reply = Say(self, known ? HelloKind::kAcceptResumed : HelloKind::kAcceptFresh, message_class);
  outcome.reply.received = outcome.failed || !known ? 0 : received;
  outcome.connected = true;
  outcome.resume_from = hello.received;
  known = true;
  return outcome;
}

HandshakeOutcome PeerSession::CannotResume(const NodeIdentity& self, MessageClass message_class) const {
  HandshakeOutcome outcome = Reject(self, HelloKind::kRejectResume, message_class);
  outcome.failed = PeerFailure::kRestarted;
  return outcome;
}

std::optional<Hello> RefuseStranger(const NodeIdentity& self, const Hello& hello, bool is_peer) {
  HelloKind why = HelloKind::kHello;
  if (hello.kind != HelloKind::kHello) {
    why = HelloKind::kRejectRole;
  } else if (hello.cluster != self.cluster && !HK_MUTANT(other_cluster_connected)) {
    why = HelloKind::kRejectCluster;
  } else if (hello.to != self.self || hello.from == self.self || !is_peer) {
    why = HelloKind::kRejectNode;
  }
  if (why == HelloKind::kHello) return std::nullopt;
  Hello reply;
  reply.kind = why;
  reply.message_class = hello.message_class;
  reply.cluster = self.cluster;
  reply.from = self.self;
  reply.to = hello.from;
  reply.node_epoch = self.node_epoch;
  return reply;
}

Hello RefuseVersion(const NodeIdentity& self) {
  Hello reply;
  reply.kind = HelloKind::kRejectVersion;
  reply.cluster = self.cluster;
  reply.from = self.self;
  reply.node_epoch = self.node_epoch;
  return reply;
}

}  // namespace hk
