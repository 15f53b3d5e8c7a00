#include "hyperkernel/kvm/pv_eoi.h"

#include <cstring>
#include <vector>

#include "gtest/gtest.h"
#include "hyperkernel/kvm/guest_harness.h"

namespace hk {
namespace {

// Says what was asked of it.
class OfferingApic final : public FakeApic {
 public:
  using FakeApic::FakeApic;
  bool OfferEoi() override { return agrees; }
  void EndEoiOffer(bool ended) override { ends.push_back(ended); }
  bool agrees = true;
  std::vector<bool> ends;
};

class PvEoiTest : public testing::Test {
 protected:
  static constexpr uint64_t kWord = 0x1000;
  absl::StatusOr<std::byte*> WordAt(Gpa at) {
    if (at.value() > ram_.size() - 4) return absl::OutOfRangeError("not RAM");
    return &ram_[at.value()];
  }
  uint32_t Word() {
    uint32_t word;
    std::memcpy(&word, &ram_[kWord], sizeof(word));
    return word;
  }
  void SetWord(uint32_t word) { std::memcpy(&ram_[kWord], &word, sizeof(word)); }

  alignas(4096) std::array<std::byte, 0x2000> ram_ = {};
  OfferingApic apic_{0};
  PvEoi eoi_{[this](Gpa at) { return WordAt(at); }};
};

TEST_F(PvEoiTest, TheGuestClearsTheBit) {
  ASSERT_TRUE(eoi_.WriteMsr(kWord | 1));
  EXPECT_EQ(eoi_.msr(), kWord | 1);
  SetWord(0xab00);
  eoi_.Offer(&apic_);
  EXPECT_EQ(Word(), 0xab01u);
  SetWord(0xab00);
  eoi_.Settle(&apic_);
  EXPECT_EQ(apic_.ends, std::vector<bool>{true});
  eoi_.Settle(&apic_);
  EXPECT_EQ(apic_.ends.size(), 1u) << "settled once";
}

TEST_F(PvEoiTest, WhatTheGuestDidNotTakeIsWithdrawn) {
  ASSERT_TRUE(eoi_.WriteMsr(kWord | 1));
  eoi_.Offer(&apic_);
  eoi_.Settle(&apic_);
  EXPECT_EQ(apic_.ends, std::vector<bool>{false});
  EXPECT_EQ(Word(), 0u);
}

TEST_F(PvEoiTest, NothingIsOfferedUnlessBothAgree) {
  eoi_.Offer(&apic_);
  EXPECT_EQ(Word(), 0u) << "disabled";
  ASSERT_TRUE(eoi_.WriteMsr(kWord | 1));
  apic_.agrees = false;
  eoi_.Offer(&apic_);
  EXPECT_EQ(Word(), 0u);
  apic_.agrees = true;
  ASSERT_TRUE(eoi_.WriteMsr(0));
  eoi_.Offer(&apic_);
  eoi_.Settle(&apic_);
  EXPECT_EQ(Word(), 0u);
  EXPECT_TRUE(apic_.ends.empty());
}

TEST_F(PvEoiTest, BadValuesFaultAndChangeNothing) {
  ASSERT_TRUE(eoi_.WriteMsr(kWord | 1));
  EXPECT_FALSE(eoi_.WriteMsr(kWord | 3));
  EXPECT_FALSE(eoi_.WriteMsr(0x2000 | 1));
  EXPECT_FALSE(eoi_.WriteMsr(UINT64_MAX & ~uint64_t{2}));
  EXPECT_EQ(eoi_.msr(), kWord | 1);
  PvEoi none{nullptr};
  EXPECT_FALSE(none.WriteMsr(0));
}

}  // namespace
}  // namespace hk
