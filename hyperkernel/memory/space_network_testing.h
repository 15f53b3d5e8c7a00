// For unit tests of several fault engines: their messages are delivered when the test says so. No thread safety.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/memory/engine_testing.h"
#include "hyperkernel/memory/space_engine.h"
#include "hyperkernel/memory/space_testing.h"

namespace hk {

using Bytes = std::array<char, kPageSize>;

// Everything that was sent and has not arrived. In order for each class; classes as the test takes them.
struct Sent {
  NodeId from, to;
  Message message;
  std::vector<std::byte> body, payload;
};
using Network = std::deque<Sent>;

// A node's end of the network. Slots are checked: each is released once.
class TestTransport final : public NotingTransport {
 public:
  TestTransport(NodeId self, Network* network) : self_(self), network_(network) {}
  absl::Status Send(NodeId to, const Message& message, const SendOptions& options) override {
    Sent& sent = network_->emplace_back();
    sent.from = self_;
    sent.to = to;
    sent.message = message;
    sent.body.assign(message.body.begin(), message.body.end());
    if (options.payload_bytes != 0) {
      const std::span<std::byte> bytes = SlotBytes(options.payload).first(options.payload_bytes);
      sent.payload.assign(bytes.begin(), bytes.end());
    }
    if (!message.answer && message.slot != SlotId() && message.slot_node == self_) {
      asked.insert(lent.extract(message.slot.value()));
    }
    return absl::OkStatus();
  }
  absl::StatusOr<SlotId> AcquireSlot(MessageClass message_class, SlotUse use) override {
    if (use == SlotUse::kSend && message_class == MessageClass::kBulk && bulk_send_slots == 0) {
      return absl::ResourceExhaustedError("none");
    }
    const uint64_t slot = ++next_slot_ << 4 | self_.value();
    lent[slot].resize(message_class == MessageClass::kBulk ? kBulkSlotBytes : kFaultSlotBytes);
    return SlotId(slot);
  }
  std::span<std::byte> SlotBytes(SlotId slot) override { return lent.at(slot.value()); }
  void ReleaseSlot(SlotId slot) override { EXPECT_EQ(lent.erase(slot.value()), 1u); }

  std::map<uint64_t, std::vector<std::byte>> lent, asked;
  int bulk_send_slots = 100;

 private:
  const NodeId self_;
  Network* const network_;
  uint64_t next_slot_ = 0;
};

// Engines, each with frames, timers and its end of the network; no time passes by itself.
class SpaceNetworkTest : public testing::Test {
 protected:
  struct Node {
    Node(NodeId id, Network* network, FakeClock* clock) : transport(id, network), timers(clock) {}
    FakeFrames frames;
    TestTransport transport;
    FakeTimers timers;
    std::unique_ptr<SpaceEngine> engine;
  };
  void Make(uint16_t count) {
    SpaceConfig config;
    config.guest = GuestId(5);
    config.pages = 8 * kExtentPages;
    for (uint16_t i = 0; i < count; ++i) config.nodes.push_back(NodeId(i));
    for (const NodeId id : config.nodes) {
      nodes_.push_back(std::make_unique<Node>(id, &network_, &clock_));
      Node& node = *nodes_.back();
      config.self = id;
      absl::StatusOr<std::unique_ptr<SpaceEngine>> made =
          SpaceEngine::Create(config, &node.transport, &node.frames, &node.timers, clock_,
                              [this](const absl::Status& why) { stops_.emplace_back(why.message()); });
      ASSERT_TRUE(made.ok()) << made.status();
      node.engine = *std::move(made);
    }
  }
  ~SpaceNetworkTest() override {
    EXPECT_THAT(stops_, testing::IsEmpty());
    for (const auto& node : nodes_) {
      const SpaceResidue residue = node->engine->Residue();
      EXPECT_EQ(residue.active_pages + residue.busy_entries + residue.prefetches, 0u);
      EXPECT_EQ(node->engine->Statistics().stale_messages, 0u);
      EXPECT_TRUE(node->transport.lent.empty() && node->transport.asked.empty());
    }
  }

  // After a stop: what is left on the way is nobody's.
  void Forget() {
    stops_.clear();
    nodes_.clear();
    network_.clear();
  }
  // Delivers the first message that `which` holds of.
  template <typename Which>
  bool DeliverOne(Which which) {
    for (auto at = network_.begin(); at != network_.end(); ++at) {
      if (!which(*at)) continue;
      Sent sent = std::move(*at);
      network_.erase(at);
      TestTransport& to = nodes_[sent.to.value()]->transport;
      sent.message.body = sent.body;
      std::span<const std::byte> payload;
      if (sent.message.answer) {
        auto slot = to.asked.extract(sent.message.slot.value());
        EXPECT_FALSE(slot.empty());
        std::copy(sent.payload.begin(), sent.payload.end(), slot.mapped().begin());
        payload = std::span(slot.mapped()).first(sent.payload.size());
        to.lent.insert(std::move(slot));
      }
      nodes_[sent.to.value()]->engine->OnMessage(sent.from, sent.message, payload, false);
      return true;
    }
    return false;
  }
  void DeliverAll() {
    while (DeliverOne([](const Sent&) { return true; })) {
    }
  }
  size_t Waiting(uint16_t type) const {
    return static_cast<size_t>(
        std::count_if(network_.begin(), network_.end(), [type](const Sent& s) { return s.message.type == type; }));
  }
  void Pass(Monotonic::duration time) {
    clock_.now += time;
    for (const auto& node : nodes_) node->timers.Advance({});
    DeliverAll();
  }
  static char ByteOf(uint64_t page) { return static_cast<char>('a' + page % 26); }
  // The node writes the pages, and holds none of them any more.
  void Write(size_t node, uint64_t first, uint64_t count) {
    for (uint64_t page = first; page < first + count; ++page) {
      const auto bytes = std::make_shared<Bytes>();  // until it is written
      bytes->fill(ByteOf(page));
      nodes_[node]->engine->Replace(Gfn(page), std::as_bytes(std::span(*bytes)),
                                    [bytes](const absl::Status& status) { EXPECT_TRUE(status.ok()); });
      DeliverAll();
    }
    Pass(std::chrono::milliseconds(1));
  }
  // A program reads in order, each page when it is there.
  void ReadInOrder(size_t node, uint64_t first, uint64_t count) {
    for (uint64_t page = first; page < first + count; ++page) {
      if (!nodes_[node]->frames.pages.contains(page)) nodes_[node]->engine->OnFault(Gfn(page), false);
      DeliverAll();
      Expect(node, page, ByteOf(page));
    }
  }
  void Expect(size_t node, uint64_t page, char byte) {
    const auto found = nodes_[node]->frames.pages.find(page);
    ASSERT_NE(found, nodes_[node]->frames.pages.end()) << page;
    EXPECT_EQ(std::to_integer<char>(found->second.second.front()), byte) << page;
    EXPECT_EQ(std::to_integer<char>(found->second.second.back()), byte) << page;
  }
  ptrdiff_t Woken(size_t node, uint64_t page) const {
    return std::count(nodes_[node]->frames.woken.begin(), nodes_[node]->frames.woken.end(), page);
  }
  SpaceStatistics Of(size_t node) const { return nodes_[node]->engine->Statistics(); }

  FakeClock clock_;
  Network network_;
  std::vector<std::unique_ptr<Node>> nodes_;
  std::vector<std::string> stops_;
};

}  // namespace hk
