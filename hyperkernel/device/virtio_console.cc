#include "hyperkernel/device/virtio_console.h"

#include <linux/virtio_console.h>

#include <algorithm>
#include <cstring>

#include "hyperkernel/base/byte_archive.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

constexpr uint64_t kSizeFeature = uint64_t{1} << VIRTIO_CONSOLE_F_SIZE;
constexpr uint64_t kMultiport = uint64_t{1} << VIRTIO_CONSOLE_F_MULTIPORT;
constexpr uint16_t kControlReceive = 2, kControlTransmit = 3;
constexpr size_t kChunk = 4096;
constexpr size_t kMaxName = 64;
constexpr size_t kMaxControl = sizeof(virtio_console_control) + kMaxName;
constexpr uint16_t kStateVersion = 1;

}  // namespace

VirtioConsole::VirtioConsole(std::vector<Port> ports)
    : ports_(std::move(ports)), queue_sizes_(2 * ports_.size() + 2, kQueueSize) {
  HK_CHECK(!ports_.empty() && ports_.size() <= kMaxPorts);
  MutexLock lock(&mutex_);
  for (const Port& port : ports_) {
    HK_CHECK(port.name.size() <= kMaxName);
    states_.emplace_back();
    states_.back().host_open = port.host_open;
  }
}

uint64_t VirtioConsole::features() const {
  return kSizeFeature | kMultiport;
}

void VirtioConsole::Wake() {
  if (loop_ != nullptr) loop_->Wake();
}

size_t VirtioConsole::Input(size_t port, std::span<const std::byte> data) {
  HK_CHECK(port < ports_.size());
  MutexLock lock(&mutex_);
  const size_t taken = states_[port].input.Push(data);
  if (taken < data.size()) states_[port].refused = true;
  Wake();
  return taken;
}

bool VirtioConsole::GuestOpen(size_t port) const {
  HK_CHECK(port < ports_.size());
  MutexLock lock(&mutex_);
  return states_[port].guest_open;
}

void VirtioConsole::Resize(uint16_t columns, uint16_t rows) {
  VirtioTransport* transport = nullptr;
  {
    MutexLock lock(&mutex_);
    columns_ = columns;
    rows_ = rows;
    if (states_[0].ready) states_[0].due |= kSize;
    transport = transport_;
    Wake();
  }
  if (transport != nullptr) transport->ConfigChanged();
}

void VirtioConsole::SetHostOpen(size_t port, bool open) {
  HK_CHECK(port < ports_.size());
  MutexLock lock(&mutex_);
  State& state = states_[port];
  if (state.host_open == open) return;
  state.host_open = open;
  if (state.ready) state.due |= kOpen;
  Wake();
}

void VirtioConsole::ReadConfig(uint64_t offset, std::span<std::byte> data) {
  virtio_console_config config{};
  {
    MutexLock lock(&mutex_);
    config.cols = columns_;
    config.rows = rows_;
  }
  config.max_nr_ports = static_cast<uint32_t>(ports_.size());
  ReadBlock(std::as_bytes(std::span(&config, 1)), offset, data);
}

void VirtioConsole::Activate(VirtioRun* run) {
  run_ = run;
  MutexLock lock(&mutex_);
  loop_ = run->loop;
  transport_ = run->transport;
}

void VirtioConsole::Stop() {
  run_ = nullptr;
  std::array<bool, kMaxPorts> room{};
  {
    MutexLock lock(&mutex_);
    loop_ = nullptr;
    transport_ = nullptr;
    for (size_t port = 0; port < states_.size(); ++port) {
      State& state = states_[port];
      state.ready = state.guest_open = false;
      state.due = 0;
      state.input.Clear();
      room[port] = std::exchange(state.refused, false);
    }
  }
  for (size_t port = 0; port < ports_.size(); ++port) {
    if (room[port] && ports_[port].room) ports_[port].room();
  }
}

