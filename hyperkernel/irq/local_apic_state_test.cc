#include "hyperkernel/irq/local_apic_state.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

#include "hyperkernel/irq/irq_testing.h"
#include "hyperkernel/irq/local_apic.h"

namespace hk {
namespace {

constexpr Monotonic kNow{std::chrono::hours(1)};

std::vector<uint8_t> RandomProgram(std::mt19937& random, size_t bytes) {
  // Half of the operands are small or the usual vectors, so that programs get somewhere.
  const uint8_t usual[] = {0x00, 0x01, 0x30, 0x31, 0x80, 0xff, 0x0f, 0x38, 0x32, 0xf0};
  std::vector<uint8_t> program(bytes);
  for (uint8_t& byte : program) {
    const uint32_t roll = random();
    byte = (roll & 0x100) != 0 ? static_cast<uint8_t>(roll) : usual[(roll & 0xff) % std::size(usual)];
  }
  return program;
}

// Software-enables the APICs, unmasks timers and gives pins 0 to 3 vectors, in the mode of the machine.
std::vector<uint8_t> Prologue(bool x2apic) {
  std::vector<uint8_t> program;
  for (uint8_t i = 0; i < 4; ++i) {
    const auto vcpu = static_cast<uint8_t>(i << 4);
    const auto write = [&](uint8_t reg, std::initializer_list<uint8_t> value) {
      program.push_back(static_cast<uint8_t>(vcpu | (x2apic ? 0 : 2)));
      program.push_back(reg);
      program.insert(program.end(), value);
    };
    write(0x0f, {0xff, 0x01, 0x00, 0x00});
    write(0x32, {static_cast<uint8_t>(0x40 + i), 0x00, 0x02, 0x00});
    write(0x38, {0x00, 0x00, 0x10, 0x00});
    program.insert(program.end(), {10, static_cast<uint8_t>(0x11 + 2 * i), 0, 0, 0, i});
    program.insert(program.end(), {10, static_cast<uint8_t>(0x10 + 2 * i), static_cast<uint8_t>(0x30 + i), 0x80, 0, 0});
  }
  return program;
}

TEST(SaveRestore, AMovedControllerBehavesAsTheOriginal) {
  const char* chosen = std::getenv("HK_SEED");
  const uint32_t first = chosen != nullptr ? static_cast<uint32_t>(std::strtoul(chosen, nullptr, 10)) : 1;
  const uint32_t count = chosen != nullptr ? 1 : 400;
  for (uint32_t seed = first; seed < first + count; ++seed) {
    std::mt19937 random(seed);
    const bool x2apic = seed % 2 == 0;
    IrqMachine original(x2apic, false);
    original.Run(Prologue(x2apic));
    original.Run(RandomProgram(random, 40 + random() % 400));
    original.Check();
    IrqMachine moved(!x2apic, false);
    moved.MoveFrom(original);
    for (int i = 0; i < 4; ++i) {
      const auto program = RandomProgram(random, 200);
      original.Run(program);
      moved.Run(program);
      original.Check();
      ASSERT_EQ(original.seen, moved.seen) << "HK_SEED=" << seed;
      ASSERT_EQ(original.woken(), moved.woken()) << "HK_SEED=" << seed;
    }
    for (uint32_t vcpu = 0; vcpu < IrqMachine::kVcpus; ++vcpu) {
      ASSERT_EQ(original.controller().SaveVcpu(VcpuId(vcpu)), moved.controller().SaveVcpu(VcpuId(vcpu)));
    }
    ASSERT_EQ(original.controller().SaveIoApic(), moved.controller().SaveIoApic());
  }
}

TEST(SaveRestore, ARenewedControllerBehavesAsBefore) {
  for (uint32_t seed = 1; seed <= 200; ++seed) {
    std::mt19937 random(seed);
    const bool x2apic = seed % 2 == 0;
    IrqMachine original(x2apic, true);
    IrqMachine renewed(x2apic, true);
    original.Run(Prologue(x2apic));
    renewed.Run(Prologue(x2apic));
    for (int i = 0; i < 8; ++i) {
      const auto program = RandomProgram(random, 100);
      original.Run(program);
      renewed.Run(program);
      ASSERT_TRUE(renewed.controller().Renew().ok());
      ASSERT_EQ(original.seen, renewed.seen) << "seed " << seed;
      ASSERT_EQ(original.woken(), renewed.woken()) << "seed " << seed;
    }
    ASSERT_EQ(original.controller().SaveIoApic(), renewed.controller().SaveIoApic());
  }
}

TEST(SaveRestore, TimersTravelAsRemainingTime) {
  LocalApic apic(0, true, true);
  apic.WriteMsr(0x80f, 0x1ff, kNow);
  apic.WriteMsr(0x83e, 0xb, kNow);
  apic.WriteMsr(0x832, 0x200ec, kNow);
  apic.WriteMsr(0x838, 1000000, kNow);
  const auto state = apic.Save(kNow + std::chrono::microseconds(300));
  EXPECT_EQ(state.timer_remaining_ns, 700000);
  const Monotonic other_clock{std::chrono::seconds(5)};
  LocalApic moved(0, true, true);
  ASSERT_TRUE(moved.Restore(state, other_clock).ok());
  EXPECT_EQ(moved.NextTimerDeadline(), other_clock + std::chrono::microseconds(700));
  EXPECT_TRUE(moved.OnTime(other_clock + std::chrono::microseconds(700)));
  EXPECT_EQ(moved.NextTimerDeadline(), other_clock + std::chrono::microseconds(1700)) << "periodic still";
}

TEST(SaveRestore, WhatCannotBeIsRefused) {
  LocalApic apic(3, true, true);
  const LocalApicState good = apic.Save(kNow);
  const std::vector<std::function<void(LocalApicState&)>> spoil = {
      [](auto& s) { s.version = 0; },
      [](auto& s) { s.apic_id = 4; },
      [](auto& s) { s.apic_base = 0xfee00400; },
      [](auto& s) { s.apic_base = 0xfed00800; },
      [](auto& s) { s.irr[0] = 1; },
      [](auto& s) { s.isr[0] = 0x8000; },
      [](auto& s) { s.tmr[0] = 2; },
      [](auto& s) { s.isr[3] = 0x30000; },
      [](auto& s) { s.tpr = 0x100; },
      [](auto& s) { s.svr = 0x2000; },
      [](auto& s) { s.ldr = 1; },
      [](auto& s) { s.dfr = 0; },
      [](auto& s) { s.esr = 1; },
      [](auto& s) { s.pending_errors = 0x100; },
      [](auto& s) { s.icr = 0x1000; },
      [](auto& s) { s.timer_divide = 4; },
      [](auto& s) { s.lvt[1] = 0x50000; },
      [](auto& s) { s.lvt[1] = 0x30; },  // not masked, though software-disabled
      [](auto& s) { s.timer_remaining_ns = 1; },
      [](auto& s) { s.timer_running = 1; },
      [](auto& s) { s.timer_running = 2; },
      [](auto& s) { s.timer_running = 1, s.timer_initial = 1, s.timer_remaining_ns = INT64_MAX; },
      [](auto& s) { s.level_sources[2] = {.generation = 1, .vector = 3, .valid = 1}; },
      [](auto& s) { s.level_sources[2].valid = 2; },
      [](auto& s) { s.event_count = 5; },
      [](auto& s) { s.event_count = 1; },
      [](auto& s) { s.event_count = 1, s.events[0] = {.kind = 3, .vector = 1}; },
      [](auto& s) { s.event_count = 1, s.events[0] = {.kind = 4, .vector = 0}; },
      [](auto& s) { s.waiting_for_sipi = 2; },
  };
  for (size_t i = 0; i < spoil.size(); ++i) {
    LocalApicState state = good;
    spoil[i](state);
    EXPECT_FALSE(apic.Restore(state, kNow).ok()) << "case " << i;
    EXPECT_EQ(apic.Save(kNow), good) << "case " << i;
  }
  EXPECT_TRUE(apic.Restore(good, kNow).ok());
}

}  // namespace
}  // namespace hk
