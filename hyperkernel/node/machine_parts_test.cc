#include "hyperkernel/node/machine_parts.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/hang_guard.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/machine_peers.h"

namespace hk {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// What the parts of a test did, and what they wait for.
struct World {
  Mutex mutex;
  CondVar changed;
  std::vector<std::string> did;
  int alive = 0;
  bool make_waits = false, run_waits = false, end_waits = false, move_waits = false;
  bool ends_in_make = false;
  absl::Status make_status, hold_status, renew_status;
  std::function<void(const std::string&)> ended;  // of the last

  void Did(const std::string& what) {
    MutexLock lock(&mutex);
    did.push_back(what);
    changed.SignalAll();
  }
  void Wait(const bool* waits) {
    MutexLock lock(&mutex);
    const auto guard = std::chrono::steady_clock::now() + HangGuard();
    while (*waits) HK_CHECK(changed.WaitUntil(&mutex, guard));
  }
  void Set(bool* waits, bool value) {
    MutexLock lock(&mutex);
    *waits = value;
    changed.SignalAll();
  }
  // Until so much was done.
  void Await(size_t count) {
    MutexLock lock(&mutex);
    const auto guard = std::chrono::steady_clock::now() + HangGuard();
    while (did.size() < count) HK_CHECK(changed.WaitUntil(&mutex, guard));
  }
  int Alive() {
    MutexLock lock(&mutex);
    return alive;
  }
  std::vector<std::string> Done() {
    MutexLock lock(&mutex);
    return did;
  }
};

class FakePart final : public MachinePart {
 public:
  explicit FakePart(World* world) : world_(world) {
    MutexLock lock(&world_->mutex);
    world_->alive++;
  }
  ~FakePart() override {
    bool waits = false;
    {
      MutexLock lock(&world_->mutex);
      waits = world_->end_waits;
    }
    if (waits) world_->Did("ending");
    world_->Wait(&world_->end_waits);
    {
      MutexLock lock(&world_->mutex);
      world_->alive--;
    }
    world_->Did("end");
  }
  absl::Status Run() override {
    world_->Did("run");
    world_->Wait(&world_->run_waits);
    return absl::OkStatus();
  }
  absl::Status Hold() override {
    world_->Did("hold");
    return world_->hold_status;
  }
  v1::MoveMachineVcpuResponse Move(const v1::MoveMachineVcpuRequest& request) override {
    world_->Did("move " + std::to_string(request.vcpu()));
    world_->Wait(&world_->move_waits);
    v1::MoveMachineVcpuResponse response;
    response.set_refused("nine");
    return response;
  }
  std::map<std::string, uint64_t> exits_by_kind() const override { return {{"port", 7}}; }
  std::vector<v1::VcpuTimes> vcpu_times() const override {
    v1::VcpuTimes times;
    times.set_vcpu(1);
    times.set_halted_ns(8);
    return {times};
  }
  v1::MachineStalls Stalls(bool wanted) override {
    v1::MachineStalls stalls;
    stalls.set_dropped(wanted ? ++asked_ : asked_ = 0);
    return stalls;
  }
  absl::Status Renew() override {
    world_->Did("renew");
    return world_->renew_status;
  }
  uint64_t tsc_error_ns() const override { return 42; }
  ClockWord LookAtClock(uint64_t machine) override {
    return {.lead = machine + 1, .bound_ns = machine == 0 ? std::nullopt : std::optional<uint64_t>(machine + 2)};
  }

 private:
  World* const world_;
  uint64_t asked_ = 0;  // for stalls, one after another
};

class MachinePartsTest : public testing::Test {
 protected:
  static v1::AttachMachineRequest Request(uint64_t id, const std::string& from = "a") {
    v1::AttachMachineRequest request;
    request.set_from(from);
    request.set_machine_protocol(kMachineProtocolVersion);
    request.set_name("g");
    request.set_id(id);
    return request;
  }
  absl::Status Order(v1::MachineOrder order, uint64_t id = 1, const std::string& from = "a") {
    v1::OrderMachineRequest request;
    request.set_from(from);
    request.set_id(id);
    request.set_order(order);
    request.set_number(++orders_);
    return parts_.Order(request).status();
  }
  // Ends the last one made, and asks for it.
  absl::Status AwaitEnded(uint64_t id = 1) {
    world_.ended("memory: lost");
    return Order(v1::MACHINE_ORDER_STATUS, id);
  }

