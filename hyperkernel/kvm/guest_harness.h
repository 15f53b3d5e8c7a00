// For tests: guests made of the programs in tests/guest, with a small local APIC and a few devices. Runs on any
// /dev/kvm, also one that only interprets.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>

#include <atomic>
#include <bitset>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/hang_guard.h"
#include "hyperkernel/base/mapping.h"
#include "hyperkernel/kvm/cpu_model.h"
#include "hyperkernel/kvm/vcpu.h"
#include "hyperkernel/kvm/vm.h"

namespace hk {

// Tests that need a /dev/kvm, of whatever speed. Skipped where there is none: lab.one_host runs them on the lab's.
class KvmTest : public testing::Test {
 protected:
  void SetUp() override {
    const OwnedFd kvm(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
    if (!kvm.valid()) GTEST_SKIP() << "no usable /dev/kvm: " << std::strerror(errno);
  }
};

inline constexpr uint64_t kGuestCode = 0x8000;
inline constexpr uint64_t kGuestBytes = 4 << 20;

inline Monotonic After(std::chrono::milliseconds time) {
  return RealClock().Now() + time;
}

// The deadline of what ends unless there is a bug.
inline Monotonic Guard() {
  return After(HangGuard());
}

// For what nobody tells of: looks until it is so; false: it never was.
inline bool Eventually(const std::function<bool()>& condition) {
  for (const Monotonic limit = Guard(); !condition(); std::this_thread::sleep_for(std::chrono::milliseconds(1))) {
    if (RealClock().Now() >= limit) return false;
  }
  return true;
}

// Enough of an x2APIC for the programs: ids, TPR, EOI, ICR, self-IPI, a one-shot timer that takes kTimerDelay.
class FakeApic : public VcpuInterrupts {
 public:
  static constexpr std::chrono::milliseconds kTimerDelay{2};

  explicit FakeApic(uint32_t id) : id_(id) {}
  // Set before the vCPU runs: who else there is, and what to call when this APIC has news.
  std::vector<FakeApic*> all;
  std::function<void()> wake = [] {};
  // Set before the vCPU runs: called from its thread when the timer interrupts.
  std::function<void(Monotonic now)> on_timer = [](Monotonic) {};

  // Any thread: whether other nodes know what it did, and how often the vCPU has asked.
  std::atomic<bool> settled = true;
  std::atomic<uint64_t> settled_asked = 0;

  // Any thread: an event for this vCPU.
  void Post(VcpuWork work) {
    {
      std::lock_guard lock(mutex_);
      if (work.kind == VcpuWork::Kind::kInterrupt) {
        irr_[work.vector] = true;
      } else {
        queue_.push_back(work);
      }
    }
    wake();
  }

  std::optional<uint64_t> ReadMsr(uint32_t msr) override {
    std::lock_guard lock(mutex_);
    switch (msr) {
      case 0x1b:
        return 0xfee00000 | 1 << 11 | 1 << 10 | (id_ == 0 ? 1 << 8 : 0);
      case 0x802:
        return id_;
      case 0x808:
        return tpr_;
      case 0x80f:
      case 0x832:
      case 0x838:
        return 0;
      default:
        return std::nullopt;
    }
  }

  bool WriteMsr(uint32_t msr, uint64_t value) override {
    switch (msr) {
      case 0x808: {
        std::lock_guard lock(mutex_);
        tpr_ = static_cast<uint8_t>(value);
        return true;
      }
      case 0x80b: {
        std::lock_guard lock(mutex_);
        if (!in_service_.empty()) in_service_.pop_back();
        return true;
      }
      case 0x80f:
      case 0x83e:  // the timer's divider, which this one has not
        return true;
      case 0x830:
        return Send(value);
      case 0x832: {
        std::lock_guard lock(mutex_);
        timer_vector_ = static_cast<uint8_t>(value);
        return true;
      }
      case 0x838:
        timer_ = After(kTimerDelay);
        return true;
      case 0x83f:
        Post({.kind = VcpuWork::Kind::kInterrupt, .vector = static_cast<uint8_t>(value)});
        return true;
      default:
        return false;
    }
  }

