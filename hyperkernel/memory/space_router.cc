#include "hyperkernel/memory/space_router.h"

#include <chrono>
#include <map>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/mutex.h"

namespace hk {
namespace {

// Handlers do not block; a call that takes so long is told, and waited for all the same.
constexpr std::chrono::seconds kLongCall{10};

}  // namespace

// Who takes part, and the calls of each under way. Thread-safe.
struct SpaceRouter::Table {
  // Identifies a receiver on this node.
  using Key = std::pair<GuestId, uint32_t>;
  // A receiver in the table. `leaving`: gets no new calls.
  struct Entry {
    GuestReceiver* receiver = nullptr;
    uint32_t calls = 0;
    bool leaving = false;
  };

  // Calls the receiver of `key`. False: there is none.
  template <typename Call>
  bool One(Key key, const Call& call) {
    Entry* entry = nullptr;
    {
      MutexLock lock(&mutex);
      const auto found = entries.find(key);
      if (found == entries.end() || found->second.leaving) return false;
      entry = &found->second;
      entry->calls++;
    }
    call(entry->receiver);
    Leave(entry);
    return true;
  }
  // Calls every receiver.
  template <typename Call>
  void All(const Call& call) {
    std::vector<Entry*> present;
    {
      MutexLock lock(&mutex);
      for (auto& [key, entry] : entries) {
        if (entry.leaving) continue;
        entry.calls++;
        present.push_back(&entry);
      }
    }
    for (Entry* entry : present) {
      call(entry->receiver);
      Leave(entry);
    }
  }
  void Leave(Entry* entry) {
    MutexLock lock(&mutex);
    if (--entry->calls == 0 && entry->leaving) idle.SignalAll();
  }

  Mutex mutex;
  CondVar idle;
  std::map<Key, Entry> entries ABSL_GUARDED_BY(mutex);  // entries do not move, and stay while calls are under way
  Transport* transport = nullptr;
};

SpaceRouter::SpaceRouter(Watch watch) : watch_(std::move(watch)), table_(std::make_unique<Table>()) {}
SpaceRouter::~SpaceRouter() = default;

void SpaceRouter::SetTransport(Transport* transport) {
  table_->transport = transport;
}

absl::Status SpaceRouter::Add(GuestId guest, uint32_t generation, GuestReceiver* receiver) {
  MutexLock lock(&table_->mutex);
  if (!table_->entries.try_emplace({guest, generation}, Table::Entry{.receiver = receiver}).second) {
    return absl::AlreadyExistsError(
        fmt::format("guest {}, generation {} is on this node already", guest.value(), generation));
  }
  return absl::OkStatus();
}

void SpaceRouter::Remove(GuestId guest, uint32_t generation) {
  MutexLock lock(&table_->mutex);
  const auto found = table_->entries.find({guest, generation});
  if (found == table_->entries.end()) return;
  HK_CHECK(!found->second.leaving);
  found->second.leaving = true;
  auto told = std::chrono::steady_clock::now() + kLongCall;
  while (found->second.calls > 0) {
    if (table_->idle.WaitUntil(&table_->mutex, told)) continue;
    // Going on would free what the call uses.
    log::Error("memory", "a message is still being handled by what is about to be destroyed",
               {{"guest", fmt::format("{}", guest.value())}});
    told = std::chrono::steady_clock::now() + kLongCall;
  }
  table_->entries.erase(found);
}

void SpaceRouter::OnMessage(NodeId from, const Message& message, std::span<const std::byte> payload, bool late) {
  const bool taken = table_->One({message.guest, message.generation},
                                 [&](GuestReceiver* receiver) { receiver->OnMessage(from, message, payload, late); });
  // A space that was deleted meanwhile, or one that this node never had. The answer's slot is ours again.
  const bool ours = message.answer && !HK_MUTANT(router_keeps_slots);
  if (!taken && ours && table_->transport != nullptr) table_->transport->ReleaseSlot(message.slot);
}

void SpaceRouter::OnPeerUp(NodeId peer) {
  if (watch_.up) watch_.up(peer);
}

void SpaceRouter::OnPeerFailed(NodeId peer, PeerFailure why, const std::string& detail) {
  table_->All([&](GuestReceiver* receiver) { receiver->OnPeerFailed(peer, why, detail); });
  if (watch_.failed) watch_.failed(peer, why, detail);
}

void SpaceRouter::OnWritable(NodeId peer, MessageClass message_class) {
  table_->All([&](GuestReceiver* receiver) { receiver->OnWritable(peer, message_class); });
}

void SpaceRouter::OnSlotsFree(MessageClass message_class, SlotUse use) {
  table_->All([&](GuestReceiver* receiver) { receiver->OnSlotsFree(message_class, use); });
}

// Who asked is not said; slots are unique on a node, so no receiver takes another's for its own.
void SpaceRouter::OnRequestExpired(NodeId asked, MessageClass message_class, uint64_t transaction, SlotId slot,
                                   RequestFailure why) {
  table_->All(
      [&](GuestReceiver* receiver) { receiver->OnRequestExpired(asked, message_class, transaction, slot, why); });
}

}  // namespace hk
