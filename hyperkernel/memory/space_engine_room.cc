// What the other nodes say of their room for pages, and which of them is offered one. README.md, "The engine", 11.
#include <algorithm>

#include "hyperkernel/base/mutant.h"
#include "hyperkernel/memory/page_wire.h"
#include "hyperkernel/memory/space_engine_impl.h"

namespace hk::space {

uint64_t Engine::KeptFrames(bool urgent) const {
  return urgent && !HK_MUTANT(engine_keeps_frames_from_the_needy) ? FramesKept(config_.max_pages)
                                                                  : config_.max_pages / kCopiesShare;
}

uint64_t Engine::RoomForOthers(bool urgent, uint64_t without) const {
  if (leaving()) return 0;
  if (config_.max_pages == 0) return kMaxSpacePages;
  const uint64_t frames = frames_taken_.load();
  const uint64_t taken = frames - std::min(frames, without) + KeptFrames(urgent);
  return taken < config_.max_pages ? config_.max_pages - taken : 0;
}

void Engine::WantRoom(bool urgent) {
  if (urgent) pressed_.store(true);
  room_wanted_.store(true);
  frames_due_.store(true, std::memory_order_release);
}

void Engine::TellRoom(Shard* shard, NodeId to, bool urgent) {
  const uint64_t room = RoomForOthers(urgent);
  {
    MutexLock lock(&rooms_mutex_);
    Room& known = rooms_[to.value()];
    const Monotonic now = clock_.Now();
    if (room != 0 && now < known.told_until) return;
    known.told_until = now + kRoomInterval;
  }
  // Only a hint: never behind what waits.
  if (outbox_.waiting(to, MessageClass::kBulk) > 0) return;
  PageBody body;
  Message message = SpaceRoomMessage(room, &body);
  message.guest = config_.guest;
  message.generation = config_.generation;
  message.epoch = shard->epoch;
  static_cast<void>(outbox_.Send(to, message, body, {}, {}, {}));
}

void Engine::OnRoom(NodeId from, uint64_t pages) {
  MutexLock lock(&rooms_mutex_);
  Room& room = rooms_[from.value()];
  room.pages = pages;
  if (pages == 0) room.unasked_until = clock_.Now() + kRoomPause;
}

bool Engine::SomebodyHasRoom() {
  MutexLock lock(&rooms_mutex_);
  const Monotonic now = clock_.Now();
  for (const NodeId node : config_.nodes) {
    const Room& room = rooms_[node.value()];
    if (node != config_.self && (room.pages > 0 || now >= room.unasked_until)) return true;
  }
  return false;
}

bool Engine::NextToOffer(NodeSet among, NodeId* node) {
  MutexLock lock(&rooms_mutex_);
  const Monotonic now = clock_.Now();
  Room* best = nullptr;
  const size_t count = config_.nodes.size();
  const size_t first = next_offer_++;
  for (size_t i = 0; i < count; ++i) {
    const NodeId candidate = config_.nodes[(first + i) % count];
    if (candidate == config_.self || !among.Contains(candidate)) continue;
    Room& room = rooms_[candidate.value()];
    if (room.pages == 0 && now >= room.unasked_until) room.pages = kMaxSpacePages;  // it may have some again
    // Offers are hints: they do not pile up behind a connection that is busy.
    if (room.pages == 0 || outbox_.waiting(candidate, MessageClass::kBulk) > 0) continue;
    if (best != nullptr && room.pages <= best->pages) continue;
    best = &room;
    *node = candidate;
  }
  if (best != nullptr && best->pages < kMaxSpacePages && --best->pages == 0) best->unasked_until = now + kRoomPause;
  return best != nullptr;
}

}  // namespace hk::space
