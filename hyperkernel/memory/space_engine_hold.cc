// How long a granted page is kept: as it was set, or longer where messages take longer. README.md, "The engine", 6.
#include <algorithm>

#include "hyperkernel/base/mutant.h"
#include "hyperkernel/memory/page_wire.h"
#include "hyperkernel/memory/space_engine_impl.h"

namespace hk::space {
namespace {

// A hold is this many round trips between two engines: a second page comes by three ways, and before and after it is
// the time from a grant to the program that waits, which nobody measures and a busy host makes as long.
constexpr int kRoundTripsPerHold = 6;
// A hold is not made longer than this: with more, others would wait for what they see as a node that stands still.
constexpr std::chrono::milliseconds kMostStretchedHold(10);
// Between two pings of all peers, while pages come.
constexpr std::chrono::milliseconds kPingInterval(100);

}  // namespace

Monotonic Engine::HeldUntil() const {
  Monotonic::duration hold = config_.hold;
  if (!HK_MUTANT(engine_hold_not_stretched)) {
    hold = std::max(hold, Monotonic::duration(stretched_hold_.load(std::memory_order_relaxed)));
  }
  return clock_.Now() + hold;
}

void Engine::PingSoon() {
  if (config_.hold.count() == 0 || pinging_.load(std::memory_order_relaxed) || pinging_.exchange(true)) return;
  timers_->After(kPingInterval, [this] { Ping(); });
}

// One that is not answered counts for nothing: it was lost with its connection, or comes still.
void Engine::Ping() {
  pinging_.store(false);
  Epoch epoch;
  NodeSet live;
  {
    MutexLock lock(&change_mutex_);
    if (!running() || stopped()) return;
    epoch = epoch_;
    live = live_;
  }
  uint64_t number = 0;
  {
    MutexLock lock(&pings_mutex_);
    number = ++last_ping_;
    ping_sent_ = clock_.Now();
    pinged_ = ping_live_ = live;
  }
  for (const NodeId node : config_.nodes) {
    if (node != config_.self && live.Contains(node)) PostPing(node, epoch, false, number);
  }
}

void Engine::PostPing(NodeId to, Epoch epoch, bool pong, uint64_t number) {
  Message message = SpacePingMessage(pong, number);
  message.guest = config_.guest;
  message.generation = config_.generation;
  message.epoch = epoch;
  // A hint: nothing waits for it, and it waits behind nothing.
  if (outbox_.waiting(to, MessageClass::kFault) == 0) static_cast<void>(outbox_.Send(to, message, {}, {}, {}, {}));
}

// The farthest of the peers counts: any of them may have the second page.
void Engine::OnPong(NodeId from, uint64_t number) {
  MutexLock lock(&pings_mutex_);
  if (number != last_ping_ || !pinged_.Contains(from)) return;
  pinged_.Remove(from);
  const Monotonic now = clock_.Now();
  peers_[from.value()].Add(now, now - ping_sent_);
  Monotonic::duration most{};
  for (const NodeId node : config_.nodes) {
    if (ping_live_.Contains(node)) most = std::max(most, peers_[node.value()].Get());
  }
  stretched_hold_.store(std::min<Monotonic::duration>(kRoundTripsPerHold * most, kMostStretchedHold).count(),
                        std::memory_order_relaxed);
}

}  // namespace hk::space
