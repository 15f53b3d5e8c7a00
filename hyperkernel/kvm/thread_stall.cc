#include "hyperkernel/kvm/thread_stall.h"

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdint>

#include "hyperkernel/base/clock.h"

namespace hk {
namespace {

// Three numbers of 64 bits: time on a processor, time ready for one, slices.
constexpr size_t kMostText = 64;

}  // namespace

std::unique_ptr<ThreadStall> ThreadStall::OfThisThread() {
  OwnedFd file(::open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return nullptr;
  std::unique_ptr<ThreadStall> stall(new ThreadStall(std::move(file)));
  return stall->Get().has_value() ? std::move(stall) : nullptr;
}

std::optional<ThreadWaits> ThreadStall::Get() const {
  char text[kMostText];
  const ssize_t n = ::pread(file_.get(), text, sizeof text, 0);
  if (n <= 0) return std::nullopt;
  const char* const end = text + n;
  // The first number is behind by what the thread has run since it got its processor; the thread's clock is not. The
  // third, which only grows, says whether this kernel counts at all.
  uint64_t ready = 0, slices = 0;
  const char* at = std::find(static_cast<const char*>(text), end, ' ');
  if (at == end) return std::nullopt;
  const auto second = std::from_chars(at + 1, end, ready);
  if (second.ec != std::errc() || second.ptr == end) return std::nullopt;
  if (std::from_chars(second.ptr + 1, end, slices).ec != std::errc() || slices == 0) return std::nullopt;
  timespec ran{};
  if (::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ran) != 0) return std::nullopt;
  const auto waited = std::chrono::nanoseconds(static_cast<int64_t>(ready));
  const auto run = std::chrono::seconds(ran.tv_sec) + std::chrono::nanoseconds(ran.tv_nsec);
  return ThreadWaits{.stalled = RealClock().Now().time_since_epoch() - run - waited, .ready = waited};
}

}  // namespace hk