// Whoever was refused is told of room only after another refusal.
template <typename Archive>
void VirtioConsole::Fields(Archive& a) {
  uint32_t count = static_cast<uint32_t>(states_.size());
  a.Numbers(columns_, rows_, count);
  if constexpr (Archive::kReads) {
    if (count != states_.size()) return a.Fail("another number of ports");
  }
  for (State& state : states_) {
    a.Numbers(state.host_open, state.ready, state.guest_open, state.due);
    std::vector<std::byte> input = state.input.Copy();
    a.Bytes(input, kInputLimit);
    if constexpr (Archive::kReads) {
      if ((state.due & ~kAllMessages) != 0) a.Fail("a message that is not known");
      state.input.Clear();
      state.input.Push(input);
    }
  }
}

std::vector<std::byte> VirtioConsole::SaveState() {
  MutexLock lock(&mutex_);
  return WriteVersioned(kStateVersion, [this](auto& a) ABSL_NO_THREAD_SAFETY_ANALYSIS { Fields(a); });
}

absl::Status VirtioConsole::RestoreState(std::span<const std::byte> bytes) {
  MutexLock lock(&mutex_);
  const auto fields = [this](auto& a) ABSL_NO_THREAD_SAFETY_ANALYSIS { Fields(a); };
  return ReadVersioned("console", kStateVersion, bytes, fields);
}

void VirtioConsole::OnDoorbell(uint16_t queue) {
  if (queue == kControlReceive) return SendControl();
  if (queue == kControlTransmit) return ReceiveControl(queue);
  const size_t port = queue < 2 ? 0 : (queue - 2u) / 2;
  if (queue % 2 == 0) {
    SendInput(port);
  } else {
    ReceiveOutput(queue, port);
  }
}

void VirtioConsole::OnWake() {
  SendControl();
  for (size_t port = 0; port < ports_.size(); ++port) SendInput(port);
}

// Input has waited in our own queue; the guest's page is pinned for the copy only.
void VirtioConsole::SendInput(size_t port) {
  {
    MutexLock lock(&mutex_);
    if (states_[port].input.size() == 0) return;
  }
  bool room = false;
  ServeQueue(run_, ReceiveQueue(port), [&](Virtqueue& queue) -> absl::StatusOr<bool> {
    for (;;) {
      {
        MutexLock lock(&mutex_);
        if (states_[port].input.size() == 0) return false;  // Input wakes us
      }
      HK_ASSIGN_OR_RETURN(const bool popped, queue.Pop(&chain_));
      if (!popped) return true;
      std::array<std::byte, kChunk> bytes;
      size_t count = 0;
      {
        MutexLock lock(&mutex_);
        State& state = states_[port];
        count = state.input.Pop(std::span(bytes).first(std::min<uint64_t>(chain_.writable_bytes, bytes.size())));
        if (state.refused && state.input.room() >= kInputLimit / 2) {
          state.refused = false;
          room = true;
        }
      }
      CopyTo(chain_, 0, std::span(bytes).first(count));
      chain_.Release();
      queue.AddUsed(chain_.head, static_cast<uint32_t>(count));
    }
  });
  if (room && ports_[port].room) ports_[port].room();
}

void VirtioConsole::ReceiveOutput(uint16_t index, size_t port) {
  ServeQueue(run_, index, [&](Virtqueue& queue) -> absl::StatusOr<bool> {
    for (;;) {
      HK_ASSIGN_OR_RETURN(const bool popped, queue.Pop(&chain_));
      if (!popped) return true;
      std::array<std::byte, kChunk> bytes;
      for (uint64_t offset = 0; offset < chain_.readable_bytes;) {
        const size_t count = CopyFrom(chain_, offset, bytes);
        if (ports_[port].output) ports_[port].output(std::span(bytes).first(count));
        offset += count;
      }
      chain_.Release();
      queue.AddUsed(chain_.head, 0);
    }
  });
}

