// What this host's KVM can do, for the operator and for the daemon's decision whether guests may start here.
#pragma once

#include <chrono>
#include <string>

#include "hyperkernel/base/probe.h"

namespace hk {

// A stock kernel needs a CPU, not an instruction emulator: below this many instructions per second it does not boot in
// any useful time. Measured with kSpeedProgram: 2.7 million on a software KVM, 1056 million under nested SVM emulated
// by QEMU's TCG (the slowest KVM that boots Debian), some thousands of millions on hardware. The bound is a factor of
// 20 from both sides.
inline constexpr double kStockKernelInstructionsPerSecond = 50e6;

// Whether a stock Linux kernel would run in a guest, found by running small guests that do what it does: 64-bit mode
// with paging, SSE, cmpxchg16b, and a loop that is timed. Every one of them is tried; `why` names what failed and how.
struct StockKernelVerdict {
  bool runs = false;
  std::string why;                     // for people, either way
  double instructions_per_second = 0;  // 0: not measured
};
// `kvm_fd` is an open /dev/kvm. Takes under 20 ms on hardware, at most kKvmProbeLimit. Thread-safe, see
// RunProbeGuest().
StockKernelVerdict RunsStockKernel(int kvm_fd);

// Bound on the time that ProbeKvm() takes, whatever a guest does.
inline constexpr std::chrono::milliseconds kKvmProbeLimit{3000};

// All answers of group "kvm": the device, the hardware module, RunsStockKernel() and the capabilities the vCPU code
// uses. Without a usable /dev/kvm the capabilities are not asked. Never fails: errors are answers. Thread-safe; leaves
// nothing behind. Time: as RunsStockKernel().
ProbeItems ProbeKvm();

// Of those, what the hardware modules say. `modules` is /sys/module but in tests.
ProbeItems ProbeKvmModules(const std::string& modules);

}  // namespace hk
