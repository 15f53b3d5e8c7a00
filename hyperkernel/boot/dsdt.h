// The DSDT, compiled by iasl from dsdt.asl when this is built.
#pragma once

#include <cstddef>
#include <span>

namespace hk {

// The whole table with header, length and checksum.
std::span<const std::byte> DsdtBytes();

}  // namespace hk
