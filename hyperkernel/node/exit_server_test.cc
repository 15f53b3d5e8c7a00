#include "hyperkernel/node/exit_server.h"

#include <gtest/gtest.h>

#include <thread>

#include "hyperkernel/node/machine_link_testing.h"

namespace hk {
namespace {

constexpr auto kFault = MessageClass::kFault;
constexpr uint32_t kVcpus = 3;

// Node 2's server; the test is nodes 0 and 1.
class ExitServerTest : public testing::Test {
 protected:
  void SetUp() override { network_.Open({&other_[0], &other_[1], &server_}, kVcpus); }
  void TearDown() override {
    devices_.SetBusy(false);
    network_.Close();
    server_.Stop();
  }
  void Ask(uint16_t from, uint64_t transaction, const ExitRequest& request) {
    network_.Give(from, 2, kMachineExitType, transaction, EncodeExitRequest(request));
  }
  static ExitRequest Write(uint8_t value) {
    return {.kind = ExitKind::kPortWrite, .size = 1, .address = 0x80, .data = {static_cast<std::byte>(value)}};
  }
  static ExitRequest Read() { return {.kind = ExitKind::kPortRead, .size = 1, .address = 0x80, .data = {}}; }
  // The next answer's transaction and first byte.
  std::pair<uint64_t, int> Answered(uint16_t to) {
    const MemoryMessage message = network_.Take(2, to, kFault);
    EXPECT_TRUE(CheckMachineHeader(message.message, {}).ok());
    EXPECT_EQ(message.message.type, kMachineAnswerType);
    const auto answer = DecodeExitAnswer(message.body);
    return answer.ok() ? std::pair{message.message.transaction, static_cast<int>(answer->data[0])} : std::pair{0UL, -1};
  }
  std::string Failure() { return network_.Failure(2); }

