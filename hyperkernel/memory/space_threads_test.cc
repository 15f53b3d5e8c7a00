// Two fault engines with the threads that they have in a daemon: the transport's over TCP, timers', and programs that
// count in shared pages. For the sanitizers; what is right is the simulator's matter (tests/sim/space_sim_test.cc).
#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <cstring>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/memory/space_engine.h"
#include "rdma/tcp_transport.h"

namespace hk {
namespace {

constexpr std::chrono::seconds kPatience(60);
constexpr int kNodes = 2, kThreads = 3, kRounds = 1500;
// More pages than a node has frames.
constexpr uint64_t kPages = 20, kFrames = 12;
Gfn PageOf(uint64_t i) {
  return Gfn(i % 2 * kExtentPages + i / 2);
}

// Runs things on a thread of its own.
class ThreadTimers final : public Timers {
 public:
  ThreadTimers() : thread_([this] { Run(); }) {}
  ~ThreadTimers() override {
    {
      MutexLock lock(&mutex_);
      over_ = true;
    }
    changed_.SignalAll();
    thread_.join();
  }
  void After(Monotonic::duration delay, std::function<void()> run) override {
    MutexLock lock(&mutex_);
    timers_.emplace(std::chrono::steady_clock::now() + delay, std::move(run));
    changed_.SignalAll();
  }

 private:
  void Run() {
    mutex_.Lock();
    while (!over_) {
      const Monotonic now = std::chrono::steady_clock::now();
      if (timers_.empty() || timers_.begin()->first > now) {
        changed_.WaitUntil(&mutex_, timers_.empty() ? now + kPatience : timers_.begin()->first);
        continue;
      }
      const std::function<void()> run = std::move(timers_.begin()->second);
      timers_.erase(timers_.begin());
      mutex_.Unlock();
      run();
      mutex_.Lock();
    }
    mutex_.Unlock();
  }

  Mutex mutex_;
  CondVar changed_;
  bool over_ ABSL_GUARDED_BY(mutex_) = false;
  std::multimap<Monotonic, std::function<void()>> timers_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

// Pages in ordinary memory. Calls for one page are serial, so there is a lock only around the table.
class MemoryFrames final : public PageFrames {
 public:
  absl::Status Install(Gfn page, std::span<const std::byte> bytes, PageAccess access) override {
    MutexLock lock(&mutex_);
    if (pages_.contains(page.value())) return absl::AlreadyExistsError("the page is here");
    auto& [right, memory] = pages_[page.value()];
    right = access;
    memory.assign(kPageSize, std::byte{0});
    if (!bytes.empty()) std::memcpy(memory.data(), bytes.data(), kPageSize);
    return absl::OkStatus();
  }
  absl::Status SetAccess(Gfn page, PageAccess access) override {
    MutexLock lock(&mutex_);
    pages_.at(page.value()).first = access;
    return absl::OkStatus();
  }
  absl::Status Remove(Gfn page, std::span<std::byte> keep) override {
    MutexLock lock(&mutex_);
    if (!keep.empty()) std::memcpy(keep.data(), pages_.at(page.value()).second.data(), kPageSize);
    pages_.erase(page.value());
    return absl::OkStatus();
  }
  absl::Status Read(Gfn page, size_t offset, std::span<std::byte> to) override {
    MutexLock lock(&mutex_);
    std::memcpy(to.data(), pages_.at(page.value()).second.data() + offset, to.size());
    return absl::OkStatus();
  }
  absl::Status Write(Gfn page, size_t offset, std::span<const std::byte> from) override {
    MutexLock lock(&mutex_);
    if (pages_.at(page.value()).first != PageAccess::kWrite) return absl::FailedPreconditionError("not writable");
    std::memcpy(pages_.at(page.value()).second.data() + offset, from.data(), from.size());
    return absl::OkStatus();
  }
  void Wake(Gfn) override {}
  void Fail(Gfn) override {}

