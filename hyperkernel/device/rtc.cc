#include "hyperkernel/device/rtc.h"

#include <ctime>

#include "hyperkernel/base/byte_archive.h"

namespace hk {
namespace {

// MC146818A, address map; the century's place is the PC's custom (ACPI FADT CENTURY = 0x32).
enum Index : uint8_t {
  kSeconds = 0x00,
  kMinutes = 0x02,
  kHours = 0x04,
  kWeekday = 0x06,
  kDay = 0x07,
  kMonth = 0x08,
  kYear = 0x09,
  kStatusA = 0x0a,
  kStatusB = 0x0b,
  kStatusC = 0x0c,
  kStatusD = 0x0d,
  kCentury = 0x32,
};
constexpr uint8_t kDivider32kHz = 0x26;  // A: time base running; the update-in-progress bit is never set
constexpr uint8_t k24Hours = 0x02;       // B: BCD, 24 hours
constexpr uint8_t kValid = 0x80;         // D: the battery is good
constexpr uint8_t kIndexMask = 0x7f;
constexpr uint16_t kStateVersion = 1;

uint8_t Bcd(int value) {
  return static_cast<uint8_t>(value / 10 << 4 | value % 10);
}

}  // namespace

uint8_t Rtc::Register(uint8_t index) const {
  const std::time_t now = std::chrono::system_clock::to_time_t(clock_->Wall());
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  switch (index) {
    case kSeconds:
      return Bcd(utc.tm_sec % 60);
    case kMinutes:
      return Bcd(utc.tm_min);
    case kHours:
      return Bcd(utc.tm_hour);
    case kWeekday:
      return Bcd(utc.tm_wday + 1);
    case kDay:
      return Bcd(utc.tm_mday);
    case kMonth:
      return Bcd(utc.tm_mon + 1);
    case kYear:
      return Bcd(utc.tm_year % 100);
    case kCentury:
      return Bcd((utc.tm_year + 1900) / 100);
    case kStatusA:
      return kDivider32kHz;
    case kStatusB:
      return k24Hours;
    case kStatusC:
      return 0;
    case kStatusD:
      return kValid;
    default:
      return stored_[index];
  }
}

std::vector<std::byte> Rtc::SaveState() {
  MutexLock lock(&mutex_);
  ByteWriter writer;
  writer.Numbers(kStateVersion, index_);
  writer.Raw(std::as_bytes(std::span(stored_)));
  return writer.Take();
}

absl::Status Rtc::RestoreState(std::span<const std::byte> bytes) {
  MutexLock lock(&mutex_);
  return ReadVersioned("real-time clock", kStateVersion, bytes,
                       [this](ByteReader& reader) ABSL_NO_THREAD_SAFETY_ANALYSIS {
                         reader.Number(index_);
                         reader.Raw(std::as_writable_bytes(std::span(stored_)));
                         index_ &= kIndexMask;
                       });
}

void Rtc::Read(uint64_t offset, std::span<std::byte> data) {
  FillOnes(data);
  if (offset != 1) return;  // the index port cannot be read
  MutexLock lock(&mutex_);
  data[0] = std::byte{Register(index_)};
}

void Rtc::Write(uint64_t offset, std::span<const std::byte> data) {
  const uint8_t value = static_cast<uint8_t>(data[0]);
  MutexLock lock(&mutex_);
  if (offset == 0) {
    index_ = value & kIndexMask;  // the top bit masks NMI on a PC
  } else {
    stored_[index_] = value;  // time and status registers never read it back
  }
}

}  // namespace hk
