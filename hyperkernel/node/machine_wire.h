// What the nodes of a guest that runs on several say to each other beside its interrupts, as bytes. Layout: README.md,
// "Machines over several nodes: link". Pure, thread-safe. Input of a peer is never an invariant here: what no correct
// node sends is an absl::Status.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/types.h"
#include "rdma/transport.h"

namespace hk {

// Types of these messages; those of spaces are below. Part of the wire format; append only.
inline constexpr uint16_t kMachineInterruptType = kFirstUserType + 64;  // any to any, invalidate: irq/README.md
inline constexpr uint16_t kMachineExitType = kFirstUserType + 65;       // any to the I/O node, fault
inline constexpr uint16_t kMachineAnswerType = kFirstUserType + 66;     // the I/O node's answer, fault
inline constexpr uint16_t kMachineFailureType = kFirstUserType + 67;    // any to the I/O node, fault; no answer
inline constexpr uint16_t kMachinePingType = kFirstUserType + 68;       // any to the I/O node, invalidate
inline constexpr uint16_t kMachinePongType = kFirstUserType + 69;       // its answer, invalidate
inline constexpr uint16_t kMachineDoorbellType = kFirstUserType + 70;   // any to the I/O node, fault; no answer
// A vCPU's move (move_wire.h), all on fault.
inline constexpr uint16_t kMachineMoveOrderType = kFirstUserType + 71;  // the I/O node to the source
inline constexpr uint16_t kMachineMovePieceType = kFirstUserType + 72;  // the source to the target
inline constexpr uint16_t kMachineMoveWordType = kFirstUserType + 73;   // either to the I/O node
constexpr bool IsMoveType(uint16_t type) {
  return type >= kMachineMoveOrderType && type <= kMachineMoveWordType;
}

// An access that one exit makes. Values are the wire's.
enum class ExitKind : uint8_t { kPortRead = 1, kPortWrite = 2, kMmioRead = 3, kMmioWrite = 4 };
constexpr bool IsRead(ExitKind kind) {
  return kind == ExitKind::kPortRead || kind == ExitKind::kMmioRead;
}
// The widest access.
inline constexpr size_t kMaxExitBytes = 8;

// One access of a vCPU. Plain value.
struct ExitRequest {
  ExitKind kind = ExitKind::kPortRead;
  uint8_t size = 1;                             // bytes: ports 1, 2, 4; MMIO 1 to 8
  uint64_t address = 0;                         // a port or a guest-physical address
  std::array<std::byte, kMaxExitBytes> data{};  // writes: the first `size`; the rest is 0
  friend bool operator==(const ExitRequest&, const ExitRequest&) = default;
};
// What came of it. Plain value.
struct ExitAnswer {
  ExitKind kind = ExitKind::kPortRead;  // of the request, as its size
  uint8_t size = 1;
  std::array<std::byte, kMaxExitBytes> data{};  // reads: the first `size`; the rest is 0
  friend bool operator==(const ExitAnswer&, const ExitAnswer&) = default;
};
// A vCPU cannot go on. Plain value.
struct VcpuFailure {
  VcpuId vcpu;
  std::string reason;
};

inline constexpr size_t kExitRequestBytes = 24, kExitAnswerBytes = 16, kFailureHeadBytes = 4;
inline constexpr size_t kPingBytes = 8, kPongBytes = 16, kDoorbellBytes = 16;
// What of a reason travels.
inline constexpr size_t kMaxFailureReason = kMaxBodyBytes - kFailureHeadBytes;

// The access is one that a message can carry.
bool IsExit(const ExitRequest& request);

// REQUIRES: IsExit(request); the answer is one to such a request.
std::array<std::byte, kExitRequestBytes> EncodeExitRequest(const ExitRequest& request);
std::array<std::byte, kExitAnswerBytes> EncodeExitAnswer(const ExitAnswer& answer);
// A body with its memory, of a failure whose reason is cut to fit. Plain value.
struct FailureBody {
  std::array<std::byte, kMaxBodyBytes> bytes;
  size_t size = 0;
  std::span<const std::byte> span() const { return std::span(bytes).first(size); }
};
FailureBody EncodeFailure(VcpuId vcpu, std::string_view reason);
// The doorbell that a write to `address` rings. REQUIRES: MayBeDoorbell(address).
std::array<std::byte, kDoorbellBytes> EncodeDoorbell(Gpa address);
std::array<std::byte, kPingBytes> EncodePing();
std::array<std::byte, kPongBytes> EncodePong(uint64_t ticks);

// All: kInvalidArgument, saying what is wrong.
absl::StatusOr<ExitRequest> DecodeExitRequest(std::span<const std::byte> body);
absl::StatusOr<ExitAnswer> DecodeExitAnswer(std::span<const std::byte> body);
// The vCPU is any number; the reason is fit to be printed.
absl::StatusOr<VcpuFailure> DecodeFailure(std::span<const std::byte> body);
// Its first byte.
absl::StatusOr<Gpa> DecodeDoorbell(std::span<const std::byte> body);
absl::Status DecodePing(std::span<const std::byte> body);
absl::StatusOr<uint64_t> DecodePong(std::span<const std::byte> body);

// The header's part: the type is one of the above, on its class, without slot, page, flags, epoch or payload; those
// without a transaction have 0. kInvalidArgument.
absl::Status CheckMachineHeader(const Message& message, std::span<const std::byte> payload);
// REQUIRES: a type of the above.
MessageClass ClassOfMachineType(uint16_t type);

}  // namespace hk
