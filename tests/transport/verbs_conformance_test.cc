// The conformance suite over verbs: several nodes on one device of this host, by default rxe in the lab. Skipped where
// there is no device. HK_VERBS_ADDRESS: the address of the device's network interface.
#include <cstdlib>
#include <iostream>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/address.h"
#include "hyperkernel/base/mutex.h"
#include "rdma/engine.h"
#include "rdma/verbs_connections.h"
#include "rdma/verbs_device.h"
#include "rdma/verbs_transport.h"
#include "tests/transport/conformance.h"
#include "tests/transport/verbs_hostile_test.h"
#include "tests/transport/verbs_stranger.h"

namespace hk {
namespace {

std::string DeviceAddress() {
  const char* address = std::getenv("HK_VERBS_ADDRESS");
  return address != nullptr ? address : "";
}

// A network that can be cut where connections begin: to a port where nobody listens.
class CuttableWire final : public Wire {
 public:
  using IsCut = std::function<bool(NodeId peer)>;

  CuttableWire(std::unique_ptr<VerbsWire> wire, IsCut is_cut) : wire_(std::move(wire)), is_cut_(std::move(is_cut)) {}

  absl::Status Start(Engine* engine) override { return wire_->Start(engine); }
  void Stop() override { wire_->Stop(); }
  void Dial(NodeId peer, const std::string& address, const Hello& hello, uint64_t attempt) override {
    wire_->Dial(peer, is_cut_(peer) ? fmt::format("{}:1", DeviceAddress()) : address, hello, attempt);
  }
  absl::Status CheckAddress(const std::string& address) const override { return wire_->CheckAddress(address); }
  void WakeClass(MessageClass message_class) override { wire_->WakeClass(message_class); }
  void WakeControl() override { wire_->WakeControl(); }
  uint64_t Random() override { return wire_->Random(); }

 private:
  const std::unique_ptr<VerbsWire> wire_;
  const IsCut is_cut_;
};

class VerbsBackEnd final : public ThreadedBackEnd {
 public:
  explicit VerbsBackEnd(WaitMode wait) : wait_(wait) {}

  absl::StatusOr<std::unique_ptr<Transport>> Make(const TransportSettings& settings,
                                                  TransportHandler* handler) override {
    TransportSettings with_wait = settings;
    with_wait.wait = wait_;
    const auto listen = ParseAddress(Address(settings.self, settings.self), AddressForm::kListenTcp);
    if (!listen.ok()) return listen.status();
    const NodeId self = settings.self;
    auto wire = std::make_unique<VerbsWire>(with_wait, *listen);
    VerbsWire* const breaks = wire.get();
    auto cuttable = std::make_unique<CuttableWire>(std::move(wire), [this, self](NodeId peer) {
      MutexLock lock(&mutex_);
      return cut_.contains({self, peer}) || cut_.contains({peer, self});
    });
    auto engine = Engine::Create(with_wait, handler, std::move(cuttable), kSlotRoomBytes);
    if (engine.ok()) wires_[self] = breaks;
    return engine;
  }
  std::string Address(NodeId /*from*/, NodeId to) override {
    return fmt::format("{}:{}", DeviceAddress(), 7100 + to.value());
  }
  bool Break(NodeId a, NodeId b) override {
    // One end is enough: the other learns it from its device.
    wires_.at(a)->Break(b);
    return true;
  }
  bool Cut(NodeId a, NodeId b) override {
    {
      MutexLock lock(&mutex_);
      cut_.insert({a, b});
    }
    if (wires_.contains(a)) wires_.at(a)->Break(b);
    if (wires_.contains(b)) wires_.at(b)->Break(a);
    return true;
  }
  std::unique_ptr<Stranger> Connect(NodeId to) override { return std::make_unique<VerbsStranger>(Address(to, to)); }
  void Heal(NodeId a, NodeId b) override {
    MutexLock lock(&mutex_);
    cut_.erase({a, b});
    cut_.erase({b, a});
  }

 private:
  const WaitMode wait_;
  std::map<NodeId, VerbsWire*> wires_;  // of nodes that may be gone: only those of the living are asked
  Mutex mutex_;
  std::set<std::pair<NodeId, NodeId>> cut_ ABSL_GUARDED_BY(mutex_);
};

BackEndMaker Maker(WaitMode wait) {
  return {[wait] { return std::make_unique<VerbsBackEnd>(wait); }};
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(Blocking, TransportConformance, testing::Values(Maker(WaitMode::kBlocking)));
INSTANTIATE_TEST_SUITE_P(Blocking, VerbsHostile, testing::Values(Maker(WaitMode::kBlocking)));

}  // namespace hk

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  // What verbs have not: a connection before its hello, which is private data of the request to connect; and a message
  // of which a part arrives, since sends have an end.
  if (testing::GTEST_FLAG(filter) == "*") {
    testing::GTEST_FLAG(filter) = "-*.ASilentStranger*:*.StrangersAreBounded*:*.ATruncatedMessage*";
  }
  const auto devices = hk::ListVerbsDevices();
  if (!devices.ok() || devices->empty() || hk::DeviceAddress().empty()) {
    std::cout << "skipped: no verbs device on this host, or HK_VERBS_ADDRESS does not name its address; in the lab: "
                 "tests/run lab\n";
    return 0;
  }
  return RUN_ALL_TESTS();
}
