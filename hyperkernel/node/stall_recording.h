// One trace that is being recorded: between a machine, which never waits for it, and who writes it down.
//
// Thread-safe. Bounded: of a reader that is too slow stalls are dropped and counted, and nothing else.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/types.h"
#include "migration/stall_event.h"
#include "proto/trace.pb.h"

namespace hk {

// A recording.
class StallRecording {
 public:
  // Stalls that wait for the reader: 3 MiB, and some seconds of a machine that waits all the time.
  static constexpr size_t kMostWaiting = 65536;
  // Of other records: moves and ticks are few.
  static constexpr size_t kMostRecords = 16384;

  StallRecording(v1::TraceHeader header, Monotonic began);

  // The machine's side; what is older than the recording is left out.
  void Add(std::span<const StallEvent> stalls);
  void AddDropped(NodeId node, uint64_t stalls, Monotonic now);
  void AddMove(VcpuId vcpu, NodeId to, Monotonic now);
  // `ran`: what the policy was told of vCPUs.
  void AddTick(Monotonic now, std::span<const v1::TraceRan> ran);
  void End();

  // What has come, or what comes first until then; empty: nothing did. The header is the first.
  std::vector<v1::TraceRecord> Read(Monotonic deadline);
  // The machine's run has ended, and all was read.
  bool ended() const;

 private:
  uint64_t Since(Monotonic time) const;
  v1::TraceRecord* NewRecord() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Monotonic began_;
  mutable Mutex mutex_;
  CondVar changed_;
  std::vector<v1::TraceRecord> records_ ABSL_GUARDED_BY(mutex_);
  size_t waiting_ ABSL_GUARDED_BY(mutex_) = 0;  // stalls in them
  uint64_t lost_ ABSL_GUARDED_BY(mutex_) = 0;   // stalls that found no room, and are not in a record yet
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace hk
