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
using std::chrono::steady_clock;

struct Stage {
  std::string_view name;
  std::span<const uint8_t> program;
};

constexpr Stage kStages[] = {
    {"64-bit mode with paging", kLongModeProgram},
    {"SSE", kSseProgram},
    {"cmpxchg16b", kCmpxchg16bProgram},
};
constexpr milliseconds kStageTime{500};
constexpr milliseconds kSpeedTime{250};
// A guest that got less than this of its time on a CPU says nothing about KVM: it is tried again while there is time.
constexpr milliseconds kStarved{100};
// Leaves time for making and taking down the guests.
constexpr milliseconds kBudget{2500};
static_assert(std::size(kStages) * kStageTime + kSpeedTime <= kBudget);
static_assert(kBudget + milliseconds(400) <= kKvmProbeLimit);
// 3.2 million instructions: 1 ms on hardware. The fastest tick counts, so that a busy host does not look slow.
constexpr uint32_t kSpeedTicks = 32;

absl::StatusOr<ProbeGuestRun> Run(int kvm_fd, std::span<const uint8_t> program, ProbeGuestLimits limits,
                                  steady_clock::time_point deadline) {
  while (true) {
    absl::StatusOr<ProbeGuestRun> run = RunProbeGuest(kvm_fd, program, limits);
    const bool starved =
        run.ok() && run->end == ProbeGuestEnd::kDeadline && run->ticks == 0 && run->cpu_time < kStarved;
    // The stages to come need their time too; the last one is the shortest.
    if (!starved || steady_clock::now() + limits.time + kSpeedTime > deadline) return run;
  }
}

// "" if the stage passed.
std::string Failure(int kvm_fd, const Stage& stage, steady_clock::time_point deadline) {
  if (steady_clock::now() + kStageTime > deadline) return fmt::format("{}: no time left to try", stage.name);
  absl::StatusOr<ProbeGuestRun> run = Run(kvm_fd, stage.program, {.time = kStageTime, .ticks = 1}, deadline);
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
std::string TooSlow(int kvm_fd, steady_clock::time_point deadline, double* instructions_per_second) {
  absl::StatusOr<ProbeGuestRun> run = Run(kvm_fd, kSpeedProgram, {.time = kSpeedTime, .ticks = kSpeedTicks}, deadline);
  if (!run.ok()) return fmt::format("speed: {}", MessageOf(run.status()));
  if (run->end != ProbeGuestEnd::kTicks && run->end != ProbeGuestEnd::kDeadline) {
    return fmt::format("speed: {}", run->how);
  }
  if (run->ticks == 0) {
    return fmt::format("speed: not {} instructions: {}", kSpeedInstructionsPerTick, run->how);
  }
  const auto tick = std::max<std::chrono::nanoseconds>(run->fastest_tick, std::chrono::nanoseconds(1));
  *instructions_per_second = static_cast<double>(kSpeedInstructionsPerTick) * 1e9 / static_cast<double>(tick.count());
  if (*instructions_per_second >= kStockKernelInstructionsPerSecond) return "";
  return fmt::format("speed: {}, needed are {}", Speed(*instructions_per_second),
                     Speed(kStockKernelInstructionsPerSecond));
}

}  // namespace

StockKernelVerdict RunsStockKernel(int kvm_fd) {
  const steady_clock::time_point deadline = steady_clock::now() + kBudget;
  StockKernelVerdict verdict;
  std::vector<std::string> failures;
  for (const Stage& stage : kStages) {
    if (std::string failure = Failure(kvm_fd, stage, deadline); !failure.empty())
      failures.push_back(std::move(failure));
    // What does not run at all need not be asked for SSE or speed.
    if (&stage == &kStages[0] && !failures.empty()) {
      verdict.why = failures[0];
      return verdict;
    }
  }
  if (std::string slow = TooSlow(kvm_fd, deadline, &verdict.instructions_per_second); !slow.empty()) {
    failures.push_back(std::move(slow));
  }
  verdict.runs = failures.empty();
  verdict.why = verdict.runs ? fmt::format("64-bit mode, paging, SSE and cmpxchg16b ran, {}",
                                           Speed(verdict.instructions_per_second))
                             : fmt::format("{}", fmt::join(failures, "; "));
  return verdict;
}

}  // namespace hk
