// One machine of this node, as its manager keeps it.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "hyperkernel/base/clock.h"
#include "hyperkernel/node/guest_channels.h"
#include "hyperkernel/node/guest_end.h"
#include "hyperkernel/node/machine.h"
#include "hyperkernel/node/rate_meter.h"
#include "proto/state.pb.h"
#include "proto/vm.pb.h"

namespace hk {

// A state in the words of messages and logs.
const char* NameOf(v1::VmState state);
// Whether there is a machine in this state, between two operations.
bool IsLive(v1::VmState state);

// Hands a machine's events on; one per run. Thread-safe.
class GuestEvents final : public MachineEvents {
 public:
  using End = std::function<void(MachineEnd end, const std::string& reason)>;
  GuestEvents(std::shared_ptr<GuestChannels> channels, End end)
      : channels_(std::move(channels)), end_(std::move(end)) {}
  void OnOutput(Channel channel, std::string_view bytes) override { channels_->Output(channel, bytes); }
  void OnEnd(MachineEnd end, const std::string& reason) override { end_(end, reason); }

 private:
  const std::shared_ptr<GuestChannels> channels_;
  const End end_;
};

// What is defined, what runs, and what was seen of it. Plain value, under its manager's lock.
struct Guest {
  v1::VmRecord record;
  v1::VmState state = v1::VM_STATE_STOPPED;
  std::string reason;
  WallTime since;
  bool start_due = false;  // by autostart, which has not come to it yet, or after a crash, when its nodes are up again
  Monotonic start_not_before{};
  bool ran_when_killed = false;  // its daemon was killed beside it: the kernel may be busy with its disks' I/O still
  bool busy = false;  // an operation is under way without the lock: its owner alone touches events and machine
  WallTime started;   // the present run, if `machine` is there
  GuestEndRule end_rule;
  RateMeter exit_rate;
  std::shared_ptr<GuestChannels> channels;
  std::unique_ptr<GuestEvents> events;
  std::unique_ptr<Machine> machine;  // after events: it uses them
};

}  // namespace hk
