// Pages that this node owns and has no frame for: to the swap and back. README.md, "The engine", 12.
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/memory/space_engine_impl.h"

namespace hk::space {
namespace {

bool IsOut(SwapStage stage) {
  return stage == SwapStage::kOut || stage == SwapStage::kReading || stage == SwapStage::kIn;
}

}  // namespace

void Engine::SetStage(Shard* shard, ActivePage* active, SwapStage stage) {
  const bool out = IsOut(stage);
  if (out != IsOut(active->swap.stage)) {
    ExtentOf(shard, active->gfn)->pages.SetSwapped(active->gfn.value() % kExtentPages, out);
    shard->statistics.pages_swapped += out ? 1 : ~uint64_t{0};
  }
  active->swap.stage = stage;
}

bool Engine::IsSwapFull() const {
  return swap_ == nullptr || swap_taken_.load() >= config_.swap_pages ||
         clock_.Now().time_since_epoch().count() < swap_pause_until_.load();
}

bool Engine::MaySwap() const {
  return !IsSwapFull() && swap_writes_.load() < kSwapWrites;
}

size_t Engine::SwapOut(Shard* shard, size_t most) {
  size_t sent = 0;
  // Each page once at most; those that are held stay.
  uint64_t left = shard->statistics.pages_owned + shard->statistics.pages_exclusive;
  Gfn page;
  while (sent < most && left-- > 0 && MaySwap() && !stopped() && FindPage(shard, false, &page)) {
    ActivePage* const active = Activate(shard, page);
    SettleHold(active);
    if (!active->page.held && EvictIfZero(shard, active)) {
      ++sent;
    } else if (!active->page.held && !stopped()) {
      active->swap.bytes = std::make_shared<SwapPage>();
      if (!FramesDid(page, frames_->Remove(page, active->swap.bytes->bytes))) return sent;
      SetStage(shard, active, SwapStage::kWriting);
      active->swap.io = true;
      swap_writes_.fetch_add(1);
      swap_taken_.fetch_add(1);
      ++sent;
      const std::shared_ptr<SwapPage> bytes = active->swap.bytes;
      if (HK_MUTANT(engine_dropped_before_written)) {
        SetStage(shard, active, SwapStage::kOut);
        active->swap.bytes.reset();
      }
      swap_->Write(page, bytes, [this, page](const absl::Status& status) { OnSwapped(page, true, status); });
    }
    Rest(shard, active);
  }
  return sent;
}

void Engine::ReadBack(Shard* shard, ActivePage* active) {
  if (active->swap.stage != SwapStage::kOut) return;
  active->swap.bytes = std::make_shared<SwapPage>();
  SetStage(shard, active, SwapStage::kReading);
  active->swap.io = true;
  swap_->Read(active->gfn, active->swap.bytes,
              [this, page = active->gfn](const absl::Status& status) { OnSwapped(page, false, status); });
}

bool Engine::BringBack(Shard* shard, ActivePage* active) {
  // What is on its way has its frame still.
  if (active->swap.stage == SwapStage::kWriting) return PutIntoFrame(shard, active);
  if (!active->swap.claimed) {
    if (!ClaimFrame()) {
      WaitForFrame(shard, active);
      return false;
    }
    active->swap.claimed = true;
  }
  ArmWatch();
  ReadBack(shard, active);
  return active->swap.stage == SwapStage::kIn && PutIntoFrame(shard, active);
}

bool Engine::PutIntoFrame(Shard* shard, ActivePage* active) {
  const PageAccess access = active->page.state == PageState::kExclusive ? PageAccess::kWrite : PageAccess::kRead;
  if (!FramesDid(active->gfn, frames_->Install(active->gfn, active->swap.bytes->bytes, access))) return false;
  EndSwap(shard, active);
  // As after a grant: an instruction that needs several pages comes to its end.
  active->page.held = config_.hold.count() > 0;
  BeginHold(shard, active);
  ExtentOf(shard, active->gfn)->pages.Mark(active->gfn.value() % kExtentPages);
  Grant(shard, active);
  return true;
}

void Engine::EndSwap(Shard* shard, ActivePage* active) {
  if (active->swap.stage == SwapStage::kIn) {
    swap_->Forget(active->gfn);
    swap_taken_.fetch_sub(1);
  }
  SetStage(shard, active, SwapStage::kFrame);
  active->swap.bytes.reset();
  active->swap.claimed = false;
}

void Engine::SettleSwap(Shard* shard, ActivePage* active) {
  if (active->swap.stage != SwapStage::kIn) return;
  SetStage(shard, active, SwapStage::kOut);
  active->swap.bytes.reset();
  CountFrame(std::exchange(active->swap.claimed, false), false);
}

void Engine::OnSwapped(Gfn page, bool written, const absl::Status& status) {
  Shard& shard = ShardOf(page);
  {
    MutexLock lock(&shard.mutex);
    if (written) swap_writes_.fetch_sub(1);
    const auto found = shard.active.find(page.value());
    if (stopped() || found == shard.active.end()) return;
    ActivePage* const active = found->second.get();
    active->swap.io = false;
    if (written) {
      OnWritten(&shard, active, status);
    } else if (FramesDid(page, status)) {
      ++shard.statistics.swap_reads;
      SetStage(&shard, active, SwapStage::kIn);
    }
    if (!stopped()) {
      Advance(&shard, active);
      Rest(&shard, active);
      Drain(&shard);
    }
  }
  Finish();
}

void Engine::OnWritten(Shard* shard, ActivePage* active, const absl::Status& status) {
  SpaceStatistics& statistics = shard->statistics;
  const bool wanted = active->swap.stage == SwapStage::kWriting;
  if (status.ok()) {
    ++statistics.swap_writes;
    if (wanted) {
      SetStage(shard, active, SwapStage::kOut);
      active->swap.bytes.reset();
      CountFrame(true, false);
    } else {
      swap_->Forget(active->gfn);  // it was touched, or went to another node, meanwhile
      swap_taken_.fetch_sub(1);
    }
    return;
  }
  ++statistics.swap_failures;
  swap_taken_.fetch_sub(1);
  swap_pause_until_.store((clock_.Now() + kSwapPause).time_since_epoch().count());
  bool news = false;
  {
    MutexLock lock(&reason_mutex_);
    news = swap_failure_ != status;
    swap_failure_ = status;
  }
  if (news) {
    log::Warning("memory", "a page could not be swapped and stays in memory",
                 {{"guest", fmt::format("{}", config_.guest.value())}, {"why", MessageOf(status)}});
  }
  if (wanted) PutIntoFrame(shard, active);
}

std::string Engine::WhyNotSwapped() const {
  if (config_.swap_pages == 0) return "";
  if (swap_taken_.load() >= config_.swap_pages) {
    return fmt::format("; its swap of {} pages is full", config_.swap_pages);
  }
  MutexLock lock(&reason_mutex_);
  return swap_failure_.ok() ? "" : fmt::format("; {}", MessageOf(swap_failure_));
}

}  // namespace hk::space
