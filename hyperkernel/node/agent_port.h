// The host's end of a guest agent's channel: who may talk to the agent, and what it said. Thread-safe.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/node/guest_agent.h"

namespace hk {

// One guest's port. Of several callers one talks at a time; what the agent says while nobody listens is dropped.
class AgentPort {
 public:
  // A caller that does not read fast enough for this has an agent that says more than any answer holds.
  static constexpr size_t kMaxUnreadBytes = GuestAgentExec::kMaxAnswerBytes;

  // A run of the guest begins, or ends: who listens is told. (A run that begins ends the one before.)
  void Begin();
  void End();
  // The agent said something; never blocks.
  void Deliver(std::string_view bytes);
  // Bytes the agent has said in this run.
  uint64_t said_bytes() const;

  // The right to talk to the agent, given back when destroyed.
  class Turn {
   public:
    explicit Turn(AgentPort* port) : port_(port) {}
    ~Turn() { port_->GiveBack(); }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

    // What came since the last time; waits for some until the deadline. Errors: kFailedPrecondition: the guest's run
    // has ended; kInternal: the agent has said more than kMaxUnreadBytes.
    absl::StatusOr<std::string> Receive(Monotonic deadline) { return port_->Receive(deadline); }

   private:
    AgentPort* const port_;
  };
  // Waits for the turn, at most until the deadline. Errors: kFailedPrecondition: another command is under way, or the
  // guest's run has ended; kCancelled, if `cancelled` says so, which is asked now and then.
  absl::StatusOr<std::unique_ptr<Turn>> Take(Monotonic deadline, const std::function<bool()>& cancelled);

 private:
  absl::StatusOr<std::string> Receive(Monotonic deadline);
  void GiveBack();

  mutable Mutex mutex_;
  CondVar changed_;
  bool live_ ABSL_GUARDED_BY(mutex_) = false;
  bool taken_ ABSL_GUARDED_BY(mutex_) = false;
  bool lost_ ABSL_GUARDED_BY(mutex_) = false;   // the run that the present turn began in has ended
  bool flood_ ABSL_GUARDED_BY(mutex_) = false;  // the present turn's bytes did not fit
  std::string unread_ ABSL_GUARDED_BY(mutex_);
  uint64_t said_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Gives bytes to the agent; returns how many were taken. Errors: the guest does not run any more.
using AgentSender = std::function<absl::StatusOr<size_t>(std::string_view bytes)>;

// Runs a command through the agent, until it ends, `timeout` passes, or `cancelled` says so. Errors: as
// GuestAgentExec's and AgentPort's; kCancelled.
absl::StatusOr<GuestCommandResult> RunGuestCommand(const GuestCommand& command, AgentPort* port,
                                                   const AgentSender& send, Monotonic::duration timeout,
                                                   const std::function<bool()>& cancelled, const Clock& clock);

}  // namespace hk
