#include "rdma/verbs_pool.h"

#include <sys/resource.h>

#include <cerrno>
#include <string>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/status.h"
#include "rdma/wire.h"

namespace hk {

namespace {

std::string LockedMemoryLimit() {
  rlimit limit = {};
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return "unlimited";
  return fmt::format("{} KiB", limit.rlim_cur >> 10);
}

// All slots of a class and use, with the room before each.
std::span<std::byte> SlotsOf(const SlotMemory& memory, MessageClass message_class, SlotUse use, uint32_t count) {
  return {memory.First(message_class, use) - kSlotRoomBytes, memory.Stride(message_class) * count};
}

}  // namespace

absl::StatusOr<VerbsObject<ibv_mr>> RegisterMemory(ibv_pd* domain, std::span<std::byte> bytes, int access,
                                                   std::string_view what) {
  VerbsObject<ibv_mr> region(ibv_reg_mr(domain, bytes.data(), bytes.size(), access));
  if (region != nullptr) return region;
  const absl::Status status = ErrnoStatus(errno, fmt::format("registering {} KiB for {}", bytes.size() >> 10, what));
  if (errno != ENOMEM && errno != EAGAIN) return status;
  return absl::ResourceExhaustedError(
      fmt::format("{}; registered memory is locked, RLIMIT_MEMLOCK is {}: raise it (systemd: LimitMEMLOCK=infinity, "
                  "shell: ulimit -l unlimited), or lower the numbers of slots",
                  MessageOf(status), LockedMemoryLimit()));
}

absl::StatusOr<std::unique_ptr<VerbsPool>> VerbsPool::Create(ibv_context* context, const SlotMemory& memory,
                                                             const TransportSettings& settings) {
  auto pool = std::make_unique<VerbsPool>();
  for (PerClass& one : pool->classes_) {
    one.domain.reset(ibv_alloc_pd(context));
    if (one.domain == nullptr) return ErrnoStatus(errno, "ibv_alloc_pd");
  }
  auto fill = [&](MessageClass message_class, uint32_t receive, uint32_t send) {
    PerClass& one = pool->classes_[static_cast<size_t>(message_class)];
    HK_ASSIGN_OR_RETURN(one.receive,
                        RegisterMemory(one.domain.get(), SlotsOf(memory, message_class, SlotUse::kReceive, receive),
                                       IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE, "receive slots"));
    HK_ASSIGN_OR_RETURN(one.send, RegisterMemory(one.domain.get(), SlotsOf(memory, message_class, SlotUse::kSend, send),
                                                 0, "send slots"));
    return absl::OkStatus();
  };
  HK_RETURN_IF_ERROR(fill(MessageClass::kFault, settings.fault_receive_slots, settings.fault_send_slots));
  HK_RETURN_IF_ERROR(fill(MessageClass::kBulk, settings.bulk_receive_slots, settings.bulk_send_slots));
  return pool;
}

}  // namespace hk
