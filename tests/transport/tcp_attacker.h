// Somebody who speaks the protocol over TCP as node 0, finishes handshakes, and then breaks every rule by seed. For
// tests; one thread's.
#pragma once

#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/fd.h"
#include "rdma/crc32c.h"
#include "rdma/slots.h"
#include "tests/transport/frames.h"
#include "tests/transport/tcp_back_end.h"

namespace hk {

using Bytes = std::vector<std::byte>;

inline constexpr NodeId kAttacker{0}, kTarget{1};
// What the target is told of: older epochs are dropped.
inline constexpr GuestId kGuest{7};
inline constexpr uint32_t kGeneration = 3;
inline constexpr Epoch kEpoch{5};
inline constexpr uint16_t kRequestType = kFirstUserType, kPageType = kFirstUserType + 1;

// One connection of the attacker. Ends with a reset, so that no port is kept busy.
class Socket {
 public:
  explicit Socket(uint16_t port) : Socket(ConnectLoopback(port)) {}
  explicit Socket(OwnedFd fd) : fd_(std::move(fd)) {
    const linger at_once{.l_onoff = 1, .l_linger = 0};
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    const timeval guard{.tv_sec = HangGuard().count(), .tv_usec = 0};
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &guard, sizeof guard);
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_SNDTIMEO, &guard, sizeof guard);
  }
  // The target may have closed the connection already; then the bytes go nowhere.
  void Write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      HK_CHECK(sent > 0 || errno != EAGAIN);
      if (sent <= 0) return;
      bytes = bytes.subspan(static_cast<size_t>(sent));
    }
  }
  // Waits for `size` bytes; fewer: it was closed.
  Bytes Read(size_t size) {
    Bytes bytes(size);
    size_t filled = 0;
    while (filled < size) {
      const ssize_t read = ::recv(fd_.get(), bytes.data() + filled, size - filled, 0);
      HK_CHECK(read >= 0 || errno != EAGAIN);
      if (read <= 0) break;
      filled += static_cast<size_t>(read);
    }
    bytes.resize(filled);
    return bytes;
  }
  // Bytes that can be read at once.
  size_t Waiting() const {
    int bytes = 0;
    HK_CHECK(::ioctl(fd_.get(), FIONREAD, &bytes) == 0);
    return static_cast<size_t>(bytes);
  }
  // Nothing more is said: when this returns, the target has read all that was, and closed the connection.
  void Finish() {
    ::shutdown(fd_.get(), SHUT_WR);
    while (!Read(4096).empty()) {
    }
  }

 private:
  OwnedFd fd_;
};

// Speaks the protocol as node 0, and breaks it.
class Attacker {
 public:
  Attacker(uint16_t port, uint64_t seed) : port_(port), random_(seed) {}

  // A whole session: handshakes, frames of which some are corrupted, the end.
  void Attack() {
    if (Chance(8)) return AttackHandshake();
    Connect();
    const auto message_class = static_cast<MessageClass>(std::discrete_distribution<int>({5, 2, 3})(random_));
    requests_.clear();
    // With the target's requests at hand there are answers to corrupt; without waiting for them, the frames are there
    // before the target is ready for them.
    if (message_class != MessageClass::kInvalidate && Chance(2)) ReadRequests(message_class);
    Bytes bytes;
    for (uint64_t left = Number(1, 40); left > 0; --left) Add(Corrupted(message_class), &bytes);
    Socket& socket = *sockets_[static_cast<size_t>(message_class)];
    while (!bytes.empty()) {
      const size_t part = Chance(3) ? Number(1, bytes.size()) : bytes.size();
      socket.Write(std::span(bytes).first(part));
      bytes.erase(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(part));
    }
    socket.Finish();
  }
  // A session that comes up, which `up` waits for, and ends by one message.
  void ConnectAndBreakARule(const std::function<bool()>& up) {
    Connect();
    ASSERT_TRUE(up());
    Socket& socket = *sockets_[static_cast<size_t>(MessageClass::kFault)];
    socket.Write(Frame(Numbered(MessageClass::kFault, 7)));
    socket.Finish();
  }
  void Disconnect() {
    for (std::unique_ptr<Socket>& socket : sockets_) socket.reset();
  }

  Hello HelloFor(MessageClass message_class) const {
    return GoodHello(kAttacker, kTarget, message_class, session_, peer_session_);
  }

