// Places a Linux kernel, its initrd and its command line in a guest's RAM, with what the first vCPU needs to start it.
//
// In two steps, so that everything an operator can get wrong is refused before anything is made: Plan() opens and
// checks, Load() writes and may be called again for every reset of the guest (the files stay open).
//
// Invariants:
//  1. Nothing is written outside the guest's RAM, and no two parts overlap: low structures as address_map.h has them,
//     kernel at or above 1 MiB, initrd above all the kernel takes before it reads the memory map, below the MMIO hole.
//  2. Memory use is bounded by kLoadChunkBytes, and the unpacked kernel (kMostUnpackedBytes) as long as the plan lives.
//  3. After a successful Plan(), Load() fails only if guest memory or a file fails.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/boot/boot_state.h"
#include "hyperkernel/boot/byte_source.h"
#include "hyperkernel/boot/guest_writer.h"
#include "hyperkernel/boot/kernel_cache.h"
#include "hyperkernel/boot/kernel_image.h"

namespace hk {

// Files are copied in pieces of this size.
inline constexpr size_t kLoadChunkBytes = size_t{1} << 20;

// What a guest boots, as its operator says. Plain value.
struct LinuxBootSpec {
  std::string kernel_path = {};
  std::string initrd_path = {};  // empty: none
  std::string command_line = {};
  uint64_t ram_bytes = 0;  // a multiple of the page size, at most kMaxRamBytes
  // If given, a bzImage is unpacked here, with the guest's own choice of KASLR. Otherwise, and if its insides are not
  // understood, the guest runs the decompressor that the file brings. Outlives Plan().
  const KernelCache* unpacked = nullptr;
};

// A boot that has been checked. Movable; const methods are thread-safe.
class LinuxBoot {
 public:
  // Opens the files and finds a place for everything. Errors, one line each, naming the file: kNotFound and other errno
  // codes of open, kInvalidArgument (not a bootable kernel; command line), kResourceExhausted (kernel or initrd too
  // large for the RAM). REQUIRES: ram_bytes as RamLayout().
  static absl::StatusOr<LinuxBoot> Plan(const LinuxBootSpec& spec);
  // The same over open sources. `initrd` may be null. The paths in `spec` are not looked at.
  static absl::StatusOr<LinuxBoot> Plan(std::unique_ptr<ByteSource> kernel, std::unique_ptr<ByteSource> initrd,
                                        const LinuxBootSpec& spec);

  // Writes all of it and returns how the first vCPU starts. `rsdp` is where the ACPI tables are (AcpiTables::rsdp);
  // they are written by themselves. Errors: of a file or of the writer. REQUIRES: the RAM is all zeros (what the kernel
  // expects zeroed is not written, so that it takes no frames).
  absl::StatusOr<BootState> Load(GuestWriter& writer, Gpa rsdp) const;

  const KernelImage& kernel() const { return image_; }
  // Whether the guest is spared its own decompressor.
  bool unpacked() const { return unpacked_; }
  // How far the kernel was moved from where it was linked to run, in virtual space; 0 unless unpacked.
  uint64_t kaslr_offset() const { return kaslr_offset_; }
  // Where the initrd goes; 0 if there is none.
  Gpa initrd_start() const { return initrd_start_; }

 private:
  LinuxBoot() = default;

  absl::Status Unpack(const KernelCache& cache);
  absl::Status LoadBootParams(GuestWriter& writer, Gpa rsdp) const;
  absl::Status LoadPvhStartInfo(GuestWriter& writer, Gpa rsdp) const;
  uint64_t initrd_bytes() const { return initrd_source_ == nullptr ? 0 : initrd_source_->size(); }

  std::unique_ptr<ByteSource> kernel_source_;
  std::unique_ptr<ByteSource> initrd_source_;
  std::string command_line_;
  uint64_t ram_bytes_ = 0;
  KernelImage image_;
  Gpa initrd_start_;
  bool unpacked_ = false;
  bool kaslr_ = false;
  uint64_t kaslr_offset_ = 0;
};

}  // namespace hk
