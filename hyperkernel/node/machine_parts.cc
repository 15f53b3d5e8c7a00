#include "hyperkernel/node/machine_parts.h"

#include <chrono>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/machine_peers.h"

namespace hk {
namespace {

// An order to a part waits so long for the one before, which has limits of its own.
constexpr std::chrono::seconds kTurnLimit(10);
// How long the thread sleeps when nobody wakes it: a wait has a deadline.
constexpr std::chrono::seconds kIdle(60);
// Why a part is no more that its I/O node has told to end.
constexpr char kToldToEnd[] = "its I/O node has ended it";

void LookAtClock(MachinePart* part, uint64_t machine, v1::OrderMachineResponse* response) {
  const ClockWord word = part->LookAtClock(machine);
  response->set_tsc_lead(word.lead);
  if (word.bound_ns.has_value()) response->set_tsc_bound_ns(*word.bound_ns);
}

}  // namespace

MachineParts::MachineParts(Factory factory, const Clock& clock) : factory_(std::move(factory)), clock_(clock) {
  const size_t threads = HK_MUTANT(parts_end_one_by_one) ? 1 : kPartsEndingAtOnce;
  for (size_t i = 0; i < threads; i++) threads_.emplace_back([this] { Run(); });
}

MachineParts::~MachineParts() {
  StopAll();
  for (std::thread& thread : threads_) thread.join();
}

absl::StatusOr<v1::AttachMachineResponse> MachineParts::Attach(const v1::AttachMachineRequest& request) {
  HK_RETURN_IF_ERROR(CheckMachineProtocol(request.machine_protocol(), request.from()));
  {
    MutexLock lock(&mutex_);
    if (stopping_) return absl::UnavailableError("the daemon ends");
    if (EndOf(request.id()) != nullptr) {
      return absl::AbortedError(fmt::format("this run of machine '{}' is over already", request.name()));
    }
    if (entries_.size() >= kMaxMachineParts) {
      return absl::ResourceExhaustedError(fmt::format("parts of {} machines are here already", kMaxMachineParts));
    }
    const auto [entry, fresh] = entries_.try_emplace(request.id());
    if (!fresh) return absl::AlreadyExistsError(fmt::format("a part of machine '{}' is here already", request.name()));
    entry->second.from = request.from();
    entry->second.name = request.name();
  }
  absl::StatusOr<std::unique_ptr<MachinePart>> part =
      factory_(request, [this, id = request.id()](const std::string& reason) { Ended(id, reason); });
  v1::AttachMachineResponse response;
  if (part.ok()) response.set_tsc_error_ns((*part)->tsc_error_ns());
  MutexLock lock(&mutex_);
  changed_.SignalAll();
  if (!part.ok()) {
    entries_.erase(request.id());
    return part.status();
  }
  Entry& entry = entries_.at(request.id());
  entry.part = *std::move(part);
  entry.busy = entry.being_made = false;
  log::Info("guest", "vCPUs of a machine of another node are here",
            {{"guest", request.name()}, {"peer", request.from()}});
  return response;
}

absl::StatusOr<MachineParts::Entry*> MachineParts::Take(uint64_t id, const std::string& from, bool end) {
  const Monotonic limit = clock_.Now() + kTurnLimit;
  while (true) {
    const auto found = entries_.find(id);
    if (found == entries_.end()) {
      if (const std::string* reason = EndOf(id); reason != nullptr) {
        return absl::FailedPreconditionError(fmt::format("its vCPUs have ended: {}", *reason));
      }
      return absl::NotFoundError("it has no vCPUs of this machine");
    }
    Entry* const entry = &found->second;
    if (entry->from != from) {
      return absl::PermissionDeniedError(
          fmt::format("machine '{}' is node '{}'s, not '{}'s", entry->name, entry->from, from));
    }
    if (!entry->ended.empty() && !end) {
      return absl::FailedPreconditionError(fmt::format("its vCPUs have ended: {}", entry->ended));
    }
    if (entry->being_made && end && entry->ended.empty()) {
      entry->ended = kToldToEnd;  // it goes as soon as it is there
    }
    if (!entry->busy && entry->ended.empty()) {
      entry->busy = true;
      return entry;
    }
    if (!changed_.WaitUntil(&mutex_, limit)) {
      return absl::DeadlineExceededError(fmt::format("machine '{}': another order is under way", entry->name));
    }
  }
}

absl::StatusOr<v1::OrderMachineResponse> MachineParts::Order(const v1::OrderMachineRequest& request) {
  Entry* entry = nullptr;
  {
    MutexLock lock(&mutex_);
    const absl::StatusOr<Entry*> taken = Take(request.id(), request.from(), request.order() == v1::MACHINE_ORDER_END);
    const bool gone = absl::IsNotFound(taken.status()) || absl::IsFailedPrecondition(taken.status());
    if (gone && request.order() == v1::MACHINE_ORDER_END) {  // as was wanted
      if (EndOf(request.id()) == nullptr) NoteEnd(request.id(), kToldToEnd);
      return v1::OrderMachineResponse();
    }
    if (!taken.ok()) return taken.status();
    const bool numbered = request.order() == v1::MACHINE_ORDER_RUN || request.order() == v1::MACHINE_ORDER_HOLD;
    if (numbered && request.number() <= (*taken)->last_order && !HK_MUTANT(machine_late_order_counts)) {
      (*taken)->busy = false;
      changed_.SignalAll();
      return absl::AbortedError(fmt::format("order {} came after order {}", request.number(), (*taken)->last_order));
    }
    entry = *taken;
    if (numbered) entry->last_order = request.number();
  }
  // Nobody else uses the entry while it is busy.
  absl::Status status;
  v1::OrderMachineResponse response;
  switch (request.order()) {
    case v1::MACHINE_ORDER_STATUS:
      entry->part->Stalls(false);
      LookAtClock(entry->part.get(), request.tsc_offset(), &response);
      break;
    case v1::MACHINE_ORDER_STALLS:
      *response.mutable_stalls() = entry->part->Stalls(true);
      LookAtClock(entry->part.get(), request.tsc_offset(), &response);
      break;
    case v1::MACHINE_ORDER_RUN:
      status = entry->part->Run();
      if (status.ok()) entry->running = true;
      break;
    case v1::MACHINE_ORDER_HOLD:
      status = entry->part->Hold();
      if (status.ok()) entry->running = false;
      break;
    case v1::MACHINE_ORDER_RENEW:
      status = entry->part->Renew();
      break;
    case v1::MACHINE_ORDER_END:
      break;
    default:
      status = absl::InvalidArgumentError("order: not one this daemon knows");
  }
  for (const auto& [kind, count] : entry->part->exits_by_kind()) (*response.mutable_exits_by_kind())[kind] = count;
  for (v1::VcpuTimes& times : entry->part->vcpu_times()) *response.add_vcpu_times() = std::move(times);
  response.set_running(entry->running);
  std::unique_ptr<MachinePart> part;
  if (request.order() == v1::MACHINE_ORDER_END) part = std::move(entry->part);
  part.reset();
  MutexLock lock(&mutex_);
  entry->busy = false;
  if (request.order() == v1::MACHINE_ORDER_END) {
    NoteEnd(request.id(), kToldToEnd);
    entries_.erase(request.id());
  }
  changed_.SignalAll();
  if (!status.ok()) return status;
  return response;
}

absl::StatusOr<v1::MoveMachineVcpuResponse> MachineParts::Move(const v1::MoveMachineVcpuRequest& request) {
  Entry* entry = nullptr;
  {
    MutexLock lock(&mutex_);
    const absl::StatusOr<Entry*> taken = Take(request.id(), request.from(), /*end=*/false);
    if (absl::IsDeadlineExceeded(taken.status())) {
      v1::MoveMachineVcpuResponse refused;
      refused.set_refused(MessageOf(taken.status()));
      return refused;
    }
    if (!taken.ok()) return taken.status();
    entry = *taken;
  }
  v1::MoveMachineVcpuResponse response = entry->part->Move(request);
  MutexLock lock(&mutex_);
  entry->busy = false;
  changed_.SignalAll();
  return response;
}

const std::string* MachineParts::EndOf(uint64_t id) const {
  for (const auto& [ended, reason] : ends_) {
    if (ended == id) return &reason;
  }
  return nullptr;
}

void MachineParts::NoteEnd(uint64_t id, const std::string& reason) {
  if (ends_.size() >= kMaxMachineParts) ends_.pop_front();
  ends_.emplace_back(id, reason);
}

void MachineParts::Ended(uint64_t id, const std::string& reason) {
  MutexLock lock(&mutex_);
  const auto found = entries_.find(id);
  if (found == entries_.end() || !found->second.ended.empty()) return;
  found->second.ended = reason;
  changed_.SignalAll();
}

void MachineParts::StopAll() {
  MutexLock lock(&mutex_);
  stopping_ = true;
  changed_.SignalAll();
  while (!entries_.empty()) changed_.WaitUntil(&mutex_, clock_.Now() + kIdle);
}

// Destroys what has ended, and all when the daemon ends. On several threads: an entry is the one's that made it busy.
void MachineParts::Run() {
  MutexLock lock(&mutex_);
  while (!stopping_ || !entries_.empty()) {
    auto next = entries_.begin();
    while (next != entries_.end() && (next->second.busy || (next->second.ended.empty() && !stopping_))) ++next;
    if (next == entries_.end()) {
      changed_.WaitUntil(&mutex_, clock_.Now() + kIdle);
      continue;
    }
    Entry& entry = next->second;
    entry.busy = true;
    const uint64_t id = next->first;
    if (entry.ended.empty()) entry.ended = "its daemon ends";
    log::Warning("guest", "vCPUs of a machine of another node have ended",
                 {{"guest", entry.name}, {"peer", entry.from}, {"reason", entry.ended}});
    NoteEnd(id, entry.ended);
    std::unique_ptr<MachinePart> part = std::move(entry.part);
    mutex_.Unlock();
    part.reset();
    mutex_.Lock();
    entries_.erase(id);
    changed_.SignalAll();
  }
}

}  // namespace hk
