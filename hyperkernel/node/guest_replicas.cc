#include "hyperkernel/node/guest_replicas.h"

#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/boot/address_map.h"
#include "hyperkernel/node/guest.h"
#include "hyperkernel/node/placed_memory.h"

namespace hk {

namespace {

// More than any machine's: what a record says is not believed to be sound.
constexpr uint64_t kMostMemoryMib = uint64_t{1} << 32;

bool HasReplica(const v1::VmSpec& spec) {
  const bool sound = spec.memory_mib() > 0 && spec.memory_mib() <= kMostMemoryMib;
  return sound && !spec.no_replica() && spec.disks_size() > 0 && !IsPlaced(spec);
}

// The last part of a path.
std::string NameIn(const std::string& path) {
  return path.substr(path.rfind('/') + 1);
}

}  // namespace

absl::StatusOr<int> GuestReplicas::Recover(const std::vector<v1::VmRecord>& records,
                                           const std::set<std::string>& in_use) {
  HK_ASSIGN_OR_RETURN(const std::vector<FrameStore::Leftover> left, site_.frames->Leftovers());
  std::map<std::string, uint64_t> tables;  // the last of each machine
  for (const FrameStore::Leftover& file : left) {
    if (file.table) tables[file.guest] = std::max(tables[file.guest], file.generation);
  }
  std::set<std::string> going_on;  // without a replica: no database may miss what these write
  for (const FrameStore::Leftover& file : left) {
    if (!in_use.contains(file.file)) continue;
    tables.erase(file.guest);
    going_on.insert(file.guest);
  }
  std::map<std::string, std::shared_ptr<GuestReplica>> kept;
  for (const v1::VmRecord& record : records) {
    const auto table = tables.find(record.spec().name());
    if (table == tables.end()) continue;
    if (auto replica = RecoverOne(record, table->second)) kept[table->first] = std::move(replica);
  }
  std::set<std::string> files = in_use;
  for (const auto& [name, replica] : kept) {
    files.insert(NameIn(site_.frames->TablePathOf(name, tables[name])));
    for (const uint64_t generation : replica->WarmGenerations()) {
      files.insert(NameIn(site_.frames->PathOf(name, generation)));
    }
  }
  HK_ASSIGN_OR_RETURN(const int removed, site_.frames->RemoveLeftovers(files));
  std::vector<ReplicaOwner> owners;
  for (const v1::VmRecord& record : records) {
    if (HasReplica(record.spec()) && !going_on.contains(record.spec().name())) owners.push_back(OwnerOf(record));
  }
  if (!site_.databases.empty()) RemoveOtherDatabases(site_, owners);
  MutexLock lock(&mutex_);
  replicas_ = std::move(kept);
  return removed;
}

std::shared_ptr<GuestReplica> GuestReplicas::RecoverOne(const v1::VmRecord& record, uint64_t table) {
  const v1::VmSpec& spec = record.spec();
  absl::StatusOr<std::shared_ptr<GuestReplica>> recovered =
      absl::FailedPreconditionError("by its specification the machine has no replica any more");
  if (HasReplica(spec)) {
    std::vector<RamRange> ranges;
    for (const RamPiece& piece : RamLayout(spec.memory_mib() << 20)) ranges.push_back({piece.start, piece.bytes});
    recovered = GuestReplica::Recover(site_, OwnerOf(record), table, ranges, record.generation());
  }
  if (!recovered.ok()) {
    log::Warning("replica", "what a killed daemon left of a machine's memory is not used",
                 {{"guest", spec.name()}, {"reason", MessageOf(recovered.status())}});
    return nullptr;
  }
  const v1::Replica shown = (*recovered)->Describe(false);
  log::Info("replica", "memory that a killed daemon left is kept for what it holds of the machine's disks",
            {{"guest", spec.name()},
             {"entries", fmt::to_string(shown.recovered())},
             {"kib", fmt::to_string(shown.warm_bytes() >> 10)}});
  return *std::move(recovered);
}

std::shared_ptr<GuestReplica> GuestReplicas::BeginRun(const v1::VmRecord& record) {
  const v1::VmSpec& spec = record.spec();
  std::shared_ptr<GuestReplica> replica = Find(spec.name());
  if (!HasReplica(spec)) {
    Drop(spec.name());
    return nullptr;
  }
  if (replica != nullptr) {
    const absl::Status begun = replica->BeginRun(record.generation());
    if (begun.ok()) return replica;
    log::Warning("replica", "what the run before had read is not used",
                 {{"guest", spec.name()}, {"error", MessageOf(begun)}});
    Drop(spec.name());
  }
  absl::StatusOr<std::shared_ptr<GuestReplica>> made =
      GuestReplica::Create(site_, OwnerOf(record), record.generation());
  if (!made.ok()) {
    log::Warning("replica", "the machine runs without", {{"guest", spec.name()}, {"error", MessageOf(made.status())}});
    return nullptr;
  }
  MutexLock lock(&mutex_);
  replicas_[spec.name()] = *made;
  return *std::move(made);
}

void GuestReplicas::Drop(const std::string& name) {
  std::shared_ptr<GuestReplica> last;  // goes without the lock
  MutexLock lock(&mutex_);
  const auto found = replicas_.find(name);
  if (found == replicas_.end()) return;
  last = std::move(found->second);
  replicas_.erase(found);
}

std::shared_ptr<GuestReplica> GuestReplicas::Find(const std::string& name) const {
  MutexLock lock(&mutex_);
  const auto found = replicas_.find(name);
  return found == replicas_.end() ? nullptr : found->second;
}

std::vector<v1::Replica> GuestReplicas::Samples() const {
  std::vector<std::shared_ptr<GuestReplica>> all;
  {
    MutexLock lock(&mutex_);
    for (const auto& [name, replica] : replicas_) all.push_back(replica);
  }
  std::vector<v1::Replica> samples;
  for (const auto& replica : all) samples.push_back(replica->Describe(false));
  return samples;
}

absl::Status WhyNoReplica(const v1::Vm& vm) {
  const std::string& name = vm.spec().name();
  const auto because = [&name](std::string_view why) {
    return absl::FailedPreconditionError(fmt::format("vm '{}' {}", name, why));
  };
  if (!IsLive(vm.state())) {
    return because(fmt::format("is {}, not running: a replica is there from its start to its end; hkctl vm start {}",
                               NameOf(vm.state()), name));
  }
  if (vm.spec().no_replica()) return because("has none: no_replica is set in its specification");
  if (IsPlaced(vm.spec())) return because("has none: its memory is over several nodes");
  if (vm.spec().disks_size() == 0) return because("has none: it has no disks");
  return because("has none: it could not be made; the daemon's log says why");
}

}  // namespace hk