  uint32_t ReadMmio(uint32_t offset) override { return offset == 0x20 ? 0x600d : offset == 0x80 ? tpr_.load() : 0; }
  void WriteMmio(uint32_t offset, uint32_t value) override {
    if (offset == 0x80) tpr_ = static_cast<uint8_t>(value);
  }

  VcpuWork Peek() override {
    std::lock_guard lock(mutex_);
    if (!queue_.empty()) return queue_.front();
    const int vector = Highest();
    if (vector < 0) return {};
    return {.kind = VcpuWork::Kind::kInterrupt, .vector = static_cast<uint8_t>(vector)};
  }
  void Take(VcpuWork work) override {
    std::lock_guard lock(mutex_);
    HK_CHECK(!queue_.empty() && queue_.front().kind == work.kind);
    queue_.pop_front();
  }
  std::optional<uint8_t> Acknowledge() override {
    std::lock_guard lock(mutex_);
    const int vector = Highest();
    if (vector < 0) return std::nullopt;
    irr_[static_cast<size_t>(vector)] = false;
    in_service_.push_back(static_cast<uint8_t>(vector));
    return static_cast<uint8_t>(vector);
  }
  void SetCr8(uint8_t cr8) override {
    std::lock_guard lock(mutex_);
    tpr_ = static_cast<uint8_t>(cr8 << 4);
  }
  uint8_t Cr8() override {
    std::lock_guard lock(mutex_);
    return tpr_ >> 4;
  }
  bool Settled() override {
    settled_asked++;
    return settled;
  }
  bool OfferEoi() override { return false; }
  void EndEoiOffer(bool) override {}
  Monotonic TimerDeadline() const override { return timer_; }
  void RunTimer(Monotonic now) override {
    if (now < timer_.load()) return;
    timer_ = Monotonic::max();
    on_timer(now);
    std::lock_guard lock(mutex_);
    irr_[timer_vector_] = true;
  }

 private:
  // Highest pending vector above the processor's priority, or -1.
  int Highest() {
    const int priority = std::max<int>(tpr_ & 0xf0, in_service_.empty() ? 0 : in_service_.back() & 0xf0);
    for (int vector = 255; vector > priority + 15; --vector) {
      if (irr_[static_cast<size_t>(vector)]) return vector;
    }
    return -1;
  }

  bool Send(uint64_t icr) {
    const auto to = static_cast<uint32_t>(icr >> 32);
    const auto vector = static_cast<uint8_t>(icr);
    constexpr VcpuWork::Kind kNone = VcpuWork::Kind::kNone;
    const VcpuWork::Kind kinds[] = {
        VcpuWork::Kind::kInterrupt, kNone, kNone, kNone, VcpuWork::Kind::kNmi, VcpuWork::Kind::kInit,
        VcpuWork::Kind::kSipi,      kNone};
    if (to < all.size()) all[to]->Post({.kind = kinds[icr >> 8 & 7], .vector = vector});
    return true;
  }

  const uint32_t id_;
  std::mutex mutex_;
  std::bitset<256> irr_;
  std::vector<uint8_t> in_service_;
  std::deque<VcpuWork> queue_;
  std::atomic<uint8_t> tpr_ = 0;
  std::atomic<uint8_t> timer_vector_ = 0;
  std::atomic<Monotonic> timer_ = Monotonic::max();
};

// What guests/guest.inc and the programs expect, and what they said.
class FakeDevices : public ExitHandler {
 public:
  enum class End { kNone, kPassed, kFailed, kGuestFailure };

  // Set before the vCPU runs: called for every read of a port, from the vCPU's thread, in the middle of the exit.
  std::function<void()> on_read = [] {};

