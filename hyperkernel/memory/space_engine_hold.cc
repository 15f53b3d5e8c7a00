// How long a granted page is kept: as it was set, or longer where messages take longer, and by chance. README.md, "The
// engine", 6.
#include <algorithm>
#include <utility>

#include "hyperkernel/base/mutant.h"
#include "hyperkernel/memory/page_wire.h"
#include "hyperkernel/memory/space_engine_impl.h"

namespace hk::space {
namespace {

// A hold is this many round trips between two engines: a second page comes by three ways, and before and after it is
// the time from a grant to the program that waits, which nobody measures and a busy host makes as long.
constexpr int kRoundTripsPerHold = 6;
// By chance a hold is longer by up to this part of it, in so many steps: two nodes that take the same pages from each
// other, in step, get out of step.
constexpr int kRandomShare = 4, kRandomSteps = 1024;
// A hold is not made longer than this, but by chance: with more, others would wait for what they see as a node that
// stands still.
constexpr std::chrono::milliseconds kMostStretchedHold(10);
// Nor that of a thread that gathers pages, whose turn it is: it gets them, runs for as long, and nobody's request ends.
constexpr std::chrono::milliseconds kMostGatherHold(100);
// While it has not, it is looked at so often in the time that a hold takes.
constexpr int kLooksPerHold = 4;
// Between two pings of all peers, while pages come.
constexpr std::chrono::milliseconds kPingInterval(100);

}  // namespace

void Engine::BeginHold(Shard* shard, ActivePage* active) {
  const Monotonic now = clock_.Now();
  PageHold& hold = active->hold;
  hold = PageHold();
  Monotonic::duration most = config_.hold;
  if (!HK_MUTANT(engine_hold_not_stretched)) {
    most = std::max(most, Monotonic::duration(stretched_hold_.load(std::memory_order_relaxed)));
  }
  const int64_t part = HK_MUTANT(engine_hold_not_random) ? 0 : static_cast<int64_t>(RandomUpTo(shard, kRandomSteps));
  const auto lengthened = [part](Monotonic::duration set) { return set + set * part / (kRandomSteps * kRandomShare); };
  hold.most = now + lengthened(most);
  bool seen = false;
  for (size_t i = 0; i < hold.threads.size(); ++i) {
    const uint32_t thread = std::exchange(active->waiting_threads[i], 0);
    if (thread == 0) continue;
    const std::optional<std::chrono::nanoseconds> ran = frames_->RunTime(thread);
    if (!ran.has_value()) continue;
    if (ThreadGather* const gather = frames_->GatherOf(thread); gather != nullptr) {
      EndWait(gather);
      hold.gathers = true;
      hold.most = std::max<Monotonic>(hold.most, now + kMostGatherHold);
    }
    hold.threads[i] = {thread, *ran};
    seen = true;
  }
  hold.least = hold.rather = seen ? now + lengthened(config_.hold) : hold.most;
}

bool Engine::HoldIsOver(PageHold* hold, const Rival& rival) const {
  const Monotonic now = clock_.Now();
  if (now < hold->least && !(hold->gathers && rival.ticket != 0 && now >= hold->rather)) return false;
  if (now >= hold->most) return true;
  const std::chrono::nanoseconds enough = RunEnough();
  for (PageHold::Thread& thread : hold->threads) {
    if (thread.id == 0) continue;
    const std::optional<std::chrono::nanoseconds> ran = frames_->RunTime(thread.id);
    if (const ThreadGather* const gather = frames_->GatherOf(thread.id); gather != nullptr && ran.has_value()) {
      if (TurnIsOver(*gather, *ran, now)) {
        thread.id = 0;
        continue;
      }
      // The rival's turn, if the thread waits; the next one's may be younger.
      if (frames_->Waits(thread.id) && GivesWay(*gather, rival)) continue;
      // All of a thread's pages at the same moments: one wake-up.
      const auto look = std::max<Monotonic::duration>(config_.hold / kLooksPerHold, UntilNextLook());
      hold->least = std::min<Monotonic>(hold->most, Monotonic((now.time_since_epoch() / look + 1) * look));
      return false;
    }
    // On its way to the next page that it needs it runs too.
    const bool waits = frames_->Waits(thread.id) && !HK_MUTANT(engine_hold_ends_while_waiting);
    if (!ran.has_value() || (*ran - thread.ran >= enough && !waits) || HK_MUTANT(engine_hold_ends_unused)) {
      thread.id = 0;
      continue;
    }
    if (waits) thread.ran = *ran;
    const Monotonic::duration left = enough - (*ran - thread.ran);
    hold->least =
        std::min<Monotonic>(hold->most, now + std::max<Monotonic::duration>(config_.hold / kLooksPerHold, left));
    return false;
  }
  return true;
}

void Engine::SettleHold(ActivePage* active, const Rival& rival) {
  if (active->page.held && HoldIsOver(&active->hold, rival)) active->page.held = false;
}

bool Engine::RestingHoldIsOver(Shard* shard, Gfn page) const {
  PageHold hold = shard->holds.Of(page);
  return HoldIsOver(&hold, {});
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
  round_trip_.store(most.count(), std::memory_order_relaxed);
  stretched_hold_.store(std::min<Monotonic::duration>(kRoundTripsPerHold * most, kMostStretchedHold).count(),
                        std::memory_order_relaxed);
}

}  // namespace hk::space
