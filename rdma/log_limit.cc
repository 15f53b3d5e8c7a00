#include "rdma/log_limit.h"

#include <string_view>

#include "hyperkernel/base/log.h"

namespace hk {

namespace {

constexpr std::array<std::string_view, kStrangerReasons> kNames = {"refused", "malformed", "silent",  "crowded",
                                                                   "gone",    "tls",       "no-files"};

}  // namespace

void StrangerLog::Count(StrangerEnd reason, const std::string& who, const std::string& detail, Monotonic now) {
  const auto index = static_cast<size_t>(reason);
  counts_[index].fetch_add(1, std::memory_order_relaxed);
  std::optional<uint64_t> more;
  {
    MutexLock lock(&mutex_);
    more = limits_[index].Take(now);
  }
  if (!more) return;
  log::Warning("transport", "a connection was closed before it was a peer's",
               {{"reason", std::string(kNames[index])},
                {"from", who},
                {"detail", detail},
                {"others_since_last_line", std::to_string(*more)}});
}

}  // namespace hk
