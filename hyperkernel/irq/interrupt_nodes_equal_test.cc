// A guest on several nodes sees what it would see on one: random programs over all operations, on one controller and on
// several whose vCPUs move, with the network empty before each operation.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <random>

#include "hyperkernel/irq/irq_nodes_testing.h"
#include "hyperkernel/irq/irq_testing.h"

namespace hk {
namespace {

constexpr uint32_t kSeeds = 400, kSoakSeeds = 40000;

// Looks like one controller.
class SplitController {
 public:
  SplitController(const InterruptControllerOptions& options, const Clock* clock, VcpuWaker* waker)
      : cluster(3, options, clock, waker) {}

  VcpuInterrupts& vcpu(VcpuId vcpu) {
    Prepare();
    return cluster.vcpu(vcpu.value());
  }
  void SetLine(uint8_t pin, bool asserted) {
    Prepare();
    cluster.io().SetLine(pin, asserted);
  }
  bool SendMsi(uint64_t address, uint32_t data) {
    Prepare();
    return cluster.io().SendMsi(address, data);
  }
  bool InjectNmi(VcpuId vcpu) {
    Prepare();
    return cluster.Of(vcpu.value()).InjectNmi(vcpu);
  }
  uint32_t IoApicRead(uint32_t offset) {
    Prepare();
    return cluster.io().IoApicRead(offset);
  }
  void IoApicWrite(uint32_t offset, uint32_t value) {
    Prepare();
    cluster.io().IoApicWrite(offset, value);
  }
  LocalApicState State(uint32_t vcpu) { return cluster.Of(vcpu).SaveVcpu(VcpuId(vcpu)); }

  InterruptCluster cluster;
  std::mt19937 random;
  uint64_t moves = 0;

 private:
  void Prepare() {
    cluster.network.Drain();
    for (uint32_t i = 0; i < cluster.where.size(); ++i) {
      for (auto& controller : cluster.controllers) {
        HK_CHECK(controller->PlaceOf(VcpuId(i)).node == NodeId(cluster.where[i]));
      }
    }
    if (random() % 8 == 0) {
      cluster.Move(random() % static_cast<uint32_t>(cluster.where.size()), random() % 3);
      ++moves;
      if (random() % 2 == 0) cluster.network.Drain();
    }
  }
};

std::vector<uint8_t> RandomProgram(std::mt19937& random, size_t bytes) {
  // Registers that matter, more often than chance has them.
  static constexpr uint8_t kRegisters[] = {0x30, 0x30, 0x30, 0x0f, 0x08, 0x0b, 0x32, 0x38, 0x3f, 0x0d, 0x0e, 0x28};
  std::vector<uint8_t> program;
  while (program.size() < bytes) {
    const uint32_t roll = random() % 10;
    const auto vcpu = static_cast<uint8_t>((random() & 3) << 4);
    const auto byte = [&](uint32_t value) { program.push_back(static_cast<uint8_t>(value)); };
    if (roll < 2) {  // an APIC that accepts
      byte(vcpu | (random() % 2 ? 0 : 2));
      byte(0x0f);
      byte(0xff);
      byte(random() % 4 != 0);
      byte(0);
      byte(0);
    } else if (roll < 5) {  // an ICR write; the shorthands, modes and destinations that mean something
      const bool x2apic = random() % 2 == 0;
      byte(vcpu | (x2apic ? 0 : 2));
      byte(x2apic ? 0x30 : 0x31);
      if (!x2apic) {
        byte(0), byte(0), byte(0), byte(random() % 6 == 0 ? random() : random() & 3);
        byte(vcpu | 2);
        byte(0x30);
      }
      static constexpr uint8_t kModes[] = {0, 0, 0, 4, 5, 6};
      byte(random() % 3 == 0 ? random() : 0x20 + random() % 64);
      byte(kModes[random() % 6] | (random() % 4 == 0 ? 0x48 : 0x40));
      byte(random() % 4 == 0 ? random() & 0xc : 0);
      byte(0);
      if (x2apic) byte(random() & 3);
    } else if (roll < 6) {  // a pin
      const uint32_t pin = random() % 4;
      byte(10);
      byte(0x10 + 2 * pin);
      byte(0x20 + random() % 100), byte(random() % 2 == 0 ? 0x80 : 0x88), byte(0), byte(0);
      byte(7);
      byte(pin | (random() % 2 == 0 ? 0x80 : 0));
    } else if (roll < 8) {
      byte(vcpu | (4 + random() % 2));
      if (random() % 2 == 0) byte(vcpu | 13);
    } else if (roll < 9) {
      byte(vcpu | random() % 4);
      byte(kRegisters[random() % std::size(kRegisters)]);
      for (int i = 0; i < 4; ++i) byte(random());
    } else {
      byte(random());
      for (int i = 0; i < 8; ++i) byte(random());
    }
  }
  return program;
}

LocalApicState WithoutGenerations(LocalApicState state) {
  for (LevelSource& source : state.level_sources) source.generation = 0;
  return state;
}

TEST(InterruptNodesEqual, OneNodeOrThree) {
  const char* only = std::getenv("HK_SEED");
  const uint32_t seeds = std::getenv("HK_SOAK") != nullptr ? kSoakSeeds : kSeeds;
  uint64_t moves = 0, forwarded = 0, messages = 0;
  for (uint32_t i = 0; i < (only != nullptr ? 1 : seeds) && !testing::Test::HasFailure(); ++i) {
    const uint32_t seed = only != nullptr ? static_cast<uint32_t>(std::atoi(only)) : i;
    SCOPED_TRACE("HK_SEED=" + std::to_string(seed));
    std::mt19937 random(seed);
    const bool x2apic = random() % 2 == 0;
    IrqProgram<InterruptController> one(x2apic, false);
    IrqProgram<SplitController> several(x2apic, false);
    several.controller().random.seed(seed);
    several.controller().cluster.network.name = "HK_SEED=" + std::to_string(seed);
    for (int part = 0; part < 40; ++part) {
      const auto program = RandomProgram(random, 60);
      one.Run(program);
      several.Run(program);
      several.controller().cluster.network.Drain();
      ASSERT_EQ(one.seen, several.seen) << "in part " << part;
      for (uint32_t vcpu = 0; vcpu < one.kVcpus; ++vcpu) {
        // Whoever is woken on one node is on several; moves wake too.
        ASSERT_LE(std::ranges::count(one.woken(), vcpu), std::ranges::count(several.woken(), vcpu));
        ASSERT_TRUE(WithoutGenerations(one.controller().SaveVcpu(VcpuId(vcpu))) ==
                    WithoutGenerations(several.controller().State(vcpu)))
            << "vCPU " << vcpu << " in part " << part;
      }
      IoApicState wanted = one.controller().SaveIoApic(), found = several.controller().cluster.io().SaveIoApic();
      wanted.generations = found.generations = {};
      ASSERT_TRUE(wanted == found) << "I/O APIC in part " << part;
    }
    moves += several.controller().moves;
    messages += several.controller().cluster.network.delivered;
    for (auto& each : several.controller().cluster.controllers) forwarded += each->ExchangeStatistics().forwarded;
    EXPECT_EQ(several.controller().cluster.refused(), 0u);
  }
  if (only == nullptr && !testing::Test::HasFailure()) {
    EXPECT_GT(moves, seeds * 20u);
    EXPECT_GT(messages, seeds * 100u);
    EXPECT_GT(forwarded, 0u);
  }
}

}  // namespace
}  // namespace hk
