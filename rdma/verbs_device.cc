#include "rdma/verbs_device.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "fmt/format.h"
#include "hyperkernel/base/file.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

constexpr char kClass[] = "/sys/class/infiniband";

// The first line of a file of a device; "" if it cannot be read (an attribute that this kind of device does not have).
std::string FirstLine(const std::string& path) {
  auto text = ReadSmallFile(path, 4096);
  return text.ok() ? text->substr(0, text->find('\n')) : "";
}

}  // namespace

absl::StatusOr<std::vector<VerbsDevice>> ListVerbsDevices() {
  std::vector<VerbsDevice> devices;
  std::error_code error;
  std::filesystem::directory_iterator entry(kClass, error);
  // Without the kernel's RDMA core there is no such directory.
  if (error == std::errc::no_such_file_or_directory) return devices;
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    const std::string port = fmt::format("{}/{}/ports/1", kClass, name);
    // "4: ACTIVE"
    devices.push_back({.name = name,
                       .active = FirstLine(port + "/state").starts_with("4:"),
                       .netdev = FirstLine(port + "/gid_attrs/ndevs/0")});
  }
  if (error) return ErrnoStatus(error.value(), kClass);
  std::ranges::sort(devices, {}, &VerbsDevice::name);
  return devices;
}

}  // namespace hk