 private:
  Mutex mutex_;
  std::map<uint64_t, std::pair<PageAccess, std::vector<std::byte>>> pages_ ABSL_GUARDED_BY(mutex_);
};

OwnedFd BoundSocket(std::string* address) {
  OwnedFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_in in{};
  in.sin_family = AF_INET;
  in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(in);
  EXPECT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&in), size), 0);
  EXPECT_EQ(::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&in), &size), 0);
  *address = "127.0.0.1:" + std::to_string(ntohs(in.sin_port));
  return fd;
}

// One node.
class Node final : public TransportHandler {
 public:
  // With a coordinator, the loss of the third node is survived, and frames are not bounded.
  Node(NodeId id, OwnedFd listener, uint16_t nodes = kNodes, std::optional<NodeId> coordinator = std::nullopt)
      : id_(id), survives_(coordinator.has_value()) {
    TransportSettings settings;
    settings.cluster = "threads";
    settings.self = id;
    settings.lease_ms = 30'000;  // sanitizers are slow
    settings.heartbeat_ms = 200;
    settings.fault_receive_slots = settings.fault_send_slots = 2;  // so that they run out
    TcpOptions options;
    options.listener = std::move(listener);
    auto made = MakeTcpTransport(settings, std::move(options), this);
    EXPECT_TRUE(made.ok()) << made.status();
    transport = *std::move(made);
    SpaceConfig config;
    config.guest = GuestId(1);
    config.self = id;
    for (uint16_t node = 0; node < nodes; ++node) config.nodes.push_back(NodeId(node));
    config.pages = 2 * kExtentPages;
    config.max_pages = coordinator.has_value() ? 0 : kFrames;
    config.coordinator = coordinator;
    config.hold = std::chrono::microseconds(50);
    auto created = SpaceEngine::Create(config, transport.get(), &frames, &timers_, RealClock(),
                                       [](const absl::Status& why) { ADD_FAILURE() << why; });
    EXPECT_TRUE(created.ok()) << created.status();
    engine = *std::move(created);
    engine->WatchLosses([this](NodeId) {
      MutexLock lock(&mutex_);
      lost_ = true;
      changed_.SignalAll();
    });
    EXPECT_TRUE(transport->Start().ok());
  }
  ~Node() override { transport->Stop(); }

  void OnMessage(NodeId from, const Message& message, std::span<const std::byte> payload, bool late) override {
    engine->OnMessage(from, message, payload, late);
  }
  void OnPeerUp(NodeId) override {
    MutexLock lock(&mutex_);
    ++up_;
    changed_.SignalAll();
  }
  void OnPeerFailed(NodeId peer, PeerFailure why, const std::string& detail) override {
    if (why != PeerFailure::kLeft || (survives_ && peer != NodeId(0) && peer != NodeId(1)))
      engine->OnPeerFailed(peer, why, detail);
  }
  void OnWritable(NodeId peer, MessageClass message_class) override { engine->OnWritable(peer, message_class); }
  void OnSlotsFree(MessageClass message_class, SlotUse use) override { engine->OnSlotsFree(message_class, use); }
  void OnRequestExpired(NodeId asked, MessageClass message_class, uint64_t transaction, SlotId slot,
                        RequestFailure why) override {
    engine->OnRequestExpired(asked, message_class, transaction, slot, why);
  }

