// Any bytes as what a guest's agent says, in pieces and with time passing between them: a command ends done or failed,
// with one line, and nothing that is kept grows beyond its bound. Input: the first byte of each piece is its length, 0
// for a step in time, 255 for an answer to the synchronisation, so that what follows is reached at all.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/guest_agent.h"

namespace {

constexpr uint8_t kTimePasses = 0, kSynchronised = 255;
constexpr int64_t kSyncId = 1000;
constexpr std::chrono::minutes kTimeout(5);

void CheckEnd(hk::GuestAgentExec& exec) {
  if (exec.phase() == hk::GuestAgentExec::Phase::kFailed) {
    const std::string message = hk::MessageOf(exec.failure());
    HK_CHECK(!exec.failure().ok() && !message.empty() && message.size() < 2048);
    return;
  }
  HK_CHECK(exec.phase() == hk::GuestAgentExec::Phase::kDone);
  const hk::GuestCommandResult& result = exec.result();
  HK_CHECK(result.number >= 0 && result.number <= 255 && result.reason.size() < 1024);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  hk::Monotonic now{std::chrono::hours(1)};
  const hk::Monotonic deadline = now + kTimeout;
  absl::StatusOr<hk::GuestAgentExec> made =
      hk::GuestAgentExec::Create({.words = {"sh", "-c", "x"}, .input = "in"}, kSyncId, now, deadline);
  HK_CHECK(made.ok());
  hk::GuestAgentExec& exec = *made;
  int64_t syncs = 0;
  std::string_view input(reinterpret_cast<const char*>(data), size);
  while (!input.empty() && !exec.finished()) {
    const auto length = static_cast<uint8_t>(input.front());
    input.remove_prefix(1);
    if (exec.TakeOutput().find("guest-sync-delimited") != std::string::npos) syncs++;
    if (length == kTimePasses) {
      now = std::max(now, exec.next_time());
      exec.OnTime(now);
    } else if (length == kSynchronised) {
      exec.OnBytes(fmt::format("\xff{{\"return\": {}}}\n", kSyncId + syncs), now);
    } else {
      const std::string_view piece = input.substr(0, length);
      exec.OnBytes(piece, now);
      input.remove_prefix(piece.size());
    }
    HK_CHECK(exec.next_time() <= deadline);
  }
  // With nothing more to come it still ends.
  for (int steps = 0; !exec.finished(); steps++) {
    HK_CHECK(steps < 1000);
    now = std::max(now, exec.next_time());
    exec.OnTime(now);
    exec.TakeOutput();
  }
  CheckEnd(exec);
  return 0;
}
