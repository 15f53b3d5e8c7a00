#include "hyperkernel/device/msix.h"

#include <cstring>

#include "hyperkernel/base/byte_archive.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/device/io_handler.h"

namespace hk {
namespace {

constexpr uint32_t kMasked = 1;
constexpr uint16_t kStateVersion = 1;

}  // namespace

MsixTable::MsixTable(InterruptSink* sink, uint16_t vectors)
    : sink_(sink), count_(vectors), entries_(vectors), pending_(vectors) {
  HK_CHECK(vectors >= 1 && vectors <= kMaxVectors);
  static_assert(sizeof(Entry) == kEntryBytes, "an entry is laid out as the guest sees it");
}

bool MsixTable::MaySend(const Entry& entry) const {
  return enabled_ && !masked_ && bus_master_ && (entry.control & kMasked) == 0;
}

void MsixTable::SetControl(bool enabled, bool function_masked, bool bus_master) {
  {
    MutexLock lock(&mutex_);
    enabled_ = enabled;
    masked_ = function_masked;
    bus_master_ = bus_master;
  }
  SendPending();
}

bool MsixTable::enabled() {
  MutexLock lock(&mutex_);
  return enabled_;
}

void MsixTable::Notify(uint16_t vector) {
  Entry entry;
  {
    MutexLock lock(&mutex_);
    if (!enabled_ || vector >= count_) return;
    entry = entries_[vector];
    if (!MaySend(entry)) {
      pending_[vector] = true;
      return;
    }
  }
  sink_->SendMsi(entry.address, entry.data);
}

void MsixTable::SendPending() {
  for (size_t vector = 0; vector < count_; ++vector) {
    Entry entry;
    {
      MutexLock lock(&mutex_);
      if (!pending_[vector] || !MaySend(entries_[vector])) continue;
      pending_[vector] = false;
      entry = entries_[vector];
    }
    sink_->SendMsi(entry.address, entry.data);
  }
}

void MsixTable::Reset() {
  MutexLock lock(&mutex_);
  enabled_ = masked_ = bus_master_ = false;
  entries_.assign(count_, Entry());
  pending_.assign(count_, false);
}

std::vector<std::byte> MsixTable::SaveState() {
  MutexLock lock(&mutex_);
  ByteWriter writer;
  writer.Numbers(kStateVersion, static_cast<uint16_t>(count_));
  for (size_t vector = 0; vector < count_; ++vector) {
    const Entry& entry = entries_[vector];
    writer.Numbers(entry.address, entry.data, entry.control, static_cast<bool>(pending_[vector]));
  }
  return writer.Take();
}

absl::Status MsixTable::RestoreState(std::span<const std::byte> bytes) {
  std::vector<Entry> entries(count_);
  std::vector<bool> pending(count_);
  const auto fields = [&](ByteReader& reader) {
    uint16_t count = 0;
    reader.Number(count);
    if (count != count_) return reader.Fail("another number of vectors");
    for (size_t vector = 0; vector < count_; ++vector) {
      Entry& entry = entries[vector];
      bool waits = false;
      reader.Numbers(entry.address, entry.data, entry.control, waits);
      pending[vector] = waits;
    }
  };
  if (absl::Status status = ReadVersioned("MSI-X table", kStateVersion, bytes, fields); !status.ok()) return status;
  MutexLock lock(&mutex_);
  entries_ = std::move(entries);
  pending_ = std::move(pending);
  return absl::OkStatus();
}

void MsixTable::ReadTable(uint64_t offset, std::span<std::byte> data) {
  MutexLock lock(&mutex_);
  ReadBlock(std::as_bytes(std::span(entries_)), offset, data);
}

void MsixTable::WriteTable(uint64_t offset, std::span<const std::byte> data) {
  {
    MutexLock lock(&mutex_);
    const std::span<std::byte> bytes = std::as_writable_bytes(std::span(entries_));
    if (offset >= bytes.size() || bytes.size() - offset < data.size()) return;
    std::memcpy(bytes.data() + offset, data.data(), data.size());
  }
  SendPending();
}

void MsixTable::ReadPending(uint64_t offset, std::span<std::byte> data) {
  MutexLock lock(&mutex_);
  for (size_t i = 0; i < data.size(); ++i) {
    uint8_t value = 0;
    for (size_t bit = 0; bit < 8; ++bit) {
      const uint64_t vector = (offset + i) * 8 + bit;
      if (vector < count_ && pending_[vector]) value |= static_cast<uint8_t>(1 << bit);
    }
    data[i] = std::byte{value};
  }
}

}  // namespace hk
