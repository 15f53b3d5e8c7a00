#include "rdma/session.h"

#include "gtest/gtest.h"

namespace hk {
namespace {

constexpr MessageClass kFault = MessageClass::kFault;
constexpr MessageClass kBulk = MessageClass::kBulk;
constexpr NodeId kA(1), kB(2);

// Two nodes: A dials, B accepts. A lost reply or a lost connection is not calling something.
class SessionTest : public ::testing::Test {
 protected:
  SessionTest() { dialler_.Restart(100); }

  HandshakeOutcome ToB(const Hello& hello, uint64_t received = 0) {
    Hello read;
    EXPECT_EQ(DecodeHello(EncodeHello(hello), &read), WireError::kNone);
    const HandshakeOutcome outcome = acceptor_.OnHello(b_, read, received, next_number_++);
    EXPECT_EQ(DecodeHello(EncodeHello(outcome.reply), &read), WireError::kNone) << "the reply is well-formed";
    return outcome;
  }
  // A whole handshake; what A makes of it.
  HandshakeOutcome Connect(MessageClass message_class, uint64_t a_received = 0, uint64_t b_received = 0) {
    last_ = ToB(dialler_.MakeHello(a_, message_class, a_received), b_received);
    return dialler_.OnReply(a_, message_class, last_.reply);
  }

