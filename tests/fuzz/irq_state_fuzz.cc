// Saved states of interrupt controllers, as a peer or a file might spoil them: refused, or restored exactly.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include "hyperkernel/base/check.h"
#include "hyperkernel/irq/io_apic.h"
#include "hyperkernel/irq/irq_testing.h"
#include "hyperkernel/irq/local_apic.h"

namespace hk {
namespace {

// Overlays bytes on a good state: triples of an offset (16 bits) and a byte.
template <typename State>
State Spoiled(State state, std::span<const uint8_t> data) {
  static_assert(std::is_trivially_copyable_v<State>);
  for (; data.size() >= 3; data = data.subspan(3)) {
    const size_t offset = (data[0] | size_t{data[1]} << 8) % sizeof(State);
    std::memcpy(reinterpret_cast<char*>(&state) + offset, &data[2], 1);
  }
  return state;
}

void TryLocalApic(std::span<const uint8_t> data) {
  const ManualClock clock;
  LocalApic apic(1, true, true);
  const LocalApicState state = Spoiled(apic.Save(clock.Now()), data);
  const LocalApicState before = apic.Save(clock.Now());
  if (!apic.Restore(state, clock.Now()).ok()) {
    HK_CHECK(apic.Save(clock.Now()) == before);
    return;
  }
  for (int i = 0; i < 300; ++i) {
    apic.OnTime(clock.Now());
    apic.Take(apic.Peek());
    apic.Acknowledge();
    apic.WriteMsr(0x80b, 0, clock.Now());
    apic.WriteMmio(0xb0, 0, clock.Now());
  }
  HK_CHECK(LocalApic(1, true, true).Restore(apic.Save(clock.Now()), clock.Now()).ok());
}

void TryIoApic(std::span<const uint8_t> data) {
  IoApic io_apic(false);
  const IoApicState before = io_apic.Save();
  const IoApicState state = Spoiled(before, data);
  if (!io_apic.Restore(state).ok()) {
    HK_CHECK(io_apic.Save() == before);
    return;
  }
  HK_CHECK(io_apic.Save() == state);
  for (uint8_t pin = 0; pin < kIoApicPins; ++pin) {
    io_apic.SetLine(pin, true);
    io_apic.OnEoi({pin, io_apic.MessageOf(pin).generation});
  }
  HK_CHECK(IoApic(false).Restore(io_apic.Save()).ok());
}

}  // namespace
}  // namespace hk

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  hk::TryLocalApic({data, size});
  hk::TryIoApic({data, size});
  return 0;
}
