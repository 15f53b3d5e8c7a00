#include "hyperkernel/memory/pinned_pages.h"

#include <chrono>
#include <utility>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"

namespace hk {
namespace {

// Unpin does not wait for anything; a wait has a deadline all the same.
constexpr std::chrono::seconds kLook(1);

}  // namespace

void PinKeeper::Unpin(Gfn first, uint64_t count) {
  SpaceEngine* engine = nullptr;
  {
    MutexLock lock(&mutex_);
    if (engine_ == nullptr) return;
    engine = engine_;
    ++users_;
  }
  engine->Unpin(first, count);
  MutexLock lock(&mutex_);
  --users_;
  unused_.SignalAll();
}

void PinKeeper::Leave() {
  MutexLock lock(&mutex_);
  engine_ = nullptr;
  while (users_ > 0) unused_.WaitUntil(&mutex_, std::chrono::steady_clock::now() + kLook);
}

PinnedPages& PinnedPages::operator=(PinnedPages&& other) noexcept {
  if (this == &other) return *this;
  Release();
  keeper_ = std::move(other.keeper_);
  from_ = other.from_;
  bytes_ = std::exchange(other.bytes_, 0);
  access_ = other.access_;
  return *this;
}

std::span<const std::byte> PinnedPages::bytes() const {
  if (keeper_ == nullptr) return {};
  return {keeper_->view() + from_.value(), bytes_};
}

std::span<std::byte> PinnedPages::writable() const {
  if (keeper_ == nullptr) return {};
  HK_CHECK(access_ == PageAccess::kWrite);
  return {keeper_->view() + from_.value(), bytes_};
}

void PinnedPages::Release() {
  const std::shared_ptr<PinKeeper> keeper = std::move(keeper_);
  if (keeper == nullptr || HK_MUTANT(pin_outlives_its_holder)) return;
  const uint64_t first = GfnOf(from_).value();
  keeper->Unpin(Gfn(first), GfnOf(Gpa(from_.value() + bytes_ - 1)).value() - first + 1);
}

}  // namespace hk
