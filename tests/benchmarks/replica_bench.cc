// The storage replica table alone: how fast it changes, is written to its database, and is read again after a restart.
// One JSON line each.
//
//   replica_bench updates N          N pages through requests of 128 KiB, and as many single removals: pages per second
//   replica_bench durable DIR S RATE S seconds of RATE changes per second beside the writer, into a database in DIR
//                                    (RATE 0: as many as it takes): changes written per second, and the queue's length
//   replica_bench scan N             N entries found again by another process: entries per second
//   replica_bench bytes N            bytes of table and index per tracked page, N pages tracked
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "fmt/format.h"
#include "storage-replica/durable_replica.h"
#include "storage-replica/replica_table.h"

namespace hk {
namespace {

using std::chrono::steady_clock;

constexpr DiskId kDisk{0};
constexpr uint64_t kRequestPages = 32;
constexpr size_t kQueueHigh = DurableReplica::kQueueChanges / 8;
constexpr std::chrono::seconds kSyncGuard{120};

[[noreturn]] void Fail(const std::string& why) {
  fmt::print(stderr, "replica_bench: {}\n", why);
  std::exit(1);
}
template <typename T>
T Must(absl::StatusOr<T> value) {
  if (!value.ok()) Fail(std::string(value.status().message()));
  return *std::move(value);
}
double Since(steady_clock::time_point begin) {
  return std::chrono::duration<double>(steady_clock::now() - begin).count();
}

// A table of a guest of so many pages, in memory, and requests to it.
class Bench {
 public:
  static constexpr DiskImageIdentity kImage{.image = 1, .bytes = uint64_t{1} << 40, .changed_ns = 0};

  explicit Bench(uint64_t pages)
      : pages_(pages), file_(::memfd_create("replica", MFD_CLOEXEC)), sums_(kRequestPages, 7) {
    identity_.guest = GuestId(1);
    identity_.pages = pages;
    table_ = Must(ReplicaTable::Create(OwnedFd(::dup(file_.get())), identity_, 1));
    Attach();
  }
  ReplicaTable& table() { return *table_; }
  const TableIdentity& identity() const { return identity_; }

  // One request of 32 pages; guest and disk addresses in no order.
  void Request(DiskIoKind kind) {
    RequestAt(kind, Random() % (pages_ / kRequestPages), Random() % (2 * pages_ / kRequestPages));
  }
  void RequestAt(DiskIoKind kind, uint64_t extent, uint64_t disk_extent) {
    const IoSegment segment{.gpa = Gpa(extent * kRequestPages * kPageSize), .bytes = kRequestPages * kPageSize};
    const DiskIo io{
        .kind = kind, .disk = kDisk, .offset = disk_extent * kRequestPages * kBlockSize, .segments = {&segment, 1}};
    const IoTicket ticket = table_->Begin(io, 0);
    table_->End(ticket, io, true, sums_, 0);
  }
  bool Remove() { return table_->Remove(Gfn(Random() % pages_)); }
  // Each page once, in the disk's order.
  void Fill() {
    for (uint64_t extent = 0; extent < pages_ / kRequestPages; ++extent) RequestAt(DiskIoKind::kRead, extent, extent);
  }
  double Reopen() {
    table_.reset();
    const auto begin = steady_clock::now();
    table_ = Must(ReplicaTable::Open(OwnedFd(::dup(file_.get())), identity_));
    const double seconds = Since(begin);
    Attach();
    return seconds;
  }

 private:
  void Attach() { table_->AttachDisk(kDisk, kImage, false); }
  uint64_t Random() {
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return random_;
  }