void VirtioConsole::ReceiveControl(uint16_t index) {
  ServeQueue(run_, index, [&](Virtqueue& queue) -> absl::StatusOr<bool> {
    for (;;) {
      HK_ASSIGN_OR_RETURN(const bool popped, queue.Pop(&chain_));
      if (!popped) return true;
      virtio_console_control control{};
      const size_t got = CopyFrom(chain_, 0, std::as_writable_bytes(std::span(&control, 1)));
      chain_.Release();
      queue.AddUsed(chain_.head, 0);
      if (got == sizeof(control)) HandleControl(control.id, control.event, control.value);
    }
  });
  SendControl();
}

// 5.3.6.2. Messages that make no sense are ignored: they harm nobody.
void VirtioConsole::HandleControl(uint32_t id, uint16_t event, uint16_t value) {
  bool tell_open = false;
  {
    MutexLock lock(&mutex_);
    if (event == VIRTIO_CONSOLE_DEVICE_READY) {
      if (value != 1) return;
      for (State& state : states_) state.due |= kAdd;
      return;
    }
    if (id >= states_.size()) return;
    State& state = states_[id];
    if (event == VIRTIO_CONSOLE_PORT_READY && value == 1) {
      state.ready = true;
      if (id == 0) state.due |= kConsole | kSize;
      if (!ports_[id].name.empty()) state.due |= kName;
      if (state.host_open) state.due |= kOpen;
    }
    tell_open = event == VIRTIO_CONSOLE_PORT_OPEN;
    if (tell_open) state.guest_open = value != 0;
  }
  if (tell_open && ports_[id].guest_open) ports_[id].guest_open(value != 0);
}

size_t VirtioConsole::NextControl(std::span<std::byte> message) {
  MutexLock lock(&mutex_);
  for (size_t port = 0; port < states_.size(); ++port) {
    State& state = states_[port];
    if (state.due == 0) continue;
    const uint8_t kind = state.due & -state.due;  // lowest first: a port is added before it is named
    state.due &= ~kind;
    virtio_console_control control{};
    control.id = static_cast<uint32_t>(port);
    size_t bytes = sizeof(control);
    switch (kind) {
      case kAdd:
        control.event = VIRTIO_CONSOLE_PORT_ADD;
        control.value = 1;
        break;
      case kConsole:
        control.event = VIRTIO_CONSOLE_CONSOLE_PORT;
        control.value = 1;
        break;
      case kSize: {
        control.event = VIRTIO_CONSOLE_RESIZE;
        // 5.3.6.2. Linux read rows first until its commit 5326ab737a47 (6.15, and Debian 12 now); a guest cannot be
        // asked which it does.
        const uint16_t size[2] = {columns_, rows_};
        std::memcpy(message.data() + bytes, size, sizeof(size));
        bytes += sizeof(size);
        break;
      }
      case kName:
        control.event = VIRTIO_CONSOLE_PORT_NAME;
        control.value = 1;
        std::memcpy(message.data() + bytes, ports_[port].name.data(), ports_[port].name.size());
        bytes += ports_[port].name.size();
        break;
      default:
        control.event = VIRTIO_CONSOLE_PORT_OPEN;
        control.value = state.host_open;
        break;
    }
    std::memcpy(message.data(), &control, sizeof(control));
    return bytes;
  }
  return 0;
}

void VirtioConsole::SendControl() {
  if (!run_->has(kMultiport)) return;
  auto any_due = [this] {
    MutexLock lock(&mutex_);
    return std::any_of(states_.begin(), states_.end(), [](const State& state) { return state.due != 0; });
  };
  if (!any_due()) return;
  ServeQueue(run_, kControlReceive, [&](Virtqueue& queue) -> absl::StatusOr<bool> {
    while (any_due()) {
      HK_ASSIGN_OR_RETURN(const bool popped, queue.Pop(&chain_));
      if (!popped) return true;
      std::array<std::byte, kMaxControl> message;
      const size_t bytes = NextControl(message);
      const size_t written = CopyTo(chain_, 0, std::span(message).first(bytes));
      chain_.Release();
      queue.AddUsed(chain_.head, static_cast<uint32_t>(written));
    }
    return false;
  });
}

}  // namespace hk
