// The host's side of a guest's byte streams, from an operator's start to the next one: what the consoles showed, and
// the agent's port. Outlives the machine, so that its last words can be read. Thread-safe.
#pragma once

#include <cstdint>
#include <string_view>

#include "hyperkernel/node/agent_port.h"
#include "hyperkernel/node/console_log.h"
#include "hyperkernel/node/machine.h"

namespace hk {

// All channels of one guest.
class GuestChannels {
 public:
  // REQUIRES: a console, not the agent's channel.
  const ConsoleLog& console(Channel channel) const { return channel == Channel::kVirtioConsole ? virtio_ : serial_; }
  AgentPort& agent() { return agent_; }

  // The guest is built anew (start, reset). The consoles go on where they were.
  void BeginRun() { agent_.Begin(); }
  // The guest wrote; never blocks.
  void Output(Channel channel, std::string_view bytes) {
    switch (channel) {
      case Channel::kSerial:
        return serial_.Append(bytes);
      case Channel::kVirtioConsole:
        return virtio_.Append(bytes);
      case Channel::kAgent:
        return agent_.Deliver(bytes);
    }
  }
  // The machine is gone; a reset may follow.
  void EndRun() { agent_.End(); }
  // Nothing more will come.
  void End() {
    agent_.End();
    serial_.End();
    virtio_.End();
  }
  uint64_t output_bytes(Channel channel) const {
    return channel == Channel::kAgent ? agent_.said_bytes() : console(channel).written();
  }

 private:
  ConsoleLog serial_;
  ConsoleLog virtio_;
  AgentPort agent_;
};

}  // namespace hk
