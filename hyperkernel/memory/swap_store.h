// The swap of all spaces of this node: where their files are, and how much of the disk they may have together.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/memory/space_swap.h"

namespace hk {

// A directory and a budget. Thread-safe. The swaps it made may outlive it.
class SwapStore {
 public:
  // `budget_bytes` 0: no space of this node has a swap.
  SwapStore(std::string directory, uint64_t budget_bytes);

  // The swap of a space. Errors: kResourceExhausted, saying how much of the budget is taken; those of
  // SpaceSwap::Create.
  absl::StatusOr<std::unique_ptr<SpaceSwap>> Make(const std::string& name, uint64_t generation, uint64_t bytes) const;
  uint64_t budget_bytes() const { return budget_bytes_; }
  // Of it, what swaps that are there may take together.
  uint64_t reserved_bytes() const { return reserved_->load(); }
  // What they take of the disk now. Errors: errno of the failing call.
  absl::StatusOr<uint64_t> UsedBytes() const;
  // See SpaceSwap::RemoveLeftovers.
  absl::StatusOr<int> RemoveLeftovers() const { return SpaceSwap::RemoveLeftovers(directory_); }

 private:
  const std::string directory_;
  const uint64_t budget_bytes_;
  const std::shared_ptr<std::atomic<uint64_t>> reserved_;
};

}  // namespace hk
