// CRC32C (RFC 3720, appendix B.4): polynomial 0x1EDC6F41 reflected, starts inverted, ends inverted. Pure, thread-safe.
//
// With the CRC32 instruction of SSE4.2 on three parts at once. Wider vectors would be faster on the bytes alone and
// slower in all: a thread that has touched AVX-512 registers pays for them at each switch (measured: 1.3 us per round
// trip of a page, beside 0.4 us for this).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace hk {

// `before`: the CRC of what stands before `bytes`. At most 1 GiB.
uint32_t Crc32c(std::span<const std::byte> bytes, uint32_t before = 0);

}  // namespace hk