  bool WaitUp(int peers = kNodes - 1) {
    const Monotonic end = std::chrono::steady_clock::now() + kPatience;
    MutexLock lock(&mutex_);
    while (up_ < peers) {
      if (!changed_.WaitUntil(&mutex_, end)) return up_ >= peers;
    }
    return true;
  }
  bool WaitLost() {
    const Monotonic end = std::chrono::steady_clock::now() + kPatience;
    MutexLock lock(&mutex_);
    while (!lost_) {
      if (!changed_.WaitUntil(&mutex_, end)) return lost_;
    }
    return true;
  }
  absl::Status Rebuild(Epoch epoch) {
    // Outlives the callback's end: the last that touches it owns it.
    auto status = std::make_shared<std::promise<absl::Status>>();
    engine->Rebuild(epoch, [status](const absl::Status& end) { status->set_value(end); });
    return status->get_future().get();
  }
  // Asks for the page and runs `use` while it is here. False: it did not come.
  bool With(Gfn page, PageAccess access, const std::function<void()>& use) {
    const Monotonic end = std::chrono::steady_clock::now() + kPatience;
    bool ended = false, good = false;
    engine->Want(page, access, [&](const absl::Status& status) {
      if (status.ok()) use();
      MutexLock lock(&mutex_);
      ended = true;
      good = status.ok();
      changed_.SignalAll();
    });
    MutexLock lock(&mutex_);
    while (!ended) {
      if (!changed_.WaitUntil(&mutex_, end) && !ended) std::abort();  // the callback would meet a stack that is gone
    }
    return good;
  }

  MemoryFrames frames;
  std::unique_ptr<Transport> transport;
  std::unique_ptr<SpaceEngine> engine;

 private:
  const NodeId id_;
  const bool survives_;
  ThreadTimers timers_;
  Mutex mutex_;
  CondVar changed_;
  int up_ ABSL_GUARDED_BY(mutex_) = 0;
  bool lost_ ABSL_GUARDED_BY(mutex_) = false;
};

