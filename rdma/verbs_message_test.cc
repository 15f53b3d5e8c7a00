#include "rdma/verbs_message.h"

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "rdma/send_ring.h"
#include "rdma/slots.h"
#include "rdma/verbs_queues.h"

namespace hk {
namespace {

constexpr uint32_t kSlots = 4;

SlotId Slot(MessageClass message_class, SlotUse use, uint32_t index) {
  return SlotName{.message_class = message_class, .use = use, .index = index, .counter = 9}.Encode();
}

std::vector<std::byte> Bytes(size_t size, uint8_t first) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(first + i);
  return bytes;
}

// A node's slots, and a device that writes into them as a peer tells it.
class VerbsMessageTest : public testing::Test {
 protected:
  VerbsMessageTest()
      : memory_(*SlotMemory::Create({.fault_receive = kSlots, .fault_send = kSlots, .bulk_receive = 2, .bulk_send = 2},
                                    kSlotRoomBytes)) {}

  SetupBody Setup(MessageClass message_class) const {
    return {.slots_address = reinterpret_cast<uintptr_t>(memory_.First(message_class, SlotUse::kReceive)),
            .slots_key = 77,
            .slot_stride = static_cast<uint32_t>(memory_.Stride(message_class)),
            .slot_count = kSlots};
  }
  static Header Answer(SlotId slot, size_t body, size_t payload) {
    Header header;
    header.message.message_class = SlotName::Decode(slot).message_class;
    header.message.type = kFirstUserType;
    header.message.answer = true;
    header.message.slot = slot;
    header.message.slot_node = NodeId(1);
    header.sequence = 1;
    header.body_bytes = static_cast<uint16_t>(body);
    header.payload_bytes = static_cast<uint32_t>(payload);
    return header;
  }
  // What a write leaves in memory; its size.
  size_t Write(const Header& header, std::span<const std::byte> body, std::span<const std::byte> payload, SlotId into) {
    std::array<std::byte, kSlotRoomBytes> room;
    const auto control = EncodeBeforePayload(header, body, room.data());
    const SlotWrite write = WriteInto(Setup(header.message.message_class), into, control.size());
    EXPECT_EQ(write.key, 77u);
    auto* at = reinterpret_cast<std::byte*>(write.address);
    std::memcpy(at, control.data(), control.size());
    std::memcpy(at + control.size(), payload.data(), payload.size());
    immediate_ = write.immediate;
    return control.size() + payload.size();
  }

