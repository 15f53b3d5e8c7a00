// A world as bytes, by which it is known again, and as text.
#include <cstdint>
#include <string>

#include "tests/sim/protocol_world.h"

namespace hk::sim {
namespace {

std::string TextOf(const PageMessage& m) {
  static constexpr const char* kNames[] = {"Request", "Forward", "Answer",   "Nack",  "Invalidate",   "Ack",
                                           "Done",    "Release", "Released", "Evict", "EvictGranted", "EvictDenied",
                                           "Offer",   "Stopped", "Peek",     "Peeked"};
  return std::string(kNames[static_cast<int>(m.type)]) + " " + std::to_string(m.from.value()) + "->" +
         std::to_string(m.to.value()) + " for " + std::to_string(m.requester.value()) + " kind " +
         std::to_string(static_cast<int>(m.kind)) + " serial " + std::to_string(m.serial) + " acks " +
         std::to_string(m.acks.bits()) + " right " + std::to_string(static_cast<int>(m.right)) + " source " +
         std::to_string(static_cast<int>(m.source)) + (m.has_copy ? " has a copy" : "") +
         (m.peeks ? " peeks " + std::to_string(m.asked.value()) : "") + (m.declined ? " declined" : "");
}

void Put(std::string* out, uint64_t value) {
  out->push_back(static_cast<char>(value));
}

void Put(std::string* out, const PageMessage& m) {
  for (uint64_t field :
       {uint64_t{static_cast<uint8_t>(m.type)}, uint64_t{m.from.value()}, uint64_t{m.to.value()},
        uint64_t{m.requester.value()}, m.transaction, m.serial, uint64_t{static_cast<uint8_t>(m.kind)},
        uint64_t{m.has_copy}, uint64_t{static_cast<uint8_t>(m.right)}, uint64_t{static_cast<uint8_t>(m.source)},
        m.acks.bits(), uint64_t{static_cast<uint8_t>(m.reason)}, uint64_t{m.peeks}, uint64_t{m.asked.value()},
        uint64_t{m.declined}}) {
    Put(out, field);
  }
}

}  // namespace

void World::Serialize(std::string* out) const {
  out->clear();
  for (int value : {latest_, stored_, ops_, int{mirrored_}, int{moved_}, home_, crashed_, left_, joined_, int{lost_}}) {
    Put(out, static_cast<uint64_t>(value));
  }
  Put(out, serial_);
  Put(out, owned_);
  for (const WorldNode& node : nodes_) {
    const Page& page = node.page;
    for (uint64_t field : {uint64_t{static_cast<uint8_t>(page.state)},
                           uint64_t{page.held},
                           uint64_t{page.pins},
                           uint64_t{page.deferred.active},
                           page.transaction,
                           uint64_t{static_cast<uint8_t>(page.kind)},
                           uint64_t{page.answered},
                           page.acked.bits(),
                           uint64_t{page.retained},
                           page.retained ? page.retained_serial : 0,
                           uint64_t{page.retained ? page.retained_for.value() : uint16_t{0}},
                           uint64_t{static_cast<uint8_t>(node.hardware)},
                           uint64_t(HasBytes(page.state) ? node.frame : 0),
                           uint64_t(page.retained ? node.retained : 0),
                           uint64_t(page.answered || page.peek == PeekStage::kHere ? node.kept : 0),
                           uint64_t{static_cast<uint8_t>(page.peek)},
                           config_->peeks ? node.heard : 0,
                           uint64_t(node.ops),
                           node.transaction,
                           uint64_t{node.home.value()},
                           uint64_t{node.alive},
                           uint64_t{static_cast<uint8_t>(node.wish)}}) {
      Put(out, field);
    }
    if (page.answered) Put(out, page.answer);
    if (page.deferred.active) {
      Put(out, static_cast<uint64_t>(page.deferred.type));
      Put(out, page.deferred.message);
    }
  }
  for (int h = 0; h < config_->nodes; ++h) {
    const DirectoryEntry& e = homes_[h];
    Put(out, static_cast<uint64_t>(e.state));
    if (e.state == DirectoryState::kElsewhere) continue;
    for (uint64_t field : {uint64_t{e.owner.value()}, e.copyset.bits(), uint64_t{e.ever_written}, uint64_t{e.frozen},
                           uint64_t{e.releasing}, e.releasing ? e.released_serial : 0,
                           uint64_t{e.releasing ? e.released_node.value() : uint16_t{0}}, uint64_t{e.waiting_count}}) {
      Put(out, field);
    }
    for (size_t i = 0; i < e.waiting_count; ++i) Put(out, e.waiting[i]);
    if (!IsUnderWay(e)) continue;
    Put(out, e.current);
    for (uint64_t field :
         {e.serial, uint64_t{static_cast<uint8_t>(e.before)}, uint64_t{static_cast<uint8_t>(e.after)},
          uint64_t{e.after_owner.value()}, e.after_copyset.bits(), uint64_t{e.leaves}, uint64_t{e.leaver.value()}}) {
      Put(out, field);
    }
  }
  for (const Flight& flight : flights_) {
    Put(out, flight.channel_class);
    Put(out, flight.message);
    Put(out, static_cast<uint64_t>(flight.version));
  }
}

std::string World::Describe(const Choice& choice) const {
  const std::string node = "node " + std::to_string(choice.node) + " ";
  switch (choice.kind) {
    case Choice::kOp:
      return node + (choice.store ? "stores" : Name(choice.op)) +
             (choice.asked >= 0 ? ", peeks " + std::to_string(choice.asked) : "");
    case Choice::kDeliver:
      return flights_[choice.flight].channel_class == kMirrorClass
                 ? "Mirrored"
                 : TextOf(flights_[choice.flight].message) +
                       (flights_[choice.flight].channel_class == 2 ? " (bulk)" : "");
    case Choice::kHoldOver:
      return node + "HoldOver";
    case Choice::kFreeze:
      return "Freeze";
    case Choice::kMoveOut:
      return "MoveOut";
    case Choice::kCrash:
      return node + "crashes";
    case Choice::kLeave:
      return node + "leaves";
    case Choice::kJoin:
      return node + (choice.moves ? "joins, and is the home" : "joins");
  }
  return "";
}

std::string World::Describe() const {
  std::string text =
      "    home " + std::string(Name(homes_[home_].state)) + ", last store " + std::to_string(latest_) + ";";
  for (const WorldNode& node : nodes_) {
    text += " " + std::string(node.alive ? Name(node.page.state) : "dead") + "/" + std::to_string(node.frame) +
            (node.page.retained ? "+retained" : "") + (node.page.deferred.active ? "+deferred" : "");
  }
  return text;
}

}  // namespace hk::sim
