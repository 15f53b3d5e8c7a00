// The keys and values of the replica's database (FORMAT.md). Numbers in keys are big-endian, so that their order is the
// database's; those in values little-endian.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "storage-replica/intent_map.h"
#include "storage-replica/replica_entry.h"
#include "storage-replica/replica_table.h"
#include "storage-replica/table_format.h"

namespace hk {

inline constexpr uint32_t kDurableVersion = 1;
inline constexpr std::string_view kByPage = "by_page";
inline constexpr std::string_view kByBlock = "by_block";
inline constexpr std::string_view kMeta = "meta";
// Keys of the column family meta.
inline constexpr std::string_view kFormatKey = "format";
inline constexpr std::string_view kIdentityKey = "identity";
inline constexpr std::string_view kGenerationKey = "generation";
inline constexpr std::string_view kEpochKey = "epoch";
inline constexpr std::string_view kDiskPrefix = "disk/";
inline constexpr std::string_view kIntentPrefix = "intent/";

// What is known of a disk. Plain value.
struct DurableDisk {
  uint64_t image = 0;
  uint64_t bytes = 0;
  uint64_t last_change_ns = 0;
  uint32_t durable_flush = 0;
  friend bool operator==(const DurableDisk&, const DurableDisk&) = default;
};

// Encoders. All decoders take any bytes: nothing, if they are not what the encoder makes of values within their limits.
std::string PageKey(const FrameRef& frame);
std::optional<FrameRef> DecodePageKey(std::string_view key);
std::string PageValue(const ReplicaEntry& entry);
std::optional<ReplicaEntry> DecodePageValue(std::string_view value);
std::string BlockKey(Ssa ssa, const FrameRef& frame);
// A block and a frame that holds it. Plain value.
struct BlockRow {
  Ssa ssa;
  FrameRef frame;
};
std::optional<BlockRow> DecodeBlockKey(std::string_view key);
std::string IntentKey(DiskRegion region);
std::optional<DiskRegion> DecodeIntentKey(std::string_view key);
std::string DiskKey(DiskId disk);
std::optional<DiskId> DecodeDiskKey(std::string_view key);
std::string DiskValue(const DurableDisk& disk);
std::optional<DurableDisk> DecodeDiskValue(std::string_view value);
std::string IdentityValue(const TableIdentity& identity);
std::optional<TableIdentity> DecodeIdentityValue(std::string_view value);
std::string NumberValue(uint64_t number);
std::optional<uint64_t> DecodeNumberValue(std::string_view value);

}  // namespace hk
