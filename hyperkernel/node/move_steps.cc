#include "hyperkernel/node/move_steps.h"

#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/node_set.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/machine_wire.h"

namespace hk {
namespace {

// Who waits for a word looks so often whether the link has ended, of which nobody tells it.
constexpr std::chrono::milliseconds kLookAtLink(20);
// A thread without anything to do looks again so often: a wait has a deadline.
constexpr std::chrono::hours kIdle(1);

absl::Status Bad(const char* what) {
  return absl::InvalidArgumentError(what);
}

uint64_t NsSince(Monotonic begin) {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(RealClock().Now() - begin).count());
}

// A refusal has a reason, or it would be none.
std::string Reason(const absl::Status& status) {
  return status.ok() ? "" : MessageOf(status).empty() ? "it cannot" : std::string(MessageOf(status));
}

}  // namespace

MoveSteps::MoveSteps(MachineLink* link, uint32_t vcpus, MoveLimits limits)
    : link_(link), vcpus_(vcpus), limits_(limits), thread_([this] { Run(); }) {}

MoveSteps::~MoveSteps() {
  Stop();
}

void MoveSteps::Begin(VcpuMoveEndpoint* end) {
  MutexLock lock(&mutex_);
  HK_CHECK(end_ == nullptr);
  end_ = end;
}

void MoveSteps::Stop() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    changed_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
}

v1::MoveMachineVcpuResponse MoveSteps::Do(const v1::MoveMachineVcpuRequest& request) {
  MutexLock steps(&steps_mutex_);
  const bool again = request.number() == last_number_ && request.number() != 0;
  if (again && !HK_MUTANT(move_step_done_twice)) return last_;
  v1::MoveMachineVcpuResponse response;
  if (request.number() < last_number_ || request.number() == 0) {
    response.set_refused(fmt::format("step {} came after step {}", request.number(), last_number_));
    return response;
  }
  response.set_refused(Reason(Try(request)));
  last_number_ = request.number();
  last_ = response;
  return response;
}

absl::Status MoveSteps::Try(const v1::MoveMachineVcpuRequest& request) {
  if (request.vcpu() >= vcpus_) return absl::InvalidArgumentError(fmt::format("there is no vCPU {}", request.vcpu()));
  switch (request.step()) {
    case v1::MOVE_STEP_PREPARE:
      return Prepare(request);
    case v1::MOVE_STEP_TAKE_BACK:
      return TakeBack(request);
    default:
      return Bad("step: not one this daemon knows");
  }
}

absl::Status MoveSteps::Prepare(const v1::MoveMachineVcpuRequest& request) {
  const auto is_node = [this](uint32_t number) {
    return number < kMaxNodes && std::ranges::count(link_->nodes(), NodeId(static_cast<uint16_t>(number))) == 1;
  };
  if (!is_node(request.from_node())) return Bad("from_node: no node of the machine");
  if (!is_node(request.to_node())) return Bad("to_node: no node of the machine");
  const NodeId from(static_cast<uint16_t>(request.from_node())), to(static_cast<uint16_t>(request.to_node()));
  if (from == to || (from != link_->self() && to != link_->self())) return Bad("from_node, to_node: not between nodes");
  if (request.move() <= request.number()) return Bad("move: of before this step");
  VcpuMoveEndpoint* end = nullptr;
  {
    MutexLock lock(&mutex_);
    expected_ = {};
    coming_.clear();
    kept_.reset();
    end = end_;
  }
  if (end == nullptr) return absl::UnavailableError("its vCPUs are not made yet");
  HK_RETURN_IF_ERROR(end->Prepare(VcpuId(request.vcpu())));
  MutexLock lock(&mutex_);
  expected_ = {.move = request.move(), .vcpu = VcpuId(request.vcpu()), .from = from, .to = to};
  return absl::OkStatus();
}

absl::Status MoveSteps::TakeBack(const v1::MoveMachineVcpuRequest& request) {
  VcpuMoveEndpoint* end = nullptr;
  MovedVcpu moved;
  {
    MutexLock lock(&mutex_);
    if (!kept_.has_value() || kept_->move != request.move() || kept_->vcpu.id != VcpuId(request.vcpu())) {
      return absl::NotFoundError("it has not left here in this move");
    }
    end = end_;
    moved = kept_->vcpu;
  }
  moved.version++;  // its place here is one later than that where it was refused
  HK_RETURN_IF_ERROR(end->Arrive(moved));
  MutexLock lock(&mutex_);
  kept_.reset();
  return absl::OkStatus();
}

Crossing MoveSteps::Cross(const VcpuMove& move, uint64_t number) {
  const Monotonic begin = RealClock().Now();
  {
    MutexLock lock(&mutex_);
    words_ = {.move = number, .from = move.from_number, .to = move.to_number, .left = {}, .come = {}, .came = {}};
    if (move.from_number == link_->self()) expected_ = {};
  }
  if (move.from_number == link_->self()) {
    LetGo({.move = number, .vcpu = move.vcpu, .leaves_to = move.to_number, .bytes = {}});
  } else {
    link_->PostMove(move.from_number, kMachineMoveOrderType, number,
                    EncodeMoveOrder({.vcpu = move.vcpu, .to = move.to_number}));
  }
  MutexLock lock(&mutex_);
  Monotonic limit = begin + limits_.leave;
  for (bool left = false; !words_.left.has_value() || (words_.left->refused.empty() && !words_.come.has_value());) {
    const Monotonic now = RealClock().Now();
    if (words_.left.has_value() && !std::exchange(left, true)) limit = now + limits_.arrive;
    if (now >= limit || link_->ended()) break;
    word_taken_.WaitUntil(&mutex_, std::min(limit, now + kLookAtLink));
  }
  const absl::Status silence = link_->ended() ? absl::UnavailableError("the machine's link has ended")
                                              : absl::DeadlineExceededError("no answer in time");
  Crossing crossing{.left = silence, .come = silence, .stopped = words_.came - begin};
  if (words_.left.has_value()) crossing.left = *words_.left;
  if (words_.come.has_value()) crossing.come = *words_.come;
  words_ = {};
  return crossing;
}

