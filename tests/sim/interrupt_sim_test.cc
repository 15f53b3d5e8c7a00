// Interrupts of a guest on several nodes, over a network with delays and full queues, while vCPUs move. The production
// code; one thread, and a seed decides what happens next.
//
// The oracle: of what was sent to an APIC that accepts, every vector arrives once (those that are sent again only after
// they arrived: exactly once), after all that the same source sent it before; INIT, SIPI and NMI in order; a level-
// triggered interrupt only while its line is asserted, and in the end no pin waits for an EOI.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <random>
#include <set>

#include "hyperkernel/irq/irq_nodes_testing.h"

namespace hk {
namespace {

constexpr uint32_t kSeeds = 300, kSoakSeeds = 20000;
constexpr uint32_t kSteps = 3000;
constexpr uint32_t kTogglers = 2;       // vCPUs that cease to accept and begin again; reached by lowest priority only
constexpr uint8_t kFloodVector = 0x20;  // + source: sent again before it arrived
constexpr uint8_t kOnceVector = 0x30;   // + source * kOnceVectors + i
constexpr uint8_t kOnceVectors = 10;
constexpr uint8_t kPinVector = 0xb0;  // + pin
constexpr uint8_t kPins = 4;
constexpr uint8_t kLowestVector = 0xc0;  // + i: MSIs of lowest priority
constexpr uint8_t kLowestVectors = 4;
constexpr uint8_t kDeviceVector = 0xd0;  // + i: MSIs to one vCPU
constexpr uint8_t kDeviceVectors = 4;

using Kind = VcpuWork::Kind;

struct Totals {
  uint64_t acknowledged = 0, moves = 0, came_back = 0, refused_full = 0, pins = 0, lowest = 0, starts = 0, nmis = 0;
  uint64_t readdressed = 0, logical = 0;
  InterruptExchangeStatistics exchange;
};

class World {
 public:
  explicit World(uint32_t seed)
      : random_(seed),
        x2apic_(Chance(2)),
        nodes_(static_cast<uint16_t>(2 + random_() % 3)),
        vcpus_(5 + random_() % 4),
        cluster_(nodes_, {.vcpus = vcpus_, .x2apic = x2apic_}, &clock_, &waker_, 1 + random_() % 6),
        cpus_(vcpus_) {
    cluster_.network.name = "HK_SEED=" + std::to_string(seed);
    for (uint32_t i = 0; i < vcpus_; ++i) cpus_[i].logical = static_cast<uint8_t>(1u << i % 8);
  }

  void Run() {
    Boot();
    for (uint32_t i = 0; i < kSteps && !testing::Test::HasFailure(); ++i) Step();
    ending_ = true;
    for (uint32_t rounds = 0; !testing::Test::HasFailure() && !Quiet(); ++rounds) {
      if (rounds > 20000) {
        ADD_FAILURE() << "something is under way for ever: " << What();
        return;
      }
      for (int i = 0; i < 50; ++i) Step();
    }
    Judge();
  }

  void AddTo(Totals* totals) {
    totals_.refused_full = cluster_.network.refused;
    totals->acknowledged += totals_.acknowledged, totals->moves += totals_.moves;
    totals->came_back += totals_.came_back, totals->refused_full += totals_.refused_full;
    totals->pins += totals_.pins, totals->lowest += totals_.lowest, totals->starts += totals_.starts;
    totals->nmis += totals_.nmis, totals->readdressed += totals_.readdressed, totals->logical += totals_.logical;
    for (auto& controller : cluster_.controllers) {
      const InterruptExchangeStatistics each = controller->ExchangeStatistics();
      totals->exchange.sent_messages += each.sent_messages, totals->exchange.sent_items += each.sent_items;
      totals->exchange.gathered += each.gathered, totals->exchange.forwarded += each.forwarded;
      totals->exchange.held += each.held, totals->exchange.retried += each.retried;
      totals->exchange.refused += each.refused;
    }
  }

