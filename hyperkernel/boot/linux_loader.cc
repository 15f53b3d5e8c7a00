#include "hyperkernel/boot/linux_loader.h"

#include <asm/bootparam.h>
#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/boot/address_map.h"
#include "hyperkernel/boot/cpu_tables.h"
#include "hyperkernel/boot/pvh_start_info.h"
#include "hyperkernel/boot/vmlinux.h"

namespace hk {
namespace {

constexpr uint8_t kLoaderUndefined = 0xff;  // type_of_loader of a loader without an assigned number

// With more, Linux needs 5-level paging, and it is its decompressor that switches it on.
constexpr uint64_t kMostRamOf4LevelPaging = uint64_t{1} << 46;
// Virtual space of a kernel built for KASLR, from __START_KERNEL_map (KERNEL_IMAGE_SIZE).
constexpr uint64_t kKernelImageSpace = uint64_t{1} << 30;

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

// Between words, as arch/x86/boot/cmdline.c has it.
bool IsSpace(char c) {
  return static_cast<unsigned char>(c) <= ' ';
}

// A word of a kernel's command line.
bool HasWord(std::string_view line, std::string_view word) {
  for (size_t at = line.find(word); at != std::string_view::npos; at = line.find(word, at + 1)) {
    const size_t end = at + word.size();
    if ((at == 0 || IsSpace(line[at - 1])) && (end == line.size() || IsSpace(line[end]))) return true;
  }
  return false;
}

// Whether all places lie in runs: what is zero is not written, so it must not be changed either. Fast for places that
// ascend, as Linux' do.
bool WithinRuns(const std::vector<uint32_t>& places, const std::vector<UnpackedKernel::Run>& runs) {
  UnpackedKernel::Run current;
  for (const uint64_t place : places) {
    const uint64_t end = place + sizeof(uint64_t);
    if (place >= current.offset && end <= current.offset + current.bytes) continue;
    const auto after = std::ranges::upper_bound(runs, place, {}, &UnpackedKernel::Run::offset);
    if (after == runs.begin()) return false;
    current = *std::prev(after);
    if (place + sizeof(uint32_t) > current.offset + current.bytes) return false;
  }
  return true;
}

// A vmlinux that fits in the place which its bzImage asked for. Errors: kUnimplemented.
absl::StatusOr<Vmlinux> PlanVmlinux(const UnpackedKernel& kernel, const KernelImage& image) {
  HK_ASSIGN_OR_RETURN(Vmlinux vmlinux, ReadVmlinux(kernel.span()));
  if (vmlinux.segments.front().start != image.preferred_address || vmlinux.segments.back().end() > image.memory_end) {
    return absl::UnimplementedError("vmlinux: is not where its bzImage says");
  }
  if (!WithinRuns(vmlinux.add64, kernel.runs) || !WithinRuns(vmlinux.add32, kernel.runs) ||
      !WithinRuns(vmlinux.subtract32, kernel.runs)) {
    return absl::UnimplementedError("vmlinux: relocations in a page of zeros");
  }
  return vmlinux;
}

// The same without what is zero, which fresh RAM is already: half of a vmlinux.
std::vector<KernelSegment> WithoutZeros(const std::vector<KernelSegment>& segments,
                                        const std::vector<UnpackedKernel::Run>& runs) {
  std::vector<KernelSegment> parts;
  for (const KernelSegment& segment : segments) {
    for (const UnpackedKernel::Run& run : runs) {
      const uint64_t start = std::max(run.offset, segment.file_offset);
      const uint64_t end = std::min(run.offset + run.bytes, segment.file_offset + segment.file_bytes);
      if (start >= end) continue;
      parts.push_back({.file_offset = start,
                       .file_bytes = end - start,
                       .start = Gpa(segment.start.value() + start - segment.file_offset),
                       .memory_bytes = end - start});
    }
  }
  return parts;
}

// As find_random_virt_addr() of Linux' kaslr.c: any place between the linked one and the end of the kernel's part of
// the virtual space.
absl::StatusOr<uint64_t> RandomOffset(const KernelImage& image) {
  const uint64_t taken = image.memory_end.value();  // the linked place and what the kernel takes from there
  if (taken >= kKernelImageSpace) return 0;
  uint64_t random;
  if (::getrandom(&random, sizeof(random), 0) != sizeof(random)) return ErrnoStatus(errno, "getrandom");
  return random % ((kKernelImageSpace - taken) / image.alignment + 1) * image.alignment;
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
  absl::StatusOr<std::unique_ptr<ByteSource>> kernel = OpenFileSource(spec.kernel_path);
  if (!kernel.ok()) return WithContext(kernel.status(), "kernel");
  absl::StatusOr<std::unique_ptr<ByteSource>> initrd;
  if (!spec.initrd_path.empty()) initrd = OpenFileSource(spec.initrd_path);
  if (!spec.initrd_path.empty() && !initrd.ok()) return WithContext(initrd.status(), "initrd");
  return Plan(*std::move(kernel), spec.initrd_path.empty() ? nullptr : *std::move(initrd), spec);
}

absl::StatusOr<LinuxBoot> LinuxBoot::Plan(std::unique_ptr<ByteSource> kernel, std::unique_ptr<ByteSource> initrd,
                                          const LinuxBootSpec& spec) {
  LinuxBoot boot;
  boot.command_line_ = spec.command_line;
  boot.ram_bytes_ = spec.ram_bytes;
  HK_ASSIGN_OR_RETURN(boot.image_, ReadKernelImage(*kernel));
  HK_RETURN_IF_ERROR(CheckCommandLine(spec.command_line, boot.image_));
  const uint64_t low_ram_end = LowRamEnd(spec.ram_bytes);
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
  if (spec.unpacked != nullptr && boot.image_.payload.bytes > 0 && spec.ram_bytes <= kMostRamOf4LevelPaging) {
    HK_RETURN_IF_ERROR(boot.Unpack(*spec.unpacked));
  }
  return boot;
}

// What arch/x86/boot/compressed does: unpack, choose a place in virtual space, relocate. The physical place is not
// random: the kernel stays where it was linked to be.
absl::Status LinuxBoot::Unpack(const KernelCache& cache) {
  absl::StatusOr<UnpackedKernel> kernel = cache.Get(*kernel_source_, image_.payload);
  if (!kernel.ok() && !absl::IsUnimplemented(kernel.status())) return kernel.status();
  absl::StatusOr<Vmlinux> vmlinux = kernel.ok() ? PlanVmlinux(*kernel, image_) : kernel.status();
  if (!vmlinux.ok()) {
    log::Info("boot", "the kernel starts by its own decompressor",
              {{"kernel", kernel_source_->name()}, {"why", MessageOf(vmlinux.status())}});
    return absl::OkStatus();
  }
  kaslr_ = vmlinux->movable() && !HasWord(command_line_, "nokaslr");
  if (kaslr_) {
    HK_ASSIGN_OR_RETURN(kaslr_offset_, RandomOffset(image_));
    Relocate(*vmlinux, kaslr_offset_, kernel->span());
  }
  image_.segments = WithoutZeros(vmlinux->segments, kernel->runs);
  image_.entry = vmlinux->entry;
  kernel_source_ = MakeMappingSource(kernel_source_->name(), std::move(kernel->bytes));
  unpacked_ = true;
  return absl::OkStatus();
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
  // "Used internally by the compressed kernel to communicate KASLR status to kernel proper": here we are the former.
  params.hdr.loadflags = static_cast<uint8_t>(params.hdr.loadflags & ~KASLR_FLAG);
  if (kaslr_ && !HK_MUTANT(kaslr_not_told)) params.hdr.loadflags |= KASLR_FLAG;
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
