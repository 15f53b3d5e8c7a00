// A machine that is saved in the middle of its work, destroyed but for its memory, and made again of the bytes: its
// guest (disk_kernel.s) notices nothing. And what becomes of bytes that are damaged.
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/node/kvm_machine.h"
#include "hyperkernel/node/vm_spec.h"

namespace hk {
namespace {

constexpr std::chrono::seconds kDeadline(20);
constexpr uint32_t kBlocks = 2048, kBlockWords = 1024;

// What the guest says.
class Listener final : public MachineEvents {
 public:
  void OnOutput(Channel channel, std::string_view bytes) override {
    if (channel != Channel::kSerial) return;
    MutexLock lock(&mutex_);
    text_.append(bytes);
    said_.SignalAll();
  }
  void OnEnd(MachineEnd, const std::string& reason) override { OnOutput(Channel::kSerial, "ended: " + reason); }
  // The text, once `what` is in it so many times, or it has gone wrong, or in time.
  std::string Await(const std::string& what, int times, bool* in_time = nullptr) {
    const auto deadline = std::chrono::steady_clock::now() + kDeadline;
    MutexLock lock(&mutex_);
    while (Count(what) < times && Count("wrong") + Count("twice") + Count("ended") == 0 &&
           said_.WaitUntil(&mutex_, deadline)) {
    }
    if (in_time != nullptr) *in_time = Count(what) == times;
    return text_;
  }

 private:
  int Count(const std::string& what) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    int count = 0;
    for (size_t at = text_.find(what); at != std::string::npos; at = text_.find(what, at + 1)) count++;
    return count;
  }
  Mutex mutex_;
  CondVar said_;
  std::string text_ ABSL_GUARDED_BY(mutex_);
};

class MachineSave : public testing::Test {
 protected:
  static void SetUpTestSuite() { log::Init("a", log::Level::kError); }

  void SetUp() override {
    if (::access("/dev/kvm", R_OK | W_OK) != 0) GTEST_SKIP() << "no /dev/kvm here";
    std::string pattern = "/tmp/hkt-save-XXXXXX", frames = "/dev/shm/hkt-save-XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    ASSERT_NE(::mkdtemp(frames.data()), nullptr);
    directory_ = pattern;
    frame_directory_ = frames;
    frames_ = std::make_unique<FrameStore>(*FrameStore::Open(frames, 160 << 20));
    kernels_ = std::make_unique<KernelCache>(pattern + "/kernels");
    std::ofstream image(directory_ / "image", std::ios::binary);
    for (uint32_t block = 0; block < kBlocks; ++block) {
      const std::vector<uint32_t> words(kBlockWords, block);
      image.write(reinterpret_cast<const char*>(words.data()), static_cast<std::streamsize>(4 * words.size()));
    }
    image.close();
    v1::VmSpec spec;
    spec.set_name("g");
    spec.set_memory_mib(32);
    spec.set_kernel(std::string(std::getenv("HK_BIN")) + "/disk_kernel");
    spec.add_disks()->set_path(directory_ / "image");
    const absl::StatusOr<v1::VmSpec> complete = CompleteVmSpec(spec, "a");
    ASSERT_TRUE(complete.ok()) << complete.status();
    spec_ = *complete;
    absl::StatusOr<std::unique_ptr<Machine>> made = MakeKvmMachine(spec_, LocalMemory(spec_, 1, *frames_, nullptr),
                                                                   nullptr, nullptr, *kernels_, RealClock(), &guest_);
    ASSERT_TRUE(made.ok()) << made.status();
    machine_ = *std::move(made);
    ASSERT_THAT(guest_.Await("reading", 1), testing::HasSubstr("reading"));
  }

  void TearDown() override {
    machine_.reset();
    frames_.reset();
    ::umount2(frame_directory_.c_str(), MNT_DETACH);
    std::filesystem::remove_all(frame_directory_);
    std::filesystem::remove_all(directory_);
  }

  // Everything that was asked for is answered once, and the timer ticks.
  void Check() {
    machine_->Input(Channel::kSerial, "x");
    bool answered = false;
    const std::string text = guest_.Await("answered\r\n", ++checks_, &answered);
    EXPECT_TRUE(answered) << text;
    EXPECT_THAT(text, testing::EndsWith("all requests answered\r\n"));
    EXPECT_THAT(text, testing::Not(testing::AnyOf(testing::HasSubstr("wrong"), testing::HasSubstr("twice"))));
  }

