#include "hyperkernel/node/machine_wire.h"

#include <algorithm>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/device/doorbells.h"
#include "hyperkernel/node/wire_fields.h"

namespace hk {
namespace {

constexpr uint64_t kFormat = 1;

// Where the fields of requests, answers and pongs are; the first byte of every body is the format.
constexpr size_t kKindAt = 1, kSizeAt = 2, kRestAt = 3;
constexpr size_t kAddressAt = 8, kRequestDataAt = 16, kAnswerDataAt = 8, kTicksAt = 8;
constexpr size_t kVcpuAt = 2;
constexpr uint64_t kMaxPort = 0xffff;

bool IsKind(ExitKind kind) {
  return kind >= ExitKind::kPortRead && kind <= ExitKind::kMmioWrite;
}
bool IsPort(ExitKind kind) {
  return kind == ExitKind::kPortRead || kind == ExitKind::kPortWrite;
}
bool IsSize(ExitKind kind, uint8_t size) {
  if (IsPort(kind)) return size == 1 || size == 2 || size == 4;
  return size >= 1 && size <= kMaxExitBytes;
}
// `data` has bytes in its first `used` only.
bool FitsData(std::span<const std::byte> data, size_t used) {
  return std::ranges::all_of(data.subspan(used), [](std::byte each) { return each == std::byte{0}; });
}

absl::Status Bad(const char* what) {
  return absl::InvalidArgumentError(fmt::format("{} that is malformed", what));
}

// Length and format.
bool IsBody(std::span<const std::byte> body, size_t bytes) {
  return body.size() == bytes && GetField(body, 0, 1) == kFormat;
}

}  // namespace

bool IsExit(const ExitRequest& request) {
  return IsKind(request.kind) && IsSize(request.kind, request.size) &&
         (!IsPort(request.kind) || request.address <= kMaxPort) &&
         FitsData(request.data, IsRead(request.kind) ? 0 : request.size);
}

std::array<std::byte, kExitRequestBytes> EncodeExitRequest(const ExitRequest& request) {
  HK_CHECK(IsExit(request));
  std::array<std::byte, kExitRequestBytes> body{};
  PutField(body, 0, kFormat, 1);
  PutField(body, kKindAt, static_cast<uint8_t>(request.kind), 1);
  PutField(body, kSizeAt, request.size, 1);
  PutField(body, kAddressAt, request.address, 8);
  std::ranges::copy(request.data, body.begin() + kRequestDataAt);
  return body;
}

absl::StatusOr<ExitRequest> DecodeExitRequest(std::span<const std::byte> body) {
  ExitRequest request;
  if (!IsBody(body, kExitRequestBytes)) return Bad("an access to a device");
  request.kind = static_cast<ExitKind>(GetField(body, kKindAt, 1));
  request.size = static_cast<uint8_t>(GetField(body, kSizeAt, 1));
  request.address = GetField(body, kAddressAt, 8);
  std::ranges::copy(body.subspan(kRequestDataAt), request.data.begin());
  if (GetField(body, kRestAt, kAddressAt - kRestAt) != 0 || !IsExit(request)) return Bad("an access to a device");
  return request;
}

std::array<std::byte, kExitAnswerBytes> EncodeExitAnswer(const ExitAnswer& answer) {
  std::array<std::byte, kExitAnswerBytes> body{};
  PutField(body, 0, kFormat, 1);
  PutField(body, kKindAt, static_cast<uint8_t>(answer.kind), 1);
  PutField(body, kSizeAt, answer.size, 1);
  std::ranges::copy(answer.data, body.begin() + kAnswerDataAt);
  return body;
}

absl::StatusOr<ExitAnswer> DecodeExitAnswer(std::span<const std::byte> body) {
  ExitAnswer answer;
  if (!IsBody(body, kExitAnswerBytes)) return Bad("a device's answer");
  answer.kind = static_cast<ExitKind>(GetField(body, kKindAt, 1));
  answer.size = static_cast<uint8_t>(GetField(body, kSizeAt, 1));
  std::ranges::copy(body.subspan(kAnswerDataAt), answer.data.begin());
  if (GetField(body, kRestAt, kAnswerDataAt - kRestAt) != 0 || !IsKind(answer.kind) ||
      !IsSize(answer.kind, answer.size) || !FitsData(answer.data, IsRead(answer.kind) ? answer.size : 0)) {
    return Bad("a device's answer");
  }
  return answer;
}

FailureBody EncodeFailure(VcpuId vcpu, std::string_view reason) {
  FailureBody body;
  reason = reason.substr(0, kMaxFailureReason);
  body.size = kFailureHeadBytes + reason.size();
  PutField(body.bytes, 0, kFormat, kVcpuAt);
  PutField(body.bytes, kVcpuAt, vcpu.value(), 2);
  std::ranges::copy(std::as_bytes(std::span(reason)), body.bytes.begin() + kFailureHeadBytes);
  return body;
}

absl::StatusOr<VcpuFailure> DecodeFailure(std::span<const std::byte> body) {
  if (body.size() < kFailureHeadBytes || body.size() > kMaxBodyBytes || GetField(body, 0, kVcpuAt) != kFormat) {
    return Bad("a vCPU's failure");
  }
  VcpuFailure failure{.vcpu = VcpuId(static_cast<uint32_t>(GetField(body, kVcpuAt, 2))), .reason = {}};
  for (const std::byte each : body.subspan(kFailureHeadBytes)) failure.reason += Printable(each);
  return failure;
}

std::array<std::byte, kDoorbellBytes> EncodeDoorbell(Gpa address) {
  HK_CHECK(MayBeDoorbell(address));
  std::array<std::byte, kDoorbellBytes> body{};
  PutField(body, 0, kFormat, kAddressAt);
  PutField(body, kAddressAt, address.value() - address.value() % kDoorbellStride, 8);
  return body;
}

absl::StatusOr<Gpa> DecodeDoorbell(std::span<const std::byte> body) {
  if (body.size() != kDoorbellBytes || GetField(body, 0, kAddressAt) != kFormat) return Bad("a doorbell");
  const Gpa address(GetField(body, kAddressAt, 8));
  if (!MayBeDoorbell(address) || address.value() % kDoorbellStride != 0) return Bad("a doorbell");
  return address;
}

std::array<std::byte, kPingBytes> EncodePing() {
  std::array<std::byte, kPingBytes> body{};
  PutField(body, 0, kFormat, kPingBytes);
  return body;
}

absl::Status DecodePing(std::span<const std::byte> body) {
  return body.size() == kPingBytes && GetField(body, 0, kPingBytes) == kFormat ? absl::OkStatus() : Bad("a ping");
}

std::array<std::byte, kPongBytes> EncodePong(uint64_t ticks) {
  std::array<std::byte, kPongBytes> body{};
  PutField(body, 0, kFormat, kTicksAt);
  PutField(body, kTicksAt, ticks, 8);
  return body;
}

absl::StatusOr<uint64_t> DecodePong(std::span<const std::byte> body) {
  if (body.size() != kPongBytes || GetField(body, 0, kTicksAt) != kFormat) return Bad("a pong");
  return GetField(body, kTicksAt, 8);
}

absl::Status CheckMachineHeader(const Message& message, std::span<const std::byte> payload) {
  if (message.type < kMachineInterruptType || message.type > kMachineMoveWordType) {
    return absl::InvalidArgumentError(fmt::format("a message of unknown type {}", message.type));
  }
  const bool numbered = message.type != kMachineInterruptType && message.type != kMachineFailureType &&
                        message.type != kMachineDoorbellType;
  if (message.message_class != ClassOfMachineType(message.type) || message.answer || message.slot != SlotId() ||
      message.flags != 0 || message.gfn != Gfn() || message.epoch != Epoch() || !payload.empty() ||
      (message.transaction != 0) != numbered) {
    return absl::InvalidArgumentError(fmt::format("a message of type {} with a header that none has", message.type));
  }
  return absl::OkStatus();
}

MessageClass ClassOfMachineType(uint16_t type) {
  switch (type) {
    case kMachineExitType:
    case kMachineAnswerType:
    case kMachineFailureType:
    case kMachineDoorbellType:
    case kMachineMoveOrderType:
    case kMachineMovePieceType:
    case kMachineMoveWordType:
      return MessageClass::kFault;
    default:
      return MessageClass::kInvalidate;
  }
}

}  // namespace hk
