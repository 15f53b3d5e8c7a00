// Local APICs, I/O APIC, MSI and the way between them, driven by arbitrary operations of a guest and its devices.
#include <cstddef>
#include <cstdint>

#include "hyperkernel/irq/irq_testing.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) {
    return 0;
  }
  hk::IrqMachine machine((data[0] & 1) != 0, true);
  machine.RunChecked({data + 1, size - 1});
  return 0;
}