 private:
  enum class Move { kNone, kStopping, kOnItsWay };
  // A vector that is sent again before it arrives: what is sent while another is under way may become one with it.
  struct Flood {
    uint32_t sent = 0, taken = 0;
    bool owed = false;
  };
  struct Cpu {
    Move move = Move::kNone;
    uint16_t to = 0;
    MovedVcpuInterrupts moved;
    std::vector<uint8_t> service;
    std::map<uint8_t, Flood> flood;
    std::map<uint32_t, std::vector<uint8_t>> once;  // source -> vectors sent and not taken, in order
    bool nmi_owed = false;
    uint64_t nmis_sent = 0, nmis_taken = 0;
    bool accepts = true;
    uint8_t logical = 0;
    bool unsettled = false;
  };

  bool Chance(uint32_t of) { return random_() % of == 0; }
  bool IsToggler(uint32_t vcpu) const { return vcpu >= vcpus_ - 1 - kTogglers && vcpu < vcpus_ - 1; }
  bool IsStarted(uint32_t vcpu) const {
    return vcpu == vcpus_ - 1;
  }  // gets INIT, SIPI and NMI of vCPU 0, all else nothing
  bool IsPlain(uint32_t vcpu) const { return vcpu < vcpus_ - 1 - kTogglers; }
  bool Runs(uint32_t vcpu) { return cpus_[vcpu].move == Move::kNone && cluster_.Of(vcpu).Settled(VcpuId(vcpu)); }
  LocalApicState StateOf(uint32_t vcpu) { return cluster_.Of(vcpu).SaveVcpu(VcpuId(vcpu)); }
  static bool Has(const std::array<uint32_t, 8>& words, uint8_t vector) {
    return (words[vector / 32] >> vector % 32 & 1) != 0;
  }

  void Write(uint32_t vcpu, uint32_t reg, uint64_t value) {
    if (x2apic_) {
      cluster_.vcpu(vcpu).WriteMsr(0x800 + reg, value);
    } else {
      cluster_.vcpu(vcpu).WriteMmio(reg << 4, static_cast<uint32_t>(value));
    }
  }
  void Command(uint32_t vcpu, uint32_t destination, uint32_t command) {
    if (x2apic_) {
      Write(vcpu, 0x30, uint64_t{destination} << 32 | command);
    } else {
      Write(vcpu, 0x31, destination << 24);
      Write(vcpu, 0x30, command);
    }
  }

  void Boot() {
    for (uint32_t i = 0; i < vcpus_; ++i) {
      if (i != 0) {
        Command(0, i, 0x4500);
        Command(0, i, 0x4608);
        cluster_.network.Drain();
        cluster_.vcpu(i).Take({Kind::kInit, 0});
        cluster_.vcpu(i).Take({Kind::kSipi, 8});
      }
      if (!x2apic_) Write(i, 0x0d, uint32_t{cpus_[i].logical} << 24);
      if (IsStarted(i)) continue;
      Write(i, 0x0f, 0x1ff);
    }
    cluster_.network.Drain();
    for (uint8_t pin = 0; pin < kPins; ++pin) Program(pin);
  }

  // A pin's entry: the lowest priority of all (also of those that do not accept), one that does not always accept, or
  // one that does.
  void Program(uint8_t pin) {
    InterruptController& io = cluster_.io();
    const bool lowest = pin % 2 == 0;
    const uint32_t plain = vcpus_ - 1 - kTogglers;
    const uint32_t destination = lowest ? 0xff : (pin == 1 ? plain + random_() % kTogglers : random_() % plain);
    io.IoApicWrite(0, 0x11u + 2 * pin);
    io.IoApicWrite(0x10, destination << 24);
    io.IoApicWrite(0, 0x10u + 2 * pin);
    io.IoApicWrite(0x10, 0x8000u | (lowest ? 0x900u : 0u) | (kPinVector + pin));
  }

  void Step() {
    switch (random_() % 12) {
      case 0:
      case 1:
      case 2:
      case 3:
        return DeliverOne();
      case 4:
      case 5:
      case 6:
        return Serve(random_() % vcpus_);
      case 7:
      case 8:
        return ending_ ? Serve(random_() % vcpus_) : Send(random_() % vcpus_);
      case 9:
        return Device();
      case 10:
        return MoveOne(random_() % vcpus_);
      default:
        return Change(random_() % vcpus_);
    }
  }

