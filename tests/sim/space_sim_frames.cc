#include "tests/sim/space_sim_frames.h"

#include <cstring>
#include <utility>

#include "fmt/format.h"

namespace hk::sim {

using std::chrono::microseconds;
using std::chrono::milliseconds;

absl::Status SimFrames::Install(Gfn page, std::span<const std::byte> bytes, PageAccess access) {
  if (pages_.contains(page.value())) return absl::AlreadyExistsError("the page is here");
  if (access == PageAccess::kNone || (!bytes.empty() && bytes.size() != kPageSize)) {
    return absl::InvalidArgumentError("bytes or access");
  }
  auto& [right, words] = pages_[page.value()];
  right = access;
  words = {};
  if (most_ != 0 && pages_.size() > most_)
    oracle_->Report(fmt::format("node {} has {} frames", node_.value(), pages_.size()));
  if (!bytes.empty()) std::memcpy(words.data(), bytes.data(), kPageSize);
  oracle_->OnAccess(node_, page, access);
  return absl::OkStatus();
}

absl::Status SimFrames::SetAccess(Gfn page, PageAccess access) {
  const auto found = pages_.find(page.value());
  if (found == pages_.end() || access == PageAccess::kNone) return absl::FailedPreconditionError("no such page");
  found->second.first = access;
  oracle_->OnAccess(node_, page, access);
  return absl::OkStatus();
}

absl::Status SimFrames::Remove(Gfn page, std::span<std::byte> keep) {
  const auto found = pages_.find(page.value());
  if (found == pages_.end()) return absl::FailedPreconditionError("no such page");
  if (!keep.empty()) std::memcpy(keep.data(), found->second.second.data(), kPageSize);
  pages_.erase(found);
  oracle_->OnAccess(node_, page, PageAccess::kNone);
  return absl::OkStatus();
}

absl::Status SimFrames::Read(Gfn page, size_t offset, std::span<std::byte> to) {
  const auto found = pages_.find(page.value());
  if (found == pages_.end()) return absl::FailedPreconditionError("no such page");
  std::memcpy(to.data(), reinterpret_cast<const std::byte*>(found->second.second.data()) + offset, to.size());
  return absl::OkStatus();
}

absl::Status SimFrames::Write(Gfn page, size_t offset, std::span<const std::byte> from) {
  const auto found = pages_.find(page.value());
  if (found == pages_.end() || found->second.first != PageAccess::kWrite) {
    return absl::FailedPreconditionError("no such page");
  }
  std::memcpy(reinterpret_cast<std::byte*>(found->second.second.data()) + offset, from.data(), from.size());
  return absl::OkStatus();
}

void SimFrames::Wake(Gfn page) {
  std::vector<std::function<void(bool)>> woken = std::move(waiting_[page.value()]);
  waiting_.erase(page.value());
  const bool good = !failed_.contains(page.value());
  if (!woken.empty() && waits_since_.has_value()) {
    waited_ += simulation_->Now() - *waits_since_;
    waits_since_.reset();
  }
  // A thread that was woken runs a little later.
  for (std::function<void(bool)>& then : woken) {
    simulation_->After(simulation_->Between({}, microseconds(5)), [then = std::move(then), good] { then(good); });
  }
}

void SimFrames::Fail(Gfn page) {
  failed_[page.value()] = true;
}

std::optional<std::chrono::nanoseconds> SimFrames::RunTime(uint32_t thread) const {
  if (thread != kThread || !watched_) return std::nullopt;
  return waits_since_.value_or(simulation_->Now()).time_since_epoch() - waited_;
}

ThreadGather* SimFrames::GatherOf(uint32_t thread) const {
  return thread == kThread && watched_ ? &gather_ : nullptr;
}

PageAccess SimFrames::access(Gfn page) const {
  const auto found = pages_.find(page.value());
  return found == pages_.end() ? PageAccess::kNone : found->second.first;
}

uint64_t SimFrames::Load(Gfn page, size_t word) {
  return pages_.at(page.value()).second[word];
}

void SimFrames::Store(Gfn page, size_t word, uint64_t value) {
  auto& [right, words] = pages_.at(page.value());
  if (right != PageAccess::kWrite) oracle_->Report("a store to a page that is not writable");
  words[word] = value;
}

Simulation::Duration SimSwap::Delay() {
  return simulation_->Chance(100'000) ? simulation_->Between(milliseconds(1), milliseconds(20))
                                      : simulation_->Between(microseconds(20), microseconds(500));
}

void SimSwap::Write(Gfn gfn, std::shared_ptr<const SwapPage> page, Done done) {
  if (pages_.contains(gfn.value()) || under_way_[gfn.value()]) oracle_->Report("a page is swapped twice");
  under_way_[gfn.value()] = true;
  later_(Delay(), [this, gfn, page = std::move(page), done = std::move(done)] {
    under_way_[gfn.value()] = false;
    if (simulation_->Chance(failures_)) return done(absl::ResourceExhaustedError("the disk is full"));
    pages_[gfn.value()] = *page;
    done(absl::OkStatus());
  });
}

void SimSwap::Read(Gfn gfn, std::shared_ptr<SwapPage> page, Done done) {
  if (!pages_.contains(gfn.value()) || under_way_[gfn.value()]) {
    return oracle_->Report(fmt::format("page {} is read from the swap, which does not have it", gfn.value()));
  }
  under_way_[gfn.value()] = true;
  later_(Delay(), [this, gfn, page = std::move(page), done = std::move(done)] {
    under_way_[gfn.value()] = false;
    *page = pages_.at(gfn.value());
    done(absl::OkStatus());
  });
}

void SimSwap::Forget(Gfn gfn) {
  if (under_way_[gfn.value()] || pages_.erase(gfn.value()) == 0)
    oracle_->Report("a page that is not there is forgotten");
}

}  // namespace hk::sim
