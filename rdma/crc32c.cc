#include "rdma/crc32c.h"

#include <immintrin.h>
#include <isa-l/crc.h>

#include <array>
#include <cstring>

#include "hyperkernel/base/check.h"

namespace hk {

namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // reflected
// Bytes of each of the three parts: three of them are a page but for 16 bytes.
constexpr size_t kPart = 1360;
static_assert(kPart % 8 == 0);

// x^n mod the polynomial, reflected: bit 31 is x^0.
constexpr uint32_t PowerOfX(size_t n) {
  uint32_t power = 0x80000000;
  for (size_t i = 0; i < n; ++i) power = power >> 1 ^ ((power & 1) != 0 ? kPolynomial : 0);
  return power;
}

// The carry-less product of two reflected polynomials stands one bit lower than twice their width, and the CRC32
// instruction multiplies by x^32 while it reduces: together x^33, which these factors leave out. So a CRC moves past
// one and two parts.
constexpr uint32_t kPastOne = PowerOfX(8 * kPart - 33);
constexpr uint32_t kPastTwo = PowerOfX(16 * kPart - 33);

// Folding: 128 bits move past kFold bytes by one product for each half. The lower half is the higher power, by 64.
constexpr size_t kFold = 128;
constexpr uint64_t kFoldLow = uint64_t{PowerOfX(8 * kFold + 64 - 33)};
constexpr uint64_t kFoldHigh = uint64_t{PowerOfX(8 * kFold - 33)};

uint64_t Load(const std::byte* at) {
  uint64_t word;
  std::memcpy(&word, at, sizeof word);
  return word;
}

__attribute__((target("sse4.2,pclmul"))) uint64_t Product(uint64_t crc, uint32_t factor) {
  const __m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128(static_cast<int64_t>(crc)),
                                               _mm_cvtsi64_si128(static_cast<int64_t>(factor)), 0);
  return static_cast<uint64_t>(_mm_cvtsi128_si64(product));
}

__attribute__((target("sse4.2,pclmul"))) uint32_t Hardware(std::span<const std::byte> bytes, uint32_t start) {
  const std::byte* at = bytes.data();
  size_t left = bytes.size();
  uint64_t crc = start;
  for (; left >= 3 * kPart; left -= 3 * kPart, at += 3 * kPart) {
    // The instruction takes three cycles, and one can begin in each.
    uint64_t second = 0, third = 0;
    for (size_t i = 0; i < kPart; i += 8) {
      crc = _mm_crc32_u64(crc, Load(at + i));
      second = _mm_crc32_u64(second, Load(at + kPart + i));
      third = _mm_crc32_u64(third, Load(at + 2 * kPart + i));
    }
    crc = _mm_crc32_u64(0, Product(crc, kPastTwo) ^ Product(second, kPastOne)) ^ third;
  }
  for (; left >= 8; left -= 8, at += 8) crc = _mm_crc32_u64(crc, Load(at));
  auto last = static_cast<uint32_t>(crc);
  if (left >= 4) {
    uint32_t word;
    std::memcpy(&word, at, sizeof word);
    last = _mm_crc32_u32(last, word);
    left -= 4;
    at += 4;
  }
  for (; left > 0; --left, ++at) last = _mm_crc32_u8(last, static_cast<uint8_t>(*at));
  return last;
}

__attribute__((target("avx2"))) __m256i LoadVector(const std::byte* at, size_t index) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at) + index);
}

// The same for long inputs, twice as fast: folds four vectors of 32 bytes.
__attribute__((target("avx2,vpclmulqdq,sse4.2,pclmul"))) uint32_t Folded(std::span<const std::byte> bytes,
                                                                         uint32_t start) {
  constexpr size_t kVectors = kFold / sizeof(__m256i);
  const __m256i factors = _mm256_set_epi64x(kFoldHigh, kFoldLow, kFoldHigh, kFoldLow);
  const std::byte* at = bytes.data();
  __m256i folded[kVectors];
#pragma GCC unroll 4
  for (size_t i = 0; i < kVectors; ++i) folded[i] = LoadVector(at, i);
  folded[0] = _mm256_xor_si256(folded[0], _mm256_set_epi32(0, 0, 0, 0, 0, 0, 0, static_cast<int>(start)));
  size_t left = bytes.size() - kFold;
  for (at += kFold; left >= kFold; left -= kFold, at += kFold) {
#pragma GCC unroll 4
    for (size_t i = 0; i < kVectors; ++i) {
      const __m256i low = _mm256_clmulepi64_epi128(folded[i], factors, 0x00);
      const __m256i high = _mm256_clmulepi64_epi128(folded[i], factors, 0x11);
      folded[i] = _mm256_xor_si256(_mm256_xor_si256(low, high), LoadVector(at, i));
    }
  }
  alignas(32) std::array<std::byte, kFold> last;
#pragma GCC unroll 4
  for (size_t i = 0; i < kVectors; ++i) _mm256_store_si256(reinterpret_cast<__m256i*>(last.data()) + i, folded[i]);
  // What a thread leaves in the upper halves is saved and restored at each of its switches.
  _mm256_zeroupper();
  return Hardware(bytes.last(left), Hardware(last, 0));
}

bool HasHardware() {
  return __builtin_cpu_supports("sse4.2") != 0 && __builtin_cpu_supports("pclmul") != 0;
}

bool HasFolding() {
  return HasHardware() && __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("vpclmulqdq") != 0;
}

}  // namespace

uint32_t Crc32c(std::span<const std::byte> bytes, uint32_t before) {
  HK_CHECK(bytes.size() <= (1U << 30));
  static const bool has_hardware = HasHardware(), has_folding = HasFolding();
  if (has_folding && bytes.size() >= 4 * kFold) return ~Folded(bytes, ~before);
  if (has_hardware) return ~Hardware(bytes, ~before);
  // ISA-L's is the bare polynomial division: both inversions are ours. Its length is an int and its pointer not const.
  auto* data = const_cast<unsigned char*>(reinterpret_cast<const unsigned char*>(bytes.data()));
  return ~crc32_iscsi(data, static_cast<int>(bytes.size()), ~before);
}

}  // namespace hk
