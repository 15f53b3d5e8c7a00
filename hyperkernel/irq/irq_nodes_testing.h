// What tests of interrupts across nodes share: a guest's controllers on several nodes over a network in memory.
#pragma once

#include <cstddef>
#include <cstdio>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "hyperkernel/base/check.h"
#include "hyperkernel/irq/interrupt_controller.h"
#include "hyperkernel/irq/irq_testing.h"

namespace hk {

using InterruptBytes = std::vector<std::byte>;

// What is on its way between nodes 0 to nodes - 1: a queue for each pair, delivered when the test says so. Not
// thread-safe.
class InterruptNetwork {
 public:
  // A queue takes `room` messages before Send says that it is full.
  InterruptNetwork(uint16_t nodes, size_t room) : nodes_(nodes), room_(room), lanes_(size_t{nodes} * nodes) {
    for (uint16_t i = 0; i < nodes; ++i) {
      links_.push_back(std::make_unique<Link>(this, i));
    }
    controllers.resize(nodes);
  }

  InterruptLink* link(uint16_t node) { return links_[node].get(); }
  size_t waiting(uint16_t from, uint16_t to) const { return LaneOf(from, to).messages.size(); }
  bool idle() const {
    for (const Lane& lane : lanes_) {
      if (!lane.messages.empty()) return false;
    }
    return true;
  }
  // The oldest message of the pair, taken off.
  InterruptBytes Take(uint16_t from, uint16_t to) {
    Lane& lane = LaneOf(from, to);
    InterruptBytes bytes = std::move(lane.messages.front());
    lane.messages.pop_front();
    if (lane.full && lane.messages.size() <= room_ / 2) {
      lane.full = false;
      controllers[from]->OnWritable(NodeId(to));
    }
    return bytes;
  }
  // Delivers the oldest message of the pair. Its receiver finds nothing wrong with it.
  void Deliver(uint16_t from, uint16_t to) {
    const InterruptBytes bytes = Take(from, to);
    const absl::Status status = controllers[to]->OnMessage(NodeId(from), bytes);
    if (!status.ok()) {
      std::fprintf(stderr, "%s: %s\n", name.c_str(), std::string(status.message()).c_str());
    }
    HK_CHECK(status.ok());
    ++delivered;
  }
  // Until nothing is on its way.
  void Drain() {
    for (int rounds = 0; !idle(); ++rounds) {
      HK_CHECK(rounds < 10000);
      for (uint16_t from = 0; from < nodes_; ++from) {
        for (uint16_t to = 0; to < nodes_; ++to) {
          while (waiting(from, to) != 0) Deliver(from, to);
        }
      }
    }
  }

  std::vector<InterruptController*> controllers;
  std::string name = "network";  // said when a check fails
  uint64_t delivered = 0, refused = 0;

 private:
  class Link final : public InterruptLink {
   public:
    Link(InterruptNetwork* network, uint16_t self) : network_(network), self_(self) {}
    bool Send(NodeId to, std::span<const std::byte> bytes) override {
      HK_CHECK(to.value() < network_->nodes_ && to.value() != self_ && bytes.size() <= kMaxInterruptBytes);
      Lane& lane = network_->LaneOf(self_, to.value());
      HK_CHECK(!lane.full);
      lane.messages.emplace_back(bytes.begin(), bytes.end());
      lane.full = lane.messages.size() >= network_->room_;
      network_->refused += lane.full;
      return !lane.full;
    }

   private:
    InterruptNetwork* const network_;
    const uint16_t self_;
  };
  struct Lane {
    std::deque<InterruptBytes> messages;
    bool full = false;
  };
  Lane& LaneOf(uint16_t from, uint16_t to) { return lanes_[size_t{from} * nodes_ + to]; }
  const Lane& LaneOf(uint16_t from, uint16_t to) const { return lanes_[size_t{from} * nodes_ + to]; }

  const uint16_t nodes_;
  const size_t room_;
  std::vector<Lane> lanes_;
  std::vector<std::unique_ptr<Link>> links_;
};

// A guest's controllers on nodes 0 to nodes - 1, vCPUs dealt out in turn; the I/O APIC is on the last node.
class InterruptCluster {
 public:
  InterruptCluster(uint16_t nodes, InterruptControllerOptions options, const Clock* clock, VcpuWaker* waker,
                   size_t room = 1000)
      : network(nodes, room), io_node(static_cast<uint16_t>(nodes - 1)) {
    InterruptNodes placement;
    placement.io_node = NodeId(io_node);
    for (uint16_t i = 0; i < nodes; ++i) {
      placement.nodes.push_back(NodeId(i));
    }
    for (uint32_t i = 0; i < options.vcpus; ++i) {
      placement.vcpus.push_back(NodeId(static_cast<uint16_t>(i % nodes)));
      where.push_back(static_cast<uint16_t>(i % nodes));
    }
    for (uint16_t i = 0; i < nodes; ++i) {
      placement.self = NodeId(i);
      placement.link = network.link(i);
      controllers.push_back(std::make_unique<InterruptController>(options, placement, clock, waker));
      network.controllers[i] = controllers.back().get();
    }
  }

  InterruptController& Of(uint32_t vcpu) { return *controllers[where[vcpu]]; }
  VcpuInterrupts& vcpu(uint32_t vcpu) { return Of(vcpu).vcpu(VcpuId(vcpu)); }
  InterruptController& io() { return *controllers[io_node]; }
  // At once, after what the vCPU has sent.
  void Move(uint32_t vcpu, uint16_t to) {
    if (where[vcpu] == to) return;
    while (!Of(vcpu).Drained(VcpuId(vcpu))) {
      HK_CHECK(!network.idle());
      network.Drain();
    }
    const auto moved = Of(vcpu).TakeVcpu(VcpuId(vcpu), NodeId(to));
    HK_CHECK(moved.ok());
    where[vcpu] = to;
    HK_CHECK(Of(vcpu).PutVcpu(VcpuId(vcpu), *moved).ok());
  }
  uint64_t refused() {
    uint64_t sum = 0;
    for (auto& each : controllers) sum += each->ExchangeStatistics().refused;
    return sum;
  }

  InterruptNetwork network;
  const uint16_t io_node;
  std::vector<std::unique_ptr<InterruptController>> controllers;
  std::vector<uint16_t> where;  // the node of each vCPU
};

}  // namespace hk
