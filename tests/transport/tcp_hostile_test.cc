// A live TCP peer under attack: corrupted frames of somebody who finishes the handshake, and floods of strangers. All
// the while another peer asks for pages, and gets them.
//
// HK_SEED=N repeats a run. HK_SOAK=1: a million corrupted frames instead of a few thousand.
#include <dirent.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutex.h"
#include "rdma/slots.h"
#include "rdma/tcp_socket.h"
#include "tests/transport/frames.h"
#include "tests/transport/tcp_back_end.h"

namespace hk {
namespace {

using Bytes = std::vector<std::byte>;

constexpr NodeId kAttacker{0}, kTarget{1}, kFriend{2};
constexpr GuestId kGuest{7};
constexpr uint32_t kGeneration = 3;
constexpr Epoch kEpoch{5};
constexpr uint16_t kRequestType = kFirstUserType, kPageType = kFirstUserType + 1;
constexpr uint64_t kFrames = 20'000, kSoakFrames = 1'000'000;
constexpr int kStrangers = 10'000;

size_t OpenFiles() {
  DIR* directory = ::opendir("/proc/self/fd");
  HK_CHECK(directory != nullptr);
  size_t count = 0;
  while (::readdir(directory) != nullptr) ++count;
  ::closedir(directory);
  return count;
}

// The page that answers a transaction.
std::byte PatternAt(uint64_t transaction, size_t index) {
  return static_cast<std::byte>(transaction * 31 + index / 8 + index % 8 * 17);
}

TransportSettings Settings(NodeId node) {
  TransportSettings settings;
  settings.cluster = "conformance";
  settings.self = node;
  settings.node_epoch = Epoch(1);
  // Nothing here ends because time passes.
  settings.lease_ms = settings.handshake_ms = 300'000;
  settings.request_ms = 60'000;
  settings.backoff_ms = 1;
  settings.backoff_max_ms = 4;
  settings.window_messages = 64;
  settings.fault_receive_slots = settings.fault_send_slots = 16;
  settings.bulk_receive_slots = settings.bulk_send_slots = 4;
  return settings;
}

// What both live nodes are: a transport, and a handler that counts. Thread-safe.
class LiveNode : public TransportHandler {
 public:
  LiveNode(TcpBackEnd* back_end, NodeId id) : back_end_(back_end) {
    auto made = back_end->Make(Settings(id), this);
    HK_CHECK(made.ok());
    transport_ = *std::move(made);
    HK_CHECK(transport_->Start().ok());
  }
  ~LiveNode() override { transport_->Stop(); }

  Transport* operator->() { return transport_.get(); }
  int ups(NodeId peer) const { return ups_[peer.value()]; }
  int failures(NodeId peer) const { return failures_[peer.value()]; }

  void OnPeerUp(NodeId peer) override {
    ++ups_[peer.value()];
    back_end_->Wake();
  }
  void OnPeerFailed(NodeId peer, PeerFailure, const std::string&) override {
    ++failures_[peer.value()];
    back_end_->Wake();
  }
  void OnWritable(NodeId, MessageClass) override {}
  void OnSlotsFree(MessageClass, SlotUse) override {}
  void OnRequestExpired(NodeId, MessageClass, uint64_t, SlotId, RequestFailure) override {}

 protected:
  TcpBackEnd* const back_end_;
  std::unique_ptr<Transport> transport_;

 private:
  std::array<std::atomic<int>, kMaxNodes> ups_{}, failures_{};
};

// Under attack: answers its friend, and asks the attacker for pages as soon as that is up. Checks that an answer ends a
// request that is under way, and no other.
class Target final : public LiveNode {
 public:
  using LiveNode::LiveNode;
  ~Target() override { transport_->Stop(); }

  void OnMessage(NodeId from, const Message& message, std::span<const std::byte> payload, bool) override {
    if (message.answer) {
      MutexLock lock(&mutex_);
      const auto found = asked_.find(message.slot);
      HK_CHECK(found != asked_.end() && from == kAttacker);
      HK_CHECK(found->second == message.message_class && message.guest == kGuest && message.epoch == kEpoch);
      HK_CHECK(payload.empty() || payload.data() == transport_->SlotBytes(message.slot).data());
      asked_.erase(found);
      ++answers_;
      transport_->ReleaseSlot(message.slot);
    } else if (from == kFriend) {
      Answer(message);
    }
  }
  void OnPeerUp(NodeId peer) override {
    LiveNode::OnPeerUp(peer);
    if (peer != kAttacker) return;
    for (int i = 0; i < 8; ++i) Ask(MessageClass::kFault);
    for (int i = 0; i < 2; ++i) Ask(MessageClass::kBulk);
  }
  void OnRequestExpired(NodeId, MessageClass, uint64_t, SlotId slot, RequestFailure) override {
    MutexLock lock(&mutex_);
    HK_CHECK(asked_.erase(slot) == 1);
  }
  uint64_t answers() const {
    MutexLock lock(&mutex_);
    return answers_;
  }

