#include "hyperkernel/node/agent_port.h"

#include <algorithm>
#include <memory>
#include <random>
#include <utility>

#include "hyperkernel/base/status.h"

namespace hk {
namespace {

// How soon it is seen that the client has gone away.
constexpr std::chrono::milliseconds kCancelCheck(100);
// How soon bytes that the guest had no room for are offered again.
constexpr std::chrono::milliseconds kSendRetry(5);

absl::Status Ended() {
  return absl::FailedPreconditionError("the guest's run has ended");
}

// Not to be met again by chance: 2^52 keeps it exact in agents that take numbers as doubles.
int64_t RandomSyncId() {
  std::random_device device;
  return std::uniform_int_distribution<int64_t>(1, int64_t{1} << 52)(device);
}

}  // namespace

void AgentPort::Begin() {
  MutexLock lock(&mutex_);
  lost_ = taken_;
  live_ = true;
  said_ = 0;
  changed_.SignalAll();
}

void AgentPort::End() {
  MutexLock lock(&mutex_);
  lost_ = taken_;
  live_ = false;
  changed_.SignalAll();
}

void AgentPort::Deliver(std::string_view bytes) {
  {
    MutexLock lock(&mutex_);
    said_ += bytes.size();
    if (!taken_ || flood_) return;
    if (bytes.size() > kMaxUnreadBytes - unread_.size()) {
      flood_ = true;
      std::string().swap(unread_);
    } else {
      unread_ += bytes;
    }
  }
  changed_.SignalAll();
}

uint64_t AgentPort::said_bytes() const {
  MutexLock lock(&mutex_);
  return said_;
}

absl::StatusOr<std::unique_ptr<AgentPort::Turn>> AgentPort::Take(Monotonic deadline,
                                                                 const std::function<bool()>& cancelled) {
  MutexLock lock(&mutex_);
  while (live_ && taken_) {
    if (cancelled()) return absl::CancelledError("cancelled");
    const Monotonic now = std::chrono::steady_clock::now();
    if (now >= deadline) {
      return absl::FailedPreconditionError(
          "another command runs in this guest, and the guest agent does one at a time; try again or give a longer "
          "--timeout");
    }
    changed_.WaitUntil(&mutex_, std::min(deadline, now + kCancelCheck));
  }
  if (!live_) return Ended();
  taken_ = true;
  lost_ = flood_ = false;
  unread_.clear();
  return std::make_unique<Turn>(this);
}

absl::StatusOr<std::string> AgentPort::Receive(Monotonic deadline) {
  MutexLock lock(&mutex_);
  while (unread_.empty() && !lost_ && !flood_ && changed_.WaitUntil(&mutex_, deadline)) {
  }
  if (lost_) return Ended();
  if (flood_) return absl::InternalError("the guest agent says more than an answer can hold");
  return std::exchange(unread_, {});
}

void AgentPort::GiveBack() {
  MutexLock lock(&mutex_);
  taken_ = false;
  std::string().swap(unread_);
  changed_.SignalAll();
}

absl::StatusOr<GuestCommandResult> RunGuestCommand(const GuestCommand& command, AgentPort* port,
                                                   const AgentSender& send, Monotonic::duration timeout,
                                                   const std::function<bool()>& cancelled, const Clock& clock) {
  const Monotonic deadline = clock.Now() + timeout;
  // What is wrong with the command is told before anybody is waited for.
  HK_RETURN_IF_ERROR(GuestAgentExec::Create(command, 1, clock.Now(), deadline).status());
  HK_ASSIGN_OR_RETURN(const std::unique_ptr<AgentPort::Turn> turn, port->Take(deadline, cancelled));
  HK_ASSIGN_OR_RETURN(GuestAgentExec exec, GuestAgentExec::Create(command, RandomSyncId(), clock.Now(), deadline));
  std::string unsent;
  while (!exec.finished()) {
    if (cancelled()) return absl::CancelledError("cancelled");
    unsent += exec.TakeOutput();
    if (!unsent.empty()) {
      HK_ASSIGN_OR_RETURN(const size_t taken, send(unsent));
      unsent.erase(0, taken);
    }
    const Monotonic::duration patience = unsent.empty() ? Monotonic::duration(kCancelCheck) : kSendRetry;
    HK_ASSIGN_OR_RETURN(const std::string bytes, turn->Receive(std::min(exec.next_time(), clock.Now() + patience)));
    exec.OnBytes(bytes, clock.Now());
    exec.OnTime(clock.Now());
  }
  if (exec.phase() == GuestAgentExec::Phase::kFailed) return exec.failure();
  return std::move(exec.result());
}

}  // namespace hk
