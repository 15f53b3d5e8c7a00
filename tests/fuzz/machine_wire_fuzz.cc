// What a guest's nodes say of exits, clocks and moves: nothing read beyond the body; what is taken is written the same.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "hyperkernel/base/check.h"
#include "hyperkernel/node/machine_wire.h"
#include "hyperkernel/node/move_wire.h"

namespace {

using Bytes = std::span<const std::byte>;

void Same(Bytes body, Bytes written) {
  HK_CHECK(std::ranges::equal(body, written));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const Bytes body = std::as_bytes(std::span(data, size));
  if (const auto request = hk::DecodeExitRequest(body); request.ok()) Same(body, hk::EncodeExitRequest(*request));
  if (const auto answer = hk::DecodeExitAnswer(body); answer.ok()) Same(body, hk::EncodeExitAnswer(*answer));
  if (const auto rung = hk::DecodeDoorbell(body); rung.ok()) Same(body, hk::EncodeDoorbell(*rung));
  if (hk::DecodePing(body).ok()) Same(body, hk::EncodePing());
  if (const auto pong = hk::DecodePong(body); pong.ok()) Same(body, hk::EncodePong(*pong));
  if (const auto failure = hk::DecodeFailure(body); failure.ok()) {
    HK_CHECK(failure->reason.size() <= hk::kMaxFailureReason);
    HK_CHECK(std::ranges::all_of(failure->reason, [](char each) { return each >= ' ' && each <= '~'; }));
    HK_CHECK(hk::EncodeFailure(failure->vcpu, failure->reason).size == size);
  }
  if (const auto order = hk::DecodeMoveOrder(body); order.ok()) Same(body, hk::EncodeMoveOrder(*order));
  if (const auto piece = hk::DecodeMovePiece(body); piece.ok()) {
    HK_CHECK(piece->total <= hk::kMostMovedBytes && piece->at + piece->bytes.size() <= piece->total);
    HK_CHECK(piece->bytes.data() + piece->bytes.size() == body.data() + size);
  }
  if (const auto word = hk::DecodeMoveWord(body); word.ok()) {
    HK_CHECK(std::ranges::all_of(word->refused, [](char each) { return each >= ' ' && each <= '~'; }));
    HK_CHECK(hk::EncodeMoveWord(*word).size() == size);
  }
  if (const auto moved = hk::UnpackMoved(hk::VcpuId(1), body); moved.ok()) {
    // What is compressed has many forms.
    const auto again = hk::UnpackMoved(hk::VcpuId(1), hk::PackMoved(*moved));
    HK_CHECK(again.ok() && again->state == moved->state && again->local_apic == moved->local_apic &&
             again->version == moved->version);
  }
  return 0;
}
