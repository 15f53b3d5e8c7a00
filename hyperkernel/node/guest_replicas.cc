#include "hyperkernel/node/guest_replicas.h"

#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/boot/address_map.h"
#include "hyperkernel/node/guest.h"
#include "hyperkernel/node/placed_memory.h"

namespace hk {

std::shared_ptr<GuestReplica> GuestReplicas::BeginRun(const v1::VmRecord& record) {
  const v1::VmSpec& spec = record.spec();
  std::shared_ptr<GuestReplica> replica = Find(spec.name());
  if (spec.no_replica() || spec.disks_size() == 0 || IsPlaced(spec)) {
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
  const RamPiece last = RamLayout(spec.memory_mib() << 20).back();
  const uint64_t pages = (last.start.value() + last.bytes) / kPageSize;
  absl::StatusOr<std::shared_ptr<GuestReplica>> made =
      GuestReplica::Create(spec.name(), pages, record.generation(), frames_, clock_);
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
