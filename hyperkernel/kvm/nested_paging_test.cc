#include "hyperkernel/kvm/nested_paging.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/probe_testing.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/kvm/kvm_probe.h"

namespace hk {
namespace {

using testing::HasSubstr;
using State = NestedPaging::State;

// A directory as /sys/module.
class NestedPagingTest : public testing::Test {
 protected:
  NestedPagingTest() { std::filesystem::create_directories(modules_); }
  ~NestedPagingTest() override { std::filesystem::remove_all(modules_); }

  void Set(const std::string& module, const std::string& parameter, const std::string& text) {
    const std::filesystem::path directory = std::filesystem::path(modules_) / module / "parameters";
    std::filesystem::create_directories(directory);
    std::ofstream(directory / parameter) << text;
  }
  NestedPaging Read() { return ReadNestedPaging(modules_); }
  // The answers about paging, by name.
  ProbeItem Answer(const std::string& name) {
    for (ProbeItem& item : ProbeKvmModules(modules_)) {
      if (item.name == name) return item;
    }
    ADD_FAILURE() << "no answer " << name;
    return {};
  }

  const std::string modules_ = testing::TempDir() + "modules" +
                               std::to_string(testing::UnitTest::GetInstance()->random_seed()) +
                               testing::UnitTest::GetInstance()->current_test_info()->name();
};

TEST_F(NestedPagingTest, OnAndOffAreAsTheModuleSays) {
  for (const auto& [module, parameter] : {std::pair("kvm_amd", "npt"), std::pair("kvm_intel", "ept")}) {
    for (const char* on : {"Y\n", "1\n"}) {
      Set(module, parameter, on);
      EXPECT_EQ(Read().state, State::kOn);
      EXPECT_EQ(Read().module, module);
      EXPECT_TRUE(CheckNestedPaging(Read()).ok());
    }
    for (const char* off : {"N\n", "0\n", "N"}) {
      Set(module, parameter, off);
      EXPECT_EQ(Read().state, State::kOff);
    }
    const absl::Status refused = CheckNestedPaging(Read());
    EXPECT_TRUE(absl::IsFailedPrecondition(refused));
    EXPECT_THAT(MessageOf(refused),
                HasSubstr(std::string("modprobe -r ") + module + "; modprobe " + module + " " + parameter + "=1"));
    std::filesystem::remove_all(std::filesystem::path(modules_) / module);
  }
}

TEST_F(NestedPagingTest, WhatNobodyTellsIsNotKnownAndAllowed) {
  for (int i = 0; i < 3; i++) {
    if (i == 1) Set("kvm_amd", "npt", "");
    if (i == 2) Set("kvm_amd", "npt", "?\n");
    EXPECT_EQ(Read().state, State::kUnknown);
    EXPECT_TRUE(CheckNestedPaging(Read()).ok());
  }
  EXPECT_EQ(ReadNestedPaging(modules_ + "/none").state, State::kUnknown);
}

TEST_F(NestedPagingTest, WithBothBuiltInOffCounts) {
  Set("kvm_intel", "ept", "Y\n");
  Set("kvm_amd", "npt", "0\n");
  EXPECT_EQ(Read().state, State::kOff);
  EXPECT_EQ(Read().module, "kvm_amd");
  Set("kvm_amd", "npt", "1\n");
  EXPECT_EQ(Read().state, State::kOn);
  Set("kvm_intel", "ept", "N\n");
  EXPECT_EQ(Read().module, "kvm_intel");
  EXPECT_EQ(Read().state, State::kOff);
}

TEST_F(NestedPagingTest, WalksThatWriteAreIntelsOnly) {
  Set("kvm_intel", "ept", "Y\n");
  EXPECT_FALSE(Read().walks_write);
  Set("kvm_intel", "eptad", "Y\n");
  EXPECT_TRUE(Read().walks_write);
  Set("kvm_intel", "eptad", "N\n");
  EXPECT_FALSE(Read().walks_write);
}

TEST_F(NestedPagingTest, TheProbeSaysSo) {
  const std::string paging = "guests over several nodes (nested paging)",
                    walks = "page walks that do not write (optional)";
  EXPECT_TRUE(Answer(paging).yes);
  EXPECT_THAT(Answer(paging).detail, HasSubstr("not known"));
  Set("kvm_amd", "npt", "0\n");
  ProbeItem answer = Answer(paging);
  EXPECT_FALSE(answer.yes);
  EXPECT_EQ(answer.detail, "kvm_amd, npt=0");
  EXPECT_THAT(answer.fix, HasSubstr("modprobe -r kvm_amd; modprobe kvm_amd npt=1"));
  Set("kvm_amd", "npt", "1\n");
  EXPECT_TRUE(Answer(paging).yes);
  std::filesystem::remove_all(modules_);
  Set("kvm_intel", "ept", "Y\n");
  Set("kvm_intel", "eptad", "Y\n");
  answer = Answer(walks);
  EXPECT_FALSE(answer.yes);
  EXPECT_THAT(answer.fix, HasSubstr("eptad=0"));
  Set("kvm_intel", "eptad", "N\n");
  EXPECT_TRUE(Answer(walks).yes);
  ExpectWellFormed(ProbeKvmModules(modules_));
}

}  // namespace
}  // namespace hk
