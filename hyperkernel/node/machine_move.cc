#include "hyperkernel/node/machine_move.h"

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

// The numbers of a move, above the last of the one before: of the steps in their order, and of itself.
constexpr uint64_t kPrepareTarget = 1, kPrepareSource = 2, kItself = 3, kTakeBack = 4;

// One move.
class Moving {
 public:
  Moving(const VcpuMove& move, const MoveCalls& calls, const Clock& clock, uint64_t before)
      : move_(move), calls_(calls), clock_(clock), before_(before) {}

  VcpuMoveEnd Make() {
    for (const auto& [node, number] : {std::pair(move_.to, kPrepareTarget), std::pair(move_.from, kPrepareSource)}) {
      const auto prepared = Ask(node, v1::MOVE_STEP_PREPARE, number);
      if (!prepared.ok()) return Ends(prepared.status());
      if (!prepared->refused().empty()) return Ends(Refused(node, prepared->refused()));
    }
    const Crossing crossing = calls_.cross(move_, before_ + kItself);
    const bool stays = crossing.left.ok() && !crossing.left->refused.empty();
    if (!crossing.come.ok()) {
      if (stays) return Ends(Refused(move_.from, crossing.left->refused));
      if (crossing.left.ok()) {
        return Lost(fmt::format("it left node '{}', and node '{}' has not said whether it came: {}", move_.from,
                                move_.to, MessageOf(crossing.come.status())));
      }
      return Lost(fmt::format("node '{}' was told to let it go to node '{}', and has not said whether it did: {}",
                              move_.from, move_.to, MessageOf(crossing.left.status())));
    }
    if (stays) {
      return Lost(fmt::format("node '{}' says that it has not left ({}), and node '{}' has one", move_.from,
                              crossing.left->refused, move_.to));
    }
    if (!crossing.come->refused.empty()) return TakeBack(crossing.come->refused);
    // It came, so it left, whether or not the source has said so.
    return {.status = absl::OkStatus(),
            .lost = false,
            .stopped = crossing.stopped,
            .source = std::chrono::nanoseconds(crossing.left.ok() ? crossing.left->took_ns : 0),
            .target = std::chrono::nanoseconds(crossing.come->took_ns)};
  }

 private:
  // Its old node has kept it.
  VcpuMoveEnd TakeBack(const std::string& why) {
    const absl::Status refused = Refused(move_.to, why);
    if (HK_MUTANT(move_not_taken_back)) return Ends(refused);
    const auto back = Ask(move_.from, v1::MOVE_STEP_TAKE_BACK, kTakeBack);
    if (back.ok() && back->refused().empty()) return Ends(refused);
    return Lost(fmt::format("it was refused ({}), and node '{}' does not have it back: {}", MessageOf(refused),
                            move_.from, back.ok() ? back->refused() : MessageOf(back.status())));
  }

  // The same request until there is an answer.
  absl::StatusOr<v1::MoveMachineVcpuResponse> Ask(const std::string& node, v1::MoveStep step, uint64_t number) {
    v1::MoveMachineVcpuRequest request;
    request.set_step(step);
    request.set_vcpu(move_.vcpu.value());
    request.set_number(before_ + number);
    request.set_from_node(move_.from_number.value());
    request.set_to_node(move_.to_number.value());
    request.set_move(before_ + kItself);
    const Monotonic limit = clock_.Now() + kAskAgain;
    while (true) {
      absl::StatusOr<v1::MoveMachineVcpuResponse> response = calls_.at(node, request);
      if (response.ok() || clock_.Now() >= limit) return response;
      std::this_thread::sleep_for(kAskPause);
    }
  }

  static absl::Status Refused(const std::string& node, const std::string& why) {
    return absl::FailedPreconditionError(fmt::format("node '{}': {}", node, why));
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
  const MoveCalls& calls_;
  const Clock& clock_;
  const uint64_t before_;
};

}  // namespace

VcpuMoveEnd MoveVcpu(const VcpuMove& move, const MoveCalls& calls, const Clock& clock, uint64_t* numbers) {
  const uint64_t before = *numbers;
  *numbers += kTakeBack;
  return Moving(move, calls, clock, before).Make();
}

}  // namespace hk
