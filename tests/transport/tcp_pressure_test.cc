// A peer over TCP that lives and does not read, and one of whose connections is dead: the first is waited for as long
// as its heartbeats come, the second is not.
#include <linux/filter.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "rdma/tcp_socket.h"
#include "tests/transport/tcp_attacker.h"

namespace hk {
namespace {

constexpr uint32_t kLeaseMs = 1500;
constexpr uint32_t kMessages = 1024;
// Of the peer's socket: far less than these messages.
constexpr int kRoom = 16 << 10;
constexpr MessageClass kFault = MessageClass::kFault, kInvalidate = MessageClass::kInvalidate;

TransportSettings Settings() {
  TransportSettings settings;
  settings.cluster = "conformance";
  settings.self = kTarget;
  settings.node_epoch = Epoch(1);
  settings.lease_ms = kLeaseMs;
  settings.heartbeat_ms = kLeaseMs / 8;
  settings.handshake_ms = 300'000;
  settings.window_messages = settings.queue_messages = kMessages;
  return settings;
}

// The kernel gives this socket nothing of what comes from now on, and acknowledges nothing.
void MakeDead(int fd) {
  sock_filter nothing = {.code = BPF_RET | BPF_K, .jt = 0, .jf = 0, .k = 0};
  const sock_fprog program = {.len = 1, .filter = &nothing};
  ASSERT_EQ(::setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program), 0);
}

// A node, and its peer by hand.
class TcpPressureTest : public testing::Test {
 protected:
  TcpPressureTest() : node_(&back_end_, Settings()) {
    EXPECT_TRUE(node_.Start().ok());
    EXPECT_TRUE(node_->AddPeer(kAttacker, "127.0.0.1:1").ok());
    uint64_t peer_session = 0;
    for (size_t i = 0; i < kMessageClasses; ++i) {
      const auto message_class = static_cast<MessageClass>(i);
      // The window of the fault class is soon shut.
      OwnedFd fd = message_class == kFault ? ConnectWithRoom(kRoom) : ConnectLoopback(back_end_.PortOf(kTarget));
      fds_[i] = fd.get();
      sockets_[i] = std::make_unique<Socket>(std::move(fd));
      sockets_[i]->Write(EncodeHello(GoodHello(kAttacker, kTarget, message_class, 1, peer_session)));
      Hello reply;
      EXPECT_EQ(DecodeHello(sockets_[i]->Read(kHelloBytes), &reply), WireError::kNone);
      peer_session = reply.session;
      Header header;
      header.message.message_class = message_class;
      header.message.type = static_cast<uint16_t>(OwnType::kSetup);
      SetupBody setup;
      setup.window_messages = kMessages;
      setup.heartbeat_ms = 100;
      sockets_[i]->Write(Frame(header, EncodeSetup(setup)));
      EXPECT_EQ(sockets_[i]->Read(kHeaderBytes + kSetupBytes).size(), kHeaderBytes + kSetupBytes);
    }
    EXPECT_TRUE(back_end_.RunUntil([&] { return node_.IsUp(kAttacker); }));
  }
  OwnedFd ConnectWithRoom(int bytes) {
    const auto address = Resolve(LoopbackAddress(back_end_.PortOf(kTarget)));
    EXPECT_TRUE(address.ok());
    OwnedFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes), 0);
    EXPECT_EQ(::connect(fd.get(), address->get(), address->size), 0);
    return fd;
  }
  absl::Status Send() {
    const std::vector<std::byte> body(kMaxBodyBytes, std::byte{7});
    Message message;
    message.type = kFirstUserType;
    message.body = body;
    return node_->Send(kAttacker, message);
  }
  // Heartbeats both ways until `end` or the node closes the connection.
  void Live(Monotonic end) {
    Header header;
    header.message.message_class = kInvalidate;
    header.message.type = static_cast<uint16_t>(OwnType::kHeartbeat);
    const Bytes heartbeat = Frame(header);
    pollfd readable{.fd = fds_[static_cast<size_t>(kInvalidate)], .events = POLLIN, .revents = 0};
    Socket& socket = *sockets_[static_cast<size_t>(kInvalidate)];
    while (std::chrono::steady_clock::now() < end) {
      socket.Write(heartbeat);
      ::poll(&readable, 1, kLeaseMs / 32);
      if (readable.revents != 0 && socket.Waiting() == 0) return;
      while (socket.Waiting() >= kHeaderBytes) socket.Read(kHeaderBytes);
    }
  }
  ClassStatistics OfFault() { return node_->Statistics(kAttacker)->classes[static_cast<size_t>(kFault)]; }

  TcpBackEnd back_end_{WaitMode::kBlocking};
  Node node_;
  std::array<std::unique_ptr<Socket>, kMessageClasses> sockets_;
  std::array<int, kMessageClasses> fds_{};
};

TEST_F(TcpPressureTest, APeerThatLivesAndDoesNotReadIsWaitedFor) {
  for (uint32_t i = 0; i < kMessages; ++i) ASSERT_TRUE(Send().ok());
  EXPECT_EQ(Send().code(), absl::StatusCode::kResourceExhausted);
  Live(std::chrono::steady_clock::now() + std::chrono::milliseconds(kLeaseMs * 5 / 2));
  EXPECT_EQ(node_.Count(Seen::Kind::kFailed), 0u);
  EXPECT_EQ(OfFault().reconnects, 0u);
  // On the connection that it was all the time. With room for all, so that it does not take long.
  const int room = 1 << 20;
  ASSERT_EQ(::setsockopt(fds_[static_cast<size_t>(kFault)], SOL_SOCKET, SO_RCVBUF, &room, sizeof room), 0);
  Socket& socket = *sockets_[static_cast<size_t>(kFault)];
  for (uint64_t number = 1; number <= kMessages;) {
    Header header;
    ASSERT_EQ(DecodeHeader(socket.Read(kHeaderBytes), kFault, &header), WireError::kNone) << number;
    ASSERT_EQ(socket.Read(header.body_bytes).size(), header.body_bytes);
    if (header.sequence == 0) continue;
    ASSERT_EQ(header.sequence, number++);
  }
}

TEST_F(TcpPressureTest, AConnectionThatIsDeadIsBroken) {
  MakeDead(fds_[static_cast<size_t>(kFault)]);
  ASSERT_TRUE(Send().ok());
  // Broken after a lease, and not resumed for another.
  Live(std::chrono::steady_clock::now() + HangGuard());
  ASSERT_TRUE(back_end_.RunUntil([&] { return node_.Count(Seen::Kind::kFailed) == 1; }));
  const Seen failed = node_.All(Seen::Kind::kFailed)[0];
  EXPECT_EQ(failed.failure, PeerFailure::kLeaseExpired);
  EXPECT_NE(failed.detail.find("acknowledged nothing"), std::string::npos) << failed.detail;
}

}  // namespace
}  // namespace hk