  NodeIdentity a_{7, kA, Epoch(1)}, b_{7, kB, Epoch(1)};
  PeerSession dialler_{kA, kB}, acceptor_{kB, kA};
  uint64_t next_number_ = 200;
  HandshakeOutcome last_;  // B's
};

TEST_F(SessionTest, ClassesJoinOneSession) {
  for (const MessageClass message_class : {kFault, MessageClass::kInvalidate, kBulk}) {
    EXPECT_FALSE(dialler_.Known(message_class));
    const HandshakeOutcome outcome = Connect(message_class);
    EXPECT_TRUE(outcome.connected);
    EXPECT_FALSE(outcome.failed);
    EXPECT_EQ(last_.reply.kind, HelloKind::kAcceptFresh);
    EXPECT_TRUE(last_.connected);
    EXPECT_FALSE(last_.failed);
    EXPECT_TRUE(dialler_.Known(message_class));
  }
  EXPECT_EQ(acceptor_.session(), 200u);
}

TEST_F(SessionTest, ABrokenConnectionGoesOnWhereItStopped) {
  Connect(kFault);
  Connect(kBulk);
  const HandshakeOutcome outcome = Connect(kFault, 17, 23);
  EXPECT_TRUE(outcome.connected);
  EXPECT_EQ(outcome.resume_from, 23u);
  EXPECT_EQ(last_.reply.kind, HelloKind::kAcceptResumed);
  EXPECT_EQ(last_.resume_from, 17u);
  EXPECT_FALSE(last_.failed);
}

TEST_F(SessionTest, ALostReplyIsResumedFromNothing) {
  ToB(dialler_.MakeHello(a_, kFault, 0));
  const HandshakeOutcome outcome = Connect(kFault);
  EXPECT_TRUE(outcome.connected);
  EXPECT_EQ(outcome.resume_from, 0u);
  EXPECT_FALSE(last_.failed);
}

TEST_F(SessionTest, ARestartedDiallerEndsTheOldSession) {
  Connect(kFault);
  dialler_.Restart(101);
  const HandshakeOutcome outcome = Connect(kFault, 0, 23);
  EXPECT_TRUE(outcome.connected);
  EXPECT_EQ(outcome.resume_from, 0u) << "B's old numbers mean nothing now";
  EXPECT_EQ(last_.failed, PeerFailure::kRestarted);
  EXPECT_EQ(last_.reply.kind, HelloKind::kAcceptFresh);
  EXPECT_FALSE(acceptor_.Known(kBulk));
}

TEST_F(SessionTest, ARestartedAcceptorIsNoticed) {
  Connect(kFault);
  acceptor_.Restart(300);
  EXPECT_EQ(Connect(kFault, 17).failed, PeerFailure::kRestarted);
  EXPECT_EQ(last_.reply.kind, HelloKind::kRejectSession);
  EXPECT_FALSE(last_.connected);
  dialler_.Restart(101);
  EXPECT_TRUE(Connect(kFault).connected);
}

TEST_F(SessionTest, AnAcceptorThatRestartsBetweenTwoClassesIsNoticed) {
  const Hello fault = dialler_.MakeHello(a_, kFault, 0);
  const Hello bulk = dialler_.MakeHello(a_, kBulk, 0);
  const Hello first = ToB(fault).reply;
  acceptor_.Restart(300);
  const Hello second = ToB(bulk).reply;
  EXPECT_TRUE(dialler_.OnReply(a_, kFault, first).connected);
  EXPECT_EQ(dialler_.OnReply(a_, kBulk, second).failed, PeerFailure::kRestarted);
}

TEST_F(SessionTest, WhatCannotBeResumedIsOver) {
  Connect(kFault);
  const HandshakeOutcome outcome = acceptor_.CannotResume(b_, kFault);
  EXPECT_EQ(outcome.failed, PeerFailure::kRestarted);
  EXPECT_FALSE(outcome.connected);
  EXPECT_EQ(dialler_.OnReply(a_, kFault, outcome.reply).failed, PeerFailure::kRestarted);
  Hello hello = dialler_.MakeHello(a_, kBulk, 0);
  hello.received = 5;
  EXPECT_EQ(ToB(hello).reply.kind, HelloKind::kRejectResume) << "of a class that never was connected";
}

TEST_F(SessionTest, AFencedPeerStaysOutUntilReadmitted) {
  Connect(kFault);
  acceptor_.AdmitFrom(Epoch(3));
  EXPECT_EQ(Connect(kFault).failed, PeerFailure::kRejected);
  EXPECT_EQ(last_.reply.kind, HelloKind::kRejectEpoch);
  EXPECT_EQ(last_.reply.node_epoch, Epoch(3)) << "it learns what it needs";
  a_.node_epoch = Epoch(3);
  dialler_.Restart(101);
  EXPECT_TRUE(Connect(kFault).connected);
  dialler_.AdmitFrom(Epoch(4));
  EXPECT_EQ(Connect(kBulk).failed, PeerFailure::kRejected) << "the dialler fences too";
}

TEST_F(SessionTest, RepliesThatDoNotFitAreRefused) {
  const Hello good = ToB(dialler_.MakeHello(a_, kFault, 0)).reply;
  auto with = [&](auto change) {
    Hello reply = good;
    change(&reply);
    PeerSession session(kA, kB);
    session.Restart(100);
    return session.OnReply(a_, kFault, reply);
  };
  EXPECT_TRUE(with([](Hello*) {}).connected);
  EXPECT_EQ(with([](Hello* r) { r->cluster = 8; }).failed, PeerFailure::kRejected);
  EXPECT_EQ(with([](Hello* r) { r->from = NodeId(5); }).failed, PeerFailure::kRejected);
  EXPECT_EQ(with([](Hello* r) { r->to = NodeId(5); }).failed, PeerFailure::kRejected);
  EXPECT_EQ(with([](Hello* r) { r->message_class = kBulk; }).failed, PeerFailure::kMalformed);
  EXPECT_EQ(with([](Hello* r) { r->peer_session = 5; }).failed, PeerFailure::kMalformed);
  EXPECT_EQ(with([](Hello* r) { r->received = 5; }).failed, PeerFailure::kMalformed);
  EXPECT_EQ(with([](Hello* r) { r->kind = HelloKind::kHello; }).failed, PeerFailure::kMalformed);
  EXPECT_EQ(with([](Hello* r) { r->kind = HelloKind::kRejectCluster; }).failed, PeerFailure::kRejected);
  const HandshakeOutcome busy = with([](Hello* r) { r->kind = HelloKind::kRejectBusy; });
  EXPECT_FALSE(busy.failed);
  EXPECT_FALSE(busy.connected);
}

TEST_F(SessionTest, StrangersAreRefusedWithTheReason) {
  Hello hello = dialler_.MakeHello(a_, kFault, 0);
  EXPECT_EQ(RefuseStranger(b_, hello, true), std::nullopt);
  EXPECT_EQ(RefuseStranger(b_, hello, false)->kind, HelloKind::kRejectNode);
  hello.cluster = 8;
  EXPECT_EQ(RefuseStranger(b_, hello, true)->kind, HelloKind::kRejectCluster);
  hello = dialler_.MakeHello(a_, kFault, 0);
  hello.to = NodeId(9);
  EXPECT_EQ(RefuseStranger(b_, hello, true)->kind, HelloKind::kRejectNode);
  hello = dialler_.MakeHello(a_, kFault, 0);
  hello.from = kB;
  EXPECT_EQ(RefuseStranger(b_, hello, true)->kind, HelloKind::kRejectNode);
  hello.kind = HelloKind::kAcceptFresh;
  EXPECT_EQ(RefuseStranger(b_, hello, true)->kind, HelloKind::kRejectRole);
  EXPECT_EQ(RefuseVersion(b_).kind, HelloKind::kRejectVersion);
  EXPECT_EQ(RefuseVersion(b_).version, kWireVersion);

  // The node with the larger number does not dial.
  Hello crossed = dialler_.MakeHello(a_, kFault, 0);
  crossed.from = kB;
  crossed.to = kA;
  EXPECT_EQ(dialler_.OnHello(a_, crossed, 0, 1).reply.kind, HelloKind::kRejectRole);
}

}  // namespace
}  // namespace hk
