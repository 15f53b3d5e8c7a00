// Faults of a program on a space's view, beside what they cannot be faster than. Forks a process for each further node.
//
//   fault_bench WAIT NODES N     one JSON line: medians and tails in microseconds, of N faults of each kind
//
// WAIT: blocking, busy; of the transports, and of the reader of the uffd floor. NODES: 2, the pages' home (node 1) owns
// them; 3, node 2 owns them.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "fmt/format.h"
#include "hyperkernel/base/address.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mapping.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/memory/guest_space.h"
#include "hyperkernel/memory/userfaultfd_trial.h"
#include "rdma/tcp_socket.h"
#include "rdma/tcp_transport.h"

namespace hk {
namespace {

using std::chrono::steady_clock;

constexpr std::chrono::seconds kHangGuard{60};
constexpr uint64_t kWarmUp = 10;  // one fault in so many is made before the measurement

[[noreturn]] void Fail(const std::string& why) {
  fmt::print(stderr, "fault_bench: {}\n", why);
  std::exit(1);
}
void Must(const absl::Status& status) {
  if (!status.ok()) Fail(std::string(status.message()));
}
template <typename T>
T Must(absl::StatusOr<T> value) {
  Must(value.status());
  return *std::move(value);
}

// Times of single operations.
class Times {
 public:
  template <typename Operation>
  void Measure(const Operation& operation) {
    const auto begin = steady_clock::now();
    operation();
    us_.push_back(std::chrono::duration<double, std::micro>(steady_clock::now() - begin).count());
  }
  void WarmedUp() { us_.clear(); }
  std::string Json(const std::string& name) {
    std::sort(us_.begin(), us_.end());
    const auto percentile = [&](size_t percent) { return us_.empty() ? 0.0 : us_[(us_.size() - 1) * percent / 100]; };
    return fmt::format("\"{}_p50_us\": {:.2f}, \"{}_p99_us\": {:.2f}", name, percentile(50), name, percentile(99));
  }

 private:
  std::vector<double> us_;
};

void Load(const std::byte* at) {
  static_cast<void>(*reinterpret_cast<const volatile uint64_t*>(at));
}
void Store(std::byte* at) {
  *reinterpret_cast<volatile uint64_t*>(at) = 1;
}

// The floor of a fault that is resolved in the same process: a thread reads the event and copies a zero page in.
class BareFaults {
 public:
  BareFaults(uint64_t pages, bool busy) : file_(::memfd_create("floor", MFD_CLOEXEC)), busy_(busy) {
    if (::ftruncate(file_.get(), static_cast<off_t>(pages * kPageSize)) != 0) Fail("ftruncate");
    view_ = Must(Mapping::Create(pages * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, file_.get(), "floor"));
    faults_ = Must(OpenKernelModeUserfaultfd()).fd;
    Must(UserfaultfdHandshake(faults_.get(), UFFD_FEATURE_MISSING_SHMEM).status());
    uffdio_register request = {};
    request.range = {.start = reinterpret_cast<uint64_t>(view_.data()), .len = view_.size()};
    request.mode = UFFDIO_REGISTER_MODE_MISSING;
    if (::ioctl(faults_.get(), UFFDIO_REGISTER, &request) != 0) Fail("UFFDIO_REGISTER");
    reader_ = std::thread(&BareFaults::Run, this, pages);
  }
  ~BareFaults() { reader_.join(); }
  std::byte* view() { return reinterpret_cast<std::byte*>(view_.data()); }

