#include "hyperkernel/node/tsc_estimate.h"

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"

namespace hk {

bool TscEstimate::Add(uint64_t sent, uint64_t remote, uint64_t received) {
  const uint64_t round_trip = received - sent;
  if (static_cast<int64_t>(round_trip) < 0) return false;
  best_.exchanges++;
  const bool worse = best_.exchanges > 1 && round_trip >= shortest_;
  if (worse && !HK_MUTANT(tsc_last_exchange_counts)) return true;
  shortest_ = round_trip;
  best_.offset = static_cast<int64_t>(remote - (sent + round_trip / 2));
  best_.at = received;
  best_.error = round_trip - round_trip / 2;
  return true;
}

TscOffset TscEstimate::best() const {
  HK_CHECK(best_.exchanges != 0);
  return best_;
}

}  // namespace hk
