#include "hyperkernel/boot/kernel_payload.h"

#include <lz4.h>
#include <lzma.h>
#include <sys/mman.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <climits>
#include <cstring>

#include "fmt/format.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/base/types.h"

namespace hk {
namespace {

using Input = std::span<const std::byte>;
using Output = std::span<std::byte>;

// Linux appends the unpacked size to what the packers write; to gzip's output it does not, which ends with it anyway.
constexpr size_t kSizeBytes = 4;
// An xz decoder may use so much: the dictionary (Linux: 128 MiB at the most) and its tables.
constexpr uint64_t kXzMemoryLimit = uint64_t{160} << 20;
constexpr uint32_t kLz4LegacyMagic = 0x184c2102;

absl::Status Damaged(std::string_view packer, std::string_view why) {
  return absl::InvalidArgumentError(fmt::format("corrupt kernel ({}: {})", packer, why));
}

uint32_t Word(Input bytes, size_t at) {
  uint32_t word;
  std::memcpy(&word, bytes.data() + at, sizeof(word));
  return word;
}

absl::Status Gunzip(Input packed, Output to) {
  z_stream stream = {};
  if (inflateInit2(&stream, 16 + MAX_WBITS) != Z_OK) return absl::ResourceExhaustedError("zlib: no memory");
  // zlib's input is not const for historical reasons; it does not write to it.
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(packed.data()));
  stream.avail_in = static_cast<uInt>(packed.size());
  stream.next_out = reinterpret_cast<Bytef*>(to.data());
  stream.avail_out = static_cast<uInt>(to.size());
  const int result = inflate(&stream, Z_FINISH);
  const bool whole = result == Z_STREAM_END && stream.avail_out == 0;
  inflateEnd(&stream);
  return whole ? absl::OkStatus() : Damaged("gzip", fmt::format("zlib error {}", result));
}

absl::Status Unxz(Input packed, Output to) {
  uint64_t limit = kXzMemoryLimit;
  size_t in = 0, out = 0;
  const lzma_ret result =
      lzma_stream_buffer_decode(&limit, 0, nullptr, reinterpret_cast<const uint8_t*>(packed.data()), &in, packed.size(),
                                reinterpret_cast<uint8_t*>(to.data()), &out, to.size());
  if (result == LZMA_MEMLIMIT_ERROR) return absl::UnimplementedError("xz: a larger dictionary than Linux uses");
  if (result != LZMA_OK || out != to.size())
    return Damaged("xz", fmt::format("liblzma error {}", static_cast<int>(result)));
  return absl::OkStatus();
}

// Blocks with their packed length before each, until the end (lz4's "legacy frame").
absl::Status Unlz4(Input packed, Output to) {
  size_t in = sizeof(kLz4LegacyMagic), out = 0;
  while (in < packed.size()) {
    if (packed.size() - in < sizeof(uint32_t)) return Damaged("lz4", "cut short");
    const uint32_t length = Word(packed, in);
    in += sizeof(uint32_t);
    if (length == kLz4LegacyMagic) continue;  // a frame after a frame
    if (length > packed.size() - in || length > INT_MAX) return Damaged("lz4", "cut short");
    const int got =
        LZ4_decompress_safe(reinterpret_cast<const char*>(packed.data() + in), reinterpret_cast<char*>(to.data() + out),
                            static_cast<int>(length), static_cast<int>(to.size() - out));
    if (got < 0) return Damaged("lz4", "a block does not unpack");
    in += length;
    out += static_cast<size_t>(got);
  }
  return out == to.size() ? absl::OkStatus() : Damaged("lz4", "shorter than it says");
}

absl::Status Unzstd(Input packed, Output to) {
  const size_t got = ZSTD_decompress(to.data(), to.size(), packed.data(), packed.size());
  if (ZSTD_isError(got) != 0) return Damaged("zstd", ZSTD_getErrorName(got));
  return got == to.size() ? absl::OkStatus() : Damaged("zstd", "shorter than it says");
}

std::vector<UnpackedKernel::Run> RunsOf(Input bytes) {
  static constexpr std::array<std::byte, kPageSize> kZeros = {};
  std::vector<UnpackedKernel::Run> runs;
  for (uint64_t at = 0; at < bytes.size(); at += kPageSize) {
    const uint64_t size = std::min<uint64_t>(kPageSize, bytes.size() - at);
    if (std::memcmp(&bytes[at], kZeros.data(), size) == 0) continue;
    if (runs.empty() || runs.back().offset + runs.back().bytes != at) runs.push_back({.offset = at});
    runs.back().bytes += size;
  }
  return runs;
}

struct Packer {
  std::array<uint8_t, 4> magic;
  bool size_appended;
  absl::Status (*unpack)(Input packed, Output to);
};

constexpr Packer kPackers[] = {
    {{0x1f, 0x8b, 0x08, 0x00}, false, Gunzip},
    {{0xfd, 0x37, 0x7a, 0x58}, true, Unxz},
    {{0x02, 0x21, 0x4c, 0x18}, true, Unlz4},
    {{0x28, 0xb5, 0x2f, 0xfd}, true, Unzstd},
};

}  // namespace

absl::StatusOr<Mapping> MapUnpackedKernel(uint64_t size) {
  HK_ASSIGN_OR_RETURN(Mapping memory, Mapping::Create(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                                                      "an unpacked kernel"));
  ::madvise(memory.data(), memory.size(), MADV_HUGEPAGE);  // fewer faults; does not matter if it is refused
  return memory;
}

absl::StatusOr<UnpackedKernel> UnpackKernel(std::span<const std::byte> payload) {
  const auto* packer = std::ranges::find_if(kPackers, [&payload](const Packer& candidate) {
    return payload.size() > candidate.magic.size() + kSizeBytes &&
           std::memcmp(payload.data(), candidate.magic.data(), candidate.magic.size()) == 0;
  });
  if (packer == std::end(kPackers)) return absl::UnimplementedError("packed in a way that is not known here");
  const uint64_t size = Word(payload, payload.size() - kSizeBytes);
  if (size == 0) return absl::InvalidArgumentError("corrupt kernel (empty)");
  if (size > kMostUnpackedBytes) {
    return absl::UnimplementedError(fmt::format("{} MiB, more than is unpacked here", size >> 20));
  }
  UnpackedKernel kernel;
  HK_ASSIGN_OR_RETURN(kernel.bytes, MapUnpackedKernel(size));
  const Input packed = packer->size_appended ? payload.first(payload.size() - kSizeBytes) : payload;
  HK_RETURN_IF_ERROR(packer->unpack(packed, kernel.span()));
  kernel.runs = RunsOf(kernel.span());
  return kernel;
}

}  // namespace hk
