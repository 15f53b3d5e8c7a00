// For tests: guests of tests/guest with our own interrupt controllers in the loop instead of fakes: local APICs, I/O
// APIC, MSI and timers, and vCPUs that can be renewed.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "hyperkernel/irq/interrupt_controller.h"
#include "hyperkernel/kvm/guest_harness.h"
#include "hyperkernel/kvm/vcpu_group.h"

namespace hk {

// The fake devices, the I/O APIC's page, port 0x30 that drives its pins (bit 7 the level) and port 0x34 that sends an
// MSI to APIC id 0 with the data written.
class Board final : public FakeDevices {
 public:
  InterruptController* interrupts = nullptr;  // set before the vCPUs run

  void PortWrite(uint16_t port, std::span<const std::byte> data) override {
    uint32_t value = 0;
    std::memcpy(&value, data.data(), data.size());
    if (port == 0x30) {
      interrupts->SetLine(value & 0x7f, (value & 0x80) != 0);
    } else if (port == 0x34) {
      static_cast<void>(interrupts->SendMsi(0xfee00000, value));
    } else {
      FakeDevices::PortWrite(port, data);
    }
  }
  void MmioRead(Gpa address, std::span<std::byte> data) override {
    if (!IsIoApic(address)) return FakeDevices::MmioRead(address, data);
    const uint32_t value = interrupts->IoApicRead(static_cast<uint32_t>(address.value() - kIoApic));
    std::memcpy(data.data(), &value, std::min(data.size(), sizeof(value)));
  }
  void MmioWrite(Gpa address, std::span<const std::byte> data) override {
    if (!IsIoApic(address)) return FakeDevices::MmioWrite(address, data);
    uint32_t value = 0;
    std::memcpy(&value, data.data(), std::min(data.size(), sizeof(value)));
    interrupts->IoApicWrite(static_cast<uint32_t>(address.value() - kIoApic), value);
  }

 private:
  static constexpr uint64_t kIoApic = 0xfec00000;
  static bool IsIoApic(Gpa address) { return address.value() - kIoApic < kPageSize; }
};

// A guest on our own interrupt controllers. Everything is fatal to the test.
class ControllerGuest {
 public:
  // `x2apic`: from the beginning.
  explicit ControllerGuest(const std::string& program, uint32_t count = 1, bool x2apic = true)
      : ram(program), vcpus(count), controller({.vcpus = count, .x2apic = x2apic}, &RealClock(), &vcpus) {
    devices.interrupts = &controller;
    auto vm = Vm::Create(count);
    Check(vm.status());
    Check((*vm)->AddMemory({.start = Gpa(0), .bytes = kGuestBytes, .host = ram.data()}).status());
    auto model = CpuModel::Create((*vm)->facts().cpuid, ReadHostCpu(), {});
    Check(model.status());
    clock_ = std::make_unique<PvClock>(PvClockOrigin{.wall_ns = 1'234'567'890ull * 1'000'000'000, .tsc_khz = 1'000'000},
                                       count, [this](Gpa at, std::span<const std::byte> bytes) {
                                         if (at.value() + bytes.size() > kGuestBytes) {
                                           return absl::OutOfRangeError("not RAM");
                                         }
                                         std::memcpy(ram.data() + at.value(), bytes.data(), bytes.size());
                                         return absl::OkStatus();
                                       });
    std::vector<VcpuConfig> configs;
    for (uint32_t i = 0; i < count; ++i) configs.push_back({.id = VcpuId(i), .cpuid = model->Cpuid(i, count)});
    Check(vcpus.Create(*std::move(vm), configs, [this](VcpuId id) {
      return VcpuEnvironment{.devices = &devices,
                             .interrupts = &controller.vcpu(id),
                             .clock = clock_.get(),
                             .guest_word = [this](Gpa at) -> absl::StatusOr<std::byte*> {
                               if (at.value() + 4 > kGuestBytes) return absl::OutOfRangeError("not RAM");
                               return reinterpret_cast<std::byte*>(ram.data() + at.value());
                             }};
    }));
  }
  ~ControllerGuest() {
    EXPECT_TRUE(vcpus.Stop(Guard()).ok());
    vcpus.Clear();
  }

  void Start() { Check(vcpus.Start(GuestRam::Entry(), Guard())); }
  // As a machine does it.
  absl::Status Renew() {
    return vcpus.Renew([this](Vm*) { return controller.Renew(); }, Guard());
  }

  Board devices;
  GuestRam ram;
  VcpuGroup vcpus;

 private:
  static void Check(const absl::Status& status) {
    if (!status.ok()) ADD_FAILURE() << status;
    HK_CHECK(status.ok());
  }

  std::unique_ptr<PvClock> clock_;

 public:
  InterruptController controller;
};

}  // namespace hk
