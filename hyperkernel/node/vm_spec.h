// Checks of a VM's specification. Pure; thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "hyperkernel/irq/vcpu_set.h"
#include "proto/vm.pb.h"

namespace hk {

// Limits, each with its reason.
inline constexpr uint64_t kMinVmMemoryMib = 32;                 // less holds no Linux and its initrd
inline constexpr uint64_t kMaxVmMemoryMib = uint64_t{1} << 32;  // 4 PiB: 52-bit guest-physical addresses
inline constexpr size_t kMaxCommandLine = 2047;       // COMMAND_LINE_SIZE of x86 Linux, less the terminating zero
inline constexpr int kMaxDisks = 16;                  // slots of the one PCI bus, half of them
inline constexpr int kMaxNets = 8;                    // slots of the one PCI bus, a quarter of them
inline constexpr size_t kMaxDiskSerial = 20;          // VIRTIO_BLK_ID_BYTES
inline constexpr uint32_t kMaxQueues = 16;            // of a disk, and pairs of a card: what the devices have
inline constexpr uint64_t kPlacementSpareShare = 16;  // of the memory, for pages that change places: as a space's
inline constexpr uint64_t kMinPlacedMib = 4;          // devices may pin half, a disk's request half of that
inline constexpr uint64_t kMinDomainMib = 4;          // x86 Linux: NODE_MIN_SIZE
inline constexpr size_t kMaxInterfaceName = 15;       // IFNAMSIZ, less the terminating zero

// A network card's hardware address.
using MacAddress = std::array<uint8_t, 6>;

// The specification with defaults filled in, for a machine of node `node`. Errors: kInvalidArgument, one line: FIELD:
// what is wrong and what is expected; kUnimplemented for what this release cannot do yet.
absl::StatusOr<v1::VmSpec> CompleteVmSpec(const v1::VmSpec& spec, const std::string& node);

// MiB that several nodes must give a machine together, so that its pages can change places.
uint64_t SpreadMib(const v1::VmSpec& spec);
// MiB that each of them must give.
uint64_t LeastPlacedMib(const v1::VmSpec& spec);

// The node that each vCPU is on: those of the I/O node first, then as `placement` has them. REQUIRES: complete.
std::vector<std::string> VcpuNodes(const v1::VmSpec& spec);

// The address that a card without one gets: locally administered, the same for the same name and number.
MacAddress GeneratedMac(const std::string& name, int index);
// Errors: kInvalidArgument if the text is not the address of one station.
absl::StatusOr<MacAddress> ParseMac(const std::string& text);

// Whether two machines of a node can be: a hardware address is not given out twice. Both complete. Errors:
// kAlreadyExists, one line with the field of `spec`.
absl::Status CheckBeside(const v1::VmSpec& spec, const v1::VmSpec& other);

}  // namespace hk