  void PortRead(uint16_t port, std::span<std::byte> data) override {
    on_read();
    std::lock_guard lock(mutex_);
    uint32_t value = UINT32_MAX;
    if (port == 0x20) value = ~last_;
    if (port == 0x24) value = sum_;
    if (port == 0x28) value = count_++;
    std::memcpy(data.data(), &value, data.size());
  }
  // Set before the vCPU runs: called for every tick, from the vCPU's thread.
  std::function<void()> on_tick = [] {};

  void PortWrite(uint16_t port, std::span<const std::byte> data) override {
    uint32_t value = 0;
    std::memcpy(&value, data.data(), data.size());
    if (port == 0x10 && value == 3) on_tick();
    std::lock_guard lock(mutex_);
    if (port == 0x20) last_ = value;
    if (port == 0x24) sum_ += value;
    if (port == 0x11) step_ = value;
    if (port != 0x10) return;
    if (value == 3) {
      ticks_.fetch_add(1);
    } else {
      end_ = value == 1 ? End::kPassed : End::kFailed;
    }
    changed_.notify_all();
  }
  void MmioRead(Gpa address, std::span<std::byte> data) override {
    const uint64_t at = address.value() - 0xd0000000;
    std::memset(data.data(), 0xff, data.size());
    if (at + data.size() <= sizeof(memory_)) std::memcpy(data.data(), memory_ + at, data.size());
  }
  void MmioWrite(Gpa address, std::span<const std::byte> data) override {
    const uint64_t at = address.value() - 0xd0000000;
    if (at + data.size() <= sizeof(memory_)) std::memcpy(memory_ + at, data.data(), data.size());
  }
  void OnGuestFailure(VcpuId, const std::string& reason) override {
    std::lock_guard lock(mutex_);
    ++failures_;
    reason_ = reason;
    end_ = End::kGuestFailure;
    changed_.notify_all();
  }

  // The end, or kNone if it did not come in time.
  End WaitForEnd(std::chrono::milliseconds time) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, time, [this] { return end_ != End::kNone; });
    return end_;
  }
  bool WaitForTicks(uint64_t ticks, std::chrono::milliseconds time) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, time, [this, ticks] { return end_ != End::kNone || ticks_ >= ticks; });
    return ticks_ >= ticks;
  }
  uint64_t ticks() const { return ticks_; }
  uint32_t step() {
    std::lock_guard lock(mutex_);
    return step_;
  }
  std::string reason() {
    std::lock_guard lock(mutex_);
    return reason_;
  }
  int failures() {
    std::lock_guard lock(mutex_);
    return failures_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<uint64_t> ticks_ = 0;
  uint32_t last_ = 0, sum_ = 0, count_ = 0, step_ = 0;
  uint8_t memory_[16] = {};
  End end_ = End::kNone;
  std::string reason_;
  int failures_ = 0;
};