 private:
  // Ends after `pages` faults.
  void Run(uint64_t pages) {
    alignas(kPageSize) static constexpr std::byte kZeroes[kPageSize] = {};
    while (pages > 0) {
      pollfd waiting{.fd = faults_.get(), .events = POLLIN, .revents = 0};
      if (!busy_) ::poll(&waiting, 1, -1);
      uffd_msg message;
      if (::read(faults_.get(), &message, sizeof message) != sizeof message) continue;
      uffdio_copy copy = {};
      copy.dst = message.arg.pagefault.address & ~(kPageSize - 1);
      copy.src = reinterpret_cast<uint64_t>(kZeroes);
      copy.len = kPageSize;
      if (::ioctl(faults_.get(), UFFDIO_COPY, &copy) != 0) Fail("UFFDIO_COPY");
      pages--;
    }
  }

  OwnedFd file_;
  const bool busy_;
  Mapping view_;
  OwnedFd faults_;
  std::thread reader_;
};

// One node of the space, in a process of its own.
class Node {
 public:
  Node(size_t self, std::vector<OwnedFd>* listeners, uint64_t pages, WaitMode wait)
      : router_({.up =
                     [this](NodeId) {
                       MutexLock lock(&mutex_);
                       up_++;
                       changed_.SignalAll();
                     },
                 .failed = {}}) {
    std::string pattern = "/dev/shm/hk_fault_bench.XXXXXX";
    if (::mkdtemp(pattern.data()) == nullptr) Fail("mkdtemp");
    directory_ = pattern;
    frames_.emplace(Must(FrameStore::Open(directory_, pages * kPageSize)));
    std::vector<std::string> addresses;
    std::vector<NodeId> ids;
    for (size_t i = 0; i < listeners->size(); i++) {
      addresses.push_back(fmt::format("127.0.0.1:{}", Must(BoundAddress((*listeners)[i].get())).port));
      ids.push_back(NodeId(static_cast<uint16_t>(i)));
    }
    TransportSettings settings;
    settings.cluster = "bench";
    settings.self = ids[self];
    settings.wait = wait;
    transport_ = Must(
        MakeTcpTransport(settings, {.listen = {}, .listener = std::move((*listeners)[self]), .tls = {}}, &router_));
    listeners->clear();
    router_.SetTransport(transport_.get());
    Must(transport_->Start());
    GuestSpace::Options options;
    options.name = "bench";
    options.config.guest = GuestId(1);
    options.config.self = ids[self];
    options.config.nodes = ids;
    options.config.pages = pages;
    space_ = Must(GuestSpace::Attach(std::move(options), *frames_, transport_.get(), &router_, RealClock()));
    for (size_t i = 0; i < ids.size(); i++) {
      if (i != self) Must(transport_->AddPeer(ids[i], addresses[i]));
    }
    MutexLock lock(&mutex_);
    while (up_ + 1 < ids.size()) {
      if (!changed_.WaitUntil(&mutex_, steady_clock::now() + kHangGuard)) Fail("peers do not come");
    }
  }
  ~Node() {
    space_.reset();
    transport_.reset();
    frames_.reset();
    while (::umount2(directory_.c_str(), MNT_DETACH) == 0) {
    }
    std::filesystem::remove_all(directory_);
  }
  GuestSpace& space() { return *space_; }