 private:
  void Answer(const Message& request) {
    const auto slot = transport_->AcquireSlot(request.message_class, SlotUse::kSend);
    HK_CHECK(slot.ok());
    const std::span<std::byte> page = transport_->SlotBytes(*slot);
    for (size_t i = 0; i < page.size(); ++i) page[i] = PatternAt(request.transaction, i);
    Message answer = request;
    answer.type = kPageType;
    answer.answer = true;
    answer.body = {};
    SendOptions options;
    options.payload = *slot;
    options.payload_bytes = static_cast<uint32_t>(page.size());
    HK_CHECK(transport_->Send(kFriend, answer, options).ok());
    transport_->ReleaseSlot(*slot);
  }
  void Ask(MessageClass message_class) {
    MutexLock lock(&mutex_);
    const auto slot = transport_->AcquireSlot(message_class, SlotUse::kReceive);
    if (!slot.ok()) return;  // requests of the session before are not yet told as expired
    Message message;
    message.message_class = message_class;
    message.type = kRequestType;
    message.guest = kGuest;
    message.generation = kGeneration;
    message.epoch = kEpoch;
    message.transaction = slot->value();
    message.slot_node = kTarget;
    message.slot = *slot;
    if (transport_->Send(kAttacker, message).ok()) {
      asked_[*slot] = message_class;
    } else {
      transport_->ReleaseSlot(*slot);
    }
  }

  // Held while asking: the answer may be there before Send has returned.
  mutable Mutex mutex_;
  std::map<SlotId, MessageClass> asked_ ABSL_GUARDED_BY(mutex_);
  uint64_t answers_ ABSL_GUARDED_BY(mutex_) = 0;
};

// The other peer: asks the target for pages and looks at each byte.
class Friend final : public LiveNode {
 public:
  using LiveNode::LiveNode;
  ~Friend() override { transport_->Stop(); }

  // One page of each class with slots, and waits for both.
  void AskAndWait() {
    for (const MessageClass message_class : {MessageClass::kFault, MessageClass::kBulk}) {
      const auto slot = transport_->AcquireSlot(message_class, SlotUse::kReceive);
      HK_CHECK(slot.ok());
      Message message;
      message.message_class = message_class;
      message.type = kRequestType;
      message.transaction = ++asked_;
      message.slot_node = kFriend;
      message.slot = *slot;
      ASSERT_TRUE(transport_->Send(kTarget, message).ok());
    }
    ASSERT_TRUE(back_end_->RunUntil([&] { return received_ == asked_; })) << "pages do not come";
  }
  void OnMessage(NodeId, const Message& message, std::span<const std::byte> payload, bool) override {
    HK_CHECK(message.answer && payload.size() == transport_->SlotBytes(message.slot).size());
    for (size_t i = 0; i < payload.size(); ++i) HK_CHECK(payload[i] == PatternAt(message.transaction, i));
    transport_->ReleaseSlot(message.slot);
    ++received_;
    back_end_->Wake();
  }
  uint64_t received() const { return received_; }

 private:
  uint64_t asked_ = 0;
  std::atomic<uint64_t> received_{0};
};

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
      HK_CHECK(DecodeHello(sockets_[i]->Read(kHelloBytes), &reply) == WireError::kNone);
      HK_CHECK(reply.kind == HelloKind::kAcceptFresh);
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

class TcpHostileTest : public testing::Test {
 protected:
  TcpHostileTest() {
    target_ = std::make_unique<Target>(&back_end_, kTarget);
    friend_ = std::make_unique<Friend>(&back_end_, kFriend);
    HK_CHECK((*target_)->AddPeer(kFriend, back_end_.Address(kTarget, kFriend)).ok());
    HK_CHECK((*friend_)->AddPeer(kTarget, back_end_.Address(kFriend, kTarget)).ok());
    HK_CHECK(Await([&] { return target_->ups(kFriend) == 1 && friend_->ups(kTarget) == 1; }));
    HK_CHECK((*target_)->SetEpoch(kGuest, kGeneration, kEpoch).ok());
    friend_->AskAndWait();
  }
  bool Await(const std::function<bool()>& condition) { return back_end_.RunUntil(condition); }
  uint16_t port() { return back_end_.PortOf(kTarget); }
  void ExpectFriendUnharmed() {
    friend_->AskAndWait();
    EXPECT_EQ(target_->failures(kFriend) + friend_->failures(kTarget), 0);
  }
  // Strangers of whatever reason, until now.
  uint64_t Strangers() {
    const TransportStatistics statistics = (*target_)->Statistics();
    return statistics.strangers_closed + statistics.handshakes_refused + statistics.malformed;
  }

