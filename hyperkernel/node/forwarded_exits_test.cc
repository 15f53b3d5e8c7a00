#include "hyperkernel/node/forwarded_exits.h"

#include <gtest/gtest.h>

#include <thread>

#include "hyperkernel/node/exit_server.h"
#include "hyperkernel/node/machine_link_testing.h"

namespace hk {
namespace {

constexpr auto kFault = MessageClass::kFault;
constexpr std::byte kOnes{0xff};

// Node 0's exits; the test is the I/O node, 2, and node 1.
class ForwardedExitsTest : public testing::Test {
 protected:
  void SetUp() override { network_.Open({&forwarded_, &other_, &io_}, 2); }
  void TearDown() override {
    forwarded_.Abandon();
    if (reader_.joinable()) reader_.join();
    network_.Close();
  }
  // A read of 4 bytes at 0x1000 on a thread of its own; its message, on the way.
  Message StartRead() {
    reader_ = std::thread([this] { forwarded_.MmioRead(Gpa(0x1000), read_); });
    return network_.Take(0, 2, kFault).message;
  }
  void Answer(uint16_t from, uint64_t transaction, const ExitAnswer& answer) {
    network_.Give(from, 0, kMachineAnswerType, transaction, EncodeExitAnswer(answer));
  }
  static ExitAnswer Four(uint8_t value) {
    ExitAnswer answer{.kind = ExitKind::kMmioRead, .size = 4, .data = {}};
    std::fill_n(answer.data.begin(), 4, static_cast<std::byte>(value));
    return answer;
  }
  std::string Failure() { return network_.Failure(0); }

