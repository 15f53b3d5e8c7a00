// A connection over TCP whose socket takes as much as the test lets it, with the engine above it.
#include "rdma/tcp_link.h"

#include <sys/eventfd.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "rdma/engine_fixture.h"
#include "rdma/tcp_loop.h"
#include "rdma/tcp_partings.h"

namespace hk {
namespace {

using Bytes = std::vector<std::byte>;

// Takes `room` bytes and no more, and keeps them.
class NarrowStream final : public ByteStream {
 public:
  NarrowStream(OwnedFd fd, size_t retry) : ByteStream(std::move(fd)), retry_(retry) {}

  ssize_t Read(std::span<const iovec> /*parts*/) override { return -EAGAIN; }
  ssize_t Write(std::span<const iovec> parts) override {
    size_t offered = 0, taken = 0;
    for (const iovec& part : parts) {
      offered += part.iov_len;
      const size_t bytes = std::min(part.iov_len, room);
      const auto* const begin = static_cast<const std::byte*>(part.iov_base);
      written.insert(written.end(), begin, begin + bytes);
      room -= bytes;
      taken += bytes;
    }
    // As OpenSSL wants it.
    EXPECT_GE(offered, refused_);
    refused_ = taken == 0 ? std::min(offered, retry_) : 0;
    return taken == 0 ? -EAGAIN : static_cast<ssize_t>(taken);
  }
  size_t RetryBytes() const override { return retry_; }

  size_t room = 1 << 20;
  Bytes written;

 private:
  const size_t retry_;
  size_t refused_ = 0;  // of the last write, what has to be offered again
};

class TcpLinkTest : public EngineTest {
 public:
  static constexpr size_t kPageBytes = kHeaderBytes + kFaultSlotBytes;

 protected:
  ~TcpLinkTest() override { engine_.reset(); }

  // The peer is up; its fault class is a TcpLink.
  void UpOverTcp(OwnedFd fd, size_t retry = 0) {
    EXPECT_TRUE(partings_.Open().ok());
    make_link_ = [this, shared = std::make_shared<OwnedFd>(std::move(fd)), retry](const LinkTicket& ticket) mutable {
      if (ticket.message_class != kFault || !shared->valid()) return std::shared_ptr<TcpLink>();
      auto stream = std::make_unique<NarrowStream>(std::move(*shared), retry);
      stream_ = stream.get();
      link_ = std::make_shared<TcpLink>(ticket, std::move(stream), engine_.get(), &loop_);
      return link_;
    };
    Up(kPeer);
  }
  // The next answer, with a page of one letter. Its slot is released.
  SlotId SendPage(char letter) {
    const auto slot = engine_->AcquireSlot(kFault, SlotUse::kSend);
    EXPECT_TRUE(slot.ok());
    if (!slot.ok()) return SlotId();
    const std::span<std::byte> page = engine_->SlotBytes(*slot);
    std::fill(page.begin(), page.end(), std::byte(letter));
    Message message = Plain(static_cast<uint64_t>(letter));
    message.answer = true;
    message.slot = SlotName{kFault, SlotUse::kReceive, 0, 5}.Encode();
    message.slot_node = kPeer;
    SendOptions options;
    options.payload = *slot;
    options.payload_bytes = kFaultSlotBytes;
    EXPECT_TRUE(engine_->Send(kPeer, message, options).ok());
    engine_->ReleaseSlot(*slot);
    return *slot;
  }
  Engine::Fate Acknowledge(uint64_t through) {
    Header header;
    header.message.message_class = kFault;
    header.message.type = static_cast<uint16_t>(OwnType::kAck);
    header.acknowledged = through;
    return engine_->Deliver(Fault().ticket, header, {}, {});
  }
  // What the peer can make of the bytes after its Setup: "page a" for a whole page, right to the last byte, "goodbye",
  // "broken".
  std::vector<std::string> Received() const {
    std::vector<std::string> received;
    std::span<const std::byte> left = std::span(stream_->written).subspan(kHeaderBytes + kSetupBytes);
    while (!left.empty()) {
      Header header;
      if (DecodeHeader(left, kFault, &header) != WireError::kNone ||
          left.size() < kHeaderBytes + header.payload_bytes ||
          CheckPayload(header, {}, left.subspan(kHeaderBytes, header.payload_bytes)) != WireError::kNone) {
        received.emplace_back("broken");
        break;
      }
      const bool goodbye = header.message.type == static_cast<uint16_t>(OwnType::kGoodbye);
      received.emplace_back(goodbye ? "goodbye" : std::string("page ") + static_cast<char>(header.message.transaction));
      left = left.subspan(kHeaderBytes + header.payload_bytes);
    }
    return received;
  }

