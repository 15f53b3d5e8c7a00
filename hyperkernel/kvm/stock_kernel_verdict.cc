#include <algorithm>
#include <string>

#include "fmt/format.h"
#include "fmt/ranges.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/kvm/kvm_probe.h"
#include "hyperkernel/kvm/probe_guest.h"
#include "hyperkernel/kvm/stock_kernel_programs.h"

namespace hk {
namespace {

using std::chrono::milliseconds;

struct Stage {
  std::string_view name;
  std::span<const uint8_t> program;
};

constexpr Stage kStages[] = {
    {"64-bit mode with paging", kLongModeProgram},
    {"SSE", kSseProgram},
    {"cmpxchg16b", kCmpxchg16bProgram},
};
// Together with the speed, and the making and taking down of four guests, under kKvmProbeLimit.
constexpr milliseconds kStageTime{500};
constexpr milliseconds kSpeedTime{250};
// 3.2 million instructions: 1 ms on hardware. The fastest tick counts, so that a busy host does not look slow.
constexpr uint32_t kSpeedTicks = 32;
static_assert(std::size(kStages) * kStageTime + kSpeedTime <= kKvmProbeLimit - milliseconds(900));

// "" if the stage passed.
std::string Failure(int kvm_fd, const Stage& stage) {
  absl::StatusOr<ProbeGuestRun> run = RunProbeGuest(kvm_fd, stage.program, {.time = kStageTime, .ticks = 1});
  if (!run.ok()) return fmt::format("{}: {}", stage.name, MessageOf(run.status()));
  if (run->end == ProbeGuestEnd::kPassed) return "";
  return fmt::format("{}: {}", stage.name, run->how);
}

// Millions of instructions, readable over six orders of magnitude.
std::string Speed(double instructions_per_second) {
  const double millions = instructions_per_second / 1e6;
  return fmt::format("{:.{}f} million instructions/s", millions, millions < 10 ? 1 : 0);
}

// "" if it is fast enough.
std::string TooSlow(int kvm_fd, double* instructions_per_second) {
  absl::StatusOr<ProbeGuestRun> run = RunProbeGuest(kvm_fd, kSpeedProgram, {.time = kSpeedTime, .ticks = kSpeedTicks});
  if (!run.ok()) return fmt::format("speed: {}", MessageOf(run.status()));
  if (run->end != ProbeGuestEnd::kTicks && run->end != ProbeGuestEnd::kDeadline) {
    return fmt::format("speed: {}", run->how);
  }
  if (run->ticks == 0) {
    return fmt::format("speed: not {} instructions in {} ms", kSpeedInstructionsPerTick, kSpeedTime.count());
  }
  const auto tick = std::max<std::chrono::nanoseconds>(run->fastest_tick, std::chrono::nanoseconds(1));
  *instructions_per_second = static_cast<double>(kSpeedInstructionsPerTick) * 1e9 / static_cast<double>(tick.count());
  if (*instructions_per_second >= kStockKernelInstructionsPerSecond) return "";
  return fmt::format("speed: {}, needed are {}", Speed(*instructions_per_second),
                     Speed(kStockKernelInstructionsPerSecond));
}

}  // namespace

StockKernelVerdict RunsStockKernel(int kvm_fd) {
  StockKernelVerdict verdict;
  std::vector<std::string> failures;
  for (const Stage& stage : kStages) {
    if (std::string failure = Failure(kvm_fd, stage); !failure.empty()) failures.push_back(std::move(failure));
    // What does not run at all need not be asked for SSE.
    if (&stage == &kStages[0] && !failures.empty()) break;
  }
  const bool basics = failures.empty() || !failures[0].starts_with(kStages[0].name);
  if (basics) {
    if (std::string slow = TooSlow(kvm_fd, &verdict.instructions_per_second); !slow.empty()) failures.push_back(slow);
  }
  verdict.runs = failures.empty();
  verdict.why = verdict.runs ? fmt::format("64-bit mode, paging, SSE and cmpxchg16b ran, {}",
                                           Speed(verdict.instructions_per_second))
                             : fmt::format("{}", fmt::join(failures, "; "));
  return verdict;
}

}  // namespace hk
