#include "hyperkernel/device/serial.h"

#include <utility>

#include "hyperkernel/base/byte_archive.h"

namespace hk {
namespace {

// PC16550D, 8.0: bits of the registers.
constexpr uint8_t kIerReceive = 0x01, kIerTransmit = 0x02, kIerLine = 0x04, kIerModem = 0x08, kIerAll = 0x0f;
constexpr uint8_t kIirNone = 0x01, kIirModem = 0x00, kIirTransmit = 0x02, kIirReceive = 0x04, kIirLine = 0x06;
constexpr uint8_t kIirFifo = 0xc0;
constexpr uint8_t kFcrEnable = 0x01, kFcrClearReceive = 0x02;
constexpr uint8_t kLcrDivisorLatch = 0x80;
constexpr uint8_t kMcrLoop = 0x10, kMcrAll = 0x1f;
constexpr uint8_t kLsrData = 0x01, kLsrOverrun = 0x02, kLsrTransmitEmpty = 0x60;
constexpr uint8_t kMsrIdle = 0xb0;  // carrier, data set ready, clear to send
constexpr uint8_t kMsrDeltas = 0x0f;
constexpr uint16_t kStateVersion = 1;

}  // namespace

Serial::Serial(InterruptSink* interrupts, uint8_t pin, Callbacks callbacks)
    : callbacks_(std::move(callbacks)), line_(interrupts, pin) {}

bool Serial::PushInput(uint8_t value) {
  if (input_count_ == kInputLimit) return false;
  input_[(input_first_ + input_count_) % kInputLimit] = value;
  ++input_count_;
  return true;
}

uint8_t Serial::PopInput() {
  if (input_count_ == 0) return 0;
  const uint8_t value = input_[input_first_];
  input_first_ = (input_first_ + 1) % kInputLimit;
  --input_count_;
  return value;
}

// Which interrupt is shown, by priority (PC16550D, table II).
uint8_t Serial::InterruptIdentity() const {
  if ((ier_ & kIerLine) && overrun_) return kIirLine;
  if ((ier_ & kIerReceive) && input_count_ > 0) return kIirReceive;
  if ((ier_ & kIerTransmit) && transmit_interrupt_) return kIirTransmit;
  if ((ier_ & kIerModem) && msr_delta_ != 0) return kIirModem;
  return kIirNone;
}

// In loopback the modem control outputs are the modem status inputs: DTR to DSR, RTS to CTS, OUT1 to RI, OUT2 to DCD.
uint8_t Serial::ModemStatus() const {
  if ((mcr_ & kMcrLoop) == 0) return kMsrIdle;
  return ((mcr_ & 0x01) << 5) | ((mcr_ & 0x02) << 3) | ((mcr_ & 0x04) << 4) | ((mcr_ & 0x08) << 4);
}

size_t Serial::Input(std::span<const std::byte> data) {
  size_t taken = 0;
  {
    MutexLock lock(&mutex_);
    while (taken < data.size() && PushInput(static_cast<uint8_t>(data[taken]))) ++taken;
    if (taken < data.size()) refused_ = true;
    line_.Set(InterruptIdentity() != kIirNone);
  }
  line_.Deliver();
  return taken;
}

void Serial::Reset() {
  bool has_room = false;
  {
    MutexLock lock(&mutex_);
    ier_ = fcr_ = lcr_ = mcr_ = scratch_ = msr_delta_ = 0;
    divisor_ = 12;
    transmit_interrupt_ = overrun_ = false;
    input_first_ = input_count_ = 0;
    line_.Set(false);
    has_room = TakeRoom();
  }
  line_.Deliver();
  if (has_room && callbacks_.room) callbacks_.room();
}

// Whoever was refused is told of room by the new port only after another refusal.
template <typename Archive>
void Serial::Fields(Archive& a) {
  a.Numbers(ier_, fcr_, lcr_, mcr_, scratch_, divisor_, msr_delta_, transmit_interrupt_, overrun_);
  std::vector<std::byte> input(input_count_);
  for (size_t i = 0; i < input.size(); ++i) input[i] = std::byte{input_[(input_first_ + i) % kInputLimit]};
  a.Bytes(input, kInputLimit);
  if constexpr (Archive::kReads) {
    if ((ier_ & ~kIerAll) != 0 || (mcr_ & ~kMcrAll) != 0 || (msr_delta_ & ~kMsrDeltas) != 0)
      a.Fail("reserved bits set");
    input_first_ = input_count_ = 0;
    for (const std::byte byte : input) PushInput(static_cast<uint8_t>(byte));
  }
}

std::vector<std::byte> Serial::SaveState() {
  MutexLock lock(&mutex_);
  return WriteVersioned(kStateVersion, [this](auto& a) ABSL_NO_THREAD_SAFETY_ANALYSIS { Fields(a); });
}

absl::Status Serial::RestoreState(std::span<const std::byte> bytes) {
  {
    MutexLock lock(&mutex_);
    const auto fields = [this](auto& a) ABSL_NO_THREAD_SAFETY_ANALYSIS { Fields(a); };
    if (absl::Status status = ReadVersioned("serial port", kStateVersion, bytes, fields); !status.ok()) return status;
    line_.Set(InterruptIdentity() != kIirNone);
  }
  line_.Deliver();
  return absl::OkStatus();
}

bool Serial::TakeRoom() {
  if (!refused_ || input_count_ > kInputLimit / 2) return false;
  refused_ = false;
  return true;
}

uint8_t Serial::ReadRegister(uint64_t offset) {
  const bool latch = (lcr_ & kLcrDivisorLatch) != 0;
  switch (offset) {
    case kData:
      return latch ? divisor_ & 0xff : PopInput();
    case kIer:
      return latch ? divisor_ >> 8 : ier_;
    case kIirFcr: {
      const uint8_t identity = InterruptIdentity();
      if (identity == kIirTransmit) transmit_interrupt_ = false;  // reading it is the acknowledgement
      return identity | ((fcr_ & kFcrEnable) ? kIirFifo : 0);
    }
    case kLcr:
      return lcr_;
    case kMcr:
      return mcr_;
    case kLsr: {
      const uint8_t value = kLsrTransmitEmpty | (input_count_ > 0 ? kLsrData : 0) | (overrun_ ? kLsrOverrun : 0);
      overrun_ = false;
      return value;
    }
    case kMsr:
      return ModemStatus() | std::exchange(msr_delta_, 0);
    default:
      return scratch_;
  }
}

bool Serial::WriteRegister(uint64_t offset, uint8_t value) {
  const bool latch = (lcr_ & kLcrDivisorLatch) != 0;
  switch (offset) {
    case kData:
      if (latch) {
        divisor_ = (divisor_ & 0xff00) | value;
        return false;
      }
      transmit_interrupt_ = true;  // sent at once: empty again
      if ((mcr_ & kMcrLoop) == 0) return true;
      if (!PushInput(value)) overrun_ = true;
      return false;
    case kIer:
      if (latch) {
        divisor_ = static_cast<uint16_t>((divisor_ & 0x00ff) | value << 8);
        return false;
      }
      // Enabling the transmitter's interrupt while it is empty raises it (8250 drivers start transmission so).
      if ((value & kIerTransmit) && !(ier_ & kIerTransmit)) transmit_interrupt_ = true;
      ier_ = value & kIerAll;
      return false;
    case kIirFcr:
      fcr_ = value;
      if (value & kFcrClearReceive) input_first_ = input_count_ = 0;
      return false;
    case kLcr:
      lcr_ = value;
      return false;
    case kMcr: {
      const uint8_t before = ModemStatus();
      mcr_ = value & kMcrAll;
      const uint8_t changed = before ^ ModemStatus();
      msr_delta_ |= changed >> 4 & 0x0b;
      if ((before & 0x40) && !(ModemStatus() & 0x40)) msr_delta_ |= 0x04;  // trailing edge of RI
      return false;
    }
    case kScratch:
      scratch_ = value;
      return false;
    default:
      return false;  // line and modem status are read-only
  }
}

void Serial::Read(uint64_t offset, std::span<std::byte> data) {
  bool has_room = false;
  {
    MutexLock lock(&mutex_);
    for (size_t i = 0; i < data.size(); ++i) data[i] = std::byte{ReadRegister((offset + i) & 7)};
    has_room = TakeRoom();
    line_.Set(InterruptIdentity() != kIirNone);
  }
  line_.Deliver();
  if (has_room && callbacks_.room) callbacks_.room();
}

void Serial::Write(uint64_t offset, std::span<const std::byte> data) {
  bool has_output = false, has_room = false;
  std::byte output{};
  {
    MutexLock lock(&mutex_);
    for (size_t i = 0; i < data.size(); ++i) {
      if (!WriteRegister((offset + i) & 7, static_cast<uint8_t>(data[i]))) continue;
      has_output = true;  // at most once: an access covers the data register once
      output = data[i];
    }
    has_room = TakeRoom();
    line_.Set(InterruptIdentity() != kIirNone);
  }
  // The byte first, then the interrupt that says it is gone.
  if (has_output && callbacks_.output) callbacks_.output(std::span(&output, 1));
  line_.Deliver();
  if (has_room && callbacks_.room) callbacks_.room();
}

}  // namespace hk