  void DeliverOne() {
    std::vector<std::pair<uint16_t, uint16_t>> lanes;
    for (uint16_t from = 0; from < nodes_; ++from) {
      for (uint16_t to = 0; to < nodes_; ++to) {
        if (cluster_.network.waiting(from, to) != 0) lanes.emplace_back(from, to);
      }
    }
    if (lanes.empty()) return;
    const auto [from, to] = lanes[random_() % lanes.size()];
    cluster_.network.Deliver(from, to);
    for (uint32_t i = 0; i < vcpus_; ++i) CheckOrder(i);
  }

  // What arrived came after all that the same source had sent before.
  void CheckOrder(uint32_t vcpu) {
    if (cpus_[vcpu].move == Move::kOnItsWay || !IsPlain(vcpu)) return;
    const LocalApicState state = StateOf(vcpu);
    for (const auto& [source, vectors] : cpus_[vcpu].once) {
      bool missing = false;
      for (uint8_t vector : vectors) {
        EXPECT_FALSE(missing && Has(state.irr, vector))
            << "vCPU " << vcpu << ": vector " << int{vector} << " overtook another of source " << source;
        missing |= !Has(state.irr, vector);
      }
    }
  }

  void Serve(uint32_t id) {
    if (!Runs(id)) return;
    Cpu& cpu = cpus_[id];
    VcpuInterrupts& vcpu = cluster_.vcpu(id);
    if (!cpu.service.empty() && Chance(2)) {
      cpu.service.pop_back();
      Write(id, 0x0b, 0);
      return;
    }
    const VcpuWork work = vcpu.Peek();
    switch (work.kind) {
      case Kind::kNone:
        return;
      case Kind::kInterrupt:
        ASSERT_EQ(vcpu.Acknowledge(), work.vector);
        return Acknowledged(id, work.vector);
      case Kind::kNmi:
        vcpu.Take(work);
        ++totals_.nmis;
        EXPECT_LT(cpu.nmis_taken, cpu.nmis_sent) << "vCPU " << id;
        ++cpu.nmis_taken;
        if (IsStarted(id)) {
          EXPECT_TRUE(running_);
          nmi_since_start_ = true;
        }
        cpu.nmi_owed = false;
        return;
      case Kind::kInit:
        vcpu.Take(work);
        EXPECT_TRUE(IsStarted(id));
        running_ = nmi_since_start_ = false;
        EXPECT_LT(inits_taken_, inits_sent_);
        ++inits_taken_;
        return;
      case Kind::kSipi:
        vcpu.Take(work);
        ++totals_.starts;
        EXPECT_FALSE(running_);
        running_ = true;
        EXPECT_TRUE(last_start_ < 0 ||
                    (work.vector != last_start_ && static_cast<uint8_t>(work.vector - last_start_) < 200))
            << "started at " << int{work.vector} << " after " << last_start_;
        last_start_ = work.vector;
        return;
    }
  }

  void Acknowledged(uint32_t id, uint8_t vector) {
    Cpu& cpu = cpus_[id];
    ++totals_.acknowledged;
    cpu.service.push_back(vector);
    if (vector >= kDeviceVector || (vector >= kOnceVector && vector < kPinVector)) {
      const uint32_t source = vector >= kDeviceVector ? vcpus_ : (vector - kOnceVector) / kOnceVectors;
      std::vector<uint8_t>& sent = cpu.once[source];
      const auto found = std::find(sent.begin(), sent.end(), vector);
      ASSERT_NE(found, sent.end()) << "vCPU " << id << " took vector " << int{vector} << " that nobody sent, or twice";
      const LocalApicState state = StateOf(id);
      for (auto before = sent.begin(); before != found; ++before) {
        EXPECT_TRUE(Has(state.irr, *before)) << "vCPU " << id << ": " << int{vector} << " overtook " << int{*before};
      }
      sent.erase(found);
    } else if (vector >= kLowestVector) {
      ASSERT_EQ(lowest_.erase(vector), 1u) << "vCPU " << id << " took a lowest-priority interrupt twice";
      ++totals_.lowest;
    } else if (vector >= kPinVector) {
      const auto pin = static_cast<uint8_t>(vector - kPinVector);
      EXPECT_TRUE(lines_.contains(pin)) << "vCPU " << id << ": pin " << int{pin} << " is not asserted";
      lines_.erase(pin);
      ++totals_.pins;
      cluster_.io().SetLine(pin, false);  // a device register, forwarded to its node
    } else {
      Flood& flood = cpu.flood[vector];
      ASSERT_LT(flood.taken, flood.sent) << "vCPU " << id << ", vector " << int{vector};
      ++flood.taken;
      flood.owed = false;
    }
  }