  World world_;
  uint64_t orders_ = 0;
  MachineParts parts_{
      [this](const v1::AttachMachineRequest&,
             std::function<void(const std::string&)> ended) -> absl::StatusOr<std::unique_ptr<MachinePart>> {
        {
          MutexLock lock(&world_.mutex);
          world_.ended = ended;
        }
        world_.Did("make");
        world_.Wait(&world_.make_waits);
        if (world_.ends_in_make) ended("the link: broken");
        if (!world_.make_status.ok()) return world_.make_status;
        return std::unique_ptr<MachinePart>(std::make_unique<FakePart>(&world_));
      },
      RealClock()};
};

TEST_F(MachinePartsTest, DoesWhatItsIoNodeSays) {
  const auto attached = parts_.Attach(Request(1));
  ASSERT_TRUE(attached.ok()) << attached.status();
  EXPECT_EQ(attached->tsc_error_ns(), 42u);
  v1::OrderMachineRequest status;
  status.set_from("a");
  status.set_id(1);
  status.set_order(v1::MACHINE_ORDER_STATUS);
  const auto answer = parts_.Order(status);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->exits_by_kind().at("port"), 7u);
  ASSERT_EQ(answer->vcpu_times_size(), 1);
  EXPECT_EQ(answer->vcpu_times(0).halted_ns(), 8u);
  EXPECT_TRUE(Order(v1::MACHINE_ORDER_RUN).ok());
  EXPECT_TRUE(Order(v1::MACHINE_ORDER_HOLD).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(Order(v1::MACHINE_ORDER_UNSPECIFIED)));
  EXPECT_TRUE(Order(v1::MACHINE_ORDER_END).ok());
  EXPECT_EQ(world_.Alive(), 0);
  EXPECT_THAT(world_.Done(), ElementsAre("make", "run", "hold", "end"));
  EXPECT_TRUE(absl::IsFailedPrecondition(Order(v1::MACHINE_ORDER_RUN)));
}

TEST_F(MachinePartsTest, AnOrderThatComesLateIsRefused) {
  ASSERT_TRUE(parts_.Attach(Request(1)).ok());
  v1::OrderMachineRequest hold;
  hold.set_from("a");
  hold.set_id(1);
  hold.set_order(v1::MACHINE_ORDER_HOLD);
  hold.set_number(++orders_);
  ASSERT_TRUE(Order(v1::MACHINE_ORDER_RUN).ok());
  EXPECT_TRUE(absl::IsAborted(parts_.Order(hold).status()));
  EXPECT_THAT(world_.Done(), ElementsAre("make", "run"));
  hold.set_order(v1::MACHINE_ORDER_STATUS);
  const auto status = parts_.Order(hold);
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_TRUE(status->running());
}

TEST_F(MachinePartsTest, WhatAnOrderSaysIsToldAndThePartStays) {
  ASSERT_TRUE(parts_.Attach(Request(1)).ok());
  world_.hold_status = absl::DeadlineExceededError("a vCPU does not stop");
  EXPECT_EQ(MessageOf(Order(v1::MACHINE_ORDER_HOLD)), "a vCPU does not stop");
  EXPECT_TRUE(Order(v1::MACHINE_ORDER_RUN).ok());
}

TEST_F(MachinePartsTest, StallsAreToldToWhoWantsThem) {
  ASSERT_TRUE(parts_.Attach(Request(1)).ok());
  v1::OrderMachineRequest order;
  order.set_from("a");
  order.set_id(1);
  for (const uint64_t dropped : {1, 2}) {
    order.set_order(v1::MACHINE_ORDER_STALLS);
    const auto told = parts_.Order(order);
    ASSERT_TRUE(told.ok()) << told.status();
    EXPECT_EQ(told->stalls().dropped(), dropped);
    EXPECT_EQ(told->exits_by_kind().at("port"), 7u);
  }
  order.set_order(v1::MACHINE_ORDER_STATUS);
  EXPECT_FALSE(parts_.Order(order)->has_stalls());
  order.set_order(v1::MACHINE_ORDER_STALLS);
  EXPECT_EQ(parts_.Order(order)->stalls().dropped(), 1u) << "STATUS has ended it";
}

