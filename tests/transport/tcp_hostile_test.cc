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
#include "tests/transport/tcp_attacker.h"
#include "tests/transport/tcp_back_end.h"

namespace hk {
namespace {

constexpr NodeId kFriend{2};
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

TEST_F(TcpHostileTest, AFloodFromOneAddressEndsNoOthersHandshake) {
  constexpr uint8_t kFloodFrom = 2;
  constexpr size_t kFlood = 5'000;
  ASSERT_TRUE((*target_)->AddPeer(kAttacker, "127.0.0.1:1").ok());
  Attacker honest(port(), 1);
  Socket slow(port());
  const auto hello = EncodeHello(honest.HelloFor(MessageClass::kFault));
  slow.Write(std::span(hello).first(kHelloBytes / 2));
  std::vector<std::unique_ptr<Socket>> silent(3 * Settings(kTarget).strangers);
  for (size_t i = 0; i < kFlood; ++i) {
    silent[i % silent.size()] = std::make_unique<Socket>(ConnectLoopbackFrom(kFloodFrom, port()));
  }
  EXPECT_TRUE(Await([&] { return Strangers() >= kFlood - Settings(kTarget).strangers; })) << Strangers();
  EXPECT_EQ((*target_)->Statistics().handshakes_refused, 0u);
  slow.Write(std::span(hello).subspan(kHelloBytes / 2));
  Hello reply;
  ASSERT_EQ(DecodeHello(slow.Read(kHelloBytes), &reply), WireError::kNone) << "its handshake was ended";
  EXPECT_EQ(reply.kind, HelloKind::kAcceptFresh);
  ExpectFriendUnharmed();
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