  const uint64_t pages_;
  const OwnedFd file_;
  const std::vector<uint64_t> sums_;
  TableIdentity identity_;
  std::unique_ptr<ReplicaTable> table_;
  uint64_t random_ = 88172645463325252;
};

void Updates(uint64_t pages) {
  Bench bench(pages);
  bench.Fill();
  auto begin = steady_clock::now();
  for (uint64_t i = 0; i < pages / kRequestPages; ++i)
    bench.Request(i % 4 == 0 ? DiskIoKind::kWrite : DiskIoKind::kRead);
  const double requests = Since(begin);
  bench.Fill();
  begin = steady_clock::now();
  uint64_t removed = 0;
  for (uint64_t i = 0; i < pages; ++i) removed += bench.Remove();
  const double removals = Since(begin);
  bench.Fill();
  std::vector<ReplicaRun> runs;
  begin = steady_clock::now();
  uint64_t hits = 0;
  for (uint64_t block = 0; block < pages; block += kRequestPages) {
    bench.table().Lookup(kDisk, {block, kRequestPages}, &runs);
    for (const ReplicaRun& run : runs) hits += run.hit ? run.blocks : 0;
  }
  const double lookups = Since(begin);
  if (hits != pages) Fail("a block was not found");
  fmt::print("{{\"pages_per_s\": {:.0f}, \"removals_per_s\": {:.0f}, \"removed\": {}, \"lookups_per_s\": {:.0f}}}\n",
             static_cast<double>(pages) / requests, static_cast<double>(pages) / removals, removed,
             static_cast<double>(pages) / lookups);
}

void Durable(const std::string& directory, double seconds, double rate) {
  constexpr uint64_t kPages = 1 << 20;
  Bench bench(kPages);
  auto store = Must(DurableStore::Open({.directory = directory, .identity = bench.identity(), .env = nullptr}));
  DurableReplica durable(std::move(store), &bench.table(), RealClock());
  durable.NoteDisk(kDisk, Bench::kImage);
  bench.Fill();
  if (!durable.Sync(RealClock().Now() + kSyncGuard).ok()) Fail("the first writing took too long");
  const DurableReplica::Statistics at_begin = durable.statistics();
  const auto begin = steady_clock::now();
  uint64_t requests = 0, half_way = 0, most = 0;
  while (Since(begin) < seconds) {
    const DurableReplica::Statistics now = durable.statistics();
    most = std::max(most, now.queued);
    if (half_way == 0 && Since(begin) > seconds / 2) half_way = std::max<uint64_t>(now.queued, 1);
    const auto journalled = static_cast<double>(now.journalled - at_begin.journalled);
    if (rate == 0 ? now.queued > kQueueHigh : journalled > rate * Since(begin)) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      continue;
    }
    bench.Request(++requests % 4 == 0 ? DiskIoKind::kWrite : DiskIoKind::kRead);
  }
  const DurableReplica::Statistics at_end = durable.statistics();
  const double asked = Since(begin);
  if (const absl::Status status = durable.Sync(RealClock().Now() + kSyncGuard); !status.ok()) {
    Fail(std::string(status.message()));
  }
  const double all = Since(begin);
  const DurableReplica::Statistics after = durable.statistics();
  rusage usage;
  ::getrusage(RUSAGE_SELF, &usage);
  const auto cpu = static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                   static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
  fmt::print(
      "{{\"asked_per_s\": {:.0f}, \"written_per_s\": {:.0f}, \"queue_half_way\": {}, \"queue_end\": {}, "
      "\"queue_most\": "
      "{}, \"anew\": {}, \"drain_s\": {:.2f}, \"cpu_s\": {:.2f}, \"seconds\": {:.2f}}}\n",
      static_cast<double>(at_end.journalled - at_begin.journalled) / asked,
      static_cast<double>(after.taken - at_begin.taken) / all, half_way, at_end.queued, most,
      after.anew - at_begin.anew, all - asked, cpu, all);
}

void Scan(uint64_t entries) {
  Bench bench(entries);
  bench.Fill();
  const double seconds = bench.Reopen();
  const ReplicaStatistics statistics = bench.table().Statistics();
  if (statistics.recovered != entries) Fail(fmt::format("{} of {} entries", statistics.recovered, entries));
  fmt::print("{{\"entries_per_s\": {:.0f}, \"seconds\": {:.3f}}}\n", static_cast<double>(entries) / seconds, seconds);
}

uint64_t ResidentBytes() {
  std::ifstream status("/proc/self/statm");
  uint64_t size = 0, resident = 0;
  status >> size >> resident;
  return resident * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

void Bytes(uint64_t pages) {
  const uint64_t before = ResidentBytes();
  Bench bench(pages);
  const uint64_t empty = ResidentBytes();
  bench.Fill();
  const uint64_t full = ResidentBytes();
  fmt::print("{{\"bytes_per_page\": {:.2f}, \"empty_kib\": {}}}\n",
             static_cast<double>(full - before) / static_cast<double>(pages), (empty - before) / 1024);
}

}  // namespace
}  // namespace hk

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  const auto number = [&](size_t at) { return std::strtoull(arguments.at(at).c_str(), nullptr, 10); };
  if (arguments.size() == 2 && arguments[0] == "updates") {
    hk::Updates(number(1));
  } else if (arguments.size() == 4 && arguments[0] == "durable") {
    hk::Durable(arguments[1], static_cast<double>(number(2)), static_cast<double>(number(3)));
  } else if (arguments.size() == 2 && arguments[0] == "scan") {
    hk::Scan(number(1));
  } else if (arguments.size() == 2 && arguments[0] == "bytes") {
    hk::Bytes(number(1));
  } else {
    hk::Fail("usage: replica_bench updates N | durable DIR SECONDS RATE | scan N | bytes N");
  }
}