  SlotMemory memory_;
  uint32_t immediate_ = 0;
  VerbsMessage message_;
};

TEST_F(VerbsMessageTest, AnAnswerIsReadWhereItWasWritten) {
  for (const size_t body_bytes : {size_t{0}, size_t{1}, kMaxBodyBytes}) {
    for (const MessageClass message_class : {MessageClass::kFault, MessageClass::kBulk}) {
      const SlotId slot = Slot(message_class, SlotUse::kReceive, 1);
      const auto body = Bytes(body_bytes, 3), page = Bytes(memory_.Bytes(slot).size(), 100);
      const size_t size = Write(Answer(slot, body.size(), page.size()), body, page, slot);
      ASSERT_EQ(message_.ReadWrite(message_class, memory_, 2, immediate_, size), "");
      EXPECT_THAT(message_.body(), testing::ElementsAreArray(body));
      EXPECT_EQ(message_.payload().data(), memory_.Bytes(slot).data());
      EXPECT_THAT(message_.payload(), testing::ElementsAreArray(page));
      EXPECT_EQ(message_.header().message.slot, slot);
    }
  }
}

TEST_F(VerbsMessageTest, NeighboursAreNotTouched) {
  const auto before = Bytes(kFaultSlotBytes, 50);
  for (uint32_t i = 0; i < kSlots; ++i) {
    const auto bytes = memory_.Bytes(Slot(MessageClass::kFault, SlotUse::kReceive, i));
    std::memcpy(bytes.data(), before.data(), bytes.size());
  }
  const SlotId slot = Slot(MessageClass::kFault, SlotUse::kReceive, 2);
  const auto body = Bytes(kMaxBodyBytes, 3), page = Bytes(kFaultSlotBytes, 100);
  Write(Answer(slot, body.size(), page.size()), body, page, slot);
  for (const uint32_t i : {0u, 1u, 3u}) {
    EXPECT_THAT(memory_.Bytes(Slot(MessageClass::kFault, SlotUse::kReceive, i)), testing::ElementsAreArray(before));
  }
}

TEST_F(VerbsMessageTest, AWriteThatSaysOtherwiseIsRefused) {
  const SlotId slot = Slot(MessageClass::kFault, SlotUse::kReceive, 1);
  const SlotId other = Slot(MessageClass::kFault, SlotUse::kReceive, 2);
  const auto page = Bytes(kFaultSlotBytes, 100);
  auto read = [&](uint32_t immediate, size_t size) {
    return message_.ReadWrite(MessageClass::kFault, memory_, kSlots, immediate, size);
  };
  // The header names another slot than the one it lies in: the other would be taken for answered.
  size_t size = Write(Answer(other, 0, page.size()), {}, page, slot);
  EXPECT_NE(read(immediate_, size), "");
  size = Write(Answer(slot, 0, page.size()), {}, page, slot);
  EXPECT_EQ(read(immediate_, size), "");
  EXPECT_NE(read(immediate_, size - 1), "");
  EXPECT_NE(read(immediate_, size + 1), "");
  EXPECT_NE(read(immediate_ | 0x10000, size), "") << "beyond 16 bits";
  EXPECT_NE(read(kSlots, size), "") << "no such slot";
  EXPECT_NE(read(static_cast<uint32_t>(Slot(MessageClass::kFault, SlotUse::kSend, 1).value() & 0xffff), size), "");
  EXPECT_NE(read(static_cast<uint32_t>(Slot(MessageClass::kBulk, SlotUse::kReceive, 1).value() & 0xffff), size), "");
  memory_.Bytes(slot).data()[-1] ^= std::byte{1};
  EXPECT_NE(read(immediate_, size), "") << "a flipped bit of the header";
}

TEST_F(VerbsMessageTest, ACrcThatIsThereIsChecked) {
  const SlotId slot = Slot(MessageClass::kFault, SlotUse::kReceive, 1);
  const auto body = Bytes(9, 3), page = Bytes(kFaultSlotBytes, 100);
  Header header = Answer(slot, body.size(), page.size());
  SetPayloadCrc(body, page, &header);
  const size_t size = Write(header, body, page, slot);
  EXPECT_EQ(message_.ReadWrite(MessageClass::kFault, memory_, kSlots, immediate_, size), "");
  memory_.Bytes(slot)[77] ^= std::byte{1};
  EXPECT_NE(message_.ReadWrite(MessageClass::kFault, memory_, kSlots, immediate_, size), "");
}

TEST_F(VerbsMessageTest, ASendIsReadAndChecked) {
  Header header;
  header.message.type = kFirstUserType;
  header.sequence = 1;
  header.body_bytes = 5;
  std::array<std::byte, kSlotRoomBytes> room{};
  const auto body = Bytes(5, 1);
  const auto bytes = EncodeSend(header, body, room.data());
  ASSERT_EQ(bytes.size(), kHeaderBytes + 5);
  ASSERT_EQ(message_.ReadSend(MessageClass::kFault, bytes.data(), bytes.size()), "");
  EXPECT_THAT(message_.body(), testing::ElementsAreArray(body));
  EXPECT_TRUE(message_.payload().empty());
  for (const size_t size : {size_t{0}, size_t{1}, kHeaderBytes - 1, kHeaderBytes, bytes.size() - 1, bytes.size() + 1}) {
    EXPECT_NE(message_.ReadSend(MessageClass::kFault, bytes.data(), size), "") << size;
  }
  EXPECT_NE(message_.ReadSend(MessageClass::kBulk, bytes.data(), bytes.size()), "") << "of another class";
  // A page that did not come as a write is nowhere.
  header = Answer(Slot(MessageClass::kFault, SlotUse::kReceive, 0), 0, 8);
  EncodeSend(header, {}, room.data());
  EXPECT_NE(message_.ReadSend(MessageClass::kFault, room.data(), kHeaderBytes), "");
}

TEST(SendRing, AFullRingWaitsForASignalledSend) {
  for (const uint32_t depth : {2 * SendRing::kSignalEvery, 37u, 256u}) {
    SendRing ring(depth);
    std::mt19937 random(depth);
    uint64_t last_signalled = 0, completed = 0;
    std::vector<uint64_t> owner(depth);
    for (int i = 0; i < 20'000; ++i) {
      if (!ring.IsFull() && random() % 3 != 0) {
        const uint32_t place = ring.Next();
        ASSERT_LT(place, depth);
        ASSERT_LE(owner[place], completed) << "its last send is under way";
        const SendRing::Send send = ring.Add(random() % 50 == 0);
        owner[place] = send.number;
        if (send.signalled) last_signalled = send.number;
      } else if (last_signalled > completed && random() % 2 == 0) {
        completed = last_signalled;
        ring.Completed(completed);
      }
      ASSERT_TRUE(!ring.IsFull() || last_signalled > completed) << "nothing would ever make room";
    }
  }
}

TEST(VerbsQueues, RelationsHoldForEveryWindow) {
  for (uint32_t window = kMinWindow; window <= kMaxWindow; ++window) {
    const QueueDepths depths = QueueDepths::For(window);
    SendRing ring(depths.send);  // checks its own
    ASSERT_LE(depths.send, QueueDepths::kMaxSend);
    // Numbered messages never wait for a buffer, and neither do the first Acks and Heartbeats beside a full window.
    ASSERT_GE(depths.receive, window + QueueDepths::kUnnumberedRoom);
  }
}

TEST(VerbsQueues, RetriesEndWithinHalfALease) {
  EXPECT_LT(kRetries, 7) << "rxe would try without end";
  const auto tries_ms = [](uint32_t lease_ms) { return (kRetries + 1) * 4.096e-3 * (1 << AckTimeout(lease_ms)); };
  for (const uint32_t lease_ms : {70u, 200u, 1000u, 2000u, 3000u, 5000u}) {
    EXPECT_LE(tries_ms(lease_ms), lease_ms / 2.0) << lease_ms;
    EXPECT_GT(tries_ms(lease_ms), lease_ms / 5.0) << lease_ms << ": a busy host would look dead";
  }
  EXPECT_EQ(DialMs(1000, 2000), 500u);
  EXPECT_EQ(DialMs(1000, 400), 250u);
  EXPECT_EQ(DialMs(100, 400), 100u);
  EXPECT_EQ(DialMs(1000, 60'000), 1000u);
  EXPECT_EQ(AckTimeout(1), 10);
  EXPECT_EQ(AckTimeout(3'600'000), 16);
}

}  // namespace
}  // namespace hk