  // Any reply to a hello, right ones among them, and what may follow it.
  Bytes ReplyTo(const Hello& said) {
    constexpr std::array kKinds = {HelloKind::kHello,         HelloKind::kAcceptFresh,   HelloKind::kAcceptResumed,
                                   HelloKind::kRejectVersion, HelloKind::kRejectCluster, HelloKind::kRejectNode,
                                   HelloKind::kRejectEpoch,   HelloKind::kRejectSession, HelloKind::kRejectResume,
                                   HelloKind::kRejectBusy,    HelloKind::kRejectRole};
    Hello hello = said;
    std::swap(hello.from, hello.to);
    hello.kind = kKinds[Number(0, kKinds.size() - 1)];
    hello.session = Number(0, 3);
    hello.peer_session = Chance(4) ? Number(0, 3) : said.session;
    hello.received = Chance(4) ? Number(0, 100) : 0;
    if (Chance(8)) hello.cluster ^= 1;
    if (Chance(8)) hello.message_class = static_cast<MessageClass>(Number(0, 2));
    if (Chance(8)) hello.from = NodeId(static_cast<uint16_t>(Number(0, kMaxNodes - 1)));
    Bytes bytes;
    Add(EncodeHello(hello), &bytes);
    if (Chance(8)) Flip(&bytes, 0, kHelloBytes, Number(1, 8));
    if (Chance(8)) bytes.resize(Number(0, kHelloBytes - 1));
    if (Chance(8)) Scramble(&bytes);
    if (Chance(2)) Add(Corrupted(said.message_class), &bytes);
    return bytes;
  }
  uint64_t Number(uint64_t least, uint64_t most) {
    return std::uniform_int_distribution<uint64_t>(least, most)(random_);
  }
  bool Chance(uint64_t one_in) { return Number(1, one_in) == 1; }

 private:
  void Connect() {
    ++session_;
    peer_session_ = 0;
    for (size_t i = 0; i < kMessageClasses; ++i) {
      const auto message_class = static_cast<MessageClass>(i);
      sockets_[i] = std::make_unique<Socket>(port_);
      sockets_[i]->Write(EncodeHello(HelloFor(message_class)));
      Hello reply;
      const Bytes said = sockets_[i]->Read(kHelloBytes);
      const WireError error = DecodeHello(said, &reply);
      if (error != WireError::kNone || reply.kind != HelloKind::kAcceptFresh) {
        std::fprintf(stderr, "session %lu, class %zu: %zu bytes (errno %d), %s, kind %u\n", session_, i, said.size(),
                     errno, WireErrorName(error).data(), static_cast<unsigned>(reply.kind));
      }
      HK_CHECK(error == WireError::kNone && reply.kind == HelloKind::kAcceptFresh);
      peer_session_ = reply.session;
      sockets_[i]->Write(Setup(message_class));
    }
    sequence_ = 0;
  }
  static Bytes Setup(MessageClass message_class) {
    Header header;
    header.message.message_class = message_class;
    header.message.type = static_cast<uint16_t>(OwnType::kSetup);
    SetupBody setup;
    setup.window_messages = 64;
    setup.heartbeat_ms = 100;
    return Frame(header, EncodeSetup(setup));
  }
  void ReadRequests(MessageClass message_class) {
    Socket& socket = *sockets_[static_cast<size_t>(message_class)];
    // At least one, and those that are there already: the last is answered first.
    while (requests_.empty() || socket.Waiting() >= kHeaderBytes) {
      Header header;
      const Bytes bytes = socket.Read(kHeaderBytes);
      if (bytes.empty()) return;
      HK_CHECK(DecodeHeader(bytes, message_class, &header) == WireError::kNone);
      socket.Read(header.body_bytes);
      if (header.message.type == kRequestType) requests_.push_back(header.message);
    }
  }
  void AttackHandshake() {
    Socket socket(port_);
    Bytes bytes;
    Add(EncodeHello(HelloFor(static_cast<MessageClass>(Number(0, 2)))), &bytes);
    switch (Number(0, 3)) {
      case 0:
        Flip(&bytes, 0, kHelloBytes, Number(1, 8));
        break;
      case 1:
        bytes.resize(Number(0, kHelloBytes - 1));
        break;
      case 2:
        Scramble(&bytes);
        break;
      case 3: {  // any value in any field, and the CRC right
        Flip(&bytes, 4, kHelloBytes - 4, Number(1, 4));
        const uint32_t crc = Crc32c(std::span(bytes).first(kHelloBytes - 4));
        for (size_t i = 0; i < 4; ++i) bytes[kHelloBytes - 4 + i] = static_cast<std::byte>(crc >> (8 * i));
        break;
      }
    }
    socket.Write(bytes);
    socket.Finish();
  }

  // --- Frames ---

