// Faults of a program on a space's view, beside what they cannot be faster than. Forks a process for each further node.
//
//   fault_bench WAIT NODES N             one JSON line: medians and tails in microseconds, of N faults of each kind
//   fault_bench WAIT NODES N scan        N pages that the last node has written, read in order by all others, each its
//                                        part, at the same time: MB/s in all, and what became of prefetched pages
//   fault_bench WAIT NODES N beside      N pages of the last node read in no order: alone, and while another thread of
//                                        this node reads others of its pages in order
//   fault_bench WAIT NODES N tables      bytes of tables of N pages that node 0 alone has written, and of N that each
//                                        were written by any one node and read by any of the others: per byte; and what
//                                        one node takes for a space of which nothing was touched
//   fault_bench WAIT THREADS N shards    one node: THREADS program threads, each N first touches in a userfaultfd of
//   its
//                                        own, and all in one: faults per second
//   fault_bench WAIT 1 N sparse          a space of N pages: seconds to make it, MiB resident
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
#include <fstream>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
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
constexpr uint64_t kSparseFrames = 16 << 10;  // of a space of which nothing is touched
constexpr uint64_t kWarmUp = 10;              // one fault in so many is made before the measurement
// Beside a read in no order so many pages are there to be scanned: the scan is to last longer.
constexpr uint64_t kScannedPerRead = 32;

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
  size_t size() const { return us_.size(); }
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
  // `frames`: most of them that it takes.
  Node(size_t self, std::vector<OwnedFd>* listeners, uint64_t pages, uint64_t frames, WaitMode wait)
      : router_({.up =
                     [this](NodeId) {
                       MutexLock lock(&mutex_);
                       up_++;
                       changed_.SignalAll();
                     },
                 .failed = {}}) {
    std::string pattern = "/dev/shm/hk_fault_bench.XXXXXX";
    if (::mkdtemp(pattern.data()) == nullptr) Fail("mkdtemp");
    frames_.emplace(Must(FrameStore::Open(pattern, frames * kPageSize)));
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
    if (frames < pages) options.config.max_pages = frames;
    const auto begin = steady_clock::now();
    space_ = Must(GuestSpace::Attach(std::move(options), *frames_, transport_.get(), &router_, RealClock()));
    attach_s_ = std::chrono::duration<double>(steady_clock::now() - begin).count();
    // Its file is open: nothing stays behind, however this ends.
    while (::umount2(pattern.c_str(), MNT_DETACH) == 0) {
    }
    std::filesystem::remove_all(pattern);
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
  }
  GuestSpace& space() { return *space_; }
  double attach_s() const { return attach_s_; }

 private:
  Mutex mutex_;
  CondVar changed_;
  size_t up_ = 0;
  double attach_s_ = 0;
  std::optional<FrameStore> frames_;
  SpaceRouter router_;
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<GuestSpace> space_;
};

// The number-th of the pages whose home is `home`.
uint64_t PageOf(uint64_t number, uint64_t home, uint64_t nodes) {
  return (number / kExtentPages * nodes + home) * kExtentPages + number % kExtentPages;
}

// What the measuring process asks another for, and is told.
struct Order {
  enum Kind : uint64_t { kOwn, kWrite, kWriteSome, kReadSome, kScan, kTables } kind = kOwn;
  uint64_t first = 0, count = 0;
  uint64_t table_bytes = 0, useful = 0, wasted = 0;  // the reply
};

// Reads all of the pages, in order.
void Scan(const std::byte* view, const Order& order) {
  uint64_t sum = 0;
  for (uint64_t page = order.first; page < order.first + order.count; page++) {
    const auto* words = reinterpret_cast<const uint64_t*>(view + page * kPageSize);
    for (size_t i = 0; i < kPageSize / sizeof *words; i++) sum += words[i];
  }
  if (sum == 0) Fail("the pages are not what the owner wrote");
}

// A number of a page by chance, the same in each run and on each node.
uint64_t ChanceOf(uint64_t page) {
  return std::mt19937_64(page)();  // NOLINT: see above
}
// Of several nodes, one writes a page; of the others, each in half of the cases reads it.
bool IsWriter(uint64_t page, uint64_t self, uint64_t nodes) {
  return ChanceOf(page) % nodes == self;
}
bool IsReader(uint64_t page, uint64_t self, uint64_t nodes) {
  return !IsWriter(page, self, nodes) && (ChanceOf(page) >> 32 >> self & 1) != 0;
}

// kOwn: of those whose home is node 1; the others: by their number.
void Obey(Node* node, uint64_t self, uint64_t nodes, Order* order) {
  std::vector<std::byte> page(kPageSize, std::byte{1});
  const auto deadline = [] { return steady_clock::now() + kHangGuard; };
  if (order->kind == Order::kScan) Scan(node->space().view(), *order);
  for (uint64_t i = 0; i < order->count && order->kind < Order::kScan; i++) {
    const uint64_t number = order->first + i;
    if (order->kind == Order::kWriteSome && !IsWriter(number, self, nodes)) continue;
    if (order->kind == Order::kReadSome && !IsReader(number, self, nodes)) continue;
    const Gpa at((order->kind == Order::kOwn ? PageOf(number, 1, nodes) : number) * kPageSize);
    if (order->kind == Order::kReadSome) {
      Must(node->space().Read(at, page, deadline()));
    } else {
      Must(node->space().Write(at, page, deadline()));
    }
  }
  const SpaceStatistics statistics = node->space().Statistics();
  order->useful = statistics.prefetch_useful;
  order->wasted = statistics.prefetch_wasted;
  order->table_bytes = node->space().engine().Residue().table_bytes;
}