TEST(SpaceThreads, TwoNodesCountTogether) {
  std::string addresses[kNodes];
  OwnedFd listeners[kNodes];
  for (int i = 0; i < kNodes; ++i) listeners[i] = BoundSocket(&addresses[i]);
  std::vector<std::unique_ptr<Node>> nodes;
  for (uint16_t i = 0; i < kNodes; ++i) nodes.push_back(std::make_unique<Node>(NodeId(i), std::move(listeners[i])));
  for (uint16_t i = 0; i < kNodes; ++i) {
    for (uint16_t j = 0; j < kNodes; ++j) {
      if (i == j) continue;
      ASSERT_TRUE(nodes[i]->transport->AddPeer(NodeId(j), addresses[j]).ok());
    }
  }
  for (const auto& node : nodes) ASSERT_TRUE(node->WaitUp());
  std::vector<std::thread> threads;
  for (int t = 0; t < kNodes * kThreads; ++t) {
    threads.emplace_back([&, t] {
      Node& node = *nodes[static_cast<size_t>(t % kNodes)];
      for (int round = 0; round < kRounds; ++round) {
        const Gfn page = PageOf(static_cast<uint64_t>(round / 3 + t) % kPages);
        uint64_t count = 0;
        const auto bytes = std::as_writable_bytes(std::span(&count, 1));
        if (round % 3 == 0) {
          EXPECT_TRUE(node.With(page, PageAccess::kRead, [&] { EXPECT_TRUE(node.frames.Read(page, 8, bytes).ok()); }));
        }
        EXPECT_TRUE(node.With(page, PageAccess::kWrite, [&] {
          EXPECT_TRUE(node.frames.Read(page, 8, bytes).ok());
          ++count;
          EXPECT_TRUE(node.frames.Write(page, 8, bytes).ok());
        }));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  uint64_t sum = 0;
  for (uint64_t i = 0; i < kPages; ++i) {
    const Gfn page = PageOf(i);
    uint64_t count = 0;
    EXPECT_TRUE(nodes[0]->With(page, PageAccess::kRead, [&] {
      EXPECT_TRUE(nodes[0]->frames.Read(page, 8, std::as_writable_bytes(std::span(&count, 1))).ok());
    }));
    sum += count;
  }
  EXPECT_EQ(sum, static_cast<uint64_t>(kNodes) * kThreads * kRounds);
  for (const auto& node : nodes) EXPECT_EQ(node->engine->Statistics().stale_messages, 0u);
  for (const auto& node : nodes) node->transport->Stop();
}

// The third one only reads, so nothing is lost with it.
TEST(SpaceThreads, TwoGoOnCountingWithoutTheThird) {
  constexpr uint16_t kAll = 3, kLeft = 2;
  std::string addresses[kAll];
  OwnedFd listeners[kAll];
  for (int i = 0; i < kAll; ++i) listeners[i] = BoundSocket(&addresses[i]);
  std::vector<std::unique_ptr<Node>> nodes;
  for (uint16_t i = 0; i < kAll; ++i) {
    nodes.push_back(std::make_unique<Node>(NodeId(i), std::move(listeners[i]), kAll, NodeId(0)));
  }
  for (uint16_t i = 0; i < kAll; ++i) {
    for (uint16_t j = 0; j < kAll; ++j) {
      if (i == j) continue;
      ASSERT_TRUE(nodes[i]->transport->AddPeer(NodeId(j), addresses[j]).ok());
    }
  }
  for (const auto& node : nodes) ASSERT_TRUE(node->WaitUp(kAll - 1));
  for (uint64_t i = 0; i < kPages; ++i) ASSERT_TRUE(nodes[i % 2]->With(PageOf(i), PageAccess::kWrite, [] {}));
  std::atomic<uint64_t> counted{0};
  std::atomic<bool> over{false};
  std::vector<std::thread> threads;
  for (size_t t = 0; t < kLeft * kThreads; ++t) {
    threads.emplace_back([&, t] {
      Node& node = *nodes[t % kLeft];
      for (uint64_t round = t; !over; ++round) {
        const Gfn page = PageOf(round % kPages);
        EXPECT_TRUE(node.With(page, PageAccess::kWrite, [&] {
          uint64_t count = 0;
          EXPECT_TRUE(node.frames.Read(page, 8, std::as_writable_bytes(std::span(&count, 1))).ok());
          ++count;
          EXPECT_TRUE(node.frames.Write(page, 8, std::as_bytes(std::span(&count, 1))).ok());
        }));
        ++counted;
      }
    });
  }
  for (uint64_t round = 0; counted < kRounds; ++round) {
    EXPECT_TRUE(nodes[2]->With(PageOf(round % kPages), PageAccess::kRead, [] {}));
  }
  nodes[2]->transport->Stop();
  for (uint16_t i = 0; i < kLeft; ++i) ASSERT_TRUE(nodes[i]->WaitLost());
  const SpaceEpoch change{.epoch = Epoch(2), .survivors = NodeSet(3), .committed = Epoch(1)};
  const auto each = [&](const std::function<absl::Status(Node*)>& step) {
    std::vector<std::thread> calls;
    for (uint16_t i = 0; i < kLeft; ++i) {
      calls.emplace_back([&, i] {
        const absl::Status status = step(nodes[i].get());
        EXPECT_TRUE(status.ok()) << status;
      });
    }
    for (std::thread& call : calls) call.join();
  };
  each([&](Node* node) { return node->engine->BeginEpoch(change); });
  each([&](Node* node) { return node->Rebuild(change.epoch); });
  each([&](Node* node) { return node->engine->Commit(change.epoch); });
  each([&](Node* node) { return node->engine->Run(change.epoch); });
  const uint64_t until = counted + kRounds;
  while (counted < until && !testing::Test::HasFailure()) std::this_thread::yield();
  over = true;
  for (std::thread& thread : threads) thread.join();
  uint64_t sum = 0;
  for (uint64_t i = 0; i < kPages; ++i) {
    const Gfn page = PageOf(i);
    uint64_t count = 0;
    EXPECT_TRUE(nodes[1]->With(page, PageAccess::kRead, [&] {
      EXPECT_TRUE(nodes[1]->frames.Read(page, 8, std::as_writable_bytes(std::span(&count, 1))).ok());
    }));
    sum += count;
  }
  EXPECT_EQ(sum, counted);
  for (const auto& node : nodes) node->transport->Stop();
}

}  // namespace
}  // namespace hk
