#include "hyperkernel/boot/dsdt.h"

namespace hk {
namespace {

// iasl -tc: unsigned char dsdt_aml_code[].
#include "hyperkernel/boot/dsdt.hex"

}  // namespace

std::span<const std::byte> DsdtBytes() {
  return std::as_bytes(std::span(dsdt_aml_code));
}

}  // namespace hk
