#include "hyperkernel/memory/recovery_wire.h"

namespace hk {
namespace {

// A run is 4 bytes: first 9 bits, count - 1 9 bits, right 2, evicting 2, retained 1. If retained, 8 bytes serial and 2
// bytes node follow.
constexpr size_t kRunBytes = 4, kRetainedBytes = 10;

void Put(std::string* to, uint64_t value, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) to->push_back(static_cast<char>(value >> (8 * i)));
}
uint64_t Get(std::span<const std::byte> from, size_t at, size_t bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < bytes; ++i) value |= static_cast<uint64_t>(from[at + i]) << (8 * i);
  return value;
}

}  // namespace

std::vector<std::string> EncodeRuns(std::span<const PageRun> runs) {
  std::vector<std::string> bodies;
  for (const PageRun& run : runs) {
    const size_t bytes = kRunBytes + (run.retained ? kRetainedBytes : 0);
    if (bodies.empty() || bodies.back().size() + bytes > kMaxBodyBytes) bodies.emplace_back();
    Put(&bodies.back(),
        run.first | uint64_t{run.count - 1U} << 9 | static_cast<uint64_t>(run.right) << 18 |
            static_cast<uint64_t>(run.evicting) << 20 | (run.retained ? uint64_t{1} << 22 : 0),
        kRunBytes);
    if (!run.retained) continue;
    Put(&bodies.back(), run.retained_serial, 8);
    Put(&bodies.back(), run.retained_for.value(), 2);
  }
  return bodies;
}

absl::StatusOr<std::vector<PageRun>> DecodeRuns(std::span<const std::byte> body) {
  const auto bad = [] { return absl::InvalidArgumentError("runs of pages that are malformed"); };
  std::vector<PageRun> runs;
  size_t next = 0;
  if (body.empty()) return bad();
  for (size_t at = 0; at < body.size();) {
    if (body.size() - at < kRunBytes) return bad();
    const uint64_t word = Get(body, at, kRunBytes);
    at += kRunBytes;
    PageRun run{.first = static_cast<uint16_t>(word & 0x1ff),
                .count = static_cast<uint16_t>((word >> 9 & 0x1ff) + 1),
                .right = static_cast<PageRight>(word >> 18 & 3),
                .evicting = static_cast<PageRight>(word >> 20 & 3),
                .retained = (word >> 22 & 1) != 0};
    if (word >> 23 != 0 || run.first < next || run.first + run.count > kExtentPages) return bad();
    next = static_cast<size_t>(run.first) + run.count;
    if (run.retained) {
      if (run.count != 1 || body.size() - at < kRetainedBytes) return bad();
      run.retained_serial = Get(body, at, 8);
      run.retained_for = NodeId(static_cast<uint16_t>(Get(body, at + 8, 2)));
      if (run.retained_for.value() >= kMaxNodes) return bad();
      at += kRetainedBytes;
    }
    runs.push_back(run);
  }
  return runs;
}

std::string EncodeBits(const PageBits& bits) {
  std::string body;
  for (const uint64_t word : bits) Put(&body, word, 8);
  return body;
}

absl::StatusOr<PageBits> DecodeBits(std::span<const std::byte> body) {
  PageBits bits{};
  if (body.size() != 8 * bits.size()) return absl::InvalidArgumentError("bits of pages that are malformed");
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = Get(body, 8 * i, 8);
  return bits;
}

std::string EncodeLost(NodeId owner, const PageBits& pages) {
  std::string body = EncodeBits(pages);
  Put(&body, owner.value(), 2);
  return body;
}

absl::StatusOr<std::pair<NodeId, PageBits>> DecodeLost(std::span<const std::byte> body) {
  constexpr size_t kBits = kExtentPages / 8;
  if (body.size() != kBits + 2) return absl::InvalidArgumentError("lost pages that are malformed");
  absl::StatusOr<PageBits> pages = DecodeBits(body.first(kBits));
  if (!pages.ok()) return pages.status();
  return std::pair(NodeId(static_cast<uint16_t>(Get(body, kBits, 2))), *pages);
}

PageBody EncodeMask(uint64_t mask) {
  PageBody body;
  for (size_t i = 0; i < 8; ++i) body.bytes[body.size++] = static_cast<std::byte>(mask >> (8 * i));
  return body;
}

absl::StatusOr<uint64_t> DecodeMask(std::span<const std::byte> body) {
  if (body.size() != 8) return absl::InvalidArgumentError("bits of pages that are malformed");
  return Get(body, 0, 8);
}

}  // namespace hk
