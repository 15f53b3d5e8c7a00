#include "hyperkernel/device/power_ports.h"

#include "hyperkernel/base/byte_archive.h"
#include "hyperkernel/boot/address_map.h"

namespace hk {
namespace {

constexpr uint8_t kResetNow = 0x04;                                     // port 0xcf9, RST_CPU
constexpr uint8_t kSleepEnable = 0x20, kSleepTypeMask = 0x1c;           // ACPI 4.8.3.7, table 4.19
constexpr uint8_t kPvpanicPanicked = 0x01, kPvpanicCrashLoaded = 0x02;  // QEMU docs/specs/pvpanic
constexpr uint64_t kPmTimerHz = 3'579'545;
constexpr uint16_t kStateVersion = 1;  // of both

}  // namespace

void ResetPort::Read(uint64_t, std::span<std::byte> data) {
  StoreLe(data, 0);
}

void ResetPort::Write(uint64_t, std::span<const std::byte> data) {
  if (static_cast<uint8_t>(data[0]) & kResetNow) sink_(GuestRequest::kReset);
}

void PowerPorts::PressPowerButton() {
  {
    MutexLock lock(&mutex_);
    events_ |= kEventPowerButton;
    line_.Set(true);
  }
  line_.Deliver();
}

void PowerPorts::Reset() {
  {
    MutexLock lock(&mutex_);
    events_ = 0;
    line_.Set(false);
  }
  line_.Deliver();
}

std::vector<std::byte> PowerPorts::SaveState() {
  MutexLock lock(&mutex_);
  ByteWriter writer;
  writer.Numbers(kStateVersion, events_);
  return writer.Take();
}

absl::Status PowerPorts::RestoreState(std::span<const std::byte> bytes) {
  uint8_t events = 0;
  const auto fields = [&](ByteReader& reader) {
    reader.Number(events);
    if ((events & ~kEventPowerButton) != 0) reader.Fail("an event that is not known");
  };
  if (absl::Status status = ReadVersioned("power ports", kStateVersion, bytes, fields); !status.ok()) return status;
  {
    MutexLock lock(&mutex_);
    events_ = events;
    line_.Set(events_ != 0);
  }
  line_.Deliver();
  return absl::OkStatus();
}

void PowerPorts::Read(uint64_t offset, std::span<std::byte> data) {
  StoreLe(data, 0);
  MutexLock lock(&mutex_);
  // Sleep control reads as zero; sleep status too: there is no wake from S5.
  if (offset <= 2 && 2 - offset < data.size()) data[2 - offset] = std::byte{events_};
}

void PowerPorts::Write(uint64_t offset, std::span<const std::byte> data) {
  const uint8_t value = static_cast<uint8_t>(data[0]);
  if (offset == 0) {
    if ((value & kSleepEnable) && (value & kSleepTypeMask) >> 2 == kSleepTypeS5) sink_(GuestRequest::kPowerOff);
  } else if (offset == 2) {
    {
      MutexLock lock(&mutex_);
      events_ &= ~value;
      line_.Set(events_ != 0);
    }
    line_.Deliver();
  }
}

std::vector<std::byte> PmTimer::SaveState() {
  ByteWriter writer;
  writer.Numbers(kStateVersion, int64_t{std::chrono::nanoseconds(clock_->Now() - start_.load()).count()});
  return writer.Take();
}

absl::Status PmTimer::RestoreState(std::span<const std::byte> bytes, std::chrono::nanoseconds missed) {
  int64_t run_ns = 0;
  const auto fields = [&](ByteReader& reader) {
    reader.Number(run_ns);
    if (run_ns < 0) reader.Fail("a time that has not been");
  };
  if (absl::Status status = ReadVersioned("PM timer", kStateVersion, bytes, fields); !status.ok()) return status;
  start_ = clock_->Now() - std::chrono::nanoseconds(run_ns) - missed;
  return absl::OkStatus();
}

void PmTimer::Read(uint64_t offset, std::span<std::byte> data) {
  const uint64_t ns = std::chrono::duration_cast<std::chrono::nanoseconds>(clock_->Now() - start_.load()).count();
  const uint64_t seconds = ns / 1'000'000'000, rest = ns % 1'000'000'000;
  const uint32_t ticks = static_cast<uint32_t>(seconds * kPmTimerHz + rest * kPmTimerHz / 1'000'000'000);
  StoreLe(data, ticks >> (8 * (offset & 3)));
}

void PmTimer::Write(uint64_t, std::span<const std::byte>) {}

void Pvpanic::Read(uint64_t, std::span<std::byte> data) {
  StoreLe(data, kPvpanicPanicked | kPvpanicCrashLoaded);
}

void Pvpanic::Write(uint64_t, std::span<const std::byte> data) {
  const uint8_t value = static_cast<uint8_t>(data[0]);
  if (value & kPvpanicPanicked) {
    sink_(GuestRequest::kPanicked);
  } else if (value & kPvpanicCrashLoaded) {
    sink_(GuestRequest::kCrashLoaded);
  }
}

}  // namespace hk
