#include "storage-replica/durable_format.h"

#include <algorithm>
#include <cstring>

namespace hk {
namespace {

constexpr size_t kBlockBytes = 5;   // of a block's or frame's number: 40 bits
constexpr size_t kRegionBytes = 4;  // kWholeDisk is 2^28
constexpr size_t kPageKeyBytes = 8 + kBlockBytes;
constexpr size_t kBlockKeyBytes = 1 + kBlockBytes + kPageKeyBytes;

void AddBig(std::string* to, uint64_t number, size_t bytes) {
  for (size_t i = bytes; i > 0; --i) to->push_back(static_cast<char>(number >> (8 * (i - 1))));
}
void AddLittle(std::string* to, uint64_t number, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) to->push_back(static_cast<char>(number >> (8 * i)));
}

// Takes numbers from the begin. What is not there is not to be asked for: sizes are checked before.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : left_(bytes) {}
  uint64_t Big(size_t bytes) {
    uint64_t number = 0;
    for (size_t i = 0; i < bytes; ++i) number = number << 8 | Byte(i);
    left_.remove_prefix(bytes);
    return number;
  }
  uint64_t Little(size_t bytes) {
    uint64_t number = 0;
    for (size_t i = bytes; i > 0; --i) number = number << 8 | Byte(i - 1);
    left_.remove_prefix(bytes);
    return number;
  }
  void Bytes(void* to, size_t bytes) {
    std::memcpy(to, left_.data(), bytes);
    left_.remove_prefix(bytes);
  }

 private:
  uint8_t Byte(size_t at) const { return static_cast<uint8_t>(left_[at]); }
  std::string_view left_;
};

// Takes a prefix off. False if it is not there, or what follows is not so long.
bool Strip(std::string_view* key, std::string_view prefix, size_t bytes) {
  if (key->size() != prefix.size() + bytes || key->substr(0, prefix.size()) != prefix) return false;
  key->remove_prefix(prefix.size());
  return true;
}

}  // namespace

std::string PageKey(const FrameRef& frame) {
  std::string key;
  key.reserve(kPageKeyBytes);
  AddBig(&key, frame.file_generation, 8);
  AddBig(&key, frame.frame, kBlockBytes);
  return key;
}

std::optional<FrameRef> DecodePageKey(std::string_view key) {
  if (key.size() != kPageKeyBytes) return std::nullopt;
  Reader reader(key);
  FrameRef frame;
  frame.file_generation = reader.Big(8);
  frame.frame = reader.Big(kBlockBytes);
  if (frame.file_generation == 0 || frame.frame >= kMaxTablePages) return std::nullopt;
  return frame;
}

std::string PageValue(const ReplicaEntry& entry) {
  std::string value;
  value.reserve(27);
  AddLittle(&value, entry.ssa.disk.value(), 1);
  AddLittle(&value, entry.ssa.block, kBlockBytes);
  AddLittle(&value, entry.node.value(), 1);
  AddLittle(&value, entry.generation, 8);
  AddLittle(&value, entry.checksum, 8);
  AddLittle(&value, entry.flush, 4);
  return value;
}

std::optional<ReplicaEntry> DecodePageValue(std::string_view value) {
  if (value.size() != 27) return std::nullopt;
  Reader reader(value);
  const uint64_t disk = reader.Little(1), block = reader.Little(kBlockBytes), node = reader.Little(1);
  if (disk >= kMaxReplicaDisks || node >= kMaxNodes) return std::nullopt;
  ReplicaEntry entry;
  entry.state = EntryState::kUnchecked;
  entry.node = NodeId(static_cast<uint16_t>(node));
  entry.ssa = {.disk = DiskId(static_cast<uint8_t>(disk)), .block = block};
  entry.generation = reader.Little(8);
  entry.checksum = reader.Little(8);
  entry.flush = static_cast<uint32_t>(reader.Little(4));
  if (entry.generation == 0) return std::nullopt;
  return entry;
}

