// The controller under threads: as many as a small guest has, all at once. ThreadSanitizer runs this too.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "hyperkernel/irq/interrupt_controller.h"

namespace hk {
namespace {

using Kind = VcpuWork::Kind;

constexpr uint32_t kVcpus = 4;
constexpr uint8_t kIpiVector = 0x40;
constexpr uint8_t kLevelVector = 0x50;
constexpr uint8_t kMsiVector = 0x60;
constexpr uint8_t kTimerVector = 0xec;
constexpr uint8_t kPin = 9;
constexpr auto kLimit = std::chrono::seconds(60);

// A vCPU thread's halt: sleeps until it is woken, or its timer is due.
class Bell {
 public:
  void Ring() {
    {
      MutexLock lock(&mutex_);
      rung_ = true;
    }
    changed_.Signal();
  }
  void Wait(Monotonic timer) {
    MutexLock lock(&mutex_);
    const Monotonic end = std::min(timer, RealClock().Now() + std::chrono::milliseconds(200));
    while (!rung_ && changed_.WaitUntil(&mutex_, end)) {
    }
    rung_ = false;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool rung_ ABSL_GUARDED_BY(mutex_) = false;
};

class Bells final : public VcpuWaker {
 public:
  void Wake(VcpuId vcpu) override { bells[vcpu.value()].Ring(); }
  std::array<Bell, kVcpus> bells;
};

// Four vCPU threads that serve what comes, and senders of every kind.
class Machine {
 public:
  ~Machine() { Finish(); }

  void Start() {
    for (uint32_t i = 0; i < kVcpus; ++i) {
      if (i != 0) {
        for (uint32_t command : {0x4500u, 0x4608u}) {
          controller_.vcpu(VcpuId(0)).WriteMsr(0x830, uint64_t{i} << 32 | command);
          controller_.vcpu(VcpuId(i)).Take(controller_.vcpu(VcpuId(i)).Peek());
        }
      }
      controller_.vcpu(VcpuId(i)).WriteMsr(0x80f, 0x1ff);
    }
    controller_.IoApicWrite(0, 0x11 + 2 * kPin);
    controller_.IoApicWrite(0x10, 0xff000000);
    controller_.IoApicWrite(0, 0x10 + 2 * kPin);
    controller_.IoApicWrite(0x10, 0x8000 | 0x800 | 0x100 | kLevelVector);  // lowest priority among all
    for (uint32_t i = 0; i < kVcpus; ++i) {
      threads_.emplace_back([this, i] { Serve(i); });
    }
  }
  void Finish() {
    stopping_ = true;
    for (std::thread& thread : threads_) {
      thread.join();
    }
    threads_.clear();
  }

  InterruptController& controller() { return controller_; }
  std::atomic<uint64_t> served[256] = {};
  std::atomic<bool> device_asserts{false};
  std::atomic<uint32_t> ipis_each{0};

 private:
  void Serve(uint32_t id) {
    VcpuInterrupts& vcpu = controller_.vcpu(VcpuId(id));
    std::mt19937 random(id);
    vcpu.WriteMsr(0x83e, 0xb);
    vcpu.WriteMsr(0x832, 0x20000 | kTimerVector);
    vcpu.WriteMsr(0x838, 1000000);  // 1 ms
    uint32_t ipis_sent = 0;
    while (!stopping_) {
      if (ipis_sent < ipis_each.load()) {
        vcpu.WriteMsr(0x830, uint64_t{(id + 1 + random() % 3) % kVcpus} << 32 | kIpiVector | ipis_sent % 8);
        vcpu.WriteMsr(0x830, 0xc0000 | 0x70);  // all but self
        ++ipis_sent;
      }
      vcpu.SetCr8(static_cast<uint8_t>(random() % 4));
      if (vcpu.TimerDeadline() != Monotonic::max()) vcpu.RunTimer(RealClock().Now());
      const VcpuWork work = vcpu.Peek();
      if (work.kind == Kind::kInterrupt) {
        if (const auto vector = vcpu.Acknowledge()) {
          if (*vector == kLevelVector) {
            controller_.SetLine(kPin, false);
            device_asserts = false;
          }
          ++served[*vector];
          vcpu.WriteMsr(0x80b, 0);
        }
      } else if (work.kind != Kind::kNone) {
        vcpu.Take(work);
      } else if (ipis_sent >= ipis_each.load()) {
        bells_.bells[id].Wait(vcpu.TimerDeadline());
      }
    }
  }

  Bells bells_;
  InterruptController controller_{{.vcpus = kVcpus}, &RealClock(), &bells_};
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> threads_;
};

// Every device interrupt is asserted after the one before was served: none may be lost, whatever else goes on.
void ExpectNothingLost(bool renewed) {
  Machine machine;
  machine.Start();
  machine.ipis_each = 3000;
  const Monotonic end = RealClock().Now() + kLimit;
  constexpr uint64_t kDeviceInterrupts = 500;
  std::thread msi([&machine] {
    for (uint32_t i = 0; i < 3000; ++i) {
      machine.controller().SendMsi(0xfee00000 | (i % kVcpus) << 12, kMsiVector);
      machine.controller().InjectNmi(VcpuId(i % kVcpus));
    }
  });
  std::atomic<bool> done = false;
  std::thread renewer([&] {
    while (renewed && !done) {
      EXPECT_TRUE(machine.controller().Renew().ok());
      std::this_thread::yield();
    }
  });
  for (uint64_t i = 0; i < kDeviceInterrupts; ++i) {
    machine.device_asserts = true;
    machine.controller().SetLine(kPin, true);
    while (machine.device_asserts && RealClock().Now() < end) {
      std::this_thread::yield();
    }
    if (machine.device_asserts) {
      ADD_FAILURE() << "interrupt " << i << " never came";
      break;
    }
  }
  msi.join();
  while (machine.served[kTimerVector] < 20 && RealClock().Now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  done = true;
  renewer.join();
  machine.Finish();
  EXPECT_GE(machine.served[kLevelVector], kDeviceInterrupts);
  EXPECT_GE(machine.served[kTimerVector], 20u);
  EXPECT_GT(machine.served[kMsiVector], 0u);
  EXPECT_GT(machine.served[kIpiVector], 0u);
}

TEST(InterruptControllerStress, NothingIsLost) {
  ExpectNothingLost(false);
}

TEST(InterruptControllerStress, NothingIsLostWhileTheControllerIsRenewed) {
  ExpectNothingLost(true);
}

}  // namespace
}  // namespace hk
