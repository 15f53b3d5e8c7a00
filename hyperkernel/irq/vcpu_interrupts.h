// What a vCPU's thread needs of the interrupt controllers: its local APIC's registers, and what is waiting for it.
//
// Thread-safe: messages arrive from any thread while the vCPU's own thread asks. No call blocks.
#pragma once

#include <cstdint>
#include <optional>

#include "hyperkernel/base/clock.h"

namespace hk {

// What a vCPU must do next on behalf of its local APIC, in the order the events arrived (INIT, SIPI and NMI are an
// ordered queue: as bits they get lost).
struct VcpuWork {
  enum class Kind : uint8_t {
    kNone,       // nothing
    kInterrupt,  // an interrupt of `vector` may be taken now (its priority is above the processor's); see Acknowledge
    kNmi,
    kInit,  // reset to the INIT state and wait for SIPI
    kSipi,  // start at `vector` << 12, if waiting for it; else ignore
  };
  Kind kind = Kind::kNone;
  uint8_t vector = 0;

  bool operator==(const VcpuWork&) const = default;
};

// The interrupt side of one vCPU.
class VcpuInterrupts {
 public:
  virtual ~VcpuInterrupts() = default;

  // x2APIC registers (MSR 0x800 to 0x8ff) and IA32_APIC_BASE (0x1b). nullopt / false: the access faults (#GP).
  virtual std::optional<uint64_t> ReadMsr(uint32_t msr) = 0;
  virtual bool WriteMsr(uint32_t msr, uint64_t value) = 0;
  // xAPIC page, offset 0 to 0xfff, 32-bit accesses.
  virtual uint32_t ReadMmio(uint32_t offset) = 0;
  virtual void WriteMmio(uint32_t offset, uint32_t value) = 0;

  // The next event, without taking it.
  virtual VcpuWork Peek() = 0;
  // Takes the event last seen by Peek if it is kNmi, kInit or kSipi: it has been acted on.
  virtual void Take(VcpuWork work) = 0;
  // The vCPU takes the pending interrupt: moves it from IRR to ISR. The vector to inject, or nullopt if there is none
  // any more.
  virtual std::optional<uint8_t> Acknowledge() = 0;
  // Whether the vCPU may end the interrupt that it has just taken without an access to the EOI register: nothing else
  // is in service or pending, and no I/O APIC pin waits for the end. True: the offer stands until EndEoiOffer, and
  // whatever arrives meanwhile wakes the vCPU. `ended`: the guest has ended the interrupt; else it will write the
  // register.
  virtual bool OfferEoi() = 0;
  virtual void EndEoiOffer(bool ended) = 0;
  // False: the vCPU must not enter the guest, since other nodes do not all know yet how it is addressed; it is woken
  // when it may (README.md, "Across nodes", 6). Cheap.
  virtual bool Settled() { return true; }
  // CR8 (task priority, 0 to 15) as the guest has it, told after each run; and what it must be set to before the next.
  virtual void SetCr8(uint8_t cr8) = 0;
  virtual uint8_t Cr8() = 0;

  // The APIC's timer. It has no thread: whoever runs the vCPU calls RunTimer at the deadline or after it, by
  // RealClock(), and then looks for what there is to do. Monotonic::max(): the timer does not run. Only the vCPU's own
  // register accesses, and a restore, change the deadline.
  virtual Monotonic TimerDeadline() const = 0;
  virtual void RunTimer(Monotonic now) = 0;
  // From now on RunTimer may be called late, and the timer interrupts no sooner: register accesses after the deadline
  // do not make it, but those to the timer's own registers.
  virtual void PaceTimer() {}
};

}  // namespace hk
