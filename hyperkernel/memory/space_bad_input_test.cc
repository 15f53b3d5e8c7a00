// What a space of two nodes does when its peer answers late, twice, or for another guest, and when its frame store is
// full beside its budget. The rules: README.md, "The space" and "Failures".
#include <array>
#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/memory/frame_store_testing.h"
#include "hyperkernel/memory/full_store_testing.h"
#include "hyperkernel/memory/guest_space.h"
#include "hyperkernel/memory/page_wire.h"
#include "hyperkernel/memory/space_testing.h"

namespace hk {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr NodeId kSelf(0), kPeer(1);
constexpr uint64_t kPages = 4 * kExtentPages;
constexpr Gfn kThere(kExtentPages + 7);  // its home is the peer

// A transport to a peer that says what the test says: notes what is sent, and lends slots. Thread-safe.
class PeerlessTransport final : public NotingTransport {
 public:
  absl::Status Send(NodeId, const Message& message, const SendOptions&) override {
    MutexLock lock(&mutex_);
    sent_.push_back(message);
    sent_.back().body = {};
    changed_.SignalAll();
    return absl::OkStatus();
  }
  absl::StatusOr<SlotId> AcquireSlot(MessageClass, SlotUse) override {
    MutexLock lock(&mutex_);
    return SlotId(next_slot_++);
  }
  std::span<std::byte> SlotBytes(SlotId) override { return slot_; }
  void ReleaseSlot(SlotId slot) override {
    MutexLock lock(&mutex_);
    NotingTransport::ReleaseSlot(slot);
  }

  // The first message of that type, when it was sent.
  Message Await(PageMessageType type) {
    const Monotonic guard = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    MutexLock lock(&mutex_);
    while (true) {
      for (const Message& message : sent_) {
        if (message.type == kFirstUserType + static_cast<uint16_t>(type)) return message;
      }
      if (changed_.WaitUntil(&mutex_, guard)) continue;
      ADD_FAILURE() << "no " << Name(type);
      return {};
    }
  }
  std::vector<uint64_t> Released() {
    MutexLock lock(&mutex_);
    return released;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::vector<Message> sent_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_slot_ ABSL_GUARDED_BY(mutex_) = 1;
  std::array<std::byte, kPageSize> slot_{};
};

class SpaceBadInputTest : public OwnStoreTest {
 protected:
  void Make(const std::vector<NodeId>& nodes, uint64_t budget_pages) {
    OpenStore(budget_pages * kPageSize);
    router_.SetTransport(&transport_);
    GuestSpace::Options options;
    options.name = "s";
    options.config.guest = GuestId(5);
    options.config.generation = 3;
    options.config.self = kSelf;
    options.config.nodes = nodes;
    options.config.pages = kPages;
    auto attached = GuestSpace::Attach(std::move(options), *frames_, &transport_, &router_, RealClock());
    ASSERT_TRUE(attached.ok()) << attached.status();
    space_ = *std::move(attached);
  }
  void TearDown() override {
    space_.reset();
    OwnStoreTest::TearDown();
  }
  // The peer's answer to that request, with a page of `value`.
  void Answer(const Message& request, std::byte value, bool late, const std::function<void(Message*)>& spoil = {}) {
    PageMessage answer;
    answer.type = PageMessageType::kAnswer;
    answer.from = kPeer;
    answer.to = answer.requester = kSelf;
    answer.transaction = request.transaction;
    answer.serial = 1;
    answer.right = PageRight::kShared;
    answer.source = PageSource::kPayload;
    Message message;
    SetPageHeader(answer, &message);
    message.message_class = request.message_class;
    message.guest = GuestId(5);
    message.generation = 3;
    message.epoch = Epoch(1);
    message.gfn = kThere;
    message.slot = request.slot;
    message.slot_node = kSelf;
    const PageBody body = EncodePageBody(answer);
    message.body = body.span();
    if (spoil) spoil(&message);
    const std::vector<std::byte> page(kPageSize, value);
    router_.OnMessage(kPeer, message, page, late);
  }
  static Monotonic Soon() { return std::chrono::steady_clock::now() + std::chrono::seconds(30); }