void Serve(Node* node, int orders, uint64_t self, uint64_t nodes) {
  Order order;
  while (::read(orders, &order, sizeof order) == sizeof order) {
    Obey(node, self, nodes, &order);
    if (::write(orders, &order, sizeof order) != sizeof order) return;
  }
}

void Ask(int orders, const Order& order) {
  if (::write(orders, &order, sizeof order) != sizeof order) Fail("a node is gone");
}
Order Reply(int orders) {
  Order order;
  if (::read(orders, &order, sizeof order) != sizeof order) Fail("a node is gone");
  return order;
}

// `orders` of the other nodes, from node 1 on; the last one has the pages.
void RunScan(Node* node, const std::vector<int>& orders, uint64_t count) {
  Ask(orders.back(), {.kind = Order::kWrite, .count = count});
  Reply(orders.back());
  const uint64_t part = count / orders.size();
  const auto begin = steady_clock::now();
  for (size_t i = 0; i + 1 < orders.size(); i++) {
    Ask(orders[i], {.kind = Order::kScan, .first = (i + 1) * part, .count = part});
  }
  Order own{.kind = Order::kScan, .count = part};
  Obey(node, 0, orders.size() + 1, &own);
  for (size_t i = 0; i + 1 < orders.size(); i++) {
    const Order reply = Reply(orders[i]);
    own.useful += reply.useful;
    own.wasted += reply.wasted;
  }
  const double elapsed_s = std::chrono::duration<double>(steady_clock::now() - begin).count();
  fmt::print("{{\"mb_per_s\": {:.1f}, \"useful\": {}, \"wasted\": {}}}\n",
             static_cast<double>(part * orders.size() * kPageSize) / elapsed_s / 1e6, own.useful, own.wasted);
}

void RunTables(Node* node, const std::vector<int>& orders, uint64_t count) {
  const uint64_t nodes = orders.size() + 1;
  const auto all = [&](uint64_t member, Order order) {
    if (member == 0) {
      Obey(node, 0, nodes, &order);
      return order.table_bytes;
    }
    Ask(orders[member - 1], order);
    return Reply(orders[member - 1]).table_bytes;
  };
  const auto tables = [&] {
    uint64_t bytes = 0;
    for (uint64_t member = 0; member < nodes; member++) bytes += all(member, {.kind = Order::kTables});
    return static_cast<double>(bytes);
  };
  const double nothing = tables();
  all(0, {.kind = Order::kWrite, .count = count});
  const double of_private = tables() - nothing;
  for (const Order::Kind kind : {Order::kWriteSome, Order::kReadSome}) {
    for (uint64_t member = 0; member < nodes; member++) all(member, {.kind = kind, .first = count, .count = count});
  }
  const double bytes = static_cast<double>(count * kPageSize);
  fmt::print("{{\"private\": {:.5f}, \"mixed\": {:.5f}, \"untouched_kib\": {:.0f}}}\n", of_private / bytes,
             (tables() - of_private - nothing) / bytes, nothing / static_cast<double>(nodes) / 1024);
}

// Reads in no order, first alone and then while a thread beside them scans.
void RunBeside(Node* node, const std::vector<int>& orders, uint64_t count) {
  const uint64_t scanned = count * kScannedPerRead;
  Ask(orders.back(), {.kind = Order::kWrite, .count = 2 * count + scanned});
  Reply(orders.back());
  std::vector<uint64_t> order(2 * count);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937_64(1));  // NOLINT: the same in each run
  std::byte* const view = node->space().view();
  Times alone, beside;
  const uint64_t warm = count / kWarmUp;
  for (uint64_t i = 0; i < count; i++) {
    if (i == warm) alone.WarmedUp();
    alone.Measure([&] { Load(view + order[i] * kPageSize); });
  }
  std::atomic<uint64_t> done{0};
  std::atomic<bool> enough{false};
  std::thread scanner([&] {
    for (uint64_t page = 0; page < scanned && !enough.load(); page++) {
      Load(view + (2 * count + page) * kPageSize);
      done.store(page + 1);
    }
  });
  while (done.load() < kExtentPages && done.load() < scanned) std::this_thread::yield();  // it is a stream by then
  const auto begin = steady_clock::now();
  const uint64_t before = done.load();
  for (uint64_t i = count; i < 2 * count && done.load() < scanned; i++) {
    beside.Measure([&] { Load(view + order[i] * kPageSize); });
  }
  const double elapsed_s = std::chrono::duration<double>(steady_clock::now() - begin).count();
  const uint64_t passed = done.load() - before;
  enough.store(true);
  scanner.join();
  fmt::print("{{{}, {}, \"beside_reads\": {}, \"scan_mb_per_s\": {:.1f}}}\n", alone.Json("alone"),
             beside.Json("beside"), beside.size(), static_cast<double>(passed * kPageSize) / elapsed_s / 1e6);
}

