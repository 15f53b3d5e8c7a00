// Checks of a VM's specification. Pure; thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "proto/vm.pb.h"

namespace hk {

// Limits, each with its reason.
inline constexpr uint64_t kMinVmMemoryMib = 32;                 // less holds no Linux and its initrd
inline constexpr uint64_t kMaxVmMemoryMib = uint64_t{1} << 32;  // 4 PiB: 52-bit guest-physical addresses
inline constexpr uint32_t kMaxVcpus = 255;                      // APIC ids of one I/O APIC's physical destinations
inline constexpr size_t kMaxCommandLine = 2047;  // COMMAND_LINE_SIZE of x86 Linux, less the terminating zero
inline constexpr int kMaxDisks = 16;             // slots of the one PCI bus, half of them
inline constexpr size_t kMaxDiskSerial = 20;     // VIRTIO_BLK_ID_BYTES

// The specification with defaults filled in. Errors: kInvalidArgument, one line: FIELD: what is wrong and what is
// expected.
absl::StatusOr<v1::VmSpec> CompleteVmSpec(const v1::VmSpec& spec);

}  // namespace hk
