#include "hyperkernel/memory/swap_store.h"

#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/file.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"

namespace hk {

SwapStore::SwapStore(std::string directory, uint64_t budget_bytes)
    : directory_(std::move(directory)),
      budget_bytes_(budget_bytes),
      reserved_(std::make_shared<std::atomic<uint64_t>>(0)) {}

absl::StatusOr<std::unique_ptr<SpaceSwap>> SwapStore::Make(const std::string& name, uint64_t generation,
                                                           uint64_t bytes) const {
  uint64_t reserved = reserved_->load();
  do {
    if (bytes > budget_bytes_ - reserved && !HK_MUTANT(swap_budget_unchecked)) {
      return absl::ResourceExhaustedError(
          fmt::format("{} MiB of swap do not fit: this node gives {} MiB (swap_mib), {} MiB are taken", bytes >> 20,
                      budget_bytes_ >> 20, reserved >> 20));
    }
  } while (!reserved_->compare_exchange_weak(reserved, reserved + bytes));
  std::shared_ptr<void> reservation(nullptr, [all = reserved_, bytes](void*) { all->fetch_sub(bytes); });
  return SpaceSwap::Create(directory_, name, generation, bytes, std::move(reservation));
}

absl::StatusOr<uint64_t> SwapStore::UsedBytes() const {
  absl::StatusOr<uint64_t> bytes = BytesOfFiles(directory_);
  if (absl::IsNotFound(bytes.status())) return 0;  // made with the first swap
  return bytes;
}

}  // namespace hk
