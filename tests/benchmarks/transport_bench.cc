// One end of a measurement of the transport, or of the bare sockets that are its floor. Two processes:
//
//   transport_bench serve BACKEND WAIT OWN_ADDRESS PEER_ADDRESS     answers until the other end leaves
//   transport_bench WHAT  BACKEND WAIT OWN_ADDRESS PEER_ADDRESS N   measures N pages or messages; one JSON line
//
// BACKEND: tcp, or bare (sockets, no transport). WAIT: blocking, spin, busy. WHAT: pingpong (request -> 4 KiB page, one
// at a time), pages (16 at a time), bulk (64 KiB answers, 8 at a time). Another back end is one more line in
// MakeBackEnd.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutex.h"
#include "rdma/tcp_socket.h"
#include "rdma/tcp_transport.h"
#include "rdma/transport.h"

namespace hk {
namespace {

using std::chrono::steady_clock;

constexpr uint16_t kRequestType = kFirstUserType, kPageType = kFirstUserType + 1, kCpuType = kFirstUserType + 2;
constexpr size_t kRequestBytes = 64;   // of the bare ping-pong; a message's header alone is more
constexpr uint64_t kPagesAtOnce = 16;  // what a few vCPUs that fault at once have under way
constexpr uint64_t kBulkAtOnce = 8;    // more than a loopback holds under way: 50 us at 6 GB/s are 5
constexpr uint64_t kWarmUp = 10;       // one part in so many is run before the measurement
constexpr std::chrono::seconds kHangGuard{120};

// What is measured.
enum class What { kPingPong, kPages, kBulk };

// A command line.
struct Options {
  bool serve = false;
  What what = What::kPingPong;
  std::string back_end;
  WaitMode wait = WaitMode::kBlocking;
  std::string own, peer;
  uint64_t count = 0;
};

uint64_t CpuNs() {
  timespec used{};
  HK_CHECK(::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used) == 0);
  return static_cast<uint64_t>(used.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(used.tv_nsec);
}

double Microseconds(steady_clock::duration duration) {
  return std::chrono::duration<double, std::micro>(duration).count();
}

[[noreturn]] void Fail(const std::string& why) {
  fmt::print(stderr, "transport_bench: {}\n", why);
  std::exit(1);
}

// One measurement: round trips, time and CPU of both ends.
struct Result {
  std::vector<double> round_trips_us;
  double elapsed_s = 0;
  uint64_t cpu_ns = 0;  // both ends
  uint64_t bytes = 0;

  void Print(uint64_t count) {
    std::sort(round_trips_us.begin(), round_trips_us.end());
    const auto percentile = [&](size_t percent) {
      return round_trips_us.empty() ? 0.0 : round_trips_us[(round_trips_us.size() - 1) * percent / 100];
    };
    fmt::print("{{\"p50_us\": {:.2f}, \"p99_us\": {:.2f}, \"mb_per_s\": {:.1f}, \"cpu_us\": {:.2f}}}\n", percentile(50),
               percentile(99), static_cast<double>(bytes) / elapsed_s / 1e6,
               static_cast<double>(cpu_ns) / 1e3 / static_cast<double>(count));
  }
};

// --- Bare sockets ---

struct BareSocket {
  int fd = -1;
  int flags = 0;  // MSG_DONTWAIT: busy

