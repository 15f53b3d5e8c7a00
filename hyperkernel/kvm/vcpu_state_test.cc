#include "hyperkernel/kvm/vcpu_state.h"

#include <cstring>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hk {
namespace {

// Every byte of every field that is kept is different from zero. Padding is not kept.
VcpuState Filled() {
  VcpuState state;
  auto fill = [n = uint8_t{0}](auto& value) mutable {
    auto* bytes = reinterpret_cast<uint8_t*>(&value);
    for (size_t i = 0; i < sizeof(value); ++i) bytes[i] = static_cast<uint8_t>(1 + n++ % 255);
  };
  state.activity = VcpuActivity::kHalted;
  state.cpuid.resize(3);
  for (auto& entry : state.cpuid) {
    fill(entry);
    std::memset(entry.padding, 0, sizeof(entry.padding));
  }
  fill(state.tsc_khz);
  fill(state.tsc_offset);
  state.xcrs.nr_xcrs = 1;
  state.xcrs.xcrs[0] = {.xcr = 0, .reserved = 0, .value = 7};
  state.xsave.resize(sizeof(kvm_xsave) + 64);
  for (size_t i = 0; i < state.xsave.size(); ++i) state.xsave[i] = static_cast<std::byte>(i * 7 + 1);
  fill(state.sregs);
  for (kvm_segment* segment : {&state.sregs.cs, &state.sregs.ds, &state.sregs.es, &state.sregs.fs, &state.sregs.gs,
                               &state.sregs.ss, &state.sregs.tr, &state.sregs.ldt}) {
    segment->padding = 0;
  }
  for (kvm_dtable* table : {&state.sregs.gdt, &state.sregs.idt}) std::memset(table->padding, 0, sizeof(table->padding));
  fill(state.regs);
  fill(state.debugregs);
  std::memset(state.debugregs.reserved, 0, sizeof(state.debugregs.reserved));
  state.msrs = {{.index = 0x277, .reserved = 0, .data = 0x0007040600070406},
                {.index = 0xc0000080, .reserved = 0, .data = 1}};
  fill(state.events);
  state.events.nmi.pad = 0;
  std::memset(state.events.reserved, 0, sizeof(state.events.reserved));
  state.clock = {.system_time_msr = 0x1001, .version = 6};
  state.pv_eoi_msr = 0x2001;
  return state;
}

TEST(VcpuStateFormatTest, RoundTripKeepsEveryField) {
  const VcpuState state = Filled();
  auto decoded = DecodeVcpuState(EncodeVcpuState(state));
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->activity, state.activity);
  EXPECT_EQ(decoded->tsc_khz, state.tsc_khz);
  EXPECT_EQ(decoded->tsc_offset, state.tsc_offset);
  EXPECT_EQ(decoded->xsave, state.xsave);
  EXPECT_EQ(decoded->clock, state.clock);
  EXPECT_EQ(decoded->pv_eoi_msr, state.pv_eoi_msr);
  ASSERT_EQ(decoded->cpuid.size(), state.cpuid.size());
  EXPECT_EQ(std::memcmp(decoded->cpuid.data(), state.cpuid.data(), 3 * sizeof(kvm_cpuid_entry2)), 0);
  ASSERT_EQ(decoded->msrs.size(), state.msrs.size());
  EXPECT_EQ(std::memcmp(decoded->msrs.data(), state.msrs.data(), 2 * sizeof(kvm_msr_entry)), 0);
  EXPECT_EQ(std::memcmp(&decoded->xcrs, &state.xcrs, sizeof(state.xcrs)), 0);
  EXPECT_EQ(std::memcmp(&decoded->sregs, &state.sregs, sizeof(state.sregs)), 0);
  EXPECT_EQ(std::memcmp(&decoded->regs, &state.regs, sizeof(state.regs)), 0);
  EXPECT_EQ(std::memcmp(&decoded->debugregs, &state.debugregs, sizeof(state.debugregs)), 0);
  EXPECT_EQ(std::memcmp(&decoded->events, &state.events, sizeof(state.events)), 0);
  EXPECT_EQ(EncodeVcpuState(*decoded), EncodeVcpuState(state));
}

TEST(VcpuStateFormatTest, EveryTruncationIsRefused) {
  const std::vector<std::byte> bytes = EncodeVcpuState(Filled());
  for (size_t size = 0; size < bytes.size(); ++size) {
    ASSERT_FALSE(DecodeVcpuState(std::span(bytes).first(size)).ok()) << size;
  }
  std::vector<std::byte> longer = bytes;
  longer.push_back(std::byte{0});
  EXPECT_THAT(std::string(DecodeVcpuState(longer).status().message()), testing::HasSubstr("left over"));
}

TEST(VcpuStateFormatTest, OtherVersionsAndNonsenseAreRefused) {
  std::vector<std::byte> bytes = EncodeVcpuState(Filled());
  bytes[4] = std::byte{1};
  EXPECT_THAT(std::string(DecodeVcpuState(bytes).status().message()), testing::HasSubstr("version 1, expected 2"));
  bytes = EncodeVcpuState(Filled());
  bytes[6] = std::byte{3};
  EXPECT_THAT(std::string(DecodeVcpuState(bytes).status().message()), testing::HasSubstr("activity"));
  EXPECT_FALSE(DecodeVcpuState(std::vector<std::byte>(1 << 20)).ok());
}

// Damage never crashes, and what is accepted has one form.
TEST(VcpuStateFormatTest, DamageIsRefusedOrHarmless) {
  const std::vector<std::byte> good = EncodeVcpuState(Filled());
  std::mt19937 random(1);
  for (int i = 0; i < 3000; ++i) {
    std::vector<std::byte> bytes = good;
    for (int k = 0; k < 3; ++k) bytes[random() % 600] = static_cast<std::byte>(random());
    auto decoded = DecodeVcpuState(bytes);
    if (!decoded.ok()) continue;
    EXPECT_EQ(EncodeVcpuState(*decoded), bytes);
  }
}

}  // namespace
}  // namespace hk