  PeerlessTransport transport_;
  SpaceRouter router_;
  std::unique_ptr<GuestSpace> space_;
};

TEST_F(SpaceBadInputTest, AnAnswerCountsOnceAndForItsOwnGuestAlone) {
  Make({kSelf, kPeer}, kPages);
  std::byte byte{};
  absl::Status read = absl::UnknownError("it has not ended");
  std::thread reader([&] { read = space_->Read(GpaOf(kThere), std::span(&byte, 1), Soon()); });
  const Message request = transport_.Await(PageMessageType::kRequest);
  // Another guest's, another generation's, another epoch's, another request's: its slot is given back, and that is all.
  const auto slot = [](uint64_t number) { return [number](Message* message) { message->slot = SlotId(number); }; };
  Answer(request, std::byte{66}, false, [&](Message* message) {
    slot(901)(message);
    message->guest = GuestId(6);
  });
  Answer(request, std::byte{66}, false, [&](Message* message) {
    slot(902)(message);
    message->generation = 2;
  });
  Answer(request, std::byte{66}, false, [&](Message* message) {
    slot(903)(message);
    message->epoch = Epoch(2);
  });
  Answer(request, std::byte{66}, false, [&](Message* message) {
    slot(904)(message);
    message->transaction += 64;
  });
  EXPECT_THAT(transport_.Released(), ElementsAre(901, 902, 903, 904));
  EXPECT_EQ(space_->Statistics().stale_messages, 1u);
  EXPECT_EQ(space_->engine().RightOf(kThere), PageRight::kNone);
  // After the transport's deadline, while it is still waited for.
  Answer(request, std::byte{7}, true);
  reader.join();
  EXPECT_TRUE(read.ok()) << read;
  EXPECT_EQ(byte, std::byte{7});
  transport_.Await(PageMessageType::kDone);
  // Again.
  Answer(request, std::byte{66}, false, slot(905));
  EXPECT_EQ(transport_.Released().back(), 905u);
  EXPECT_EQ(space_->Statistics().stale_messages, 2u);
  ASSERT_TRUE(space_->Read(GpaOf(kThere), std::span(&byte, 1), Soon()).ok());
  EXPECT_EQ(byte, std::byte{7});
  EXPECT_TRUE(space_->state().ok()) << space_->state();
}

TEST_F(SpaceBadInputTest, AFullFrameStoreStopsTheSpaceNamingFileAndPage) {
  Make({kSelf}, kPages);
  if (!FillStore(directory_)) {
    GTEST_SKIP() << "the frame store is not a file system of its own here (no CAP_SYS_ADMIN); the lab covers it";
  }
  const std::vector<std::byte> page(kPageSize, std::byte{1});
  absl::Status status;
  for (uint64_t number = 0; number < kPages && status.ok(); number++) {
    status = space_->Write(GpaOf(Gfn(number)), page, Soon());
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("node 0, page at GPA 0x"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("/s.3, GFN 0x"));
  EXPECT_EQ(space_->state(), status);
}

TEST_F(SpaceBadInputTest, ABudgetThatIsTooSmallIsRefusedWithBoth) {
  Make({kSelf}, kPages + 8);
  GuestSpace::Options options;
  options.name = "second";
  options.config.guest = GuestId(6);
  options.config.nodes = {kSelf};
  options.config.pages = 64;
  const auto refused = [&](uint64_t max_pages, uint32_t vcpus) {
    options.config.max_pages = max_pages;
    options.config.vcpus = vcpus;
    const auto attached = GuestSpace::Attach(options, *frames_, &transport_, &router_, RealClock());
    return std::string(attached.status().message());
  };
  EXPECT_THAT(refused(0, 1), HasSubstr("budget"));  // of the node, by the first space
  EXPECT_THAT(refused(7, 1), HasSubstr("max_pages is 7, less than 8"));
  EXPECT_THAT(refused(8, 2), HasSubstr("max_pages is 8, less than 8 for each of 2 virtual CPUs"));
  EXPECT_EQ(refused(8, 1), "");
}

}  // namespace
}  // namespace hk
