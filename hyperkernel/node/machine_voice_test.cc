#include "hyperkernel/node/machine_voice.h"

#include <atomic>
#include <memory>
#include <thread>

#include "gtest/gtest.h"

namespace hk {
namespace {

// Counts what it is told.
class Listener final : public MachineEvents {
 public:
  void OnOutput(Channel, std::string_view) override { outputs++; }
  void OnEnd(MachineEnd, const std::string& reason) override { ends += reason + ";"; }
  std::atomic<int> outputs{0};
  std::string ends;
};

TEST(MachineVoice, TellsTheFirstEndOnly) {
  Listener listener;
  MachineVoice voice(&listener);
  voice.End(MachineEnd::kCrash, "first");
  voice.End(MachineEnd::kPowerOff, "second");
  voice.Output(Channel::kSerial, "x");
  EXPECT_EQ(listener.ends, "first;");
  EXPECT_EQ(listener.outputs, 1);
}

TEST(MachineVoice, LastWordsOfAMachineThatIsTakenApartAreHeard) {
  Listener listener;
  MachineVoice voice(&listener);
  voice.ForgetEnd();
  voice.End(MachineEnd::kCrash, "late");
  voice.Output(Channel::kVirtioConsole, "x");
  EXPECT_EQ(listener.ends, "");
  EXPECT_EQ(listener.outputs, 1);
}

TEST(MachineVoice, WhatOutlivesTheMachineCallsNobody) {
  std::shared_ptr<MachineVoice> voice;
  std::atomic<bool> stop{false};
  std::thread remains;
  {
    auto listener = std::make_unique<Listener>();
    voice = std::make_shared<MachineVoice>(listener.get());
    remains = std::thread([voice, &stop] {
      while (!stop) {
        voice->Output(Channel::kAgent, "x");
        voice->End(MachineEnd::kCrash, "guest memory: no room");
      }
    });
    while (listener->outputs == 0) std::this_thread::yield();
    voice->Silence();
    const int outputs = listener->outputs;
    voice->Output(Channel::kSerial, "x");
    EXPECT_EQ(listener->outputs, outputs);
  }
  // The sanitizers would see a call from here on.
  for (int i = 0; i < 1000; i++) voice->Output(Channel::kSerial, "x");
  stop = true;
  remains.join();
}

}  // namespace
}  // namespace hk