  TcpPartings partings_{[] {}};
  SpinPermits permits_{1};
  TcpLoop loop_{kFault, WaitMode::kBlocking, std::chrono::microseconds(0), &permits_, &partings_};
  std::shared_ptr<TcpLink> link_;
  NarrowStream* stream_ = nullptr;  // the link's
};

OwnedFd AnyFd() {
  return OwnedFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
}

TEST_F(TcpLinkTest, WhatTheSocketHasNotTakenCannotBeAcknowledged) {
  UpOverTcp(AnyFd());
  stream_->room = kPageBytes + kPageBytes / 2;
  SendPage('a');
  SendPage('b');
  EXPECT_EQ(engine_->Statistics().slots_sending, 2u);
  EXPECT_EQ(Acknowledge(1), Engine::Fate::kTaken);
  EXPECT_EQ(engine_->Statistics().slots_sending, 1u);
  // Half of it is written, the rest is read from the slot later.
  EXPECT_EQ(Acknowledge(2), Engine::Fate::kClosed);
  engine_->RunControl();
  EXPECT_EQ(handler_.calls.back(), "failed 0");
  EXPECT_EQ(engine_->Statistics().malformed, 1u);
}

TEST_F(TcpLinkTest, OfMessagesThatAreWrittenTogetherThoseThatAreOutCanBeAcknowledged) {
  UpOverTcp(AnyFd());
  stream_->room = 0;
  for (const char letter : {'a', 'b', 'c'}) SendPage(letter);
  stream_->room = 2 * kPageBytes;
  engine_->OnSendable(Fault().ticket);
  EXPECT_EQ(Acknowledge(2), Engine::Fate::kTaken);
  EXPECT_EQ(engine_->Statistics().slots_sending, 1u);
  EXPECT_EQ(Received(), std::vector<std::string>({"page a", "page b"}));
  EXPECT_EQ(Acknowledge(3), Engine::Fate::kClosed);
}

TEST_F(TcpLinkTest, WhatTheSocketHasTakenLaterIsAcknowledgedThen) {
  UpOverTcp(AnyFd());
  stream_->room = kPageBytes / 2;
  SendPage('a');
  stream_->room = 1 << 20;
  engine_->OnSendable(Fault().ticket);
  EXPECT_EQ(Acknowledge(1), Engine::Fate::kTaken);
  EXPECT_EQ(engine_->Statistics().slots_sending, 0u);
  EXPECT_EQ(Received(), std::vector<std::string>({"page a"}));
}

TEST_F(TcpLinkTest, AConnectionThatCannotBeWatchedBreaks) {
  // epoll takes no files (epoll_ctl(2), EPERM): the same as when it has no memory, or no watches left.
  UpOverTcp(OwnedFd(::memfd_create("test", MFD_CLOEXEC)));
  ASSERT_TRUE(loop_.Start(engine_.get()).ok());
  loop_.Add(link_);
  const auto guard = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!link_->closed() && std::chrono::steady_clock::now() < guard) std::this_thread::yield();
  EXPECT_TRUE(link_->closed());
  loop_.Stop();
  engine_->RunControl();
  EXPECT_EQ(handler_.Count("failed 0"), 0u) << "it is resumed";
}

// What the socket takes before the end; how many bytes of a refused write have to come again.
class TcpGoodbyeTest : public TcpLinkTest, public testing::WithParamInterface<std::tuple<size_t, size_t>> {};

TEST_P(TcpGoodbyeTest, FollowsTheMessageThatWasBegun) {
  const auto [room, retry] = GetParam();
  UpOverTcp(AnyFd(), retry);
  stream_->room = room;
  SendPage('a');
  SendPage('b');
  const std::shared_ptr<TcpLink> link = std::exchange(link_, nullptr);  // and with it the stream
  engine_->RemovePeer(kPeer);
  // Their slots are somebody else's now.
  for (const char letter : {'x', 'y', 'z'}) {
    const auto slot = engine_->AcquireSlot(kFault, SlotUse::kSend);
    ASSERT_TRUE(slot.ok());
    std::memset(engine_->SlotBytes(*slot).data(), letter, kFaultSlotBytes);
  }
  stream_->room = 1 << 20;
  partings_.Serve(std::chrono::steady_clock::now());
  std::vector<std::string> received = Received();
  ASSERT_FALSE(received.empty());
  EXPECT_EQ(received.back(), "goodbye");
  received.pop_back();
  const size_t begun = (room + kPageBytes - 1) / kPageBytes;
  EXPECT_GE(received.size(), begun);
  if (retry == 0) {
    EXPECT_EQ(received.size(), begun) << "the rest is dropped";
  }
  for (size_t i = 0; i < received.size(); ++i) EXPECT_EQ(received[i], i == 0 ? "page a" : "page b");
}

INSTANTIATE_TEST_SUITE_P(TcpGoodbyeTest, TcpGoodbyeTest,
                         testing::Combine(testing::Values(size_t{0}, size_t{1}, kHeaderBytes,
                                                          TcpGoodbyeTest::kPageBytes - 1, TcpGoodbyeTest::kPageBytes,
                                                          TcpGoodbyeTest::kPageBytes + 1,
                                                          2 * TcpGoodbyeTest::kPageBytes),
                                          testing::Values(size_t{0}, size_t{16384})));

TEST_F(TcpLinkTest, AGoodbyeThatNobodyTakesIsGivenUp) {
  UpOverTcp(AnyFd());
  stream_->room = 1;
  SendPage('a');
  engine_->RemovePeer(kPeer);
  const Monotonic due = partings_.Serve(std::chrono::steady_clock::now());
  EXPECT_LE(due, std::chrono::steady_clock::now() + TcpPartings::kPatience);
  EXPECT_EQ(partings_.Serve(due), Monotonic::max());
}

}  // namespace
}  // namespace hk
