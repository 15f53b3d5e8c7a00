#include "hyperkernel/kvm/pv_clock.h"

#include <array>
#include <utility>

#include "hyperkernel/base/check.h"

namespace hk {
namespace {

// struct pvclock_vcpu_time_info (pvclock-abi.h): version u32, pad u32, tsc_timestamp u64, system_time u64,
// tsc_to_system_mul u32, tsc_shift s8, flags u8, pad[2]. struct pvclock_wall_clock: version, sec, nsec, u32 each.
constexpr size_t kVersionBytes = 4;
constexpr size_t kTimeInfoBytes = 32;
constexpr size_t kWallClockBytes = 12;
constexpr std::byte kFlagTscStable{1};
constexpr uint64_t kEnabled = 1;
constexpr uint64_t kNanosecondsPerSecond = 1'000'000'000;

template <size_t kAt, size_t kCount, size_t kSize>
void Put(std::array<std::byte, kSize>* to, uint64_t value) {
  static_assert(kAt + kCount <= kSize);
  for (size_t i = 0; i < kCount; ++i) (*to)[kAt + i] = static_cast<std::byte>(value >> (8 * i));
}

// Odd version, content, even version: a guest that reads in between tries again.
template <size_t kSize>
absl::Status WriteVersioned(const PvClock::WriteGuest& write, Gpa address, uint32_t* version,
                            std::array<std::byte, kSize> content) {
  const uint32_t odd = *version | 1;
  *version = odd + 1;
  Put<0, kVersionBytes>(&content, odd);
  const std::span<const std::byte> all(content);
  if (absl::Status status = write(address, all.first(kVersionBytes)); !status.ok()) return status;
  if (absl::Status status = write(Gpa(address.value() + kVersionBytes), all.subspan(kVersionBytes)); !status.ok()) {
    return status;
  }
  Put<0, kVersionBytes>(&content, *version);
  return write(address, all.first(kVersionBytes));
}

}  // namespace

PvClockScale ScaleFor(uint32_t tsc_khz) {
  HK_CHECK(tsc_khz > 0);
  // ns = ticks * 10^6 / khz. Bring the factor into [1/2, 1) by powers of two, then write it with 32 fraction bits.
  uint64_t numerator = 1'000'000, denominator = tsc_khz;
  PvClockScale scale;
  for (; numerator >= denominator; ++scale.shift) denominator <<= 1;
  for (; 2 * numerator < denominator; --scale.shift) numerator <<= 1;
  scale.multiplier = static_cast<uint32_t>((numerator << 32) / denominator);
  return scale;
}

PvClock::PvClock(const PvClockOrigin& origin, uint32_t vcpus, WriteGuest write)
    : write_(std::move(write)), origin_(origin), vcpus_(vcpus) {
  HK_CHECK(origin.tsc_khz > 0 && vcpus > 0);
}

bool PvClock::WriteMsr(VcpuId vcpu, uint32_t msr, uint64_t value) {
  MutexLock lock(&mutex_);
  HK_CHECK(vcpu.value() < vcpus_.size());
  if (msr == kMsrKvmWallClock) {
    if (!WriteWallClock(Gpa(value)).ok()) return false;
    wall_clock_msr_ = value;
    return true;
  }
  if (msr != kMsrKvmSystemTime || (value & 2) != 0) return false;  // 4-byte aligned, bit 0 enables
  const uint64_t before = std::exchange(vcpus_[vcpu.value()].system_time_msr, value);
  if (WriteSystemTime(vcpu).ok()) return true;
  vcpus_[vcpu.value()].system_time_msr = before;
  return false;
}

bool PvClock::ReadMsr(VcpuId vcpu, uint32_t msr, uint64_t* value) {
  MutexLock lock(&mutex_);
  HK_CHECK(vcpu.value() < vcpus_.size());
  if (msr != kMsrKvmWallClock && msr != kMsrKvmSystemTime) return false;
  *value = msr == kMsrKvmWallClock ? wall_clock_msr_ : vcpus_[vcpu.value()].system_time_msr;
  return true;
}

PvClockVcpuState PvClock::Save(VcpuId vcpu) {
  MutexLock lock(&mutex_);
  HK_CHECK(vcpu.value() < vcpus_.size());
  return vcpus_[vcpu.value()];
}

void PvClock::Restore(VcpuId vcpu, const PvClockVcpuState& state) {
  MutexLock lock(&mutex_);
  HK_CHECK(vcpu.value() < vcpus_.size());
  vcpus_[vcpu.value()] = state;
}

PvClockState PvClock::SaveAll() {
  MutexLock lock(&mutex_);
  return {.origin = origin_, .wall_clock_msr = wall_clock_msr_, .wall_version = wall_version_};
}

void PvClock::RestoreAll(const PvClockState& state) {
  HK_CHECK(state.origin.tsc_khz > 0);
  MutexLock lock(&mutex_);
  origin_ = state.origin;
  wall_clock_msr_ = state.wall_clock_msr;
  wall_version_ = state.wall_version;
}

absl::Status PvClock::SetOrigin(const PvClockOrigin& origin, std::span<const VcpuId> vcpus) {
  HK_CHECK(origin.tsc_khz > 0);
  MutexLock lock(&mutex_);
  origin_ = origin;
  absl::Status first;
  for (VcpuId vcpu : vcpus) {
    HK_CHECK(vcpu.value() < vcpus_.size());
    first.Update(WriteSystemTime(vcpu));
  }
  return first;
}

absl::Status PvClock::WriteSystemTime(VcpuId vcpu) {
  PvClockVcpuState& state = vcpus_[vcpu.value()];
  if ((state.system_time_msr & kEnabled) == 0) return absl::OkStatus();
  const PvClockScale scale = ScaleFor(origin_.tsc_khz);
  std::array<std::byte, kTimeInfoBytes> info = {};
  Put<8, 8>(&info, origin_.guest_tsc);
  Put<16, 8>(&info, origin_.system_ns);
  Put<24, 4>(&info, scale.multiplier);
  Put<28, 1>(&info, static_cast<uint8_t>(scale.shift));
  if (origin_.stable) info[29] = kFlagTscStable;
  return WriteVersioned(write_, Gpa(state.system_time_msr & ~kEnabled), &state.version, info);
}

absl::Status PvClock::WriteWallClock(Gpa address) {
  std::array<std::byte, kWallClockBytes> wall = {};
  Put<4, 4>(&wall, origin_.wall_ns / kNanosecondsPerSecond);
  Put<8, 4>(&wall, origin_.wall_ns % kNanosecondsPerSecond);
  return WriteVersioned(write_, address, &wall_version_, wall);
}

}  // namespace hk