// RAM with page tables, GDT and a program.
class GuestRam {
 public:
  explicit GuestRam(const std::string& program) {
    auto mapping = Mapping::Create(kGuestBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, "guest memory");
    HK_CHECK(mapping.ok());
    mapping_ = *std::move(mapping);
    constexpr uint64_t kPml4 = 0x1000, kPdpt = 0x2000, kLow = 0x3000, kHigh = 0x4000;
    Put(kPml4, kPdpt | 3);
    Put(kPdpt, kLow | 3);
    Put(kPdpt + 8 * 3, kHigh | 3);
    for (uint64_t i = 0; i < kGuestBytes >> 21; ++i) Put(kLow + 8 * i, i << 21 | 0x83);
    for (uint64_t i = 0; i < 512; ++i) Put(kHigh + 8 * i, uint64_t{3} << 30 | i << 21 | 0x83);
    Put(0x5000 + kBootCodeSelector, 0x00af9b000000ffff);
    Put(0x5000 + kBootDataSelector, 0x00cf93000000ffff);
    std::ifstream file(std::string(HK_GUEST_PROGRAMS) + "/" + program + ".bin", std::ios::binary);
    const std::string code{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    HK_CHECK(!code.empty() && code.size() < 0x10000);
    std::memcpy(mapping_.data() + kGuestCode, code.data(), code.size());
  }
  uint8_t* data() const { return mapping_.data(); }
  static InitialCpuState Entry() {
    InitialCpuState state;
    state.rip = kGuestCode;
    state.rsp = 0x80000;
    state.cr0 = 0x80050033;  // PG, AM, WP, NE, ET, MP, PE
    state.cr3 = 0x1000;
    state.cr4 = 0x20;    // PAE
    state.efer = 0x500;  // LMA, LME
    state.gdt_base = Gpa(0x5000);
    state.gdt_limit = 0x1f;
    return state;
  }

 private:
  void Put(uint64_t at, uint64_t value) { std::memcpy(mapping_.data() + at, &value, sizeof(value)); }
  Mapping mapping_;
};

// A guest: VM, RAM, vCPUs and what they talk to. Everything is fatal to the test.
class TestGuest {
 public:
  // `paced`: as VcpuEnvironment has it.
  explicit TestGuest(const std::string& program, uint32_t vcpus = 1, bool paced = false, VcpuThreads* threads = nullptr)
      : ram(program), vcpus_(vcpus) {
    vm = MakeVm();
    auto model = CpuModel::Create(vm->facts().cpuid, ReadHostCpu(), {});
    HK_CHECK(model.ok());
    clock = std::make_unique<PvClock>(PvClockOrigin{.wall_ns = 1'234'567'890ull * 1'000'000'000, .tsc_khz = 1'000'000},
                                      vcpus, [this](Gpa at, std::span<const std::byte> bytes) {
                                        if (at.value() + bytes.size() > kGuestBytes) {
                                          return absl::OutOfRangeError("not RAM");
                                        }
                                        std::memcpy(ram.data() + at.value(), bytes.data(), bytes.size());
                                        return absl::OkStatus();
                                      });
    for (uint32_t i = 0; i < vcpus; ++i) apics.push_back(std::make_unique<FakeApic>(i));
    for (uint32_t i = 0; i < vcpus; ++i) {
      for (auto& apic : apics) apics[i]->all.push_back(apic.get());
      auto made = Vcpu::Create(vm.get(), {.id = VcpuId(i), .cpuid = model->Cpuid(i, vcpus)},
                               {.devices = &devices,
                                .interrupts = apics[i].get(),
                                .clock = clock.get(),
                                .paced = paced,
                                .threads = threads});
      if (!made.ok()) ADD_FAILURE() << made.status();
      HK_CHECK(made.ok());
      vcpu.push_back(*std::move(made));
      apics[i]->wake = [raw = vcpu.back().get()] { raw->Wake(); };
    }
  }

  // Whoever wakes a vCPU must be gone before it: all stop first.
  ~TestGuest() {
    for (auto& each : vcpu) each->RequestStop();
    for (auto& each : vcpu) EXPECT_TRUE(each->Stop(Guard()).ok());
  }

  // A further VM over the same memory.
  std::unique_ptr<Vm> MakeVm() {
    auto made = Vm::Create(vcpus_);
    if (!made.ok()) ADD_FAILURE() << made.status();
    HK_CHECK(made.ok());
    auto slot = (*made)->AddMemory({.start = Gpa(0), .bytes = kGuestBytes, .host = ram.data()});
    if (!slot.ok()) ADD_FAILURE() << slot.status();
    HK_CHECK(slot.ok());
    return *std::move(made);
  }

  void Start() {
    for (size_t i = 1; i < vcpu.size(); ++i) EXPECT_TRUE(vcpu[i]->Resume().ok());
    absl::Status status = vcpu[0]->Start(GuestRam::Entry(), Guard());
    EXPECT_TRUE(status.ok()) << status;
  }

  FakeDevices devices;
  GuestRam ram;
  std::vector<std::unique_ptr<FakeApic>> apics;
  std::unique_ptr<PvClock> clock;
  std::unique_ptr<Vm> vm;
  std::vector<std::unique_ptr<Vcpu>> vcpu;

 private:
  const uint32_t vcpus_;
};

}  // namespace hk