  TcpBackEnd back_end_{WaitMode::kBlocking};
  std::unique_ptr<Target> target_;
  std::unique_ptr<Friend> friend_;
};

size_t Lines(const std::string& text, const std::string& with) {
  size_t lines = 0;
  for (size_t at = text.find(with); at != std::string::npos; at = text.find(with, at + 1)) ++lines;
  return lines;
}

TEST_F(TcpHostileTest, CorruptedFramesHarmNobodyElse) {
  const char* wanted = std::getenv("HK_SEED");
  const uint64_t seed = wanted != nullptr ? std::stoull(wanted) : std::random_device()();
  const uint64_t goal = std::getenv("HK_SOAK") != nullptr ? kSoakFrames : kFrames;
  std::printf("HK_SEED=%lu repeats this run\n", seed);
  std::fflush(stdout);
  const size_t files = OpenFiles();
  ASSERT_TRUE((*target_)->AddPeer(kAttacker, "127.0.0.1:1").ok());
  Attacker attacker(port(), seed);
  // Counted where they are judged: by the target.
  uint64_t malformed = 0, dropped = 0, sessions = 0;
  for (uint64_t next_page = 0; malformed + dropped < goal; ++sessions) {
    attacker.Attack();
    malformed = Strangers();
    dropped = 0;
    const auto statistics = (*target_)->Statistics(kAttacker);
    ASSERT_TRUE(statistics.ok());
    for (const ClassStatistics& one : statistics->classes) {
      dropped += one.dropped[static_cast<size_t>(DropReason::kOldEpoch)] +
                 one.dropped[static_cast<size_t>(DropReason::kDuplicate)] +
                 one.dropped[static_cast<size_t>(DropReason::kStaleSlot)];
    }
    if (malformed + dropped < next_page) continue;
    next_page += goal / 200;
    friend_->AskAndWait();
    if (HasFatalFailure()) return;
  }
  std::printf("%lu sessions and hellos: %lu frames refused, %lu dropped; %lu answers right, %lu pages of a friend\n",
              sessions, malformed, dropped, target_->answers(), friend_->received());
  EXPECT_GT(target_->answers(), 0u) << "the attack did not reach the slots";
  EXPECT_GT((*target_)->Statistics().malformed, goal / 100);
  attacker.Disconnect();
  (*target_)->RemovePeer(kAttacker);
  ExpectFriendUnharmed();
  EXPECT_TRUE(Await([&] {
    const TransportStatistics left = (*target_)->Statistics();
    return left.slots_in_flight + left.slots_quarantined + left.slots_lent + left.slots_sending == 0;
  })) << "slots are lost";
  EXPECT_TRUE(Await([&] { return OpenFiles() == files; })) << OpenFiles() << " files are open, not " << files;
}

TEST_F(TcpHostileTest, TenThousandStrangersAreCountedAndLoggedOnce) {
  const size_t files = OpenFiles();
  ASSERT_TRUE((*target_)->AddPeer(kAttacker, "127.0.0.1:1").ok());
  testing::internal::CaptureStderr();
  const auto begin = std::chrono::steady_clock::now();
  {
    Attacker attacker(port(), 1);
    // Silent ones stay until there are more than the target keeps.
    std::vector<std::unique_ptr<Socket>> silent(3 * Settings(kTarget).strangers);
    for (int i = 0; i < kStrangers; ++i) {
      auto socket = std::make_unique<Socket>(port());
      Hello hello = attacker.HelloFor(MessageClass::kFault);
      switch (i % 5) {
        case 0:
          break;
        case 1:
          socket->Write(Bytes(kHelloBytes, std::byte{0x55}));
          break;
        case 2:
          socket->Write(Bytes(kHelloBytes / 2));
          break;
        case 3:
          hello.cluster ^= 1;
          socket->Write(EncodeHello(hello));
          break;
        case 4:
          hello.version = kWireVersion + 1;
          socket->Write(EncodeHello(hello));
          break;
      }
      silent[static_cast<size_t>(i) % silent.size()] = std::move(socket);
      if (i % 500 == 0) friend_->AskAndWait();
      if (HasFatalFailure()) break;
    }
  }
  EXPECT_TRUE(Await([&] { return Strangers() == kStrangers; })) << Strangers();
  const std::string log = testing::internal::GetCapturedStderr();
  const auto intervals =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::steady_clock::now() - begin).count() / 10 + 1;
  const size_t lines = Lines(log, "a connection was closed before it was a peer's");
  EXPECT_GE(lines, 3u) << log;
  EXPECT_LE(lines, 4u * static_cast<size_t>(intervals)) << "refused, malformed, crowded, gone";
  EXPECT_EQ(target_->ups(kAttacker), 0);
  ExpectFriendUnharmed();
  EXPECT_TRUE(Await([&] { return OpenFiles() == files; })) << OpenFiles() << " files are open, not " << files;
}

TEST_F(TcpHostileTest, APeerThatFailsAgainAndAgainIsLoggedOncePerInterval) {
  constexpr int kTimes = 50;
  ASSERT_TRUE((*target_)->AddPeer(kAttacker, "127.0.0.1:1").ok());
  testing::internal::CaptureStderr();
  const auto begin = std::chrono::steady_clock::now();
  Attacker attacker(port(), 1);
  for (int i = 1; i <= kTimes; ++i) {
    attacker.ConnectAndBreakARule([&] { return Await([&] { return target_->ups(kAttacker) == i; }); });
    ASSERT_TRUE(Await([&] { return target_->failures(kAttacker) == i; }));
  }
  const std::string log = testing::internal::GetCapturedStderr();
  const auto intervals = static_cast<size_t>(
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::steady_clock::now() - begin).count() / 10 + 1);
  EXPECT_EQ((*target_)->Statistics().malformed, static_cast<uint64_t>(kTimes));
  EXPECT_GE(Lines(log, "peer failed"), 1u) << log;
  EXPECT_LE(Lines(log, "peer failed"), intervals) << log;
  EXPECT_LE(Lines(log, "peer up"), intervals + 1) << log;  // the first, and those after a failure that was logged
  ExpectFriendUnharmed();
}

