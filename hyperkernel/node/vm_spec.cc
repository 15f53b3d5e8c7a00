#include "hyperkernel/node/vm_spec.h"

#include <set>
#include <string>
#include <string_view>

#include "fmt/format.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/names.h"

namespace hk {
namespace {

absl::Status Bad(std::string_view field, std::string_view what) {
  return absl::InvalidArgumentError(fmt::format("{}: {}", field, what));
}

absl::Status CheckPath(std::string_view field, const std::string& path) {
  if (path.empty() || path.front() != '/' || path.find('\0') != std::string::npos) {
    return Bad(field, fmt::format("'{}' is not an absolute path", path));
  }
  return absl::OkStatus();
}

absl::Status CheckDisks(const v1::VmSpec& spec) {
  if (spec.disks_size() > kMaxDisks)
    return Bad("disks", fmt::format("{}; at most {} are possible", spec.disks_size(), kMaxDisks));
  std::set<std::string> paths;
  for (int i = 0; i < spec.disks_size(); i++) {
    const v1::DiskSpec& disk = spec.disks(i);
    HK_RETURN_IF_ERROR(CheckPath(fmt::format("disks[{}].path", i), disk.path()));
    if (!paths.insert(disk.path()).second)
      return Bad(fmt::format("disks[{}].path", i), fmt::format("'{}' is there twice", disk.path()));
    if (disk.serial().size() > kMaxDiskSerial) {
      return Bad(fmt::format("disks[{}].serial", i),
                 fmt::format("{} characters; at most {} are possible", disk.serial().size(), kMaxDiskSerial));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<v1::VmSpec> CompleteVmSpec(const v1::VmSpec& spec) {
  v1::VmSpec out = spec;
  if (!IsValidName(spec.name())) return Bad("name", fmt::format("'{}' is not [a-z0-9-]{{1,63}}", spec.name()));
  if (spec.memory_mib() < kMinVmMemoryMib || spec.memory_mib() > kMaxVmMemoryMib) {
    return Bad("memory_mib",
               fmt::format("{} is not from {} to {}", spec.memory_mib(), kMinVmMemoryMib, kMaxVmMemoryMib));
  }
  if (spec.vcpus() == 0) out.set_vcpus(1);
  if (spec.vcpus() > kMaxVcpus) return Bad("vcpus", fmt::format("{} is not from 1 to {}", spec.vcpus(), kMaxVcpus));
  if (spec.cpu().profile().empty()) out.mutable_cpu()->set_profile("host");
  if (out.cpu().profile() != "host" && out.cpu().profile() != "common") {
    return Bad("cpu.profile", fmt::format("'{}' is not host or common", out.cpu().profile()));
  }
  HK_RETURN_IF_ERROR(CheckPath("kernel", spec.kernel()));
  if (!spec.initrd().empty()) HK_RETURN_IF_ERROR(CheckPath("initrd", spec.initrd()));
  if (spec.cmdline().size() > kMaxCommandLine || spec.cmdline().find('\0') != std::string::npos) {
    return Bad("cmdline", fmt::format("longer than {} bytes, or with a zero byte in it", kMaxCommandLine));
  }
  if (spec.on_crash() != v1::ON_CRASH_STOP && spec.on_crash() != v1::ON_CRASH_RESET)
    return Bad("on_crash", "not ON_CRASH_STOP or ON_CRASH_RESET");
  HK_RETURN_IF_ERROR(CheckDisks(spec));
  return out;
}

}  // namespace hk