  MachineNetwork network_{3};
  NoExits other_, io_;
  ForwardedExits forwarded_{network_.link(0), 2};
  std::thread reader_;
  std::array<std::byte, 4> read_{};
};

TEST_F(ForwardedExitsTest, AReadWaitsForItsAnswer) {
  reader_ = std::thread([this] { forwarded_.MmioRead(Gpa(0x1000), read_); });
  const MemoryMessage asked = network_.Take(0, 2, kFault);
  const auto request = DecodeExitRequest(asked.body);
  ASSERT_TRUE(request.ok());
  EXPECT_EQ(*request, (ExitRequest{.kind = ExitKind::kMmioRead, .size = 4, .address = 0x1000, .data = {}}));
  EXPECT_TRUE(CheckMachineHeader(asked.message, {}).ok());
  Answer(2, asked.message.transaction, Four(0xab));
  reader_.join();
  EXPECT_EQ(read_[3], std::byte{0xab});
  EXPECT_EQ(network_.Failures(0), 0u);
}

TEST_F(ForwardedExitsTest, AWriteWaitsToo) {
  std::atomic<bool> written{false};
  reader_ = std::thread([&] {
    const std::array<std::byte, 2> data{std::byte{1}, std::byte{2}};
    forwarded_.PortWrite(0xcf8, data);
    written = true;
  });
  const MemoryMessage asked = network_.Take(0, 2, kFault);
  const auto request = DecodeExitRequest(asked.body);
  ASSERT_TRUE(request.ok());
  EXPECT_EQ(request->address, 0xcf8u);
  EXPECT_EQ(request->data[1], std::byte{2});
  EXPECT_FALSE(written);
  Answer(2, asked.message.transaction, {.kind = ExitKind::kPortWrite, .size = 2, .data = {}});
  reader_.join();
  EXPECT_TRUE(written);
}

constexpr std::array<std::byte, 2> kRing{std::byte{3}, std::byte{0}};

TEST_F(ForwardedExitsTest, ADoorbellDoesNotWaitAndKeepsItsPlaceBeforeWhatFollows) {
  forwarded_.MmioWrite(DoorbellAt(3), kRing);
  forwarded_.MmioWrite(DoorbellAt(3), kRing);
  const Message asked = [&] {
    reader_ = std::thread([this] { forwarded_.MmioRead(Gpa(0x1000), read_); });
    for (int i = 0; i < 2; ++i) {
      const MemoryMessage rung = network_.Take(0, 2, kFault);
      EXPECT_EQ(rung.message.type, kMachineDoorbellType);
      EXPECT_TRUE(CheckMachineHeader(rung.message, {}).ok());
      const auto address = DecodeDoorbell(rung.body);
      EXPECT_TRUE(address.ok() && *address == DoorbellAt(3));
    }
    return network_.Take(0, 2, kFault).message;
  }();
  EXPECT_EQ(asked.type, kMachineExitType);
  Answer(2, asked.transaction, Four(1));
  reader_.join();
  forwarded_.Abandon();
  forwarded_.MmioWrite(DoorbellAt(3), kRing);
  EXPECT_EQ(network_.waiting(0, 2, kFault), 0u);
}

TEST_F(ForwardedExitsTest, DoorbellsThatFindNoRoomAreKeptOnceEach) {
  network_.SetRoom(1);
  forwarded_.MmioWrite(DoorbellAt(0), kRing);  // takes the room
  for (int i = 0; i < 1000; ++i) forwarded_.MmioWrite(DoorbellAt(1 + i % 3), kRing);
  network_.SetRoom(100);
  EXPECT_EQ(network_.waiting(0, 2, kFault), 1u);
  network_.Writable(0, 2, kFault);
  std::vector<Gpa> rung;
  while (network_.waiting(0, 2, kFault) > 0) {
    const auto address = DecodeDoorbell(network_.Take(0, 2, kFault).body);
    ASSERT_TRUE(address.ok());
    rung.push_back(*address);
  }
  EXPECT_EQ(rung, (std::vector<Gpa>{DoorbellAt(0), DoorbellAt(1), DoorbellAt(2), DoorbellAt(3)}));
}

TEST_F(ForwardedExitsTest, AWriteToADoorbellTooManyWaitsForItsAnswer) {
  MachineNetwork network(2);
  NoExits io;
  ForwardedExits forwarded(network.link(0), 1, std::chrono::milliseconds(1));
  network.Open({&forwarded, &io}, 1);
  network.SetRoom(0);
  for (size_t i = 0; i < kMostKeptDoorbells; ++i) forwarded.MmioWrite(DoorbellAt(i), kRing);
  forwarded.MmioWrite(DoorbellAt(5), kRing);  // is kept already
  EXPECT_EQ(network.Failures(0), 0u);
  forwarded.MmioWrite(DoorbellAt(kMostKeptDoorbells), kRing);
  EXPECT_EQ(network.Failure(0), "1: has not made an access to a device in time");
  network.Close();
}

TEST_F(ForwardedExitsTest, DoorbellsToANodeWithoutDevices) {
  network_.Give(1, 0, kMachineDoorbellType, 0, EncodeDoorbell(DoorbellAt(0)));
  EXPECT_EQ(Failure(), "1: is not to be relied on: a message about exits to or from a node without devices");
}

TEST_F(ForwardedExitsTest, AbandonedReadsAreAllOnes) {
  const Message asked = StartRead();
  forwarded_.Abandon();
  reader_.join();
  EXPECT_EQ(read_[0], kOnes);
  EXPECT_EQ(read_[3], kOnes);
  std::array<std::byte, 8> later{};
  forwarded_.MmioRead(Gpa(1), later);
  EXPECT_EQ(later[7], kOnes);
  forwarded_.MmioWrite(Gpa(1), later);
  forwarded_.OnGuestFailure(VcpuId(0), "late");
  EXPECT_EQ(network_.waiting(0, 2, kFault), 0u);
  // What was asked for before may still be answered.
  Answer(2, asked.transaction, Four(1));
  EXPECT_EQ(network_.Failures(0), 0u);
}

TEST_F(ForwardedExitsTest, AnAccessThatIsNotMadeInTimeFailsTheGuest) {
  MachineNetwork network(2);
  NoExits io;
  ForwardedExits forwarded(network.link(0), 1, std::chrono::milliseconds(1));
  network.Open({&forwarded, &io}, 1);
  std::array<std::byte, 2> data{};
  forwarded.PortRead(1, data);
  EXPECT_EQ(data[1], kOnes);
  EXPECT_EQ(network.Failure(0), "1: has not made an access to a device in time");
  forwarded.PortRead(1, data);
  EXPECT_EQ(network.Failures(0), 1u);
  network.Close();
}

TEST_F(ForwardedExitsTest, AnswersOfAnotherNode) {
  const Message asked = StartRead();
  Answer(1, asked.transaction, Four(1));
  EXPECT_EQ(Failure(), "1: is not to be relied on: a message about exits to or from a node without devices");
}

TEST_F(ForwardedExitsTest, AnswersToNothing) {
  Answer(2, 1U << 8, Four(1));
  EXPECT_EQ(Failure(), "2: is not to be relied on: a device's answer to nothing");
}

TEST_F(ForwardedExitsTest, AnswersOfAnotherUse) {
  const Message asked = StartRead();
  Answer(2, asked.transaction + (1U << 8), Four(1));
  EXPECT_EQ(Failure(), "2: is not to be relied on: a device's answer to nothing");
}

TEST_F(ForwardedExitsTest, AnswersBeyondAllWaiters) {
  const Message asked = StartRead();
  Answer(2, asked.transaction + 2, Four(1));
  EXPECT_EQ(Failure(), "2: is not to be relied on: a device's answer to nothing");
}

TEST_F(ForwardedExitsTest, ASecondAnswer) {
  const Message asked = StartRead();
  Answer(2, asked.transaction, Four(7));
  reader_.join();
  EXPECT_EQ(read_[0], std::byte{7});
  Answer(2, asked.transaction, Four(8));
  EXPECT_EQ(Failure(), "2: is not to be relied on: a device's answer to nothing");
}

TEST_F(ForwardedExitsTest, AnswersOfAnotherSizeOrKind) {
  const Message asked = StartRead();
  Answer(2, asked.transaction, {.kind = ExitKind::kMmioRead, .size = 2, .data = {}});
  EXPECT_EQ(Failure(), "2: is not to be relied on: a device's answer to nothing");
}

TEST_F(ForwardedExitsTest, ATruncatedAnswer) {
  const Message asked = StartRead();
  network_.Give(2, 0, kMachineAnswerType, asked.transaction, std::array<std::byte, 3>{});
  EXPECT_EQ(Failure(), "2: is not to be relied on: a device's answer that is malformed");
}

TEST_F(ForwardedExitsTest, RequestsToANodeWithoutDevices) {
  network_.Give(1, 0, kMachineExitType, 1, EncodeExitRequest({}));
  EXPECT_EQ(Failure(), "1: is not to be relied on: a message about exits to or from a node without devices");
}

// Several vCPUs at once, to real devices, over queues that hold one message.
TEST(ForwardedExitsAndServerTest, SeveralThreadsReadWhatTheyWrote) {
  constexpr uint32_t kVcpus = 8;
  constexpr uint64_t kRounds = 200;
  MachineNetwork network(3);
  NotingDevices devices;
  {
    ForwardedExits first(network.link(0), kVcpus), second(network.link(1), kVcpus);
    ExitServer server(network.link(2), &devices, kVcpus);
    network.Open({&first, &second, &server}, kVcpus);
    network.SetRoom(1);
    std::atomic<uint32_t> ended{0}, wrong{0};
    std::vector<std::thread> threads;
    for (uint32_t i = 0; i < kVcpus; ++i) {
      threads.emplace_back([&, i] {
        ForwardedExits& exits = i % 2 == 0 ? first : second;
        for (uint64_t round = 1; round <= kRounds; ++round) {
          uint64_t value = round << 32 | i, read = 0;
          exits.MmioWrite(Gpa(0x1000 + i), std::as_bytes(std::span(&value, 1)));
          const uint64_t before = devices.rung();
          exits.MmioWrite(DoorbellAt(i), kRing);
          exits.MmioRead(Gpa(0x1000 + i), std::as_writable_bytes(std::span(&read, 1)));
          wrong += read != value || devices.rung() == before;
        }
        ++ended;
      });
    }
    network.DeliverUntil([&] { return ended == kVcpus; });
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(wrong, 0u);
    EXPECT_EQ(devices.accesses(), 2 * kRounds * kVcpus);
    EXPECT_GT(network.refused(), 0u);
    for (uint16_t node = 0; node < 3; ++node) EXPECT_EQ(network.Failures(node), 0u);
    network.Close();
  }
}

}  // namespace
}  // namespace hk