  MachineNetwork network_{3};
  std::array<NoExits, 2> other_;
  NotingDevices devices_;
  ExitServer server_{network_.link(2), &devices_, kVcpus};
};

TEST_F(ExitServerTest, AccessesAreMadeInOrder) {
  Ask(0, 10, Write(1));
  Ask(0, 11, Read());
  Ask(0, 12, Write(2));
  EXPECT_EQ(Answered(0), (std::pair{10UL, 0}));
  EXPECT_EQ(Answered(0), (std::pair{11UL, 1}));
  EXPECT_EQ(Answered(0), (std::pair{12UL, 0}));
  Ask(1, 10, Read());
  EXPECT_EQ(Answered(1), (std::pair{10UL, 2}));
}

TEST_F(ExitServerTest, ADeviceThatTakesLongDelaysItsOwnNodeOnly) {
  devices_.SetBusy(true);
  Ask(0, 1, Write(1));
  devices_.WaitEntered();
  // The transport's thread goes on.
  Ask(0, 2, Read());
  Ask(0, 3, Read());
  EXPECT_EQ(network_.waiting(2, 0, kFault), 0u);
  devices_.SetBusy(false);
  EXPECT_EQ(Answered(0).first, 1u);
  EXPECT_EQ(Answered(0), (std::pair{2UL, 1}));
  EXPECT_EQ(Answered(0), (std::pair{3UL, 1}));
}

TEST_F(ExitServerTest, ADoorbellRingsAtOnceAndIsNotAnswered) {
  devices_.SetBusy(true);
  Ask(0, 1, Write(1));
  devices_.WaitEntered();
  for (uint64_t i = 0; i < 10 * kVcpus; ++i) {
    network_.Give(0, 2, kMachineDoorbellType, 0, EncodeDoorbell(DoorbellAt(i)));
    EXPECT_EQ(devices_.rung(), i + 1);
  }
  EXPECT_EQ(network_.waiting(2, 0, kFault), 0u);
  devices_.SetBusy(false);
  EXPECT_EQ(Answered(0).first, 1u);
  server_.Stop();
  network_.Give(0, 2, kMachineDoorbellType, 0, EncodeDoorbell(DoorbellAt(0)));
  EXPECT_EQ(devices_.rung(), 10 * kVcpus);
  EXPECT_EQ(network_.Failures(2), 0u);
}

TEST_F(ExitServerTest, WhatIsNoDoorbellIsNotRung) {
  auto body = EncodeDoorbell(DoorbellAt(0));
  body[9] = std::byte{0};
  network_.Give(0, 2, kMachineDoorbellType, 0, body);
  EXPECT_EQ(Failure(), "0: is not to be relied on: a doorbell that is malformed");
  EXPECT_EQ(devices_.rung(), 0u);
  EXPECT_EQ(devices_.accesses(), 0u);
}

TEST_F(ExitServerTest, AnAnswerThatTheTransportRefusesIsNotLost) {
  network_.SetRoom(0);
  Ask(0, 1, Write(5));
  Ask(0, 2, Read());
  network_.WaitRefused(1);
  // One answer waits for room, and nothing else is done for this node meanwhile.
  Ask(1, 7, Read());
  network_.WaitRefused(2);
  EXPECT_EQ(devices_.accesses(), 2u);
  network_.SetRoom(100);
  network_.Writable(2, 0, kFault);
  network_.Writable(2, 1, kFault);
  EXPECT_EQ(Answered(0), (std::pair{1UL, 0}));
  EXPECT_EQ(Answered(0), (std::pair{2UL, 5}));
  EXPECT_EQ(Answered(1), (std::pair{7UL, 5}));
  EXPECT_EQ(network_.Failures(2), 0u);
}

TEST_F(ExitServerTest, MoreAccessesThanVcpusFailTheGuest) {
  devices_.SetBusy(true);
  Ask(0, 1, Read());
  devices_.WaitEntered();  // the first is not in the queue any more
  for (uint64_t i = 2; i <= kVcpus + 1; ++i) Ask(0, i, Read());
  EXPECT_EQ(network_.Failures(2), 0u);
  Ask(0, kVcpus + 2, Read());
  EXPECT_EQ(Failure(), "0: is not to be relied on: more accesses at a time than vCPUs");
}

TEST_F(ExitServerTest, AVcpusFailureIsTold) {
  network_.Give(0, 2, kMachineFailureType, 0, EncodeFailure(VcpuId(2), "triple fault").span());
  EXPECT_EQ(devices_.failures(), std::vector<std::string>{"2: triple fault"});
  EXPECT_EQ(network_.waiting(2, 0, kFault), 0u);
  network_.Give(0, 2, kMachineFailureType, 0, EncodeFailure(VcpuId(2), "again").span());
  EXPECT_EQ(Failure(), "0: is not to be relied on: a vCPU that fails twice");
}

TEST_F(ExitServerTest, AFailureIsToldThoughThePeerTakesNoAnswers) {
  network_.SetRoom(0);
  Ask(0, 1, Read());
  network_.WaitRefused(1);
  network_.Give(0, 2, kMachineFailureType, 0, EncodeFailure(VcpuId(1), "lost").span());
  EXPECT_EQ(devices_.failures(), std::vector<std::string>{"1: lost"});
}

TEST_F(ExitServerTest, FailuresOfVcpusThatThereAreNot) {
  network_.Give(0, 2, kMachineFailureType, 0, EncodeFailure(VcpuId(kVcpus), "x").span());
  EXPECT_EQ(Failure(), "0: is not to be relied on: the failure of a vCPU that there is not");
}

TEST_F(ExitServerTest, ATruncatedRequest) {
  network_.Give(0, 2, kMachineExitType, 1, std::array<std::byte, 3>{});
  EXPECT_EQ(Failure(), "0: is not to be relied on: an access to a device that is malformed");
}

TEST_F(ExitServerTest, ATruncatedFailure) {
  network_.Give(0, 2, kMachineFailureType, 0, std::array<std::byte, 3>{});
  EXPECT_EQ(Failure(), "0: is not to be relied on: a vCPU's failure that is malformed");
}

TEST_F(ExitServerTest, AnAnswerToTheNodeOfTheDevices) {
  network_.Give(0, 2, kMachineAnswerType, 1, EncodeExitAnswer({}));
  EXPECT_EQ(Failure(), "0: is not to be relied on: an answer to the node of the devices");
}

TEST_F(ExitServerTest, StopWaitsForTheAccessUnderWayAndDropsTheRest) {
  devices_.SetBusy(true);
  Ask(0, 1, Read());
  devices_.WaitEntered();
  Ask(0, 2, Read());
  std::atomic<bool> stopped{false};
  std::thread stopper([&] {
    server_.Stop();
    stopped = true;
  });
  EXPECT_FALSE(stopped);
  devices_.SetBusy(false);
  stopper.join();
  const uint64_t accesses = devices_.accesses();
  Ask(0, 3, Read());
  EXPECT_EQ(devices_.accesses(), accesses);
}

TEST_F(ExitServerTest, StopEndsTheWaitForRoom) {
  network_.SetRoom(0);
  Ask(0, 1, Read());
  network_.WaitRefused(1);
  server_.Stop();
}

}  // namespace
}  // namespace hk
