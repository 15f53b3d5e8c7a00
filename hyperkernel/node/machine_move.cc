#include "hyperkernel/node/machine_move.h"

#include <cstddef>
#include <span>
#include <thread>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

// A call that fails is made again while so much time has not gone by since the first: a connection that broke is there
// again within that, and a node that is lost ends the machine anyway.
constexpr std::chrono::milliseconds kAskAgain(1000);
constexpr std::chrono::milliseconds kAskPause(50);

std::string Bytes(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::vector<std::byte> Bytes(const std::string& bytes) {
  const auto* first = reinterpret_cast<const std::byte*>(bytes.data());
  return {first, first + bytes.size()};
}

std::chrono::nanoseconds Took(const v1::MoveMachineVcpuResponse& response) {
  return std::chrono::nanoseconds(response.took_ns());
}

// One move.
class Moving {
 public:
  Moving(const VcpuMove& move, const MoveAt& at, const Clock& clock, uint64_t* numbers)
      : move_(move), at_(at), clock_(clock), numbers_(numbers) {}

  VcpuMoveEnd Make() {
    for (const std::string& node : {move_.to, move_.from}) {
      const auto prepared = Ask(node, v1::MOVE_STEP_PREPARE, nullptr);
      if (!prepared.ok()) return Ends(prepared.status());
      if (!prepared->refused().empty()) return Ends(Refused(node, *prepared));
    }
    const Monotonic begin = clock_.Now();
    const auto left = Ask(move_.from, v1::MOVE_STEP_LEAVE, nullptr);
    if (!left.ok()) {
      return Lost(fmt::format("node '{}' was told to let it go to node '{}', and has not said whether it did: {}",
                              move_.from, move_.to, MessageOf(left.status())));
    }
    if (!left->refused().empty()) return Ends(Refused(move_.from, *left));
    v1::MovedVcpuState moved = left->moved();
    const auto come = Ask(move_.to, v1::MOVE_STEP_ARRIVE, &moved);
    if (!come.ok()) {
      return Lost(fmt::format("it left node '{}', and node '{}' has not said whether it came: {}", move_.from, move_.to,
                              MessageOf(come.status())));
    }
    if (!come->refused().empty()) return TakeBack(std::move(moved), *come);
    return {.status = absl::OkStatus(),
            .lost = false,
            .stopped = clock_.Now() - begin,
            .source = Took(*left),
            .target = Took(*come)};
  }

 private:
  // At its old node it is as of the next version.
  VcpuMoveEnd TakeBack(v1::MovedVcpuState moved, const v1::MoveMachineVcpuResponse& why) {
    const absl::Status refused = Refused(move_.to, why);
    if (HK_MUTANT(move_not_taken_back)) return Ends(refused);
    moved.set_version(moved.version() + 1);
    const auto back = Ask(move_.from, v1::MOVE_STEP_ARRIVE, &moved);
    if (back.ok() && back->refused().empty()) return Ends(refused);
    return Lost(fmt::format("it was refused ({}), and node '{}' does not have it back: {}", MessageOf(refused),
                            move_.from, back.ok() ? back->refused() : MessageOf(back.status())));
  }

  // The same request until there is an answer.
  absl::StatusOr<v1::MoveMachineVcpuResponse> Ask(const std::string& node, v1::MoveStep step,
                                                  const v1::MovedVcpuState* moved) {
    v1::MoveMachineVcpuRequest request;
    request.set_step(step);
    request.set_vcpu(move_.vcpu.value());
    request.set_number(++*numbers_);
    request.set_to_node(move_.to_number.value());
    if (moved != nullptr) *request.mutable_moved() = *moved;
    const Monotonic limit = clock_.Now() + kAskAgain;
    while (true) {
      absl::StatusOr<v1::MoveMachineVcpuResponse> response = at_(node, request);
      if (response.ok() || clock_.Now() >= limit) return response;
      std::this_thread::sleep_for(kAskPause);
    }
  }

  static absl::Status Refused(const std::string& node, const v1::MoveMachineVcpuResponse& response) {
    return absl::FailedPreconditionError(fmt::format("node '{}': {}", node, response.refused()));
  }
  static VcpuMoveEnd Ends(absl::Status status) {
    return {.status = std::move(status), .lost = false, .stopped = {}, .source = {}, .target = {}};
  }
  VcpuMoveEnd Lost(const std::string& why) const {
    return {.status = absl::DataLossError(fmt::format("vCPU {} is lost: {}", move_.vcpu.value(), why)),
            .lost = true,
            .stopped = {},
            .source = {},
            .target = {}};
  }

  const VcpuMove& move_;
  const MoveAt& at_;
  const Clock& clock_;
  uint64_t* const numbers_;
};

}  // namespace

VcpuMoveEnd MoveVcpu(const VcpuMove& move, const MoveAt& at, const Clock& clock, uint64_t* numbers) {
  return Moving(move, at, clock, numbers).Make();
}

v1::MoveMachineVcpuResponse MoveSteps::Do(const v1::MoveMachineVcpuRequest& request) {
  const bool again = request.number() == last_number_ && request.number() != 0;
  if (again && !HK_MUTANT(move_step_done_twice)) return last_;
  v1::MoveMachineVcpuResponse response;
  if (request.number() < last_number_ || request.number() == 0) {
    response.set_refused(fmt::format("step {} came after step {}", request.number(), last_number_));
    return response;
  }
  const Monotonic begin = RealClock().Now();
  const absl::Status done = Try(request, &response);
  if (!done.ok()) response.set_refused(MessageOf(done));
  const auto took = std::chrono::duration_cast<std::chrono::nanoseconds>(RealClock().Now() - begin);
  response.set_took_ns(static_cast<uint64_t>(took.count()));
  last_number_ = request.number();
  last_ = response;
  return response;
}

absl::Status MoveSteps::Try(const v1::MoveMachineVcpuRequest& request, v1::MoveMachineVcpuResponse* response) {
  if (request.vcpu() >= vcpus_) return absl::InvalidArgumentError(fmt::format("there is no vCPU {}", request.vcpu()));
  const VcpuId vcpu(request.vcpu());
  switch (request.step()) {
    case v1::MOVE_STEP_PREPARE:
      return end_->Prepare(vcpu);
    case v1::MOVE_STEP_LEAVE: {
      if (request.to_node() >= kMaxNodes) return absl::InvalidArgumentError("to_node: no node's number");
      HK_ASSIGN_OR_RETURN(const MovedVcpu moved, end_->Leave(vcpu, NodeId(static_cast<uint16_t>(request.to_node()))));
      response->mutable_moved()->set_state(Bytes(moved.state));
      response->mutable_moved()->set_local_apic(Bytes(moved.local_apic));
      response->mutable_moved()->set_version(moved.version);
      return absl::OkStatus();
    }
    case v1::MOVE_STEP_ARRIVE:
      return end_->Arrive({.id = vcpu,
                           .state = Bytes(request.moved().state()),
                           .local_apic = Bytes(request.moved().local_apic()),
                           .version = request.moved().version()});
    default:
      return absl::InvalidArgumentError("step: not one this daemon knows");
  }
}

}  // namespace hk
