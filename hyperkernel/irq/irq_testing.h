// What the tests and fuzzers (tests/fuzz) of this folder share: a clock to set, and random programs over the whole
// controller.
#pragma once

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/irq/interrupt_controller.h"

namespace hk {

// A clock that stands until it is set.
class ManualClock final : public Clock {
 public:
  Monotonic Now() const override { return now_; }
  WallTime Wall() const override { return {}; }
  void Advance(std::chrono::nanoseconds by) { now_ += by; }

 private:
  Monotonic now_{std::chrono::hours(1)};
};

// Remembers who was woken.
class RecordingWaker final : public VcpuWaker {
 public:
  void Wake(VcpuId vcpu) override { woken.push_back(vcpu.value()); }
  std::vector<uint32_t> woken;
};

// A controller of four vCPUs on a clock of its own, driven by bytes: each instruction is an operation, a vCPU and
// operands. What the guest and the vCPU threads would see is appended to `seen`. Controller: InterruptController, or
// what looks like one.
template <typename Controller>
class IrqProgram {
 public:
  static constexpr uint32_t kVcpus = 4;

  // Without `lowest_priority`, programs cannot ask for it: the arbiter's turn is not part of the saved state.
  IrqProgram(bool x2apic, bool lowest_priority)
      : lowest_priority_(lowest_priority), controller_({.vcpus = kVcpus, .x2apic = x2apic}, &clock, &waker_) {}

  void Run(std::span<const uint8_t> program) {
    input_ = program;
    while (!input_.empty()) {
      Step();
    }
  }

  // The same, with Check after each operation.
  void RunChecked(std::span<const uint8_t> program) {
    input_ = program;
    while (!input_.empty()) {
      Step();
      Check();
    }
  }

  // Invariants that hold between any two operations, whatever the guest did.
  void Check() {
    for (uint32_t i = 0; i < kVcpus; ++i) {
      const LocalApicState state = controller_.SaveVcpu(VcpuId(i));
      HK_CHECK(((state.irr[0] | state.isr[0] | state.tmr[0]) & 0xffff) == 0);
      HK_CHECK(state.event_count <= state.events.size());
      for (uint32_t word : state.isr) {
        HK_CHECK(std::popcount(word & 0xffff) <= 1 && std::popcount(word >> 16) <= 1);
      }
      // What can be saved can be restored, and is the same.
      LocalApic copy(i, i == 0, true);
      HK_CHECK(copy.Restore(state, clock.Now()).ok());
      HK_CHECK(copy.Save(clock.Now()) == state);
    }
    const IoApicState io_apic = controller_.SaveIoApic();
    IoApic copy(false);
    HK_CHECK(copy.Restore(io_apic).ok());
    HK_CHECK(copy.Save() == io_apic);
  }

  // Takes over the state of another machine, as a node would.
  void MoveFrom(IrqProgram& other) {
    clock = other.clock;
    HK_CHECK(controller_.RestoreIoApic(other.controller_.SaveIoApic()).ok());
    for (uint32_t i = 0; i < kVcpus; ++i) {
      const auto state = DecodeLocalApic(EncodeLocalApic(other.controller_.SaveVcpu(VcpuId(i))));
      HK_CHECK(state.ok() && controller_.RestoreVcpu(VcpuId(i), *state).ok());
    }
    seen = other.seen;
    waker_.woken = other.waker_.woken;
  }

  const std::vector<uint32_t>& woken() const { return waker_.woken; }
  Controller& controller() { return controller_; }

  ManualClock clock;
  std::vector<uint64_t> seen;

 private:
  uint8_t Byte() {
    if (input_.empty()) {
      return 0;
    }
    const uint8_t byte = input_.front();
    input_ = input_.subspan(1);
    return byte;
  }
  uint32_t Word() { return Byte() | uint32_t{Byte()} << 8 | uint32_t{Byte()} << 16 | uint32_t{Byte()} << 24; }
  // Bits 10:8 of ICR, redirection entries and MSI data are the delivery mode.
  uint64_t Allowed(uint64_t command) const {
    return !lowest_priority_ && (command >> 8 & 7) == 1 ? command & ~uint64_t{0x100} : command;
  }

  void Step() {
    const uint8_t operation = Byte();
    const VcpuId id(operation >> 4 & 3);
    VcpuInterrupts& vcpu = controller_.vcpu(id);
    switch (operation & 0xf) {
      case 0: {
        const uint32_t msr = 0x800 + Byte();
        uint64_t value = Word();
        value = msr == 0x830 ? Allowed(value | uint64_t{Byte()} << 32) : value;
        seen.push_back(vcpu.WriteMsr(msr, value));
        break;
      }
      case 1:
        seen.push_back(vcpu.ReadMsr(0x800 + Byte()).value_or(~uint64_t{0}));
        break;
      case 2: {
        const uint32_t offset = uint32_t{Byte()} << 4;
        vcpu.WriteMmio(offset, static_cast<uint32_t>(offset == 0x300 ? Allowed(Word()) : Word()));
        break;
      }
      case 3:
        seen.push_back(vcpu.ReadMmio(uint32_t{Byte()} << 4));
        break;
      case 4: {
        const VcpuWork work = vcpu.Peek();
        seen.push_back(static_cast<uint64_t>(work.kind) << 8 | work.vector);
        vcpu.Take(work);
        break;
      }
      case 5: {
        const VcpuWork work = vcpu.Peek();
        const auto vector = vcpu.Acknowledge();
        HK_CHECK(work.kind != VcpuWork::Kind::kInterrupt || vector == work.vector);
        seen.push_back(vector.value_or(0));
        break;
      }
      case 6:
        vcpu.SetCr8(Byte() & 0xf);
        seen.push_back(vcpu.Cr8());
        break;
      case 7: {
        const uint8_t line = Byte();
        controller_.SetLine(line & 0x1f, (line & 0x80) != 0);
        break;
      }
      case 8: {
        const uint32_t address = Word();
        seen.push_back(controller_.SendMsi(address, static_cast<uint32_t>(Allowed(Word()))));
        break;
      }
      case 9:
        seen.push_back(controller_.InjectNmi(id));
        break;
      case 10: {
        const uint8_t select = Byte();
        controller_.IoApicWrite(0x00, select);
        controller_.IoApicWrite(0x10, static_cast<uint32_t>(select % 2 == 0 ? Allowed(Word()) : Word()));
        break;
      }
      case 11:
        controller_.IoApicWrite(0x00, Byte());
        seen.push_back(controller_.IoApicRead(0x10));
        break;
      case 12: {
        clock.Advance(std::chrono::nanoseconds(Word()));
        for (uint32_t i = 0; i < kVcpus; ++i) {
          VcpuInterrupts& each = controller_.vcpu(VcpuId(i));
          seen.push_back(static_cast<uint64_t>(each.TimerDeadline().time_since_epoch().count()));
          each.RunTimer(clock.Now());
        }
        break;
      }
      case 13:
        vcpu.WriteMsr(0x80b, 0);
        vcpu.WriteMmio(0xb0, 0);
        break;
      case 14:
        seen.push_back(vcpu.WriteMsr(0x1b, 0xfee00000 | uint64_t{Byte()} << 8));
        break;
      default:
        controller_.IoApicWrite(0x40, Byte());
        break;
    }
  }

  const bool lowest_priority_;
  RecordingWaker waker_;
  Controller controller_;
  std::span<const uint8_t> input_;
};

using IrqMachine = IrqProgram<InterruptController>;

}  // namespace hk