  static void Add(std::span<const std::byte> more, Bytes* bytes) {
    bytes->insert(bytes->end(), more.begin(), more.end());
  }
  void Flip(Bytes* bytes, size_t from, size_t to, uint64_t times) {
    for (; times > 0; --times) (*bytes)[Number(from, to - 1)] ^= std::byte{1} << Number(0, 7);
  }
  void Scramble(Bytes* bytes) {
    for (std::byte& byte : *bytes) byte = static_cast<std::byte>(Number(0, 255));
  }
  Header Plain(MessageClass message_class) {
    Header header = Numbered(message_class, ++sequence_);
    header.message.transaction = Number(0, 1000);
    header.acknowledged = 0;
    return header;
  }
  // A frame that is right, as far as it goes: a message, or an answer to a request of the target.
  Bytes Right(MessageClass message_class) {
    Bytes body(Number(0, 3) * Number(0, 85));
    Scramble(&body);
    if (!requests_.empty() && Chance(2)) {
      Header header = Plain(message_class);
      header.message = requests_.back();
      header.message.type = kPageType;
      header.message.answer = true;
      if (!Chance(4)) requests_.pop_back();  // else it is answered again
      const size_t whole = message_class == MessageClass::kBulk ? kBulkSlotBytes : kFaultSlotBytes;
      return Frame(header, Chance(2) ? Bytes() : body, Bytes(Chance(3) ? Number(0, whole) : whole, std::byte{'p'}));
    }
    if (Chance(8)) {
      Header header;
      header.message.message_class = message_class;
      header.message.type = static_cast<uint16_t>(Number(1, 5));
      if (header.message.type == static_cast<uint16_t>(OwnType::kBarrier)) {
        header.sequence = ++sequence_;
        header.message.guest = GuestId(Number(1, 8));
        header.message.epoch = Epoch(Number(1, 9));
      }
      return Frame(header);
    }
    return Frame(Plain(message_class), body);
  }
  Bytes Corrupted(MessageClass message_class) {
    Bytes frame;
    // Those that a peer survives are more frequent: else each session would be over with its first frame.
    switch (std::discrete_distribution<int>({6, 12, 12, 1, 1, 1, 1, 1, 1, 1, 1, 1})(random_)) {
      case 0:
        return Right(message_class);
      case 1: {  // a replay
        if (sequence_ == 0) return Right(message_class);
        Header header = Numbered(message_class, Number(1, sequence_));
        header.message.transaction = 1;
        return Frame(header);
      }
      case 2: {  // an old epoch
        Header header = Plain(message_class);
        header.message.guest = kGuest;
        header.message.generation = static_cast<uint32_t>(Number(0, kGeneration));
        header.message.epoch = Epoch(Number(0, kEpoch.value() - 1));
        return Frame(header, Bytes(Number(0, kMaxBodyBytes)));
      }
      case 3:  // flipped bits
        frame = Right(message_class);
        Flip(&frame, 0, frame.size(), Number(1, 8));
        return frame;
      case 4:  // any value in any field, and the CRC right
        frame = Right(message_class);
        Flip(&frame, 0, kHeaderBytes - 4, Number(1, 8));
        Reseal(&frame);
        return frame;
      case 5:  // truncated, and something follows
        frame = Right(message_class);
        frame.resize(Number(0, frame.size() - 1));
        return frame;
      case 6:  // lengths
        frame = Right(message_class);
        frame[Number(72, 79)] = static_cast<std::byte>(Number(0, 255));
        Reseal(&frame);
        return frame;
      case 7:  // no frame at all
        frame.resize(Number(1, 2 * kHeaderBytes));
        Scramble(&frame);
        return frame;
      case 8:  // a gap
        sequence_ += Number(1, 1000);
        return Right(message_class);
      case 9:  // another version, another class
        frame = Right(message_class);
        frame[Number(4, 5)] = static_cast<std::byte>(Number(0, 255));
        Reseal(&frame);
        return frame;
      case 10: {  // acknowledges what may never have been sent
        Header header = Plain(message_class);
        header.acknowledged = Number(0, 20);
        return Frame(header);
      }
      default: {  // an answer into a slot of any name
        Header header = Plain(message_class);
        header.message.answer = true;
        header.message.slot_node = Chance(4) ? NodeId(static_cast<uint16_t>(Number(0, 63))) : kTarget;
        const bool bulk = message_class == MessageClass::kBulk;
        header.message.slot = SlotName{bulk ? MessageClass::kBulk : MessageClass::kFault, SlotUse::kReceive,
                                       static_cast<uint32_t>(Number(0, 20)), Number(1, uint64_t{1} << 47)}
                                  .Encode();
        if (!requests_.empty() && Chance(2)) header.message.slot = requests_.back().slot;
        return Frame(header, {}, Bytes(Number(0, kFaultSlotBytes)));
      }
    }
  }

  const uint16_t port_;
  std::mt19937_64 random_;
  uint64_t session_ = 1, peer_session_ = 0, sequence_ = 0;
  std::array<std::unique_ptr<Socket>, kMessageClasses> sockets_;
  std::vector<Message> requests_;
};

}  // namespace hk