// The target dials somebody who answers what he likes.
TEST_F(TcpHostileTest, WrongRepliesEndOnlyTheirConnection) {
  constexpr NodeId kImpostor{3};
  constexpr int kReplies = 400;
  const size_t files = OpenFiles();
  {
    const auto listener = BindTcp(LoopbackAddress(0));
    ASSERT_TRUE(listener.ok() && ListenTcp(listener->get()).ok());
    ASSERT_TRUE((*target_)->AddPeer(kImpostor, BoundAddress(listener->get())->ToString()).ok());
    Attacker attacker(port(), 1);
    for (int i = 0; i < kReplies; ++i) {
      pollfd dialled{.fd = listener->get(), .events = POLLIN, .revents = 0};
      ASSERT_EQ(::poll(&dialled, 1, static_cast<int>(HangGuard().count()) * 1000), 1);
      Socket socket(OwnedFd(::accept(listener->get(), nullptr, nullptr)));
      Hello said;
      ASSERT_EQ(DecodeHello(socket.Read(kHelloBytes), &said), WireError::kNone);
      EXPECT_EQ(said.to, kImpostor);
      socket.Write(attacker.ReplyTo(said));
      socket.Finish();
    }
  }
  EXPECT_EQ(target_->ups(kImpostor), 0) << "it never sent a Setup";
  (*target_)->RemovePeer(kImpostor);
  ExpectFriendUnharmed();
  EXPECT_TRUE(Await([&] { return OpenFiles() == files; })) << OpenFiles() << " files are open, not " << files;
}

// Somebody else opens connections, so that only the target runs out of files.
TEST_F(TcpHostileTest, WithoutFilesLeftStrangersMakeRoomForPeers) {
  std::array<int, 2> go{};
  ASSERT_EQ(::pipe(go.data()), 0);
  const auto address = Resolve(LoopbackAddress(port()));
  ASSERT_TRUE(address.ok());
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  // No descriptor below the lowest free one is free: room for fewer connections than there are, or `strangers` allows.
  const rlim_t lowest_free = static_cast<rlim_t>(OwnedFd(::dup(0)).get());
  const rlimit tight{.rlim_cur = lowest_free + 8, .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &tight), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {  // only what may be called after a fork
    ::setrlimit(RLIMIT_NOFILE, &before);
    for (int i = 0; i < 60; ++i) {
      const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
      static_cast<void>(::connect(fd, address->get(), address->size));
    }
    ::close(go[1]);
    char end = 0;
    static_cast<void>(::read(go[0], &end, 1));
    ::_exit(0);
  }
  ::close(go[0]);
  const bool counted = Await([&] { return Strangers() >= 40; });
  friend_->AskAndWait();
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_TRUE(counted) << Strangers();
  ::close(go[1]);
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(Await([&] { return Strangers() == 60; })) << Strangers();
  // A peer that comes now is let in.
  ASSERT_TRUE((*target_)->AddPeer(kAttacker, "127.0.0.1:1").ok());
  Attacker attacker(port(), 1);
  attacker.ConnectAndBreakARule([&] { return Await([&] { return target_->ups(kAttacker) == 1; }); });
  ExpectFriendUnharmed();
}

}  // namespace
}  // namespace hk