// First touches per second of `threads` threads, `count` each; `apart`: each in a stripe of its own.
double Touches(Node* node, uint64_t threads, uint64_t count, bool apart) {
  // The pages after those that were touched before.
  const uint64_t stripe = (uint64_t{1} << 30) / kPageSize, from = apart ? 0 : count;
  const auto begin = steady_clock::now();
  std::vector<std::thread> programs;
  for (uint64_t i = 0; i < threads; i++) {
    std::byte* const first = node->space().view() + (apart ? i * stripe : from + i * count) * kPageSize;
    programs.emplace_back([first, count] {
      for (uint64_t page = 0; page < count; page++) Store(first + page * kPageSize);
    });
  }
  for (std::thread& program : programs) program.join();
  return static_cast<double>(threads * count) / std::chrono::duration<double>(steady_clock::now() - begin).count();
}

double ResidentMib() {
  std::ifstream file("/proc/self/statm");
  uint64_t size = 0, resident = 0;
  file >> size >> resident;
  return static_cast<double>(resident * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE))) / (1 << 20);
}

void Run(Node* node, int orders, uint64_t nodes, uint64_t count, bool busy) {
  const auto own = [orders](uint64_t first, uint64_t number) {
    Ask(orders, {.kind = Order::kOwn, .first = first, .count = number});
    Reply(orders);
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
  // In no order: of a stream most pages would be there already.
  std::vector<uint64_t> order(count + warm);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937_64(1));  // NOLINT: the same in each run
  for (uint64_t i = 0; i < count + warm; i++) {
    if (i == warm) read.WarmedUp();
    read.Measure([&] { Load(at(order[i], 1)); });
  }
  for (uint64_t i = 0; i < count; i++) upgrade.Measure([&] { Store(at(i, 1)); });
  own(0, count);
  for (uint64_t i = 0; i < count; i++) write.Measure([&] { Store(at(i, 1)); });
  fmt::print("{{{}, {}, {}, {}, {}, {}}}\n", floor.Json("uffd"), dormant_read.Json("dormant_read"),
             dormant_write.Json("dormant_write"), read.Json("read"), upgrade.Json("upgrade"), write.Json("write"));
}

int Main(const std::vector<std::string>& words) {
  if (words.size() != 3 && words.size() != 4) Fail("usage: see the top of fault_bench.cc");
  const bool busy = words[0] == "busy";
  const WaitMode wait = busy ? WaitMode::kBusy : WaitMode::kBlocking;
  const std::string what = words.size() == 4 ? words[3] : "faults";
  const bool alone = what == "shards" || what == "sparse";
  const uint64_t given = std::stoull(words[1]), count = std::stoull(words[2]), nodes = alone ? 1 : given;
  uint64_t pages = (2 * count / (kExtentPages * nodes) + 1) * kExtentPages * nodes, frames = pages;
  // Pages at home at each node, for all that is measured; whole extents.
  if (what == "faults") pages = frames = (3 * count / kExtentPages + 1) * kExtentPages * nodes;
  if (what == "beside") pages = frames = (2 + kScannedPerRead) * count + kExtentPages;
  if (what == "shards") pages = given << (30 - kPageShift), frames = 3 * given * count;
  if (what == "sparse") pages = count, frames = kSparseFrames;
  std::vector<OwnedFd> listeners;
  for (uint64_t i = 0; i < nodes; i++) {
    listeners.push_back(
        Must(BindTcp({.kind = Address::Kind::kTcp, .path = {}, .host = "127.0.0.1", .port = 0, .is_literal = true})));
  }
  std::vector<int> orders;  // to node 1 and on
  for (size_t self = 1; self < nodes; self++) {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) Fail("socketpair");
    if (::fork() != 0) {
      ::close(ends[1]);
      orders.push_back(ends[0]);
      continue;
    }
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);
    ::close(ends[0]);
    for (const int other : orders) ::close(other);
    {
      Node node(self, &listeners, pages, frames, wait);
      Serve(&node, ends[1], self, nodes);
    }
    std::_Exit(0);
  }
  {
    const double before = ResidentMib();
    Node node(0, &listeners, pages, frames, wait);
    if (what == "sparse") {
      fmt::print("{{\"seconds\": {:.3f}, \"resident_mib\": {:.1f}}}\n", node.attach_s(), ResidentMib() - before);
    } else if (what == "shards") {
      const double apart = Touches(&node, given, count, true);
      fmt::print("{{\"apart_per_s\": {:.0f}, \"together_per_s\": {:.0f}}}\n", apart,
                 Touches(&node, given, count, false));
    } else if (what == "scan") {
      RunScan(&node, orders, count);
    } else if (what == "beside") {
      RunBeside(&node, orders, count);
    } else if (what == "tables") {
      RunTables(&node, orders, count);
    } else {
      Run(&node, orders.back(), nodes, count, busy);
    }
  }
  for (const int end : orders) ::close(end);
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
