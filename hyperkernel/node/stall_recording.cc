#include "hyperkernel/node/stall_recording.h"

#include <utility>

#include "hyperkernel/base/mutant.h"
#include "hyperkernel/node/stall_wire.h"

namespace hk {

StallRecording::StallRecording(v1::TraceHeader header, Monotonic began) : began_(began) {
  MutexLock lock(&mutex_);
  *records_.emplace_back().mutable_header() = std::move(header);
}

uint64_t StallRecording::Since(Monotonic time) const {
  return time <= began_ ? 0 : static_cast<uint64_t>(std::chrono::nanoseconds(time - began_).count());
}

// Null: there is no room. The reader is told in any case.
v1::TraceRecord* StallRecording::NewRecord() {
  changed_.SignalAll();
  return records_.size() >= kMostRecords ? nullptr : &records_.emplace_back();
}

void StallRecording::Add(std::span<const StallEvent> stalls) {
  MutexLock lock(&mutex_);
  v1::TraceStalls* to = nullptr;
  for (const StallEvent& stall : stalls) {
    if (stall.end < began_) continue;
    if (to == nullptr && waiting_ < kMostWaiting) {
      v1::TraceRecord* const record = NewRecord();
      if (record != nullptr) to = record->mutable_stalls();
    }
    if (to == nullptr || (waiting_ >= kMostWaiting && !HK_MUTANT(recording_unbounded))) {
      ++lost_;
      continue;
    }
    *to->add_stalls() = TracedStall(stall, began_);
    ++waiting_;
  }
}

void StallRecording::AddDropped(NodeId node, uint64_t stalls, Monotonic now) {
  MutexLock lock(&mutex_);
  v1::TraceRecord* const record = stalls == 0 ? nullptr : NewRecord();
  if (record == nullptr) return;
  record->mutable_dropped()->set_time_ns(Since(now));
  record->mutable_dropped()->set_node(node.value());
  record->mutable_dropped()->set_stalls(stalls);
}

void StallRecording::AddMove(VcpuId vcpu, NodeId to, Monotonic now) {
  MutexLock lock(&mutex_);
  v1::TraceRecord* const record = NewRecord();
  if (record == nullptr) return;
  record->mutable_move()->set_time_ns(Since(now));
  record->mutable_move()->set_vcpu(vcpu.value());
  record->mutable_move()->set_to(to.value());
}

void StallRecording::AddTick(Monotonic now, std::span<const v1::TraceRan> ran) {
  MutexLock lock(&mutex_);
  if (lost_ > 0) {
    if (v1::TraceRecord* const record = NewRecord(); record != nullptr) {
      record->mutable_dropped()->set_time_ns(Since(now));
      record->mutable_dropped()->set_stalls(std::exchange(lost_, 0));
    }
  }
  v1::TraceRecord* const record = NewRecord();
  if (record == nullptr) return;
  record->mutable_tick()->set_time_ns(Since(now));
  record->mutable_tick()->mutable_ran()->Assign(ran.begin(), ran.end());
}

void StallRecording::End() {
  MutexLock lock(&mutex_);
  ended_ = true;
  changed_.SignalAll();
}

std::vector<v1::TraceRecord> StallRecording::Read(Monotonic deadline) {
  MutexLock lock(&mutex_);
  while (records_.empty() && !ended_ && changed_.WaitUntil(&mutex_, deadline)) {
  }
  waiting_ = 0;
  return std::exchange(records_, {});
}

bool StallRecording::ended() const {
  MutexLock lock(&mutex_);
  return ended_ && records_.empty();
}

}  // namespace hk
