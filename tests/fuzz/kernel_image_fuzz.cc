// Any bytes as a kernel file: refused in one line, or placed within the guest's RAM without overlap. The last two bytes
// choose the guest's size and its initrd's. The same bytes as what a bzImage carries, packed and unpacked.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/boot/boot_testing.h"
#include "hyperkernel/boot/kernel_payload.h"
#include "hyperkernel/boot/linux_loader.h"
#include "hyperkernel/boot/vmlinux.h"

namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

void CheckImage(const hk::ByteSource& source, const hk::KernelImage& image) {
  HK_CHECK(!image.segments.empty());
  HK_CHECK(image.setup_header.size() <= hk::kSetupHeaderLimit);
  for (const hk::KernelSegment& segment : image.segments) {
    HK_CHECK(segment.file_offset <= source.size());
    HK_CHECK(segment.file_bytes <= source.size() - segment.file_offset);
    HK_CHECK(segment.file_bytes <= segment.memory_bytes);
    HK_CHECK(segment.start >= hk::kKernelLoadAddress && segment.end() <= image.memory_end);
  }
  HK_CHECK(image.memory_end <= hk::Gpa(uint64_t{1} << 32));
}

void CheckInside(hk::FileBytes bytes) {
  static_cast<void>(hk::UnpackKernel(bytes));
  const absl::StatusOr<hk::Vmlinux> vmlinux = hk::ReadVmlinux(bytes);
  if (vmlinux.ok()) hk::Relocate(*vmlinux, uint64_t{1} << 21, bytes);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static constexpr uint64_t kRamMib[] = {0, 1, 16, 64, 256, 3072, 3073, 5120};
  const uint8_t ram_choice = size > 0 ? data[size - 1] : 0;
  const uint8_t initrd_choice = size > 1 ? data[size - 2] : 0;
  const uint64_t ram_bytes = kRamMib[ram_choice % std::size(kRamMib)] * kMiB;

  hk::FileBytes bytes(size);
  if (size > 0) std::memcpy(bytes.data(), data, size);
  CheckInside(bytes);
  std::unique_ptr<hk::ByteSource> kernel = hk::MakeMemorySource("/kernel", std::move(bytes));
  absl::StatusOr<hk::KernelImage> image = hk::ReadKernelImage(*kernel);
  if (image.ok()) CheckImage(*kernel, *image);
  std::unique_ptr<hk::ByteSource> initrd;
  if (initrd_choice > 0) initrd = hk::MakeMemorySource("/initrd", hk::FileBytes(initrd_choice * 1000));

  absl::StatusOr<hk::LinuxBoot> boot = hk::LinuxBoot::Plan(std::move(kernel), std::move(initrd),
                                                           {.command_line = "console=ttyS0", .ram_bytes = ram_bytes});
  if (!boot.ok()) {
    const std::string message = hk::MessageOf(boot.status());
    HK_CHECK(!message.empty() && message.find('\n') == std::string::npos);
    return 0;
  }
  HK_CHECK(image.ok());
  hk::RecordingWriter writer(ram_bytes);
  HK_CHECK(boot->Load(writer, hk::kAcpiTablesStart).ok());
  HK_CHECK(!writer.overlap());
  return 0;
}
