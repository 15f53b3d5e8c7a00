#include "hyperkernel/boot/linux_loader.h"

#include <asm/bootparam.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/boot/address_map.h"
#include "hyperkernel/boot/cpu_tables.h"
#include "hyperkernel/boot/pvh_start_info.h"

namespace hk {
namespace {

constexpr uint8_t kLoaderUndefined = 0xff;  // type_of_loader of a loader without an assigned number

static_assert(sizeof(boot_params) == kPageSize);
static_assert(offsetof(boot_params, acpi_rsdp_addr) == 0x70);
static_assert(offsetof(boot_params, e820_entries) == 0x1e8);
static_assert(offsetof(boot_params, e820_table) == 0x2d0);

uint64_t MibUp(uint64_t bytes) {
  return (bytes + (uint64_t{1} << 20) - 1) >> 20;
}

// RAM that lies below the hole in one piece: where kernel and initrd must be.
uint64_t LowRamEnd(uint64_t ram_bytes) {
  const std::vector<RamPiece> ram = RamLayout(ram_bytes);
  return ram.empty() ? 0 : ram.front().end().value();
}

absl::Status CheckCommandLine(const std::string& line, const KernelImage& image) {
  const uint64_t limit = std::min(image.command_line_limit, kCommandLineLimit - 1);
  if (line.size() > limit) {
    return absl::InvalidArgumentError(
        fmt::format("cmdline: {} bytes; this kernel takes {} at the most", line.size(), limit));
  }
  if (line.find('\0') != std::string::npos) return absl::InvalidArgumentError("cmdline: has a zero byte");
  return absl::OkStatus();
}

// Highest page-aligned start below all limits.
absl::StatusOr<Gpa> PlaceInitrd(const ByteSource& initrd, const KernelImage& image, uint64_t low_ram_end) {
  const uint64_t end = std::min(low_ram_end, image.initrd_end_limit.value());
  const uint64_t room = end > image.memory_end.value() ? end - image.memory_end.value() : 0;
  const uint64_t start = initrd.size() > room ? 0 : (end - initrd.size()) & ~(kPageSize - 1);
  if (start < image.memory_end.value()) {
    return absl::ResourceExhaustedError(
        fmt::format("{}: initrd of {} MiB does not fit in {} MiB", initrd.name(), MibUp(initrd.size()), room >> 20));
  }
  return Gpa(start);
}

// Copies [offset, offset + bytes) of the source to guest memory.
absl::Status CopyToGuest(const ByteSource& source, uint64_t offset, uint64_t bytes, Gpa to, GuestWriter& writer) {
  std::vector<std::byte> chunk(std::min<uint64_t>(bytes, kLoadChunkBytes));
  for (uint64_t done = 0; done < bytes;) {
    const std::span<std::byte> piece(chunk.data(), std::min<uint64_t>(bytes - done, chunk.size()));
    HK_RETURN_IF_ERROR(source.Read(offset + done, piece));
    HK_RETURN_IF_ERROR(writer.Write(Gpa(to.value() + done), piece));
    done += piece.size();
  }
  return absl::OkStatus();
}

template <typename T>
std::span<const std::byte> BytesOf(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

}  // namespace

absl::StatusOr<LinuxBoot> LinuxBoot::Plan(const LinuxBootSpec& spec) {
  HK_ASSIGN_OR_RETURN(std::unique_ptr<ByteSource> kernel, OpenFileSource(spec.kernel_path));
  std::unique_ptr<ByteSource> initrd;
  if (!spec.initrd_path.empty()) {
    HK_ASSIGN_OR_RETURN(initrd, OpenFileSource(spec.initrd_path));
  }
  return Plan(std::move(kernel), std::move(initrd), spec.command_line, spec.ram_bytes);
}

absl::StatusOr<LinuxBoot> LinuxBoot::Plan(std::unique_ptr<ByteSource> kernel, std::unique_ptr<ByteSource> initrd,
                                          const std::string& command_line, uint64_t ram_bytes) {
  LinuxBoot boot;
  HK_ASSIGN_OR_RETURN(boot.image_, ReadKernelImage(*kernel));
  HK_RETURN_IF_ERROR(CheckCommandLine(command_line, boot.image_));
  const uint64_t low_ram_end = LowRamEnd(ram_bytes);
  if (boot.image_.memory_end.value() > low_ram_end) {
    return absl::ResourceExhaustedError(
        fmt::format("{}: the kernel needs {} MiB of RAM below {} MiB, the guest has {} MiB", kernel->name(),
                    MibUp(boot.image_.memory_end.value()), kMmioHoleStart.value() >> 20, low_ram_end >> 20));
  }
  if (initrd != nullptr) {
    HK_ASSIGN_OR_RETURN(boot.initrd_start_, PlaceInitrd(*initrd, boot.image_, low_ram_end));
  }
  boot.kernel_source_ = std::move(kernel);
  boot.initrd_source_ = std::move(initrd);
  boot.command_line_ = command_line;
  boot.ram_bytes_ = ram_bytes;
  return boot;
}

absl::StatusOr<BootState> LinuxBoot::Load(GuestWriter& writer, Gpa rsdp) const {
  for (const KernelSegment& segment : image_.segments) {
    HK_RETURN_IF_ERROR(CopyToGuest(*kernel_source_, segment.file_offset, segment.file_bytes, segment.start, writer));
  }
  if (initrd_source_ != nullptr) {
    HK_RETURN_IF_ERROR(CopyToGuest(*initrd_source_, 0, initrd_source_->size(), initrd_start_, writer));
  }
  const std::span<const char> line(command_line_.c_str(), command_line_.size() + 1);
  HK_RETURN_IF_ERROR(writer.Write(kCommandLineAddress, std::as_bytes(line)));
  HK_RETURN_IF_ERROR(WriteResetVector(writer));

  BootState state;
  if (image_.format == KernelImage::Format::kPvhElf) {
    HK_RETURN_IF_ERROR(LoadPvhStartInfo(writer, rsdp));
    state = Pvh32State();
    state.rbx = kPvhStartInfoAddress.value();
  } else {
    HK_RETURN_IF_ERROR(LoadBootParams(writer, rsdp));
    HK_RETURN_IF_ERROR(WriteLong64Tables(writer));
    state = Long64State();
    state.rsi = kZeroPageAddress.value();
  }
  state.rip = image_.entry.value();
  return state;
}

// boot.rst, "64-bit Boot Protocol": the setup header is copied from the file, all else of the page is zero but for what
// the loader fills in. Fields are named in zero-page.rst.
absl::Status LinuxBoot::LoadBootParams(GuestWriter& writer, Gpa rsdp) const {
  boot_params params = {};
  std::memcpy(reinterpret_cast<std::byte*>(&params) + kSetupHeaderStart, image_.setup_header.data(),
              image_.setup_header.size());
  params.hdr.type_of_loader = kLoaderUndefined;
  params.hdr.code32_start = static_cast<uint32_t>(kKernelLoadAddress.value());
  params.hdr.cmd_line_ptr = static_cast<uint32_t>(kCommandLineAddress.value());
  params.hdr.ramdisk_image = static_cast<uint32_t>(initrd_start_.value());
  params.hdr.ramdisk_size = static_cast<uint32_t>(initrd_bytes());
  params.hdr.setup_data = 0;
  params.acpi_rsdp_addr = rsdp.value();
  for (const MemoryMapEntry& entry : MemoryMap(ram_bytes_)) {
    params.e820_table[params.e820_entries++] = {
        .addr = entry.start.value(), .size = entry.bytes, .type = static_cast<uint32_t>(entry.type)};
  }
  return writer.Write(kZeroPageAddress, BytesOf(params));
}

// One page: the start info, then the one module, then the memory map.
absl::Status LinuxBoot::LoadPvhStartInfo(GuestWriter& writer, Gpa rsdp) const {
  struct Page {
    PvhStartInfo info;
    PvhModule initrd;
    PvhMemoryMapEntry map[8];
  };
  static_assert(sizeof(Page) <= kPageSize);
  const uint64_t at = kPvhStartInfoAddress.value();
  Page page = {};
  page.info.cmdline_paddr = kCommandLineAddress.value();
  page.info.rsdp_paddr = rsdp.value();
  if (initrd_source_ != nullptr) {
    page.info.nr_modules = 1;
    page.info.modlist_paddr = at + offsetof(Page, initrd);
    page.initrd.paddr = initrd_start_.value();
    page.initrd.size = initrd_bytes();
  }
  page.info.memmap_paddr = at + offsetof(Page, map);
  for (const MemoryMapEntry& entry : MemoryMap(ram_bytes_)) {
    page.map[page.info.memmap_entries++] = {
        .addr = entry.start.value(), .size = entry.bytes, .type = static_cast<uint32_t>(entry.type)};
  }
  return writer.Write(Gpa(at), BytesOf(page));
}

}  // namespace hk
