#include "hyperkernel/node/forwarded_exits.h"

#include <algorithm>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/device/doorbells.h"
#include "hyperkernel/irq/vcpu_set.h"

namespace hk {
namespace {

// A transaction's low bits are its waiter's index.
constexpr unsigned kIndexBits = 8;
static_assert(kMaxVcpus <= 1U << kIndexBits);

constexpr std::array<std::byte, kMaxExitBytes> AllOnes() {
  std::array<std::byte, kMaxExitBytes> ones{};
  ones.fill(std::byte{0xff});
  return ones;
}

}  // namespace

ForwardedExits::ForwardedExits(MachineLink* link, uint32_t vcpus, std::chrono::milliseconds deadline)
    : link_(link), deadline_(deadline), waiters_(vcpus) {
  HK_CHECK(link->self() != link->io_node() && vcpus >= 1 && vcpus <= kMaxVcpus);
  for (uint32_t i = vcpus; i-- > 0;) free_.push_back(i);
}

void ForwardedExits::Abandon() {
  MutexLock lock(&mutex_);
  abandoned_ = true;
  for (Waiter& waiter : waiters_) waiter.answered.Signal();
}

void ForwardedExits::PortRead(uint16_t port, std::span<std::byte> data) {
  Read(ExitKind::kPortRead, port, data);
}
void ForwardedExits::PortWrite(uint16_t port, std::span<const std::byte> data) {
  Write(ExitKind::kPortWrite, port, data);
}
void ForwardedExits::MmioRead(Gpa address, std::span<std::byte> data) {
  Read(ExitKind::kMmioRead, address.value(), data);
}
void ForwardedExits::MmioWrite(Gpa address, std::span<const std::byte> data) {
  if (MayBeDoorbell(address) && Ring(address)) return;
  Write(ExitKind::kMmioWrite, address.value(), data);
}

bool ForwardedExits::Ring(Gpa address) {
  {
    MutexLock lock(&mutex_);
    if (abandoned_) return true;
  }
  return link_->PostDoorbell(link_->io_node(), EncodeDoorbell(address));
}

void ForwardedExits::Read(ExitKind kind, uint64_t address, std::span<std::byte> data) {
  HK_CHECK(data.size() <= kMaxExitBytes);
  const auto read = Access({.kind = kind, .size = static_cast<uint8_t>(data.size()), .address = address, .data = {}});
  std::copy_n(read.begin(), data.size(), data.begin());
}

void ForwardedExits::Write(ExitKind kind, uint64_t address, std::span<const std::byte> data) {
  HK_CHECK(data.size() <= kMaxExitBytes);
  ExitRequest request{.kind = kind, .size = static_cast<uint8_t>(data.size()), .address = address, .data = {}};
  std::ranges::copy(data, request.data.begin());
  Access(request);
}

std::array<std::byte, kMaxExitBytes> ForwardedExits::Access(const ExitRequest& request) {
  const auto body = EncodeExitRequest(request);
  const Monotonic deadline = std::chrono::steady_clock::now() + deadline_;
  uint32_t index = 0;
  uint64_t transaction = 0;
  {
    MutexLock lock(&mutex_);
    if (abandoned_) return AllOnes();
    HK_CHECK(!free_.empty());
    index = free_.back();
    free_.pop_back();
    transaction = ++uses_ << kIndexBits | index;
    Waiter& waiter = waiters_[index];
    waiter.transaction = transaction;
    waiter.waits = true;
    waiter.answer = {.kind = request.kind, .size = request.size, .data = {}};
  }
  link_->PostExit(link_->io_node(), kMachineExitType, transaction, body);
  bool late = false;
  std::array<std::byte, kMaxExitBytes> read = AllOnes();
  {
    MutexLock lock(&mutex_);
    Waiter& waiter = waiters_[index];
    while (waiter.waits && !abandoned_ && !late) late = !waiter.answered.WaitUntil(&mutex_, deadline);
    late = late && waiter.waits && !abandoned_;
    if (!waiter.waits) read = waiter.answer.data;
    waiter.waits = false;
    free_.push_back(index);
  }
  if (late) link_->Fail(link_->io_node(), "has not made an access to a device in time");
  return read;
}

void ForwardedExits::OnGuestFailure(VcpuId vcpu, const std::string& reason) {
  {
    MutexLock lock(&mutex_);
    if (abandoned_) return;
  }
  link_->PostExit(link_->io_node(), kMachineFailureType, 0, EncodeFailure(vcpu, reason).span());
}

absl::Status ForwardedExits::OnExitMessage(NodeId from, const Message& message) {
  const bool answers = message.type == kMachineAnswerType && from == link_->io_node();
  if (!answers && !HK_MUTANT(machine_any_node_answers)) {
    return absl::InvalidArgumentError("a message about exits to or from a node without devices");
  }
  const absl::StatusOr<ExitAnswer> answer = DecodeExitAnswer(message.body);
  if (!answer.ok()) return answer.status();
  CondVar* answered = nullptr;
  {
    MutexLock lock(&mutex_);
    if (abandoned_) return absl::OkStatus();  // its request may have been given up
    const uint64_t index = message.transaction & ((1U << kIndexBits) - 1);
    if (index >= waiters_.size()) return absl::InvalidArgumentError("a device's answer to nothing");
    Waiter& waiter = waiters_[index];
    const bool asked =
        waiter.waits && (waiter.transaction == message.transaction || HK_MUTANT(machine_answer_to_nothing));
    if (!asked || waiter.answer.kind != answer->kind || waiter.answer.size != answer->size) {
      return absl::InvalidArgumentError("a device's answer to nothing");
    }
    waiter.answer = *answer;
    waiter.waits = false;
    answered = &waiter.answered;
  }
  answered->Signal();  // not under the lock, which who is woken needs
  return absl::OkStatus();
}

}  // namespace hk
