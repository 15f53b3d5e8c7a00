// Runs a few dozen bytes of machine code in a throw-away KVM guest, to learn what this host's KVM can do by having it
// do it.
//
// The guest: one vCPU, no in-kernel irqchip, 64-bit mode with paging (the first 2 MiB twice: at 0 and at 1 GiB), SSE
// enabled, interrupts off, an interrupt table whose every exception is reported. 2 MiB of memory: page tables and
// tables in the first 32 KiB, code at kProbeGuestCode, data at kProbeGuestData, stack below kProbeGuestStack.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace hk {

inline constexpr uint64_t kProbeGuestCode = 0x8000;
inline constexpr uint64_t kProbeGuestData = 0x10000;
inline constexpr uint64_t kProbeGuestStack = 0x20000;
// Second place of the first 2 MiB in the guest's virtual addresses.
inline constexpr uint64_t kProbeGuestAlias = 0x40000000;

// A guest program says how it fares by writing a byte to this port.
inline constexpr uint16_t kProbeGuestPort = 0x10;
enum class ProbeGuestWord : uint8_t {
  kPassed = 1,       // ends the run: the program got the results it expected
  kWrongResult = 2,  // ends the run: an instruction ran and its result is wrong
  kTick = 3,         // one round of a loop is over; the run goes on until ProbeGuestLimits::ticks
};

// How a run ended.
enum class ProbeGuestEnd {
  kPassed,
  kWrongResult,
  kTicks,      // the asked number of ticks came
  kException,  // the guest's CPU raised one
  kShutdown,   // triple fault
  kInternalError,
  kEntryFailed,     // the CPU refused the guest's state
  kUnexpectedExit,  // an exit that no program here causes
  kRunFailed,       // KVM_RUN returned an error
  kDeadline,        // still running at the deadline
};

// When a run is over at the latest: whichever of the two comes first.
struct ProbeGuestLimits {
  std::chrono::milliseconds time{500};
  uint32_t ticks = 1;
};

// How a run went.
struct ProbeGuestRun {
  ProbeGuestEnd end = ProbeGuestEnd::kDeadline;
  std::string how;     // the end in words, with what KVM said; empty for kPassed and kTicks
  uint32_t ticks = 0;  // ticks that came
  // Time that the guest had on a CPU of the host. Much less than the run took: the host is overloaded.
  std::chrono::nanoseconds cpu_time{0};
  // Shortest time on a CPU between two ticks (from the start, if only one came); zero if none came.
  std::chrono::nanoseconds fastest_tick{0};
};

// Makes a guest with this program, runs it until it ends or the time is over, and takes it down. A program that never
// ends or never exits is stopped: the run is over at most about 50 ms after the deadline, provided KVM_RUN returns on a
// signal (it does by its contract, and by what was measured on software KVM too).
//
// Thread-safe, and safe in a process with other threads and signal handlers: the guest runs in a thread of its own,
// which is joined before return; the signal that stops it is blocked in that thread and never delivered, so no handler
// is installed or called. `kvm_fd` is an open /dev/kvm and stays the caller's. Errors: what of the guest could not be
// made, with errno. REQUIRES: program fits between kProbeGuestCode and kProbeGuestData.
absl::StatusOr<ProbeGuestRun> RunProbeGuest(int kvm_fd, std::span<const uint8_t> program, ProbeGuestLimits limits);

}  // namespace hk