TEST_F(MachinePartsTest, AStepOfAMoveIsOneThingAtATimeToo) {
  v1::MoveMachineVcpuRequest request;
  request.set_from("a");
  request.set_id(1);
  request.set_vcpu(2);
  EXPECT_TRUE(absl::IsNotFound(parts_.Move(request).status()));
  ASSERT_TRUE(parts_.Attach(Request(1)).ok());
  world_.Set(&world_.move_waits, true);
  std::thread moves([&] {
    const auto moved = parts_.Move(request);
    ASSERT_TRUE(moved.ok()) << moved.status();
    EXPECT_EQ(moved->refused(), "nine");
  });
  world_.Await(2);
  std::thread runs([&] { EXPECT_TRUE(Order(v1::MACHINE_ORDER_RUN).ok()); });
  EXPECT_THAT(world_.Done(), ElementsAre("make", "move 2")) << "the order waits";
  world_.Set(&world_.move_waits, false);
  moves.join();
  runs.join();
  EXPECT_THAT(world_.Done(), ElementsAre("make", "move 2", "run"));
  request.set_from("c");
  EXPECT_TRUE(absl::IsPermissionDenied(parts_.Move(request).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(AwaitEnded()));
  request.set_from("a");
  EXPECT_TRUE(absl::IsFailedPrecondition(parts_.Move(request).status()));
}

TEST_F(MachinePartsTest, AnotherNodeHasNoSay) {
  ASSERT_TRUE(parts_.Attach(Request(1)).ok());
  for (const auto order : {v1::MACHINE_ORDER_STATUS, v1::MACHINE_ORDER_RUN, v1::MACHINE_ORDER_END}) {
    EXPECT_TRUE(absl::IsPermissionDenied(Order(order, 1, "c")));
  }
  EXPECT_EQ(world_.Alive(), 1);
}

TEST_F(MachinePartsTest, WhatIsNotThereCannotRunButHasEnded) {
  EXPECT_TRUE(absl::IsNotFound(Order(v1::MACHINE_ORDER_RUN)));
  EXPECT_TRUE(absl::IsNotFound(Order(v1::MACHINE_ORDER_STATUS)));
  EXPECT_TRUE(Order(v1::MACHINE_ORDER_END).ok());
  // The Attach that the order was about comes after it.
  EXPECT_TRUE(absl::IsAborted(parts_.Attach(Request(1)).status()));
  EXPECT_THAT(world_.Done(), ElementsAre());
}

TEST_F(MachinePartsTest, OnePartOfAMachine) {
  ASSERT_TRUE(parts_.Attach(Request(1)).ok());
  EXPECT_TRUE(absl::IsAlreadyExists(parts_.Attach(Request(1)).status()));
  EXPECT_TRUE(absl::IsAlreadyExists(parts_.Attach(Request(1, "c")).status()));
  EXPECT_TRUE(parts_.Attach(Request(2)).ok());
  EXPECT_EQ(world_.Alive(), 2);
}

TEST_F(MachinePartsTest, AnotherVersionIsRefused) {
  v1::AttachMachineRequest request = Request(1);
  request.set_machine_protocol(kMachineProtocolVersion + 1);
  const absl::Status status = parts_.Attach(request).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(MessageOf(status), HasSubstr(fmt::format("node 'a' speaks version {}", kMachineProtocolVersion + 1)));
  EXPECT_THAT(world_.Done(), ElementsAre());
}

TEST_F(MachinePartsTest, WhatCannotBeMadeIsNotThere) {
  world_.make_status = absl::ResourceExhaustedError("no memory");
  world_.ends_in_make = true;
  EXPECT_EQ(MessageOf(parts_.Attach(Request(1)).status()), "no memory");
  EXPECT_TRUE(absl::IsNotFound(Order(v1::MACHINE_ORDER_RUN)));
  world_.make_status = absl::OkStatus();
  world_.ends_in_make = false;
  EXPECT_TRUE(parts_.Attach(Request(1)).ok());
}

TEST_F(MachinePartsTest, WhoAsksAfterItHasEndedHearsWhy) {
  ASSERT_TRUE(parts_.Attach(Request(1)).ok());
  const absl::Status status = AwaitEnded();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(MessageOf(status), HasSubstr("memory: lost"));
  EXPECT_TRUE(absl::IsFailedPrecondition(Order(v1::MACHINE_ORDER_RUN)));
  EXPECT_TRUE(Order(v1::MACHINE_ORDER_END).ok());
  EXPECT_EQ(world_.Alive(), 0);
}

TEST_F(MachinePartsTest, OneThatEndsWhileItIsMadeNeverRuns) {
  world_.ends_in_make = true;
  ASSERT_TRUE(parts_.Attach(Request(1)).ok());
  const absl::Status status = Order(v1::MACHINE_ORDER_RUN);
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(MessageOf(status), HasSubstr("the link: broken"));
  EXPECT_TRUE(Order(v1::MACHINE_ORDER_END).ok());
  EXPECT_THAT(world_.Done(), ElementsAre("make", "end"));
}

TEST_F(MachinePartsTest, OneThatEndsDuringAnOrderEndsAfterIt) {
  ASSERT_TRUE(parts_.Attach(Request(1)).ok());
  world_.Set(&world_.run_waits, true);
  std::thread runs([&] { EXPECT_TRUE(Order(v1::MACHINE_ORDER_RUN).ok()); });
  world_.Await(2);
  world_.ended("memory: lost");
  EXPECT_EQ(world_.Alive(), 1);
  world_.Set(&world_.run_waits, false);
  runs.join();
  EXPECT_TRUE(absl::IsFailedPrecondition(Order(v1::MACHINE_ORDER_STATUS)));
  EXPECT_TRUE(Order(v1::MACHINE_ORDER_END).ok());
  EXPECT_EQ(world_.Alive(), 0);
}

TEST_F(MachinePartsTest, AnEndWaitsForThePartThatIsMade) {
  world_.Set(&world_.make_waits, true);
  std::thread makes([&] { EXPECT_TRUE(parts_.Attach(Request(1)).ok()); });
  world_.Await(1);
  std::thread ends([&] { EXPECT_TRUE(Order(v1::MACHINE_ORDER_END).ok()); });
  world_.Set(&world_.make_waits, false);
  makes.join();
  ends.join();
  EXPECT_EQ(world_.Alive(), 0);
}

TEST_F(MachinePartsTest, StopAllEndsWhatIsMadeAndWhatIsBusy) {
  ASSERT_TRUE(parts_.Attach(Request(1)).ok());
  ASSERT_TRUE(parts_.Attach(Request(2)).ok());
  world_.Set(&world_.run_waits, true);
  world_.Set(&world_.make_waits, true);
  std::thread runs([&] { EXPECT_TRUE(Order(v1::MACHINE_ORDER_RUN).ok()); });
  std::thread makes([&] { EXPECT_TRUE(parts_.Attach(Request(3)).ok()); });
  world_.Await(4);
  std::atomic<bool> stopped = false;
  std::thread stops([&] {
    parts_.StopAll();
    stopped = true;
  });
  world_.Await(5);  // the idle one is gone
  EXPECT_FALSE(stopped);
  world_.Set(&world_.run_waits, false);
  world_.Set(&world_.make_waits, false);
  for (std::thread* const thread : {&runs, &makes, &stops}) thread->join();
  EXPECT_EQ(world_.Alive(), 0);
  EXPECT_TRUE(absl::IsUnavailable(parts_.Attach(Request(4)).status()));
  EXPECT_THAT(MessageOf(Order(v1::MACHINE_ORDER_STATUS, 2)), HasSubstr("its daemon ends"));
}

// When a node with the devices of several machines is lost. One order at a time still, and a bound.
TEST_F(MachinePartsTest, SeveralEndAtOnceAndNotAll) {
  constexpr size_t kParts = kPartsEndingAtOnce + 3;
  std::vector<std::function<void(const std::string&)>> ended;
  for (uint64_t id = 1; id <= kParts; id++) {
    ASSERT_TRUE(parts_.Attach(Request(id)).ok());
    ended.push_back(world_.ended);
  }
  world_.Set(&world_.end_waits, true);
  for (const auto& end : ended) end("memory: lost");
  world_.Await(kParts + kPartsEndingAtOnce);
  EXPECT_EQ(std::ranges::count(world_.Done(), "ending"), static_cast<int>(kPartsEndingAtOnce));
  EXPECT_EQ(world_.Alive(), static_cast<int>(kParts));
  for (uint64_t id = 1; id <= kParts; id++) {
    EXPECT_THAT(MessageOf(Order(v1::MACHINE_ORDER_RUN, id)), HasSubstr("memory: lost"));
  }
  EXPECT_TRUE(parts_.Attach(Request(kParts + 1)).ok()) << "others are not held up";
  world_.Set(&world_.end_waits, false);
  parts_.StopAll();
  EXPECT_EQ(world_.Alive(), 0);
  EXPECT_EQ(std::ranges::count(world_.Done(), "end"), static_cast<int>(kParts) + 1);
}

TEST_F(MachinePartsTest, TheirNumberIsLimited) {
  for (uint64_t id = 1; id <= kMaxMachineParts; id++) ASSERT_TRUE(parts_.Attach(Request(id)).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(parts_.Attach(Request(kMaxMachineParts + 1)).status()));
  EXPECT_TRUE(Order(v1::MACHINE_ORDER_END, 7).ok());
  EXPECT_TRUE(parts_.Attach(Request(kMaxMachineParts + 1)).ok());
}

TEST_F(MachinePartsTest, StatusLooksAtTheClock) {
  ASSERT_TRUE(parts_.Attach(Request(1)).ok());
  v1::OrderMachineRequest request;
  request.set_from("a");
  request.set_id(1);
  for (const v1::MachineOrder order : {v1::MACHINE_ORDER_STATUS, v1::MACHINE_ORDER_STALLS}) {
    request.set_order(order);
    request.set_tsc_offset(7);
    auto response = parts_.Order(request);
    ASSERT_TRUE(response.ok());
    EXPECT_EQ(response->tsc_lead(), 8u);
    EXPECT_EQ(response->tsc_bound_ns(), 9u);
    request.set_tsc_offset(0);
    response = parts_.Order(request);
    ASSERT_TRUE(response.ok());
    EXPECT_FALSE(response->has_tsc_bound_ns());
  }
  request.set_order(v1::MACHINE_ORDER_RUN);
  request.set_number(1);
  request.set_tsc_offset(7);
  const auto response = parts_.Order(request);
  ASSERT_TRUE(response.ok());
  EXPECT_EQ(response->tsc_lead(), 0u) << "an order does not wait for clocks";
}

TEST_F(MachinePartsTest, ARenewalIsMadeOrSaysWhyNot) {
  ASSERT_TRUE(parts_.Attach(Request(1)).ok());
  EXPECT_TRUE(Order(v1::MACHINE_ORDER_RENEW).ok());
  EXPECT_TRUE(absl::IsPermissionDenied(Order(v1::MACHINE_ORDER_RENEW, 1, "b")));
  EXPECT_TRUE(absl::IsNotFound(Order(v1::MACHINE_ORDER_RENEW, 2)));
  world_.renew_status = absl::DeadlineExceededError("one");
  EXPECT_EQ(MessageOf(Order(v1::MACHINE_ORDER_RENEW)), "one");
  EXPECT_THAT(world_.Done(), ElementsAre("make", "renew", "renew"));
}

TEST(MachinePart, WhatNoIoNodeSendsIsRefused) {
  v1::AttachMachineRequest good;
  good.set_id(1);
  good.set_space_id(2);
  good.set_memory_mib(64);
  good.add_vcpu_nodes(3);
  good.add_vcpu_nodes(4);
  good.add_nodes(4);
  good.add_nodes(3);
  const auto why = [&](const std::function<void(v1::AttachMachineRequest*)>& spoil) {
    MachinePart::Options options;
    options.request = good;
    options.self = NodeId(4);
    options.io_node = NodeId(3);
    options.clock = &RealClock();
    spoil(&options.request);
    return MessageOf(MachinePart::Make(std::move(options)).status());
  };
  using Request = v1::AttachMachineRequest;
  EXPECT_EQ(why([](Request* request) { request->set_id(2); }), "id: 0, or the space's");
  EXPECT_THAT(why([](Request* request) { request->set_memory_mib(0); }), HasSubstr("memory_mib: "));
  EXPECT_THAT(why([](Request* request) { request->clear_vcpu_nodes(); }), HasSubstr("vcpu_nodes: no machine"));
  EXPECT_EQ(why([](Request* request) { request->add_nodes(64); }), "nodes: 64 is no node's number");
  EXPECT_EQ(why([](Request* request) { request->add_nodes(3); }), "nodes: 3 is there twice");
  EXPECT_EQ(why([](Request* request) { request->set_nodes(0, 5); }), "nodes: this node is not among them");
  EXPECT_EQ(why([](Request* request) { request->add_vcpu_nodes(5); }), "vcpu_nodes: 5 is no node of the machine");
  EXPECT_EQ(why([](Request* request) { request->set_vcpu_nodes(0, 4); }), "vcpu_nodes: vCPU 0 is not the sender's");
}

}  // namespace
}  // namespace hk