 private:
  std::string directory_;
  Mutex mutex_;
  CondVar changed_;
  size_t up_ = 0;
  std::optional<FrameStore> frames_;
  SpaceRouter router_;
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<GuestSpace> space_;
};

// The number-th of the pages whose home is `home`.
uint64_t PageOf(uint64_t number, uint64_t home, uint64_t nodes) {
  return (number / kExtentPages * nodes + home) * kExtentPages + number % kExtentPages;
}

// What the measuring process asks another for: to write to these pages, so that it owns them.
struct Order {
  uint64_t first = 0, count = 0;
};

void Serve(Node* node, int orders, uint64_t nodes) {
  Order order;
  std::vector<std::byte> page(kPageSize, std::byte{1});
  while (::read(orders, &order, sizeof order) == sizeof order) {
    for (uint64_t i = order.first; i < order.first + order.count; i++) {
      const Gpa at(PageOf(i, 1, nodes) * kPageSize);
      Must(node->space().Write(at, page, steady_clock::now() + kHangGuard));
    }
    if (::write(orders, &order, sizeof order) != sizeof order) return;
  }
}

void Run(Node* node, int orders, uint64_t nodes, uint64_t count, bool busy) {
  const auto own = [orders](uint64_t first, uint64_t number) {
    Order order{first, number};
    if (::write(orders, &order, sizeof order) != sizeof order || ::read(orders, &order, sizeof order) != sizeof order)
      Fail("the owner is gone");
  };
  const uint64_t warm = count / kWarmUp;
  Times floor, dormant_read, dormant_write, read, upgrade, write;
  {
    BareFaults bare(count + warm, busy);
    for (uint64_t i = 0; i < count + warm; i++) {
      if (i == warm) floor.WarmedUp();
      floor.Measure([&] { Load(bare.view() + i * kPageSize); });
    }
  }
  std::byte* const view = node->space().view();
  const auto at = [&](uint64_t number, uint64_t home) { return view + PageOf(number, home, nodes) * kPageSize; };
  for (uint64_t i = 0; i < count + warm; i++) {
    if (i == warm) dormant_write.WarmedUp();
    dormant_write.Measure([&] { Store(at(i, 0)); });
  }
  for (uint64_t i = 0; i < count; i++) dormant_read.Measure([&] { Load(at(count + warm + i, 0)); });
  own(0, count + warm);
  for (uint64_t i = 0; i < count + warm; i++) {
    if (i == warm) read.WarmedUp();
    read.Measure([&] { Load(at(i, 1)); });
  }
  for (uint64_t i = 0; i < count; i++) upgrade.Measure([&] { Store(at(i, 1)); });
  own(0, count);
  for (uint64_t i = 0; i < count; i++) write.Measure([&] { Store(at(i, 1)); });
  fmt::print("{{{}, {}, {}, {}, {}, {}}}\n", floor.Json("uffd"), dormant_read.Json("dormant_read"),
             dormant_write.Json("dormant_write"), read.Json("read"), upgrade.Json("upgrade"), write.Json("write"));
}

int Main(const std::vector<std::string>& words) {
  if (words.size() != 3) Fail("usage: see the top of fault_bench.cc");
  const bool busy = words[0] == "busy";
  const WaitMode wait = busy ? WaitMode::kBusy : WaitMode::kBlocking;
  const uint64_t nodes = std::stoull(words[1]), count = std::stoull(words[2]);
  // Pages at home at each node, for all that is measured; whole extents.
  const uint64_t pages = (3 * count / kExtentPages + 1) * kExtentPages * nodes;
  std::vector<OwnedFd> listeners;
  for (uint64_t i = 0; i < nodes; i++) {
    listeners.push_back(
        Must(BindTcp({.kind = Address::Kind::kTcp, .path = {}, .host = "127.0.0.1", .port = 0, .is_literal = true})));
  }
  int orders[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, orders) != 0) Fail("socketpair");
  for (size_t self = 1; self < nodes; self++) {
    if (::fork() != 0) continue;
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);
    ::close(orders[0]);
    {
      Node node(self, &listeners, pages, wait);
      if (self + 1 == nodes) {
        Serve(&node, orders[1], nodes);
      } else {
        Order none;  // home only: until the others are through
        while (::recv(orders[1], &none, sizeof none, MSG_PEEK) > 0) std::this_thread::sleep_for(kHangGuard / 600);
      }
    }
    std::_Exit(0);
  }
  ::close(orders[1]);
  {
    Node node(0, &listeners, pages, wait);
    Run(&node, orders[0], nodes, count, busy);
  }
  ::close(orders[0]);
  while (::wait(nullptr) > 0) {
  }
  return 0;
}

}  // namespace
}  // namespace hk

int main(int argc, char** argv) {
  hk::log::Init("bench", hk::log::Level::kError);
  return hk::Main({argv + 1, argv + argc});
}