absl::Status MoveSteps::OnMoveMessage(NodeId from, const Message& message) {
  switch (message.type) {
    case kMachineMoveOrderType:
      return OnOrder(from, message);
    case kMachineMovePieceType:
      return OnPiece(from, message);
    default:
      return OnWord(from, message);
  }
}

absl::Status MoveSteps::OnOrder(NodeId from, const Message& message) {
  HK_ASSIGN_OR_RETURN(const MoveOrder order, DecodeMoveOrder(message.body));
  MutexLock lock(&mutex_);
  if (from != link_->io_node() || message.transaction != expected_.move || expected_.from != link_->self() ||
      order.vcpu != expected_.vcpu || order.to != expected_.to) {
    return Bad("an order to let a vCPU go that was not prepared");
  }
  expected_ = {};
  jobs_.push_back({.move = message.transaction, .vcpu = order.vcpu, .leaves_to = order.to, .bytes = {}});
  changed_.Signal();
  return absl::OkStatus();
}

absl::Status MoveSteps::OnPiece(NodeId from, const Message& message) {
  HK_ASSIGN_OR_RETURN(const MovePiece piece, DecodeMovePiece(message.body));
  MutexLock lock(&mutex_);
  const bool expected = message.transaction == expected_.move && from == expected_.from;
  if ((!expected && !HK_MUTANT(move_takes_any_vcpu)) || expected_.to != link_->self() || piece.vcpu != expected_.vcpu) {
    return Bad("a piece of a vCPU that is not to come");
  }
  if (piece.at != coming_.size()) return Bad("a piece of a vCPU out of its order");
  coming_.insert(coming_.end(), piece.bytes.begin(), piece.bytes.end());
  if (coming_.size() < piece.total) return absl::OkStatus();
  expected_ = {};
  jobs_.push_back({.move = message.transaction, .vcpu = piece.vcpu, .leaves_to = {}, .bytes = std::move(coming_)});
  coming_.clear();
  changed_.Signal();
  return absl::OkStatus();
}

absl::Status MoveSteps::OnWord(NodeId from, const Message& message) {
  HK_ASSIGN_OR_RETURN(MoveWord word, DecodeMoveWord(message.body));
  if (link_->self() != link_->io_node()) return Bad("a word about a move to a node that has none made");
  return Take(from, message.transaction, std::move(word));
}

absl::Status MoveSteps::Take(NodeId from, uint64_t move, MoveWord word) {
  MutexLock lock(&mutex_);
  // What was given up has ended the machine, or came without this word.
  if (move != words_.move) return absl::OkStatus();
  const bool of_source = word.of == MoveWord::Of::kSource;
  std::optional<MoveWord>* const place = of_source ? &words_.left : &words_.come;
  if (from != (of_source ? words_.from : words_.to) || place->has_value()) return Bad("a word about a move of others");
  if (!of_source) words_.came = RealClock().Now();
  *place = std::move(word);
  word_taken_.SignalAll();
  return absl::OkStatus();
}

void MoveSteps::Say(uint64_t move, const MoveWord& word) {
  if (link_->self() == link_->io_node()) return static_cast<void>(Take(link_->self(), move, word));
  link_->PostMove(link_->io_node(), kMachineMoveWordType, move, EncodeMoveWord(word));
}

void MoveSteps::LetGo(const Job& job) {
  VcpuMoveEndpoint* end = nullptr;
  {
    MutexLock lock(&mutex_);
    end = end_;
  }
  const Monotonic begin = RealClock().Now();
  MoveWord word{.of = MoveWord::Of::kSource, .took_ns = 0, .refused = {}};
  const auto left = [&](const MovedVcpu& moved) {
    word.took_ns = NsSince(begin);
    link_->PostPieces(*job.leaves_to, job.move, job.vcpu, PackMoved(moved));
  };
  absl::StatusOr<MovedVcpu> moved = end->Leave(job.vcpu, *job.leaves_to, left);
  word.refused = Reason(moved.status());
  if (moved.ok()) {
    MutexLock lock(&mutex_);
    kept_ = {.move = job.move, .vcpu = *std::move(moved)};
  }
  Say(job.move, word);
}

void MoveSteps::LetCome(const Job& job) {
  VcpuMoveEndpoint* end = nullptr;
  {
    MutexLock lock(&mutex_);
    end = end_;
  }
  const Monotonic begin = RealClock().Now();
  const absl::StatusOr<MovedVcpu> moved = UnpackMoved(job.vcpu, job.bytes);
  const absl::Status come = moved.ok() ? end->Arrive(*moved) : moved.status();
  Say(job.move, {.of = MoveWord::Of::kTarget, .took_ns = NsSince(begin), .refused = Reason(come)});
}

void MoveSteps::Run() {
  MutexLock lock(&mutex_);
  while (!stopping_) {
    if (jobs_.empty()) {
      changed_.WaitUntil(&mutex_, RealClock().Now() + kIdle);
      continue;
    }
    const Job job = std::move(jobs_.front());
    jobs_.pop_front();
    mutex_.Unlock();
    if (job.leaves_to.has_value()) {
      LetGo(job);
    } else {
      LetCome(job);
    }
    mutex_.Lock();
  }
}

}  // namespace hk