  // The guest has gone on for so many exits, unless it has halted.
  void AwaitExits(uint64_t count) {
    const uint64_t before = machine_->exits();
    const auto deadline = std::chrono::steady_clock::now() + kDeadline;
    while (machine_->exits() - before < count && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  }

  // Leaves nothing of the machine but its memory and its state.
  MachineState Leave() {
    absl::StatusOr<MachineState> state = machine_->Save();
    EXPECT_TRUE(state.ok()) << state.status();
    machine_->LeaveFrames();
    machine_.reset();
    state->name = "g";
    state->generation = 1;
    return *std::move(state);
  }

  absl::Status Restore(const MachineState& state) {
    absl::StatusOr<std::unique_ptr<Machine>> made =
        RestoreKvmMachine(spec_, state, LeftMemory(spec_, state, *frames_), *kernels_, RealClock(), &guest_);
    if (made.ok()) machine_ = *std::move(made);
    return made.status();
  }

  std::string frame_file() const { return frames_->PathOf("g", 1); }

  std::filesystem::path directory_, frame_directory_;
  std::unique_ptr<FrameStore> frames_;
  std::unique_ptr<KernelCache> kernels_;
  v1::VmSpec spec_;
  Listener guest_;
  std::unique_ptr<Machine> machine_;
  int checks_ = 0;
};

TEST_F(MachineSave, GoesOnFromItsBytes) {
  Check();
  std::mt19937 random(1);
  for (int i = 0; i < 20; ++i) {
    // At any point of its work.
    AwaitExits(random() % 300);
    const std::vector<std::byte> bytes = EncodeMachineState(Leave());
    const absl::StatusOr<MachineState> state = DecodeMachineState(bytes);
    ASSERT_TRUE(state.ok()) << state.status();
    EXPECT_EQ(EncodeMachineState(*state), bytes);
    ASSERT_TRUE(Restore(*state).ok());
    ASSERT_TRUE(machine_->Unpause().ok());
    Check();
    if (HasFailure()) return;
  }
}

TEST_F(MachineSave, GoesOnAsItWasIfTheBytesAreNotUsed) {
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(machine_->Save().ok());
    ASSERT_TRUE(machine_->GoOn().ok());
    Check();
  }
}

TEST_F(MachineSave, APausedOneStaysPaused) {
  ASSERT_TRUE(machine_->Pause().ok());
  ASSERT_TRUE(Restore(Leave()).ok());
  ASSERT_TRUE(machine_->Save().ok());
  ASSERT_TRUE(machine_->GoOn().ok());
  EXPECT_EQ(machine_->exits(), 0u) << "it ran";
  ASSERT_TRUE(machine_->Unpause().ok());
  Check();
}

TEST_F(MachineSave, WhatIsMissingOrUnknownIsRefused) {
  const MachineState good = Leave();
  // A failed restore takes the frames with it: a link holds them here.
  const std::string spare = frame_file() + ".spare";
  const auto refused = [&](const MachineState& state) {
    std::filesystem::rename(frame_file(), spare);
    std::filesystem::copy_file(spare, frame_file());
    MachineState copy = state;
    struct stat info {};
    ::stat(frame_file().c_str(), &info);
    copy.frame_inode = info.st_ino;
    const absl::Status status = Restore(copy);
    EXPECT_EQ(machine_, nullptr);
    machine_.reset();
    std::filesystem::remove(frame_file());
    std::filesystem::rename(spare, frame_file());
    return std::string(status.message());
  };
  for (const auto& [name, bytes] : good.sections) {
    MachineState state = good;
    state.sections.erase(name);
    EXPECT_THAT(refused(state), testing::HasSubstr(fmt::format("no section '{}'", name)));
    state = good;
    state.sections[name].pop_back();
    EXPECT_NE(refused(state), "") << name;
    state = good;
    state.sections[name].push_back({});
    EXPECT_NE(refused(state), "") << name;
  }
  MachineState state = good;
  state.sections["floppy"] = {};
  EXPECT_THAT(refused(state), testing::HasSubstr("section 'floppy' is not known"));
  state = good;
  state.held_ns = std::numeric_limits<int64_t>::max();
  EXPECT_THAT(refused(state), testing::HasSubstr("in the future"));
  ASSERT_TRUE(Restore(good).ok());
  ASSERT_TRUE(machine_->Unpause().ok());
  Check();
}

// Whatever the bytes are, there is a machine or one line.
TEST_F(MachineSave, DamageHarmsNobodyElse) {
  const MachineState good = Leave();
  const std::string spare = frame_file() + ".spare";
  std::filesystem::rename(frame_file(), spare);
  std::mt19937 random(1);
  int made = 0;
  for (int i = 0; i < 80; ++i) {
    std::filesystem::copy_file(spare, frame_file());
    MachineState state = good;
    auto section = state.sections.begin();
    std::advance(section, static_cast<long>(random() % state.sections.size()));
    for (int k = 0; k < 4; ++k) {
      section->second[random() % std::min<size_t>(section->second.size(), 800)] = static_cast<std::byte>(random());
    }
    struct stat info {};
    ASSERT_EQ(::stat(frame_file().c_str(), &info), 0);
    state.frame_inode = info.st_ino;
    const absl::Status status = Restore(state);
    if (status.ok()) {
      made++;
      static_cast<void>(machine_->Unpause());
      static_cast<void>(machine_->Pause());  // its guest has run some instructions, of whatever kind, or has crashed
      machine_.reset();
    } else {
      EXPECT_EQ(std::string(status.message()).find('\n'), std::string::npos);
    }
    std::filesystem::remove(frame_file());
  }
  EXPECT_GT(made, 0);
  EXPECT_LT(made, 80);
}

TEST(MachineStateFormat, DamageIsRefused) {
  MachineState state;
  state.name = "g";
  state.generation = 3;
  state.serial_log = "hello";
  state.sections = {{"a", {std::byte{1}}}, {"b", {}}};
  const std::vector<std::byte> bytes = EncodeMachineState(state);
  ASSERT_TRUE(DecodeMachineState(bytes).ok());
  for (size_t i = 0; i < bytes.size(); ++i) {
    EXPECT_FALSE(DecodeMachineState(std::span(bytes).first(i)).ok()) << i;
    std::vector<std::byte> flipped = bytes;
    flipped[i] ^= std::byte{0x10};
    EXPECT_FALSE(DecodeMachineState(flipped).ok()) << i;
  }
  std::vector<std::byte> newer = bytes;
  newer[4] = std::byte{2};
  EXPECT_THAT(std::string(DecodeMachineState(newer).status().message()),
              testing::HasSubstr("version 2, this daemon knows 1"));
}

}  // namespace
}  // namespace hk
