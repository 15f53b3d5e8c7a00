#include "hyperkernel/node/machine_devices.h"

#include <utility>

#include "hyperkernel/base/status.h"
#include "hyperkernel/boot/address_map.h"
#include "hyperkernel/device/pci.h"
#include "hyperkernel/device/rtc.h"
#include "hyperkernel/device/serial.h"

namespace hk {
namespace {

constexpr char kSerialSection[] = "serial", kRtcSection[] = "rtc", kPowerSection[] = "power", kPciSection[] = "pci",
               kPmTimerSection[] = "pm_timer";

// The I/O APIC's registers on the MMIO bus: 32-bit accesses.
class IoApicWindow final : public IoHandler {
 public:
  static constexpr uint64_t kBytes = 0x1000;
  explicit IoApicWindow(InterruptController* interrupts) : interrupts_(interrupts) {}
  void Read(uint64_t offset, std::span<std::byte> data) override {
    StoreLe(data, interrupts_->IoApicRead(static_cast<uint32_t>(offset)));
  }
  void Write(uint64_t offset, std::span<const std::byte> data) override {
    interrupts_->IoApicWrite(static_cast<uint32_t>(offset), static_cast<uint32_t>(LoadLe(data)));
  }

 private:
  InterruptController* const interrupts_;
};

// Devices' interrupts into the controller.
class Sink final : public InterruptSink {
 public:
  explicit Sink(InterruptController* interrupts) : interrupts_(interrupts) {}
  void SetLine(uint8_t pin, bool level) override { interrupts_->SetLine(pin, level); }
  // What is no MSI is a write to nowhere: the guest programmed the device so.
  void SendMsi(uint64_t address, uint32_t data) override { static_cast<void>(interrupts_->SendMsi(address, data)); }

 private:
  InterruptController* const interrupts_;
};

class StandardDevices final : public MachineDevices {
 public:
  StandardDevices(InterruptController* interrupts, const Clock& clock, bool pm_timer, MachineDeviceEvents events)
      : sink_(interrupts),
        io_apic_(interrupts),
        serial_(&sink_, kPinSerial,
                {.output =
                     [out = std::move(events.console_output)](std::span<const std::byte> data) {
                       out({reinterpret_cast<const char*>(data.data()), data.size()});
                     },
                 .room = [] {}}),
        rtc_(&clock),
        pm_timer_declared_(pm_timer),
        pm_timer_(&clock),
        power_(&sink_, kPinAcpiEvents, events.request),
        reset_(events.request),
        pvpanic_(events.request) {}

  absl::Status Wire();

  Bus& ports() override { return ports_; }
  Bus& mmio() override { return mmio_; }
  PciRoot& pci() override { return *pci_; }
  InterruptSink& interrupts() override { return sink_; }
  size_t ConsoleInput(std::string_view bytes) override {
    return serial_.Input(std::as_bytes(std::span(bytes.data(), bytes.size())));
  }
  void PressPowerButton() override { power_.PressPowerButton(); }
  void SaveStates(MachineSections* sections) override;
  absl::Status RestoreStates(SectionReader* sections, std::chrono::nanoseconds missed) override;

 private:
  Sink sink_;
  Bus ports_;
  Bus mmio_;
  IoApicWindow io_apic_;
  Serial serial_;
  Rtc rtc_;
  const bool pm_timer_declared_;
  PmTimer pm_timer_;
  PowerPorts power_;
  ResetPort reset_;
  Pvpanic pvpanic_;
  std::unique_ptr<PciRoot> pci_;
};

absl::Status StandardDevices::Wire() {
  constexpr uint64_t kSerialPorts = 8, kOnePort = 1;
  HK_RETURN_IF_ERROR(mmio_.Add(kIoApicAddress.value(), IoApicWindow::kBytes, &io_apic_));
  HK_ASSIGN_OR_RETURN(pci_, PciRoot::Create(&mmio_, &sink_));
  HK_RETURN_IF_ERROR(ports_.Add(kPortSerial, kSerialPorts, &serial_));
  HK_RETURN_IF_ERROR(ports_.Add(kPortCmosIndex, Rtc::kPorts, &rtc_));
  HK_RETURN_IF_ERROR(ports_.Add(kPortPowerManagement, PowerPorts::kPorts, &power_));
  HK_RETURN_IF_ERROR(ports_.Add(kPortPvpanic, kOnePort, &pvpanic_));
  if (pm_timer_declared_) HK_RETURN_IF_ERROR(ports_.Add(kPortPmTimer, PmTimer::kPorts, &pm_timer_));
  return ports_.Add(kPortPciConfig, PciRoot::kConfigPorts, pci_->ConfigPorts(&reset_));
}

void StandardDevices::SaveStates(MachineSections* sections) {
  (*sections)[kSerialSection] = serial_.SaveState();
  (*sections)[kRtcSection] = rtc_.SaveState();
  (*sections)[kPowerSection] = power_.SaveState();
  (*sections)[kPciSection] = pci_->SaveState();
  if (pm_timer_declared_) (*sections)[kPmTimerSection] = pm_timer_.SaveState();
}

absl::Status StandardDevices::RestoreStates(SectionReader* sections, std::chrono::nanoseconds missed) {
  using Bytes = std::span<const std::byte>;
  HK_ASSIGN_OR_RETURN(const Bytes serial, sections->Take(kSerialSection));
  HK_RETURN_IF_ERROR(serial_.RestoreState(serial));
  HK_ASSIGN_OR_RETURN(const Bytes rtc, sections->Take(kRtcSection));
  HK_RETURN_IF_ERROR(rtc_.RestoreState(rtc));
  HK_ASSIGN_OR_RETURN(const Bytes power, sections->Take(kPowerSection));
  HK_RETURN_IF_ERROR(power_.RestoreState(power));
  HK_ASSIGN_OR_RETURN(const Bytes pci, sections->Take(kPciSection));
  HK_RETURN_IF_ERROR(pci_->RestoreState(pci));
  if (!pm_timer_declared_) return absl::OkStatus();
  HK_ASSIGN_OR_RETURN(const Bytes pm_timer, sections->Take(kPmTimerSection));
  return pm_timer_.RestoreState(pm_timer, missed);
}

}  // namespace

absl::StatusOr<std::unique_ptr<MachineDevices>> MachineDevices::Create(InterruptController* interrupts,
                                                                       const Clock& clock, bool pm_timer,
                                                                       MachineDeviceEvents events) {
  auto devices = std::make_unique<StandardDevices>(interrupts, clock, pm_timer, std::move(events));
  HK_RETURN_IF_ERROR(devices->Wire());
  return devices;
}

}  // namespace hk
