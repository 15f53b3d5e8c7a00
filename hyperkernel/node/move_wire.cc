#include "hyperkernel/node/move_wire.h"

#include <lz4.h>

#include <algorithm>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/node_set.h"
#include "hyperkernel/node/wire_fields.h"

namespace hk {
namespace {

constexpr uint64_t kFormat = 1;

// Where the fields are; the first two bytes of an order and a piece are the format.
constexpr size_t kVcpuAt = 2, kToAt = 4, kOrderRestAt = 6;
constexpr size_t kPieceAtAt = 4, kTotalAt = 8;
constexpr size_t kOfAt = 1, kWordRestAt = 2, kTookAt = 8;
constexpr size_t kApicBytesAt = 4, kUnpackedBytesAt = 8;

absl::Status Bad(const char* what) {
  return absl::InvalidArgumentError(fmt::format("{} that is malformed", what));
}

}  // namespace

std::vector<std::byte> PackMoved(const MovedVcpu& moved) {
  HK_CHECK(moved.local_apic.size() <= kMostLocalApicBytes && moved.state.size() <= kMostVcpuStateBytes);
  std::vector<std::byte> all(moved.local_apic);
  all.insert(all.end(), moved.state.begin(), moved.state.end());
  const int most = LZ4_compressBound(static_cast<int>(all.size()));
  std::vector<std::byte> bytes(kMovedHeadBytes + static_cast<size_t>(most));
  PutField(bytes, 0, moved.version, 4);
  PutField(bytes, kApicBytesAt, moved.local_apic.size(), 4);
  PutField(bytes, kUnpackedBytesAt, all.size(), 4);
  const int packed =
      LZ4_compress_default(reinterpret_cast<const char*>(all.data()),
                           reinterpret_cast<char*>(bytes.data() + kMovedHeadBytes), static_cast<int>(all.size()), most);
  HK_CHECK(packed > 0);  // it always fits its own bound
  bytes.resize(kMovedHeadBytes + static_cast<size_t>(packed));
  HK_CHECK(bytes.size() <= kMostMovedBytes);
  return bytes;
}

absl::StatusOr<MovedVcpu> UnpackMoved(VcpuId vcpu, std::span<const std::byte> bytes) {
  if (bytes.size() <= kMovedHeadBytes || bytes.size() > kMostMovedBytes) return Bad("a vCPU");
  const uint64_t apic_bytes = GetField(bytes, kApicBytesAt, 4), unpacked_bytes = GetField(bytes, kUnpackedBytesAt, 4);
  if (apic_bytes > kMostLocalApicBytes || apic_bytes > unpacked_bytes || unpacked_bytes > kMostVcpuBytes)
    return Bad("a vCPU");
  const std::span<const std::byte> packed = bytes.subspan(kMovedHeadBytes);
  std::vector<std::byte> all(unpacked_bytes);
  const int unpacked =
      LZ4_decompress_safe(reinterpret_cast<const char*>(packed.data()), reinterpret_cast<char*>(all.data()),
                          static_cast<int>(packed.size()), static_cast<int>(all.size()));
  if (unpacked < 0 || static_cast<size_t>(unpacked) != all.size()) return Bad("a vCPU");
  const auto state = all.begin() + static_cast<ptrdiff_t>(apic_bytes);
  return MovedVcpu{.id = vcpu,
                   .state = {state, all.end()},
                   .local_apic = {all.begin(), state},
                   .version = static_cast<uint32_t>(GetField(bytes, 0, 4))};
}

std::array<std::byte, kMoveOrderBytes> EncodeMoveOrder(const MoveOrder& order) {
  std::array<std::byte, kMoveOrderBytes> body{};
  PutField(body, 0, kFormat, kVcpuAt);
  PutField(body, kVcpuAt, order.vcpu.value(), 2);
  PutField(body, kToAt, order.to.value(), 2);
  return body;
}

absl::StatusOr<MoveOrder> DecodeMoveOrder(std::span<const std::byte> body) {
  if (body.size() != kMoveOrderBytes || GetField(body, 0, kVcpuAt) != kFormat ||
      GetField(body, kOrderRestAt, kMoveOrderBytes - kOrderRestAt) != 0) {
    return Bad("an order to let a vCPU go");
  }
  const uint64_t to = GetField(body, kToAt, 2);
  if (to >= kMaxNodes) return Bad("an order to let a vCPU go");
  return MoveOrder{.vcpu = VcpuId(static_cast<uint32_t>(GetField(body, kVcpuAt, 2))),
                   .to = NodeId(static_cast<uint16_t>(to))};
}

std::vector<std::byte> EncodeMovePiece(VcpuId vcpu, std::span<const std::byte> all, size_t at) {
  HK_CHECK(at < all.size() && all.size() <= kMostMovedBytes);
  const std::span<const std::byte> piece = all.subspan(at, std::min(kMostPieceBytes, all.size() - at));
  std::vector<std::byte> body(kMovePieceHeadBytes);
  PutField(body, 0, kFormat, kVcpuAt);
  PutField(body, kVcpuAt, vcpu.value(), 2);
  PutField(body, kPieceAtAt, at, 4);
  PutField(body, kTotalAt, all.size(), 4);
  body.insert(body.end(), piece.begin(), piece.end());
  return body;
}

absl::StatusOr<MovePiece> DecodeMovePiece(std::span<const std::byte> body) {
  if (body.size() <= kMovePieceHeadBytes || body.size() > kMaxBodyBytes || GetField(body, 0, kVcpuAt) != kFormat) {
    return Bad("a piece of a vCPU");
  }
  const MovePiece piece{.vcpu = VcpuId(static_cast<uint32_t>(GetField(body, kVcpuAt, 2))),
                        .at = static_cast<uint32_t>(GetField(body, kPieceAtAt, 4)),
                        .total = static_cast<uint32_t>(GetField(body, kTotalAt, 4)),
                        .bytes = body.subspan(kMovePieceHeadBytes)};
  if (piece.total > kMostMovedBytes || piece.at > piece.total || piece.bytes.size() > piece.total - piece.at) {
    return Bad("a piece of a vCPU");
  }
  return piece;
}

std::vector<std::byte> EncodeMoveWord(const MoveWord& word) {
  std::vector<std::byte> body(kMoveWordHeadBytes);
  PutField(body, 0, kFormat, 1);
  PutField(body, kOfAt, static_cast<uint8_t>(word.of), 1);
  PutField(body, kTookAt, word.took_ns, 8);
  const auto refused = std::as_bytes(std::span(std::string_view(word.refused).substr(0, kMostRefusalBytes)));
  body.insert(body.end(), refused.begin(), refused.end());
  return body;
}

absl::StatusOr<MoveWord> DecodeMoveWord(std::span<const std::byte> body) {
  if (body.size() < kMoveWordHeadBytes || body.size() > kMaxBodyBytes || GetField(body, 0, 1) != kFormat ||
      GetField(body, kWordRestAt, kTookAt - kWordRestAt) != 0) {
    return Bad("a word about a move");
  }
  MoveWord word{
      .of = static_cast<MoveWord::Of>(GetField(body, kOfAt, 1)), .took_ns = GetField(body, kTookAt, 8), .refused = {}};
  if (word.of != MoveWord::Of::kSource && word.of != MoveWord::Of::kTarget) return Bad("a word about a move");
  for (const std::byte each : body.subspan(kMoveWordHeadBytes)) word.refused += Printable(each);
  return word;
}

}  // namespace hk