std::string BlockKey(Ssa ssa, const FrameRef& frame) {
  std::string key;
  key.reserve(kBlockKeyBytes);
  AddBig(&key, ssa.disk.value(), 1);
  AddBig(&key, ssa.block, kBlockBytes);
  AddBig(&key, frame.file_generation, 8);
  AddBig(&key, frame.frame, kBlockBytes);
  return key;
}

std::optional<BlockRow> DecodeBlockKey(std::string_view key) {
  if (key.size() != kBlockKeyBytes) return std::nullopt;
  const std::optional<FrameRef> frame = DecodePageKey(key.substr(1 + kBlockBytes));
  Reader reader(key);
  const uint64_t disk = reader.Big(1), block = reader.Big(kBlockBytes);
  if (disk >= kMaxReplicaDisks || !frame.has_value()) return std::nullopt;
  return BlockRow{.ssa = {.disk = DiskId(static_cast<uint8_t>(disk)), .block = block}, .frame = *frame};
}

std::string IntentKey(DiskRegion region) {
  std::string key(kIntentPrefix);
  AddBig(&key, region.disk.value(), 1);
  AddBig(&key, region.number, kRegionBytes);
  return key;
}

std::optional<DiskRegion> DecodeIntentKey(std::string_view key) {
  if (!Strip(&key, kIntentPrefix, 1 + kRegionBytes)) return std::nullopt;
  Reader reader(key);
  const uint64_t disk = reader.Big(1), number = reader.Big(kRegionBytes);
  if (disk >= kMaxReplicaDisks || number > kWholeDisk) return std::nullopt;
  return DiskRegion{.disk = DiskId(static_cast<uint8_t>(disk)), .number = number};
}

std::string DiskKey(DiskId disk) {
  std::string key(kDiskPrefix);
  AddBig(&key, disk.value(), 1);
  return key;
}

std::optional<DiskId> DecodeDiskKey(std::string_view key) {
  if (!Strip(&key, kDiskPrefix, 1)) return std::nullopt;
  const uint64_t disk = Reader(key).Big(1);
  if (disk >= kMaxReplicaDisks) return std::nullopt;
  return DiskId(static_cast<uint8_t>(disk));
}

std::string DiskValue(const DurableDisk& disk) {
  std::string value;
  AddLittle(&value, disk.image, 8);
  AddLittle(&value, disk.bytes, 8);
  AddLittle(&value, disk.last_change_ns, 8);
  AddLittle(&value, disk.durable_flush, 4);
  return value;
}

std::optional<DurableDisk> DecodeDiskValue(std::string_view value) {
  if (value.size() != 28) return std::nullopt;
  Reader reader(value);
  DurableDisk disk;
  disk.image = reader.Little(8);
  disk.bytes = reader.Little(8);
  disk.last_change_ns = reader.Little(8);
  disk.durable_flush = static_cast<uint32_t>(reader.Little(4));
  return disk;
}

std::string IdentityValue(const TableIdentity& identity) {
  std::string value;
  AddLittle(&value, identity.guest.value(), 8);
  AddLittle(&value, identity.node.value(), 2);
  AddLittle(&value, identity.pages, 8);
  value.append(reinterpret_cast<const char*>(identity.boot.bytes.data()), identity.boot.bytes.size());
  value.append(reinterpret_cast<const char*>(identity.frame_store.bytes.data()), identity.frame_store.bytes.size());
  return value;
}

std::optional<TableIdentity> DecodeIdentityValue(std::string_view value) {
  if (value.size() != 50) return std::nullopt;
  Reader reader(value);
  TableIdentity identity;
  identity.guest = GuestId(reader.Little(8));
  identity.node = NodeId(static_cast<uint16_t>(reader.Little(2)));
  identity.pages = reader.Little(8);
  reader.Bytes(identity.boot.bytes.data(), identity.boot.bytes.size());
  reader.Bytes(identity.frame_store.bytes.data(), identity.frame_store.bytes.size());
  return identity;
}

std::string NumberValue(uint64_t number) {
  std::string value;
  AddLittle(&value, number, 8);
  return value;
}

std::optional<uint64_t> DecodeNumberValue(std::string_view value) {
  if (value.size() != 8) return std::nullopt;
  return Reader(value).Little(8);
}

}  // namespace hk