  void Send(uint32_t source) {
    if (!Runs(source) || !IsPlain(source)) return;
    if (Chance(4)) return source == 0 ? StartAnother() : SendNmi(source);
    std::set<uint32_t> targets;
    uint32_t destination = 0, command = 0x4000;
    const uint32_t kind = random_() % 5;
    if (kind == 0) {
      // A logical destination: only while everybody knows how everybody is addressed.
      for (uint32_t i = 0; i < vcpus_; ++i) {
        if (!Reachable(i)) return;
      }
      const uint32_t mask = 1 + random_() % 0xfe;
      destination = mask;
      command |= 0x800;
      for (uint32_t i = 0; i < vcpus_; ++i) {
        if (x2apic_ ? (mask >> i & 1) != 0 : (mask & cpus_[i].logical) != 0) targets.insert(i);
      }
      ++totals_.logical;
    } else if (kind == 1) {
      command |= 0xc0000;
      for (uint32_t i = 0; i < vcpus_; ++i) {
        if (i != source) targets.insert(i);
      }
    } else {
      destination = random_() % (vcpus_ - 1 - kTogglers);
      targets.insert(destination);
    }
    // Of those that may not accept, nothing is expected but what was sent.
    const bool plain = std::ranges::all_of(targets, [this](uint32_t each) { return IsPlain(each); });
    if (!plain || Chance(3)) {
      const auto vector = static_cast<uint8_t>(kFloodVector + source);
      for (uint32_t each : targets) {
        ++cpus_[each].flood[vector].sent;
        cpus_[each].flood[vector].owed = true;
      }
      return Command(source, destination, command | vector);
    }
    for (uint8_t i = 0; i < kOnceVectors; ++i) {
      const auto vector = static_cast<uint8_t>(kOnceVector + source * kOnceVectors + i);
      const bool free = std::ranges::none_of(targets, [&](uint32_t each) {
        const std::vector<uint8_t>& sent = cpus_[each].once[source];
        return std::ranges::find(sent, vector) != sent.end();
      });
      if (!free) continue;
      for (uint32_t each : targets) cpus_[each].once[source].push_back(vector);
      return Command(source, destination, command | vector);
    }
  }

  bool Reachable(uint32_t vcpu) {
    return cpus_[vcpu].move == Move::kOnItsWay || cluster_.Of(vcpu).Settled(VcpuId(vcpu));
  }

  void SendNmi(uint32_t source) {
    const uint32_t target = random_() % (vcpus_ - 1);
    if (target == source) return;
    cpus_[target].nmi_owed = true;
    ++cpus_[target].nmis_sent;
    Command(source, target, 0x4400);
  }

  // The last vCPU is only started, and told NMIs, by vCPU 0.
  void StartAnother() {
    const uint32_t target = vcpus_ - 1;
    switch (random_() % 3) {
      case 0:
        Command(0, target, 0x4500);
        ++inits_sent_;
        sipi_since_init_ = -1;
        nmi_since_init_ = false;
        return;
      case 1:
        ++next_start_;
        Command(0, target, 0x4600u | next_start_);
        if (sipi_since_init_ < 0) sipi_since_init_ = next_start_;
        return;
      default:
        Command(0, target, 0x4400);
        ++cpus_[target].nmis_sent;
        nmi_since_init_ = true;
        nmi_since_start_ = false;
        return;
    }
  }

