// What the nodes of a machine say over its link while a vCPU goes from one of them to another, as bytes. Layout:
// README.md, "Machines over several nodes: link". Pure, thread-safe. Input of a peer is never an invariant here: what
// no correct node sends is an absl::Status.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/kvm/vcpu_mover.h"
#include "hyperkernel/kvm/vcpu_state.h"
#include "rdma/transport.h"

namespace hk {

// A vCPU as bytes begins with its version, the length of its local APIC, and the length of all that follows when it is
// not compressed.
inline constexpr size_t kMovedHeadBytes = 12;
// A local APIC has 343 bytes; more than this is none.
inline constexpr size_t kMostLocalApicBytes = 1024;
inline constexpr size_t kMostVcpuBytes = kMostLocalApicBytes + kMostVcpuStateBytes;
// What LZ4 makes of bytes that it cannot compress: lz4.h, LZ4_COMPRESSBOUND.
inline constexpr size_t kMostMovedBytes = kMovedHeadBytes + kMostVcpuBytes + kMostVcpuBytes / 255 + 16;

// The source is to let it go. Plain value.
struct MoveOrder {
  VcpuId vcpu;
  NodeId to;
  friend bool operator==(const MoveOrder&, const MoveOrder&) = default;
};
// A part of a vCPU's bytes. Plain value; the bytes are the body's.
struct MovePiece {
  VcpuId vcpu;
  uint32_t at = 0, total = 0;
  std::span<const std::byte> bytes;
};
// What an end of a move tells the I/O node. Plain value.
struct MoveWord {
  enum class Of : uint8_t { kSource = 1, kTarget = 2 };  // values are the wire's
  Of of = Of::kSource;
  uint64_t took_ns = 0;  // of the time that the vCPU stood still, there
  std::string refused;   // why it was not done: all is as before. Empty: done
};

inline constexpr size_t kMoveOrderBytes = 8, kMovePieceHeadBytes = 12, kMoveWordHeadBytes = 16;
inline constexpr size_t kMostPieceBytes = kMaxBodyBytes - kMovePieceHeadBytes;
// What of a refusal travels.
inline constexpr size_t kMostRefusalBytes = kMaxBodyBytes - kMoveWordHeadBytes;

// Local APIC and state one after the other, compressed by LZ4: most of them are zeroes, and each message that a vCPU
// does not need is time that it does not stand still for.
std::vector<std::byte> PackMoved(const MovedVcpu& moved);
absl::StatusOr<MovedVcpu> UnpackMoved(VcpuId vcpu, std::span<const std::byte> bytes);

std::array<std::byte, kMoveOrderBytes> EncodeMoveOrder(const MoveOrder& order);
// The piece of `all` that begins at `at`, as long as a message takes. REQUIRES: at < all.size() <= kMostMovedBytes.
std::vector<std::byte> EncodeMovePiece(VcpuId vcpu, std::span<const std::byte> all, size_t at);
// A refusal is cut to fit.
std::vector<std::byte> EncodeMoveWord(const MoveWord& word);

// All: kInvalidArgument, saying what is wrong. vCPUs are any number, nodes below kMaxNodes.
absl::StatusOr<MoveOrder> DecodeMoveOrder(std::span<const std::byte> body);
// Its bytes are within `total`, which is within kMostMovedBytes.
absl::StatusOr<MovePiece> DecodeMovePiece(std::span<const std::byte> body);
// The refusal is fit to be printed.
absl::StatusOr<MoveWord> DecodeMoveWord(std::span<const std::byte> body);

}  // namespace hk
