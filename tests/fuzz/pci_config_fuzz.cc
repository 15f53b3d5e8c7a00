// A hostile guest against PCI configuration space, BARs, MSI-X and the virtio-pci registers: any access to any place,
// with the device's worker run in between. Nothing may break, and every step ends.
#include <algorithm>
#include <array>
#include <cstdint>

#include "hyperkernel/boot/address_map.h"
#include "hyperkernel/device/bus.h"
#include "hyperkernel/device/pci.h"
#include "hyperkernel/device/testing_interrupts.h"
#include "hyperkernel/device/testing_memory.h"
#include "hyperkernel/device/virtio_console.h"
#include "hyperkernel/device/virtio_pci.h"
#include "hyperkernel/device/virtio_rng.h"

namespace hk {
namespace {

// Input: steps of 8 bytes: what, size, 16 bits of offset, 32 bits of value.
constexpr size_t kStepBytes = 8;
constexpr uint64_t kRamBytes = 0x10000;

// A machine with an entropy device and a console.
struct Machine {
  FakeGuestMemory memory{{{Gpa(0), kRamBytes}}};
  std::unique_ptr<DmaPins> pins = *DmaPins::Create(memory);
  std::unique_ptr<DmaSpace> space = *DmaSpace::Create(&memory, pins.get());
  RecordingInterrupts interrupts;
  Bus mmio, ports;
  std::unique_ptr<PciRoot> root = *PciRoot::Create(&mmio, &interrupts);
  VirtioRng rng;
  VirtioConsole console{std::vector<VirtioConsole::Port>(2)};
  std::unique_ptr<WorkLoop> rng_loop = *WorkLoop::Create("rng");
  std::unique_ptr<WorkLoop> console_loop = *WorkLoop::Create("console");
  VirtioPci rng_pci{"rng", &rng, space.get(), rng_loop.get(), &interrupts};
  VirtioPci console_pci{"console", &console, space.get(), console_loop.get(), &interrupts};
};

void Access(Bus* bus, uint64_t address, size_t bytes, bool write, uint64_t value) {
  std::array<std::byte, 8> data{};
  StoreLe(data, value);
  if (write) {
    bus->Write(address, std::span(data).first(bytes));
  } else {
    bus->Read(address, std::span(data).first(bytes));
  }
}

void Step(Machine* machine, std::span<const uint8_t> step) {
  const size_t bytes = size_t{1} << (step[1] & 3);
  const bool write = (step[1] & 4) != 0;
  const uint64_t offset = step[2] | step[3] << 8;
  const uint64_t value = LoadLe(std::as_bytes(step.subspan(4, 4)));
  const uint64_t slot = 1 + (step[1] >> 3 & 1);
  switch (step[0] & 7) {
    case 0:  // a device's configuration space
      return Access(&machine->mmio, kEcamStart.value() + (slot << 15) + offset % 4096, bytes, write, value);
    case 1:  // anywhere in ECAM
      return Access(&machine->mmio, kEcamStart.value() + (offset << 6), bytes, write, value);
    case 2:  // a device's BAR, where it was first
      return Access(&machine->mmio, kPci32Start.value() + (slot - 1) * VirtioPci::kBarBytes + offset % 0x8000, bytes,
                    write, value);
    case 3:  // a device's BAR through the device itself, wherever it is
      if (offset % 0x8000 + bytes > VirtioPci::kBarBytes) return;
      {
        std::array<std::byte, 8> data{};
        StoreLe(data, value);
        VirtioPci& device = slot == 1 ? machine->rng_pci : machine->console_pci;
        if (write) {
          device.WriteBar(0, offset % 0x8000, std::span(data).first(bytes));
        } else {
          device.ReadBar(0, offset % 0x8000, std::span(data).first(bytes));
        }
      }
      return;
    case 4:  // configuration mechanism 1
      return Access(&machine->ports, kPortPciConfig + offset % 8, std::min<size_t>(bytes, 4), write, value);
    case 5:  // memory
      *machine->memory.Find(Gpa(offset % kRamBytes), 1) = std::byte{step[4]};
      return;
    case 6:
      machine->console.Input(step[1] & 1, std::as_bytes(step));
      return;
    default:
      machine->rng_loop->RunOnce(0);
      machine->console_loop->RunOnce(0);
  }
}

void Run(std::span<const uint8_t> input) {
  Machine machine;
  HK_CHECK(machine.root->Add(1, &machine.rng_pci).ok() && machine.root->Add(2, &machine.console_pci).ok());
  HK_CHECK(machine.ports.Add(kPortPciConfig, PciRoot::kConfigPorts, machine.root->ConfigPorts(nullptr)).ok());
  for (; input.size() >= kStepBytes; input = input.subspan(kStepBytes)) Step(&machine, input.first(kStepBytes));
  // Whatever was done, a reset ends.
  machine.rng_loop->RunOnce(0);
  machine.console_loop->RunOnce(0);
}

}  // namespace
}  // namespace hk

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  hk::Run(std::span(data, size));
  return 0;
}
