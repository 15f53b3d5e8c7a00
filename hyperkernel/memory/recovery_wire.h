// What the nodes of a space say to each other about what is left after a loss, and to the second node of an extent
// about what was ever written, as bytes. Layout: README.md, "Recovery". Pure, thread-safe. Input of a peer is never an
// invariant here.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/page_message.h"
#include "hyperkernel/memory/page_wire.h"
#include "hyperkernel/memory/space_engine.h"
#include "rdma/transport.h"

namespace hk {

// Types of these messages. Part of the wire format; append only.
inline constexpr uint16_t kReportType = kFirstUserType + 32;         // survivor -> an extent's home, bulk
inline constexpr uint16_t kReportEndType = kFirstUserType + 33;      // survivor -> each other, bulk: that was all
inline constexpr uint16_t kReconcileType = kFirstUserType + 34;      // home -> survivor, bulk
inline constexpr uint16_t kWrittenType = kFirstUserType + 35;        // home -> an extent's second node, bulk
inline constexpr uint16_t kReconcileEndType = kFirstUserType + 36;   // home -> each other, bulk: that was all
inline constexpr uint16_t kMirrorType = kFirstUserType + 37;         // home -> an extent's second node, fault
inline constexpr uint16_t kMirroredType = kFirstUserType + 38;       // the second node -> the home, fault
inline constexpr uint16_t kHandedWrittenType = kFirstUserType + 39;  // an extent's home before -> the new one, bulk
inline constexpr uint16_t kHandedLostType = kFirstUserType + 40;     // the same: what is lost
constexpr bool IsRecoveryType(uint16_t type) {
  return type >= kReportType && type <= kHandedLostType;
}

// Pages of an extent that are alike on one node. Plain value. With `retained`, `count` is 1.
struct PageRun {
  uint16_t first = 0, count = 0;  // within the extent
  PageRight right = PageRight::kNone;
  PageRight evicting = PageRight::kNone;
  bool retained = false;
  uint64_t retained_serial = 0;
  NodeId retained_for{};
  friend bool operator==(const PageRun&, const PageRun&) = default;
};

// The runs as bodies, each of kMaxBodyBytes at most.
std::vector<std::string> EncodeRuns(std::span<const PageRun> runs);
// kInvalidArgument: not what EncodeRuns makes, or not ascending within the extent.
absl::StatusOr<std::vector<PageRun>> DecodeRuns(std::span<const std::byte> body);

// A bit for each page of an extent.
using PageBits = std::array<uint64_t, kExtentPages / 64>;
constexpr bool HasBit(const PageBits& bits, size_t page) {
  return (bits[page / 64] >> (page % 64) & 1) != 0;
}
std::string EncodeBits(const PageBits& bits);
absl::StatusOr<PageBits> DecodeBits(std::span<const std::byte> body);
// Pages that are lost, and who had them: 64 and 2 bytes.
std::string EncodeLost(NodeId owner, const PageBits& pages);
absl::StatusOr<std::pair<NodeId, PageBits>> DecodeLost(std::span<const std::byte> body);
// Mirror, Mirrored: which of the 64 pages around the header's page.
PageBody EncodeMask(uint64_t mask);
absl::StatusOr<uint64_t> DecodeMask(std::span<const std::byte> body);

}  // namespace hk