  void Device() {
    if (ending_) return;
    InterruptController& io = cluster_.io();
    switch (random_() % 4) {
      case 0:
      case 1: {
        const auto pin = static_cast<uint8_t>(random_() % kPins);
        if (lines_.insert(pin).second) io.SetLine(pin, true);
        return;
      }
      case 2: {
        // To any of all by lowest priority; vCPU 0 always accepts.
        const auto vector = static_cast<uint8_t>(kLowestVector + random_() % kLowestVectors);
        if (lowest_.insert(vector).second) io.SendMsi(0xfee00000 | 0xff << 12 | 0xc, 0x100u | vector);
        return;
      }
      default: {
        const uint32_t target = random_() % (vcpus_ - 1 - kTogglers);
        const auto vector = static_cast<uint8_t>(kDeviceVector + random_() % kDeviceVectors);
        std::vector<uint8_t>& sent = cpus_[target].once[vcpus_];
        if (std::ranges::find(sent, vector) != sent.end()) return;
        sent.push_back(vector);
        io.SendMsi(0xfee00000 | target << 12, vector);
        return;
      }
    }
  }

  void MoveOne(uint32_t id) {
    Cpu& cpu = cpus_[id];
    switch (cpu.move) {
      case Move::kNone:
        if (ending_ || Chance(2)) return;
        cpu.to = static_cast<uint16_t>(random_() % nodes_);
        if (cpu.to != cluster_.where[id]) cpu.move = Move::kStopping;
        return;
      case Move::kStopping: {
        if (!cluster_.Of(id).Drained(VcpuId(id))) return;
        const auto moved = cluster_.Of(id).TakeVcpu(VcpuId(id), NodeId(cpu.to));
        ASSERT_TRUE(moved.ok()) << moved.status();
        cpu.moved = *moved;
        cpu.move = Move::kOnItsWay;
        if (Chance(8)) {  // it was refused there, and comes back
          cpu.to = cluster_.where[id];
          ++cpu.moved.version;
          ++totals_.came_back;
        }
        return;
      }
      case Move::kOnItsWay: {
        cluster_.where[id] = cpu.to;
        const absl::Status put = cluster_.Of(id).PutVcpu(VcpuId(id), cpu.moved);
        ASSERT_TRUE(put.ok()) << put;
        cpu.move = Move::kNone;
        ++totals_.moves;
        CheckOrder(id);
        return;
      }
    }
  }

  // A vCPU changes how it takes interrupts.
  void Change(uint32_t id) {
    if (!Runs(id)) return;
    Cpu& cpu = cpus_[id];
    if (IsToggler(id)) {
      cpu.accepts = ending_ || !cpu.accepts;
      Write(id, 0x0f, cpu.accepts ? 0x1ff : 0xff);
    } else if (!x2apic_ && IsPlain(id) && Chance(3) && !ending_) {
      cpu.logical = static_cast<uint8_t>(1u << random_() % 8);
      Write(id, 0x0d, uint32_t{cpu.logical} << 24);
      ++totals_.readdressed;
    } else if (!IsStarted(id)) {
      cluster_.vcpu(id).SetCr8(ending_ ? 0 : static_cast<uint8_t>(random_() % 4 == 0 ? random_() % 12 : 0));
    } else if (!ending_ && Chance(10)) {
      cluster_.io().IoApicWrite(0, 0x10u);
      Program(static_cast<uint8_t>(random_() % kPins));
    }
  }

  bool Quiet() {
    if (!cluster_.network.idle()) return false;
    for (uint32_t i = 0; i < vcpus_; ++i) {
      Cpu& cpu = cpus_[i];
      if (cpu.move != Move::kNone || !cpu.service.empty() || !cpu.accepts || cluster_.vcpu(i).Cr8() != 0 ||
          cluster_.vcpu(i).Peek().kind != Kind::kNone) {
        return false;
      }
    }
    return true;
  }
  std::string What() {
    std::string what = cluster_.network.idle() ? "network idle" : "network busy";
    for (uint32_t i = 0; i < vcpus_; ++i) {
      what += " " + std::to_string(static_cast<int>(cpus_[i].move)) + "/" + std::to_string(cpus_[i].service.size());
    }
    return what;
  }

