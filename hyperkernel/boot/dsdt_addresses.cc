// Prints the numbers of address_map.h as #defines for dsdt.asl. Run by the build, so that no address is written twice.
#include "fmt/format.h"
#include "hyperkernel/boot/address_map.h"

int main() {
  auto define = [](const char* name, uint64_t value) { fmt::print("#define {} {:#x}\n", name, value); };
  define("HK_PORT_CMOS", hk::kPortCmosIndex);
  define("HK_PORT_SERIAL", hk::kPortSerial);
  define("HK_PORT_PVPANIC", hk::kPortPvpanic);
  define("HK_PORT_POWER", hk::kPortPowerManagement);
  define("HK_PORT_EVENTS", hk::kPortAcpiEvents);
  define("HK_PORT_PM_TIMER", hk::kPortPmTimer);
  define("HK_PORT_RESET", hk::kPortReset);
  define("HK_PORT_PCI_CONFIG", hk::kPortPciConfig);
  define("HK_PORT_PCI_CONFIG_LAST", hk::kPortPciConfig + 7);
  define("HK_PCI_IO_START", hk::kPciIoStart);
  define("HK_PCI_IO_BYTES", 0x10000 - hk::kPciIoStart);
  define("HK_PCI32_START", hk::kPci32Start.value());
  define("HK_PCI32_LAST", hk::kPci32Start.value() + hk::kPci32Bytes - 1);
  define("HK_PCI32_BYTES", hk::kPci32Bytes);
  define("HK_ECAM_START", hk::kEcamStart.value());
  define("HK_ECAM_BYTES", hk::kEcamBytes);
  define("HK_ECAM_LAST_BUS", (hk::kEcamBytes >> 20) - 1);
  define("HK_ECAM_BUSES", hk::kEcamBytes >> 20);
  define("HK_PIN_SERIAL", hk::kPinSerial);
  define("HK_PIN_EVENTS", hk::kPinAcpiEvents);
  define("HK_PIN_PCI", hk::kFirstPciPin);
  define("HK_PIN_PCI_MASK", hk::kPciPins - 1);
  define("HK_SLEEP_S5", hk::kSleepTypeS5);
  define("HK_EVENT_POWER_BUTTON", hk::kEventPowerButton);
  return 0;
}
