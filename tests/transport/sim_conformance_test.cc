// The conformance suite over the simulator: with payloads in the stream, as TCP has them, and with payloads that land
// by themselves, as RDMA writes do.

#include <cstdlib>
#include <string>

#include "rdma/sim_transport.h"
#include "tests/transport/conformance.h"

namespace hk {
namespace {

// What no run of a test needs: it hangs.
constexpr std::chrono::hours kHangGuard(1);
constexpr uint64_t kMostEvents = 400'000;

uint64_t Seed() {
  const char* const seed = std::getenv("HK_SEED");
  return seed == nullptr ? 1 : std::strtoull(seed, nullptr, 10);
}

// A stranger's end of a connection.
class SimStranger final : public Stranger {
 public:
  SimStranger(SimNetwork* network, NodeId to)
      : sink_(std::make_shared<Sink>()), socket_(network->Connect(SimNetwork::kNowhere, to, sink_)) {}
  void Write(std::span<const std::byte> bytes) override { socket_->Send(bytes); }
  std::vector<std::byte> Read() override { return sink_->bytes; }
  bool Closed() override { return sink_->closed; }

 private:
  // What came.
  struct Sink final : public SimSocketHandler {
    void OnConnected() override {}
    void OnBytes(std::span<const std::byte> more) override { bytes.insert(bytes.end(), more.begin(), more.end()); }
    void OnWrite(SlotId /*slot*/, std::span<const std::byte> /*payload*/) override {}
    void OnClosed() override { closed = true; }
    std::vector<std::byte> bytes;
    bool closed = false;
  };

  std::shared_ptr<Sink> sink_;
  std::unique_ptr<SimSocket> socket_;
};

// Virtual time: waiting runs the next events. One thread.
class SimBackEnd final : public BackEnd {
 public:
  explicit SimBackEnd(const SimNetworkSettings& settings) : simulation_(Seed()), network_(&simulation_, settings) {}

  absl::StatusOr<std::unique_ptr<Transport>> Make(const TransportSettings& settings,
                                                  TransportHandler* handler) override {
    return MakeSimTransport(&network_, settings, handler);
  }
  std::string Address(NodeId /*from*/, NodeId to) override { return SimNetwork::AddressOf(to); }
  bool RunUntil(const std::function<bool()>& condition) override {
    const Monotonic guard = simulation_.Now() + kHangGuard;
    for (uint64_t events = 0; events < kMostEvents && simulation_.Now() < guard; ++events) {
      if (condition()) return true;
      if (!simulation_.Step()) return false;
    }
    return false;
  }
  std::function<void()> Spawn(std::function<void()> work) override {
    auto done = std::make_shared<bool>(false);
    simulation_.After({}, [work = std::move(work), done] {
      work();
      *done = true;
    });
    return [this, done] { EXPECT_TRUE(RunUntil([&] { return *done; })); };
  }
  void Hold(NodeId node, MessageClass message_class) override { held_.insert({node, message_class}); }
  void Pause(NodeId node, MessageClass message_class) override {
    if (held_.count({node, message_class}) != 0) network_.SetBusy(node, message_class, true);
  }
  void Resume(NodeId node, MessageClass message_class) override {
    held_.erase({node, message_class});
    network_.SetBusy(node, message_class, false);
  }
  bool Break(NodeId a, NodeId b) override {
    network_.Break(a, b);
    return true;
  }
  bool Cut(NodeId a, NodeId b) override {
    network_.Cut(a, b);
    return true;
  }
  bool Silence(NodeId a, NodeId b) override {
    network_.Silence(a, b);
    network_.Silence(b, a);
    return true;
  }
  void Heal(NodeId a, NodeId b) override { network_.Heal(a, b); }
  std::unique_ptr<Stranger> Connect(NodeId to) override {
    // A stranger of direct writes would need a device, and speaks no stream.
    if (network_.settings().direct_writes) return nullptr;
    return std::make_unique<SimStranger>(&network_, to);
  }

 private:
  Simulation simulation_;
  SimNetwork network_;
  std::set<std::pair<NodeId, MessageClass>> held_;
};

std::unique_ptr<BackEnd> MakeStream() {
  SimNetworkSettings settings;
  settings.splits_per_million = 300'000;
  settings.spikes_per_million = 10'000;
  settings.spike_delay = std::chrono::milliseconds(5);
  settings.repeats_per_million = 50'000;
  return std::make_unique<SimBackEnd>(settings);
}

std::unique_ptr<BackEnd> MakeDirect() {
  SimNetworkSettings settings;
  settings.direct_writes = true;
  return std::make_unique<SimBackEnd>(settings);
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(SimStream, TransportConformance, testing::Values(BackEndMaker{MakeStream}),
                         [](const auto&) { return "stream"; });
INSTANTIATE_TEST_SUITE_P(SimDirect, TransportConformance, testing::Values(BackEndMaker{MakeDirect}),
                         [](const auto&) { return "direct"; });

}  // namespace hk
