// What a guest's nodes say of exits and clocks: nothing read beyond the body; what is taken is written the same.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "hyperkernel/base/check.h"
#include "hyperkernel/node/machine_wire.h"

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
  return 0;
}
