// Where a vCPU's exits go that KVM itself does not know: ports, MMIO, and the guest's end. The node implements it over
// its buses.
//
// Thread-safe: all vCPU threads call it. A call may take as long as the device needs, and must end by itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "hyperkernel/base/types.h"

namespace hk {

// Devices and the guest's fate, as vCPUs see them.
class ExitHandler {
 public:
  virtual ~ExitHandler() = default;

  // Ports: 1, 2 or 4 bytes. What nobody answers reads as all ones and is dropped when written.
  virtual void PortRead(uint16_t port, std::span<std::byte> data) = 0;
  virtual void PortWrite(uint16_t port, std::span<const std::byte> data) = 0;
  // MMIO outside the local APIC's page: 1 to 8 bytes, same rule.
  virtual void MmioRead(Gpa address, std::span<std::byte> data) = 0;
  virtual void MmioWrite(Gpa address, std::span<const std::byte> data) = 0;

  // The guest cannot go on (triple fault, KVM internal error, ...). `reason` is one line. Called once per vCPU, from
  // its thread, which then waits to be stopped.
  virtual void OnGuestFailure(VcpuId vcpu, const std::string& reason) = 0;
};

}  // namespace hk
