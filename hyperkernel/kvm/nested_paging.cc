#include "hyperkernel/kvm/nested_paging.h"

#include <optional>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/file.h"

namespace hk {
namespace {

// A parameter is a letter or a digit and a line's end.
constexpr size_t kMostParameterBytes = 4096;

// The kernel's own modules and what they call it.
constexpr std::pair<const char*, const char*> kModules[] = {{"kvm_intel", "ept"}, {"kvm_amd", "npt"}};

// A parameter that is on or off: Y and N, or, in older kernels, a number.
std::optional<bool> Read(const std::string& modules, const std::string& module, const char* parameter) {
  const auto text = ReadSmallFile(fmt::format("{}/{}/parameters/{}", modules, module, parameter), kMostParameterBytes);
  if (!text.ok() || text->empty()) return std::nullopt;
  switch (text->front()) {
    case 'Y':
    case '1':
      return true;
    case 'N':
    case '0':
      return false;
    default:
      return std::nullopt;
  }
}

}  // namespace

NestedPaging ReadNestedPaging(const std::string& modules) {
  NestedPaging paging;
  for (const auto& [module, parameter] : kModules) {
    const std::optional<bool> on = Read(modules, module, parameter);
    // Both tell where both are built in, and one of them is of the other maker's processors: off has been asked for.
    if (!on.has_value() || (paging.state != NestedPaging::State::kUnknown && *on)) continue;
    paging.state = *on ? NestedPaging::State::kOn : NestedPaging::State::kOff;
    paging.module = module;
    paging.parameter = parameter;
  }
  paging.walks_write = paging.module == kModules[0].first && paging.state == NestedPaging::State::kOn &&
                       Read(modules, paging.module, "eptad").value_or(false);
  return paging;
}

std::string HowToNestPages(const NestedPaging& paging) {
  if (paging.module.empty()) return "";
  return fmt::format("modprobe -r {0}; modprobe {0} {1}=1", paging.module, paging.parameter);
}

absl::Status CheckNestedPaging(const NestedPaging& paging) {
  if (paging.state != NestedPaging::State::kOff) return absl::OkStatus();
  return absl::FailedPreconditionError(fmt::format(
      "its KVM runs without nested paging ({} {}=0) and would not see what other nodes write to the guest's "
      "page tables; stop its guests, and: {} (and remove {}=0 from /etc/modprobe.d)",
      paging.module, paging.parameter, HowToNestPages(paging), paging.parameter));
}

}  // namespace hk