  void Judge() {
    for (uint32_t i = 0; i < vcpus_; ++i) {
      const Cpu& cpu = cpus_[i];
      for (const auto& [source, vectors] : cpu.once) {
        EXPECT_TRUE(vectors.empty()) << "vCPU " << i << " never got vector " << int{vectors.front()};
      }
      for (const auto& [vector, flood] : cpu.flood) {
        EXPECT_FALSE(flood.owed && IsPlain(i)) << "vCPU " << i << " never got vector " << int{vector};
      }
      EXPECT_FALSE(cpu.nmi_owed) << "vCPU " << i << " never got its NMI";
    }
    EXPECT_TRUE(lines_.empty()) << "pin " << int{*lines_.begin()} << " was never served";
    EXPECT_TRUE(lowest_.empty()) << "lost: " << int{*lowest_.begin()};
    const IoApicState io = cluster_.io().SaveIoApic();
    for (uint8_t pin = 0; pin < kPins; ++pin) {
      EXPECT_EQ(io.entries[pin] >> 14 & 1, 0u) << "pin " << int{pin} << " still waits for an EOI";
    }
    if (inits_sent_ != 0) {
      EXPECT_EQ(running_, sipi_since_init_ >= 0);
      if (running_) {
        EXPECT_EQ(last_start_, sipi_since_init_);
        EXPECT_EQ(nmi_since_start_, nmi_since_init_) << "the started vCPU's NMI";
      }
    }
    EXPECT_EQ(cluster_.refused(), 0u);
  }

  std::mt19937 random_;
  const bool x2apic_;
  const uint16_t nodes_;
  const uint32_t vcpus_;
  ManualClock clock_;
  RecordingWaker waker_;
  InterruptCluster cluster_;
  std::vector<Cpu> cpus_;
  std::set<uint8_t> lines_, lowest_;
  bool ending_ = false;
  // The last vCPU: as it was sent, and as it was taken.
  uint64_t inits_sent_ = 0, inits_taken_ = 0;
  uint8_t next_start_ = 0;
  int sipi_since_init_ = -1, last_start_ = -1;
  bool nmi_since_init_ = false, nmi_since_start_ = false, running_ = true;
  Totals totals_;
};

TEST(InterruptSim, EveryInterruptArrivesAsOnOneNode) {
  const char* only = std::getenv("HK_SEED");
  const uint32_t seeds = std::getenv("HK_SOAK") != nullptr ? kSoakSeeds : kSeeds;
  Totals totals;
  for (uint32_t i = 0; i < (only != nullptr ? 1 : seeds) && !HasFailure(); ++i) {
    const uint32_t seed = only != nullptr ? static_cast<uint32_t>(std::atoi(only)) : i;
    SCOPED_TRACE("HK_SEED=" + std::to_string(seed));
    World world(seed);
    world.Run();
    world.AddTo(&totals);
  }
  if (HasFailure() || only != nullptr) return;
  // The runs are what they should be.
  std::printf(
      "%u seeds: %lu taken, %lu pins, %lu lowest, %lu NMIs, %lu starts, %lu moves; %lu messages of %lu items, %lu "
      "gathered, "
      "%lu forwarded, %lu held, %lu retried, %lu refused full\n",
      seeds, totals.acknowledged, totals.pins, totals.lowest, totals.nmis, totals.starts, totals.moves,
      totals.exchange.sent_messages, totals.exchange.sent_items, totals.exchange.gathered, totals.exchange.forwarded,
      totals.exchange.held, totals.exchange.retried, totals.refused_full);
  EXPECT_GT(totals.acknowledged, seeds * 100u);
  EXPECT_GT(totals.moves, seeds * 10u);
  EXPECT_GT(totals.came_back, seeds / 4u);
  EXPECT_GT(totals.pins, seeds * 10u);
  EXPECT_GT(totals.lowest, seeds * 10u);
  EXPECT_GT(totals.nmis, seeds * 10u);
  EXPECT_GT(totals.starts, seeds);
  EXPECT_GT(totals.logical, seeds);
  EXPECT_GT(totals.readdressed, seeds);
  EXPECT_GT(totals.refused_full, seeds);
  EXPECT_GT(totals.exchange.gathered, seeds * 5u);
  EXPECT_GT(totals.exchange.forwarded, seeds * 2u);
  EXPECT_GT(totals.exchange.held, seeds / 2u);
  EXPECT_GT(totals.exchange.retried, seeds / 10u);
}

}  // namespace
}  // namespace hk
