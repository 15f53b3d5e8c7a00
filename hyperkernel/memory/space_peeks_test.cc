// Reads that ask the owner beside the home, between engines: node 0 reads what node 2 owns, node 1 is the home.
#include <algorithm>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/memory/page_wire.h"
#include "hyperkernel/memory/space_network_testing.h"

namespace hk {
namespace {

using testing::ElementsAre;

class SpacePeeksTest : public SpaceNetworkTest {
 protected:
  using Type = PageMessageType;
  static constexpr uint64_t kFirst = kExtentPages;  // of the extent whose home is node 1

  static constexpr uint16_t TypeOf(Type type) {
    return static_cast<uint16_t>(kFirstUserType + static_cast<uint16_t>(type));
  }
  // In no order that anybody would foresee.
  static uint64_t PageOf(uint64_t number) { return kFirst + number * number * 7 % kExtentPages; }
  // Node 2 owns pages, and node 0 has read two of them: it has heard twice who the owner is.
  void Prepare() {
    Make(3);
    for (uint64_t number = 0; number < 8; ++number) Write(2, PageOf(number), 1);
    for (uint64_t number = 0; number < 2; ++number) Read(PageOf(number));
    ASSERT_EQ(Of(0).peeks, 0u);
    Pass(std::chrono::milliseconds(2));
  }
  void Read(uint64_t page) {
    Fault(page);
    DeliverAll();
    Expect(0, page, ByteOf(page));
  }
  void Fault(uint64_t page) { nodes_[0]->engine->OnFault(Gfn(page), false); }
  bool Deliver(Type type) {
    return DeliverOne([type](const Sent& sent) { return sent.message.type == TypeOf(type); });
  }
  std::vector<std::string> OnTheWay() const {
    std::vector<std::string> names;
    for (const Sent& sent : network_) {
      names.push_back(std::string(Name(static_cast<Type>(sent.message.type - kFirstUserType))) + " " +
                      std::to_string(sent.from.value()) + "-" + std::to_string(sent.to.value()));
    }
    std::sort(names.begin(), names.end());
    return names;
  }
  PageRight RightAt(size_t node, uint64_t page) const { return nodes_[node]->engine->RightOf(Gfn(page)); }
};

TEST_F(SpacePeeksTest, TheHomeGrantsWithoutTheOwner) {
  Prepare();
  const uint64_t fetched = Of(0).fetched;
  for (const bool home_first : {false, true}) {
    const uint64_t page = PageOf(home_first ? 2 : 3);
    Fault(page);
    EXPECT_THAT(OnTheWay(), ElementsAre("Peek 0-2", "Request 0-1"));
    ASSERT_TRUE(Deliver(Type::kPeek));
    EXPECT_EQ(RightAt(2, page), PageRight::kOwner) << "it cannot write any more";
    ASSERT_TRUE(Deliver(Type::kRequest));
    EXPECT_THAT(OnTheWay(), ElementsAre("Answer 1-0", "Peeked 2-0"));
    ASSERT_TRUE(Deliver(home_first ? Type::kAnswer : Type::kPeeked));
    EXPECT_EQ(RightAt(0, page), PageRight::kNone) << "only the home grants, and bytes are needed";
    ASSERT_TRUE(Deliver(home_first ? Type::kPeeked : Type::kAnswer));
    EXPECT_EQ(RightAt(0, page), PageRight::kShared);
    Expect(0, page, ByteOf(page));
    EXPECT_EQ(Woken(0, page), 1);
    DeliverAll();
  }
  EXPECT_EQ(Of(0).peeks, 2u);
  EXPECT_EQ(Of(0).peeks_used, 2u);
  EXPECT_EQ(Of(0).fetched, fetched + 2);
  // Who is a reader of it now is told of the next write.
  Write(2, PageOf(2), 1);
  EXPECT_EQ(RightAt(0, PageOf(2)), PageRight::kNone);
  EXPECT_EQ(RightAt(2, PageOf(2)), PageRight::kExclusive);
}

TEST_F(SpacePeeksTest, WhatWasWrittenSinceIsNotTaken) {
  Prepare();
  const uint64_t page = PageOf(4);
  Fault(page);
  ASSERT_TRUE(Deliver(Type::kPeek));
  // The owner has its right to write back, and writes, before the home hears of the reader.
  char& first = nodes_[2]->frames.First(Gfn(page));
  Wish write;
  nodes_[2]->engine->Want(Gfn(page), PageAccess::kWrite, write.End());
  while (DeliverOne([](const Sent& sent) { return sent.from != NodeId(0) && sent.to != NodeId(0); })) {
  }
  ASSERT_TRUE(write.status.ok());
  ASSERT_EQ(RightAt(2, page), PageRight::kExclusive);
  first = '!';
  clock_.now += std::chrono::milliseconds(1);
  for (const auto& node : nodes_) node->timers.Advance({});
  DeliverAll();
  ASSERT_EQ(RightAt(0, page), PageRight::kShared);
  EXPECT_EQ(nodes_[0]->frames.First(Gfn(page)), '!');
  EXPECT_EQ(Of(0).peeks_used, 0u);
}

TEST_F(SpacePeeksTest, WhoIsRefusedAsksTheHomeAlone) {
  Prepare();
  const uint64_t page = PageOf(5);
  Wish pin;
  nodes_[2]->engine->Pin(Gfn(page), 1, pin.End());
  ASSERT_TRUE(pin.status.ok());
  Fault(page);
  DeliverAll();
  EXPECT_EQ(RightAt(0, page), PageRight::kNone);
  EXPECT_EQ(RightAt(2, page), PageRight::kExclusive) << "a device writes to it";
  EXPECT_EQ(Of(0).peeks, 1u);
  EXPECT_EQ(Of(0).peeks_refused, 1u);
  nodes_[2]->engine->Unpin(Gfn(page), 1);
  DeliverAll();
  Expect(0, page, ByteOf(page));
  EXPECT_EQ(RightAt(0, page), PageRight::kShared);
  EXPECT_EQ(RightAt(2, page), PageRight::kOwner);
  // A hint that was of no use is not taken again until it is heard of twice.
  Read(PageOf(6));
  EXPECT_EQ(Of(0).peeks, 1u + 1u) << "the answer named the owner again";
}

TEST_F(SpacePeeksTest, ANodeThatIsNotTheOwnerRefuses) {
  Prepare();
  const uint64_t page = PageOf(7);
  Write(1, page, 1);  // its home has it now, and node 0 has not heard of that
  Fault(page);
  EXPECT_THAT(OnTheWay(), ElementsAre("Peek 0-2", "Request 0-1"));
  ASSERT_TRUE(Deliver(Type::kRequest));
  ASSERT_TRUE(Deliver(Type::kAnswer));
  Expect(0, page, ByteOf(page));
  DeliverAll();  // the refusal comes late, and is nobody's
  EXPECT_EQ(Of(0).peeks_used, 0u);
}

}  // namespace
}  // namespace hk
