// Threads that need several pages at once: whose turn it is, and for how long. README.md, "The engine", 6.
#include <algorithm>
#include <utility>

#include "hyperkernel/base/mutant.h"
#include "hyperkernel/memory/space_engine_impl.h"

namespace hk::space {
namespace {

// A thread that has its pages keeps them until it has run for as long as it waited for them, but not for longer than
// this: others wait. A time slice of a busy host is shorter.
constexpr std::chrono::milliseconds kMostRun(20);
// A ticket is as good as its age. One that lasts longer is a thread's that waits again and again and never runs: the
// others' turn.
constexpr std::chrono::milliseconds kMostGather(300);
// A peer that says more lies, or has been lied to: it would take centuries. Above it tickets would come to an end.
constexpr uint64_t kMostTicket = uint64_t{1} << 62;
// A thread that has had so much of the processor's time since it got a page has executed the instruction that needed
// it, unless it waits for another page: to get back from a fault into the program, and in KVM into the guest, takes
// some microseconds. Where everything is slower, it is this part of a round trip.
constexpr std::chrono::microseconds kLeastRun(10);
constexpr int kRunsPerRoundTrip = 4;
// A rival is looked at again so often, in round trips: sooner it has hardly come further.
constexpr int kRoundTripsPerLook = 2;

}  // namespace

std::chrono::nanoseconds Engine::RunEnough() const {
  const std::chrono::nanoseconds round_trip(round_trip_.load(std::memory_order_relaxed));
  return std::max<std::chrono::nanoseconds>(kLeastRun, round_trip / kRunsPerRoundTrip);
}

Monotonic::duration Engine::UntilNextLook() const {
  return Monotonic::duration(kRoundTripsPerLook * round_trip_.load(std::memory_order_relaxed));
}

bool Engine::GivesWay(const ThreadGather& gather, const Rival& rival) const {
  const uint64_t ticket = gather.ticket.load(std::memory_order_relaxed);
  return rival.ticket != 0 && std::pair(rival.ticket, rival.node) < std::pair(ticket, config_.self) &&
         !HK_MUTANT(engine_older_ticket_waits);
}

bool Engine::TurnIsOver(const ThreadGather& gather, std::chrono::nanoseconds ran, Monotonic now) const {
  if (gather.rests.load(std::memory_order_relaxed)) return true;
  const std::chrono::nanoseconds waited(gather.waited_ns.load(std::memory_order_relaxed));
  const std::chrono::nanoseconds enough = std::max(RunEnough(), std::min<std::chrono::nanoseconds>(waited, kMostRun));
  const std::chrono::nanoseconds before(gather.ran_before_ns.load(std::memory_order_relaxed));
  const std::chrono::nanoseconds began(gather.began_ns.load(std::memory_order_relaxed));
  return ran - before >= enough || now.time_since_epoch() - began >= kMostGather;
}

void Engine::BeginWait(uint32_t thread) {
  ThreadGather* const gather = frames_->GatherOf(thread);
  if (gather == nullptr) return;
  const std::optional<std::chrono::nanoseconds> ran = frames_->RunTime(thread);
  if (!ran.has_value()) return;
  const Monotonic now = clock_.Now();
  gather->waits_since_ns.store(now.time_since_epoch().count(), std::memory_order_relaxed);
  const bool has_turn = gather->ticket.load(std::memory_order_relaxed) != 0;
  if (has_turn && !TurnIsOver(*gather, *ran, now) && !HK_MUTANT(engine_ticket_for_each_page)) return;
  gather->began_ns.store(now.time_since_epoch().count(), std::memory_order_relaxed);
  gather->ran_before_ns.store(ran->count(), std::memory_order_relaxed);
  gather->waited_ns.store(0, std::memory_order_relaxed);
  gather->ticket.store(last_ticket_.fetch_add(1, std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

void Engine::EndWait(ThreadGather* gather) {
  const int64_t since = gather->waits_since_ns.exchange(0, std::memory_order_relaxed);
  const int64_t waited = clock_.Now().time_since_epoch().count() - since;
  if (since != 0 && waited > 0) gather->waited_ns.fetch_add(waited, std::memory_order_relaxed);
}

uint64_t Engine::TicketOf(const ActivePage& active) const {
  uint64_t oldest = 0;
  for (const uint32_t thread : active.waiting_threads) {
    const ThreadGather* const gather = thread == 0 ? nullptr : frames_->GatherOf(thread);
    const uint64_t ticket = gather == nullptr ? 0 : gather->ticket.load(std::memory_order_relaxed);
    if (ticket != 0 && (oldest == 0 || ticket < oldest)) oldest = ticket;
  }
  return oldest;
}

void Engine::HearTicket(uint64_t ticket) {
  uint64_t last = last_ticket_.load(std::memory_order_relaxed);
  while (ticket > last && ticket < kMostTicket && !HK_MUTANT(engine_deaf_to_tickets) &&
         !last_ticket_.compare_exchange_weak(last, ticket, std::memory_order_relaxed)) {
  }
}

}  // namespace hk::space
