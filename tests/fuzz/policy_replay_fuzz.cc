// A trace, and what each policy makes of it: refused in one line, or replayed to sums that can be; vCPUs go to nodes
// that the trace has.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "hyperkernel/base/check.h"
#include "migration/policy_replay.h"

namespace {

void Replay(std::span<const uint8_t> file, std::string_view policy) {
  hk::TraceReader trace([file, at = size_t{0}](char* to, size_t most) mutable {
    const size_t bytes = std::min(most, file.size() - at);
    if (bytes > 0) std::memcpy(to, file.data() + at, bytes);
    at += bytes;
    return bytes;
  });
  const absl::StatusOr<hk::ReplayScore> score = hk::ReplayTrace(&trace, policy);
  if (!score.ok()) {
    const std::string_view why(score.status().message().data(), score.status().message().size());
    HK_CHECK(!why.empty() && why.find('\n') == std::string_view::npos);
    return;
  }
  HK_CHECK(std::isfinite(score->policy_s) && std::isfinite(score->recorded_s) && score->moves_s >= 0);
  HK_CHECK(score->policy_s - score->moves_s <= score->recorded_s * 1.0001 + 1e-6);
  HK_CHECK(policy != hk::kFetchPolicy || score->moves.empty());
  for (const hk::ReplayMove& move : score->moves) {
    HK_CHECK(move.vcpu.value() < score->vcpus && move.from != move.to && !move.from.empty() && !move.to.empty());
  }
  HK_CHECK(!hk::ScoreText(*score).empty() && !hk::ScoreJson(*score).empty());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Replay({data, size}, hk::kFetchPolicy);
  Replay({data, size}, hk::kBalancePolicy);
  return 0;
}
