// PCI bus 0 of a guest: host bridge, functions, configuration accesses (ECAM, PCI Express Base 7.2.2, and mechanism 1,
// PCI Local Bus 3.0, 3.2.2.3.2), BARs on the MMIO bus, INTx lines.
//
// Thread-safe. Locks are taken in the order root, function, bus; interrupts are raised after unlocking.
//
// Invariant: after every configuration access that returned, a BAR answers exactly where its register says, if memory
// decoding is on and nothing else was there first; a BAR that collided answers nowhere, and takes its place when that
// becomes free.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/boot/address_map.h"
#include "hyperkernel/device/bus.h"
#include "hyperkernel/device/doorbells.h"
#include "hyperkernel/device/interrupt_line.h"
#include "hyperkernel/device/io_handler.h"
#include "hyperkernel/device/pci_config.h"

namespace hk {

class PciRoot;

// One single-function device. Thread-safe.
class PciDevice {
 public:
  explicit PciDevice(const PciConfig::Identity& identity) : config_(identity) {}
  virtual ~PciDevice() = default;

  virtual void ReadConfig(uint32_t offset, std::span<std::byte> data);
  virtual void WriteConfig(uint32_t offset, std::span<const std::byte> data);
  // Accesses to a BAR; offset and size are within it.
  virtual void ReadBar(int bar, uint64_t offset, std::span<std::byte> data) = 0;
  virtual void WriteBar(int bar, uint64_t offset, std::span<const std::byte> data) = 0;
  // Registers of a BAR that may be taken over by a DoorbellRegistrar; constant once added to a root.
  virtual std::span<const Doorbell> Doorbells(int bar) const {
    return static_cast<void>(bar), std::span<const Doorbell>();
  }

 protected:
  // Level of this device's INTA. Call it without locks held.
  void SetIntx(bool level);
  // The command register or a BAR was changed other than by a configuration access. Call it without locks held.
  void BarsChanged();

  Mutex config_mutex_;
  PciConfig config_ ABSL_GUARDED_BY(config_mutex_);

 private:
  friend class PciRoot;
  PciRoot* root_ = nullptr;  // set when added
  uint8_t slot_ = 0;
};

// Bus 0.
class PciRoot {
 public:
  static constexpr uint8_t kSlots = 32;
  static constexpr uint64_t kConfigPorts = 8;

  // A range of ECAM that no function answers, now and as long as the guest lives (devices are not hot-plugged).
  struct EmptyRange {
    Gpa start;
    uint64_t bytes = 0;
  };

  // Takes ECAM's range on `mmio`. Both outlive the root. Errors: as Bus::Add.
  static absl::StatusOr<std::unique_ptr<PciRoot>> Create(Bus* mmio, InterruptSink* interrupts);

  // Puts a device in a slot (1 to 31; 0 is the host bridge) and gives its BARs addresses in the 32-bit window; memory
  // decoding stays off until the guest turns it on. The device outlives the root. REQUIRES: the guest does not run.
  // Errors: kInvalidArgument, kAlreadyExists, kResourceExhausted.
  absl::Status Add(uint8_t slot, PciDevice* device);

  // Who takes doorbells over while their BARs answer; nullptr for nobody. Outlives the root. REQUIRES: the guest does
  // not run, and memory decoding is off.
  void SetDoorbellRegistrar(DoorbellRegistrar* doorbells) { doorbells_ = doorbells; }

  // Mechanism 1: kConfigPorts ports from kPortPciConfig on. One-byte accesses at offset 1 belong to `reset_port`
  // (0xcf9), which may be nullptr. For guests that know no ECAM, or not yet: see README.md.
  IoHandler* ConfigPorts(IoHandler* reset_port);

  // Configuration space of every function of bus 0 that is not there. All of it reads as all ones and ignores writes,
  // so the node may map these ranges read-only onto one page of 0xff: then reading them makes no exit, and a write's
  // exit finds ECAM on the MMIO bus, which drops it. Buses above 0 are not listed: the MCFG table must not name them.
  std::vector<EmptyRange> EmptySlotPages() const;

  // The I/O APIC pin of INTA of a slot, as the DSDT's _PRT must say.
  static constexpr uint8_t IntxPin(uint8_t slot) { return kFirstPciPin + slot % kPciPins; }

  // The bus's own: the configuration address and the host bridge. The functions have theirs. As Serial's.
  std::vector<std::byte> SaveState();
  absl::Status RestoreState(std::span<const std::byte> bytes);

 private:
  friend class PciDevice;
  // A BAR on the bus.
  struct BarWindow final : IoHandler {
    void Read(uint64_t offset, std::span<std::byte> data) override { device->ReadBar(bar, offset, data); }
    void Write(uint64_t offset, std::span<const std::byte> data) override { device->WriteBar(bar, offset, data); }
    PciDevice* device = nullptr;
    int bar = 0;
    uint32_t bytes = 0;
    std::optional<uint64_t> mapped;  // where it is on the bus; guarded by the root's lock
    std::vector<Doorbell> taken;     // doorbells that do not exit; as above
  };
  // ECAM's range.
  struct Ecam final : IoHandler {
    void Read(uint64_t offset, std::span<std::byte> data) override;
    void Write(uint64_t offset, std::span<const std::byte> data) override;
    PciRoot* root = nullptr;
  };
  // Mechanism 1.
  struct Ports final : IoHandler {
    void Read(uint64_t offset, std::span<std::byte> data) override;
    void Write(uint64_t offset, std::span<const std::byte> data) override;
    PciRoot* root = nullptr;
    IoHandler* reset_port = nullptr;
    Mutex mutex;
    uint32_t address ABSL_GUARDED_BY(mutex) = 0;
  };

  PciRoot(Bus* mmio, InterruptSink* interrupts);
  // The device at (bus, slot, function), or nullptr.
  PciDevice* At(uint32_t bus, uint32_t slot, uint32_t function) const;
  void ReadConfig(PciDevice* device, uint32_t offset, std::span<std::byte> data);
  void WriteConfig(PciDevice* device, uint32_t offset, std::span<const std::byte> data);
  // Makes the bus agree with all BAR registers.
  void UpdateBars();
  void Map(BarWindow* window, uint64_t address) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Unmap(BarWindow* window) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SetIntx(uint8_t slot, bool level);

  Bus* const mmio_;
  std::unique_ptr<PciDevice> host_bridge_;
  std::array<PciDevice*, kSlots> slots_{};  // written before the guest runs only
  Ecam ecam_;
  Ports ports_;
  DoorbellRegistrar* doorbells_ = nullptr;
  uint64_t next_bar_ = kPci32Start.value();
  Mutex mutex_;
  std::vector<std::unique_ptr<BarWindow>> bars_ ABSL_GUARDED_BY(mutex_);
  std::array<uint32_t, kPciPins> intx_ ABSL_GUARDED_BY(mutex_){};  // per pin, one bit per slot
  std::vector<std::unique_ptr<InterruptLine>> lines_;
};

}  // namespace hk