  void Send(const void* data, size_t size) {
    const auto* at = static_cast<const char*>(data);
    while (size > 0) {
      const ssize_t sent = ::send(fd, at, size, MSG_NOSIGNAL);
      if (sent <= 0) Fail("the bare socket is closed");
      at += sent;
      size -= static_cast<size_t>(sent);
    }
  }
  // False: closed.
  bool Receive(void* data, size_t size) {
    auto* at = static_cast<char*>(data);
    while (size > 0) {
      const ssize_t read = ::recv(fd, at, size, flags);
      if (read == 0) return false;
      if (read < 0) continue;
      at += read;
      size -= static_cast<size_t>(read);
    }
    return true;
  }
};

SocketAddress AddressOf(const std::string& text) {
  const auto address = ParseAddress(text, AddressForm::kListenTcp);
  if (!address.ok()) Fail(std::string(address.status().message()));
  return *Resolve(*address);
}

BareSocket BareConnection(const Options& options) {
  const SocketAddress at = AddressOf(options.serve ? options.own : options.peer);
  int fd = ::socket(at.storage.ss_family, SOCK_STREAM, 0);
  const int yes = 1;
  if (options.serve) {
    ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (::bind(fd, at.get(), at.size) != 0 || ::listen(fd, 1) != 0) Fail("bind: " + options.own);
    fd = ::accept(fd, nullptr, nullptr);
  } else {
    const auto guard = steady_clock::now() + kHangGuard;
    while (::connect(fd, at.get(), at.size) != 0) {
      if (steady_clock::now() > guard) Fail("connect: " + options.peer);
      ::close(fd);
      ::usleep(10'000);
      fd = ::socket(at.storage.ss_family, SOCK_STREAM, 0);
    }
  }
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  return {.fd = fd, .flags = options.wait == WaitMode::kBusy ? MSG_DONTWAIT : 0};
}

// The first byte of a request: what is wanted.
enum : char { kWantPage = 'p', kWantBulk = 'b', kWantCpu = 'c' };

void ServeBare(const Options& options) {
  BareSocket socket = BareConnection(options);
  std::array<char, kRequestBytes> request;
  const std::vector<char> answer(kBulkSlotBytes, 'x');
  while (socket.Receive(request.data(), request.size())) {
    if (request[0] == kWantPage) socket.Send(answer.data(), kPageSize);
    if (request[0] == kWantCpu) {
      const uint64_t cpu = CpuNs();
      socket.Send(&cpu, sizeof cpu);
    }
    if (request[0] != kWantBulk) continue;
    uint64_t count = 0;  // a send loop: no request for each
    std::memcpy(&count, request.data() + 8, sizeof count);
    while (count-- > 0) socket.Send(answer.data(), answer.size());
  }
}

uint64_t BareCpu(BareSocket* socket) {
  const std::array<char, kRequestBytes> request{kWantCpu};
  uint64_t cpu = 0;
  socket->Send(request.data(), request.size());
  socket->Receive(&cpu, sizeof cpu);
  return cpu + CpuNs();
}

// Ping-pong or a window of pages.
void BarePages(BareSocket* socket, uint64_t count, uint64_t at_once, Result* result) {
  const std::array<char, kRequestBytes> request{kWantPage};
  std::array<char, kPageSize> page;
  std::vector<steady_clock::time_point> sent(count);
  uint64_t asked = 0;
  for (uint64_t received = 0; received < count; ++received) {
    for (; asked < count && asked - received < at_once; ++asked) {
      sent[asked] = steady_clock::now();
      socket->Send(request.data(), request.size());
    }
    if (!socket->Receive(page.data(), page.size())) Fail("the bare server is gone");
    result->round_trips_us.push_back(Microseconds(steady_clock::now() - sent[received]));
  }
}

void BareBulk(BareSocket* socket, uint64_t count) {
  std::array<char, kRequestBytes> request{kWantBulk};
  std::memcpy(request.data() + 8, &count, sizeof count);
  socket->Send(request.data(), request.size());
  std::vector<char> bulk(kBulkSlotBytes);
  while (count-- > 0) {
    if (!socket->Receive(bulk.data(), bulk.size())) Fail("the bare server is gone");
  }
}

void RunBare(const Options& options) {
  BareSocket socket = BareConnection(options);
  Result result;
  const auto run = [&](uint64_t count) {
    if (options.what == What::kBulk) {
      BareBulk(&socket, count);
    } else {
      BarePages(&socket, count, options.what == What::kPages ? kPagesAtOnce : 1, &result);
    }
  };
  run(options.count / kWarmUp);
  result.round_trips_us.clear();
  const uint64_t cpu = BareCpu(&socket);
  const auto begin = steady_clock::now();
  run(options.count);
  result.elapsed_s = std::chrono::duration<double>(steady_clock::now() - begin).count();
  result.cpu_ns = BareCpu(&socket) - cpu;
  result.bytes = options.count * (options.what == What::kBulk ? kBulkSlotBytes : kPageSize);
  result.Print(options.count);
}

// --- The transport ---

constexpr NodeId kClient(0), kServer(1);

// What both ends share: waiting for one another.
class Peer : public TransportHandler {
 public:
  void Wait(bool* flag) {
    MutexLock lock(&mutex_);
    const auto guard = steady_clock::now() + kHangGuard;
    while (!*flag) {
      if (!changed_.WaitUntil(&mutex_, guard)) Fail("nothing happens");
    }
  }
  void Set(bool* flag) {
    MutexLock lock(&mutex_);
    *flag = true;
    changed_.SignalAll();
  }
  void OnPeerUp(NodeId) override { Set(&up); }
  void OnPeerFailed(NodeId, PeerFailure why, const std::string& detail) override {
    if (why != PeerFailure::kLeft) Fail("the peer failed: " + detail);
    Set(&left);
  }
  void OnWritable(NodeId, MessageClass) override {}
  void OnSlotsFree(MessageClass, SlotUse) override {}
  void OnRequestExpired(NodeId, MessageClass, uint64_t, SlotId, RequestFailure) override { Fail("a request expired"); }

  std::unique_ptr<Transport> transport;
  bool up = false, left = false;

 protected:
  Mutex mutex_;
  CondVar changed_;
};

// Answers requests with the same page again and again: what is measured is the transport, not memcpy.
class Server final : public Peer {
 public:
  void Prepare() {
    for (const MessageClass message_class : {MessageClass::kFault, MessageClass::kBulk}) {
      const auto slot = transport->AcquireSlot(message_class, SlotUse::kSend);
      HK_CHECK(slot.ok());
      std::memset(transport->SlotBytes(*slot).data(), 'x', transport->SlotBytes(*slot).size());
      pages_[static_cast<size_t>(message_class)] = *slot;
    }
  }
  void OnMessage(NodeId from, const Message& message, std::span<const std::byte>, bool) override {
    Message answer = message;
    SendOptions options;
    uint64_t cpu = 0;
    answer.body = {};
    if (message.type == kRequestType) {
      answer.type = kPageType;
      answer.answer = true;
      options.payload = pages_[static_cast<size_t>(message.message_class)];
      options.payload_bytes = message.message_class == MessageClass::kBulk ? kBulkSlotBytes : kFaultSlotBytes;
    } else {
      cpu = CpuNs();
      answer.body = std::as_bytes(std::span(&cpu, 1));
    }
    const absl::Status sent = transport->Send(from, answer, options);
    if (!sent.ok()) Fail(std::string(sent.message()));
  }

 private:
  std::array<SlotId, kMessageClasses> pages_;
};

// Asks again in the handler of each answer, as one does who handles a page's arrival where it arrives.
class Client final : public Peer {
 public:
  void Run(MessageClass message_class, uint64_t count, uint64_t at_once) {
    {
      MutexLock lock(&mutex_);
      done_ = false;
    }
    round_trips_us.clear();
    round_trips_us.reserve(count);
    asked_ = received_ = 0;
    count_ = count;
    sent_.assign(count, {});
    for (uint64_t i = 0; i < std::min(count, at_once); ++i) slots_.push_back(Slot(message_class));
    // From here on the handler asks.
    const uint64_t first = std::min(count, at_once);
    asked_ = first;
    for (uint64_t i = 0; i < first; ++i) Ask(message_class, i, slots_[i]);
    slots_.clear();
    Wait(&done_);
  }
  uint64_t Cpu() {
    {
      MutexLock lock(&mutex_);
      cpu_came_ = false;
    }
    Message message;
    message.message_class = MessageClass::kInvalidate;
    message.type = kCpuType;
    const absl::Status sent = transport->Send(kServer, message);
    if (!sent.ok()) Fail(std::string(sent.message()));
    Wait(&cpu_came_);
    return cpu_ + CpuNs();
  }
  void OnMessage(NodeId, const Message& message, std::span<const std::byte>, bool) override {
    if (message.type == kCpuType) {
      std::memcpy(&cpu_, message.body.data(), sizeof cpu_);
      Set(&cpu_came_);
      return;
    }
    round_trips_us.push_back(Microseconds(steady_clock::now() - sent_[message.transaction]));
    transport->ReleaseSlot(message.slot);
    if (asked_ < count_) {
      const uint64_t next = asked_++;
      Ask(message.message_class, next, Slot(message.message_class));
    }
    if (++received_ == count_) Set(&done_);
  }

  std::vector<double> round_trips_us;

 private:
  SlotId Slot(MessageClass message_class) {
    const auto slot = transport->AcquireSlot(message_class, SlotUse::kReceive);
    if (!slot.ok()) Fail("no slot");
    return *slot;
  }
  void Ask(MessageClass message_class, uint64_t number, SlotId slot) {
    Message message;
    message.message_class = message_class;
    message.type = kRequestType;
    message.guest = GuestId(1);
    message.transaction = number;
    message.gfn = Gfn(number);
    message.slot_node = kClient;
    message.slot = slot;
    sent_[number] = steady_clock::now();
    const absl::Status sent = transport->Send(kServer, message);
    if (!sent.ok()) Fail(std::string(sent.message()));
  }

  uint64_t asked_ = 0, received_ = 0, count_ = 0;
  std::vector<steady_clock::time_point> sent_;
  std::vector<SlotId> slots_;
  bool done_ = false, cpu_came_ = false;
  uint64_t cpu_ = 0;
};

absl::StatusOr<std::unique_ptr<Transport>> MakeBackEnd(const Options& options, TransportHandler* handler) {
  TransportSettings settings;
  settings.cluster = "bench";
  settings.self = options.serve ? kServer : kClient;
  settings.wait = options.wait;
  if (options.back_end == "tcp")
    return MakeTcpTransport(settings, {.listen = options.own, .listener = {}, .tls = {}}, handler);
  return absl::InvalidArgumentError("no back end " + options.back_end);
}

void Connect(const Options& options, Peer* peer) {
  auto made = MakeBackEnd(options, peer);
  if (!made.ok()) Fail(std::string(made.status().message()));
  peer->transport = *std::move(made);
  if (const absl::Status started = peer->transport->Start(); !started.ok()) Fail(std::string(started.message()));
}

void Join(const Options& options, Peer* peer) {
  const absl::Status added = peer->transport->AddPeer(options.serve ? kClient : kServer, options.peer);
  if (!added.ok()) Fail(std::string(added.message()));
}

void Serve(const Options& options) {
  Server server;
  Connect(options, &server);
  server.Prepare();
  Join(options, &server);
  server.Wait(&server.left);
  server.transport.reset();
}

void Run(const Options& options) {
  Client client;
  Connect(options, &client);
  Join(options, &client);
  client.Wait(&client.up);
  const bool bulk = options.what == What::kBulk;
  const MessageClass message_class = bulk ? MessageClass::kBulk : MessageClass::kFault;
  const uint64_t at_once = options.what == What::kPingPong ? 1 : bulk ? kBulkAtOnce : kPagesAtOnce;
  client.Run(message_class, options.count / kWarmUp, at_once);
  Result result;
  const uint64_t cpu = client.Cpu();
  const auto begin = steady_clock::now();
  client.Run(message_class, options.count, at_once);
  result.elapsed_s = std::chrono::duration<double>(steady_clock::now() - begin).count();
  result.cpu_ns = client.Cpu() - cpu;
  result.bytes = options.count * (bulk ? kBulkSlotBytes : kFaultSlotBytes);
  result.round_trips_us = std::move(client.round_trips_us);
  client.transport.reset();
  result.Print(options.count);
}

Options Parse(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  Options options;
  options.serve = !words.empty() && words[0] == "serve";
  if (words.size() != (options.serve ? 5U : 6U)) Fail("usage: see the top of transport_bench.cc");
  if (words[0] == "pages") options.what = What::kPages;
  if (words[0] == "bulk") options.what = What::kBulk;
  options.back_end = words[1];
  if (words[2] == "spin") options.wait = WaitMode::kBoundedSpin;
  if (words[2] == "busy") options.wait = WaitMode::kBusy;
  options.own = words[3];
  options.peer = words[4];
  if (!options.serve) options.count = std::stoull(words[5]);
  return options;
}

}  // namespace
}  // namespace hk

int main(int argc, char** argv) {
  hk::log::Init("bench", hk::log::Level::kWarning);
  const hk::Options options = hk::Parse(argc, argv);
  const bool bare = options.back_end == "bare";
  if (options.serve) {
    bare ? hk::ServeBare(options) : hk::Serve(options);
  } else {
    bare ? hk::RunBare(options) : hk::Run(options);
  }
  return 0;
}
