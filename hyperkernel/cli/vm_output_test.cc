#include "hyperkernel/cli/vm_output.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hk::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr std::chrono::system_clock::time_point kNow{std::chrono::seconds(100000)};

v1::Vm Running() {
  v1::Vm vm;
  vm.mutable_spec()->set_name("web");
  vm.mutable_spec()->set_memory_mib(1024);
  vm.mutable_spec()->set_vcpus(2);
  vm.mutable_spec()->mutable_cpu()->set_profile("host");
  vm.set_state(v1::VM_STATE_RUNNING);
  vm.mutable_since()->set_seconds(99990);
  vm.mutable_started()->set_seconds(99400);
  vm.mutable_created()->set_seconds(100000 - 7200);
  vm.set_node("a");
  vm.set_frame_bytes(512 << 20);
  vm.set_exits(1000);
  vm.set_exits_per_second(42);
  vm.mutable_exits_by_kind()->insert({{"hlt", 300}, {"port", 700}, {"injected", 12}});
  vm.set_generation(3);
  for (const char* name : {"serial", "virtio", "agent"}) vm.add_channels()->set_name(name);
  vm.mutable_channels(0)->set_output_bytes(2048);
  return vm;
}

TEST(VmOutput, ShowTellsWhatIsKnown) {
  const std::string text = VmText(Running(), kNow);
  for (const char* line :
       {"State:             running since 1970-01-02 03:46:30Z (10s)\n", "Uptime:            10m0s\n",
        "vCPUs:             2, profile host\n", "Memory:            1 GiB, 512 MiB in frames\n",
        "Exits:             1000, 42 per second now: 700 port, 300 hlt\n",
        "Channels:          serial (2 KiB written), virtio (nothing written), agent (nothing written)\n",
        "On crash:          stop\n", "Autostart:         no\n", "Created:           1970-01-02 01:46:40Z (2h0m)\n",
        "Starts:            3\n"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
  EXPECT_THAT(text, Not(HasSubstr("Reason:")));
}

TEST(VmOutput, ShowTellsHowOneTheClocksAre) {
  v1::Vm vm = Running();
  vm.mutable_spec()->set_io_node("a");
  EXPECT_THAT(VmText(vm, kNow), Not(HasSubstr("Clocks:")));
  for (const char* node : {"b", "c", "d"}) vm.add_clocks()->set_node(node);
  vm.mutable_clocks(0)->set_bound_ns(30'001);
  vm.mutable_clocks(1)->set_bound_ns(0);
  EXPECT_THAT(VmText(vm, kNow),
              HasSubstr("Clocks:            b within 31 us of a's, c the same as a's, d not known\n"));
}

TEST(VmOutput, DevicesAreShownAsTheyWereAskedFor) {
  v1::Vm vm = Running();
  v1::DiskSpec* disk = vm.mutable_spec()->add_disks();
  disk->set_path("/d");
  disk->set_readonly(true);
  disk->set_serial("s1");
  disk->set_queues(2);
  disk->set_bps_limit(1 << 20);
  vm.mutable_spec()->add_nets()->set_bridge("br0");
  vm.mutable_spec()->mutable_nets(0)->set_mac("02:00:00:00:00:01");
  vm.add_broken_devices("disk0");
  const std::string text = VmText(vm, kNow);
  EXPECT_THAT(text, HasSubstr("Disk:              /d, read-only, serial s1, 2 queues, 1 MiB per second at most\n"));
  EXPECT_THAT(text, HasSubstr("Network:           bridge br0, 02:00:00:00:00:01\n"));
  EXPECT_THAT(text, HasSubstr("Broken:            disk0: "));
}

TEST(VmOutput, VcpusOfAPlacedMachineTellWhatTheirTimeGoesTo) {
  v1::Vm vm;
  v1::VcpuTimes* times = vm.add_vcpu_times();
  times->set_vcpu(0);
  times->set_node("a");
  times->set_lived_ns(1000);
  times->set_halted_ns(400);
  times->mutable_reads()->set_ns(121);
  times->mutable_writes()->set_ns(80);
  times->mutable_upgrades()->set_ns(50);
  times->set_exits_ns(30);
  times = vm.add_vcpu_times();
  times->set_vcpu(12);
  times->set_node("b");
  EXPECT_THAT(
      VmText(vm, kNow),
      HasSubstr(
          "vCPU 0:            a: 40% halted; waits 12% for pages to read, 8% to write, 5% to upgrade, 3% for exits\n"
          "vCPU 12:           b: 0% halted; waits 0% for pages to read, 0% to write, 0% to upgrade, 0% for exits\n"));
}

TEST(VmOutput, APlacedMachineTellsWhoHasWhichVcpus) {
  v1::Vm vm = Running();
  v1::VmSpec& spec = *vm.mutable_spec();
  spec.set_vcpus(4);
  spec.set_io_node("b");
  v1::PlacementSpec* place = spec.add_placement();
  place->set_node("b");
  place->set_vcpus(4);
  EXPECT_THAT(VmText(vm, kNow), Not(HasSubstr("Placed:"))) << "all on one node";
  place->set_vcpus(1);
  place->set_memory_mib(512);
  place->set_swap_mib(2048);
  spec.add_placement()->set_node("c");
  for (const auto& [name, vcpus] : {std::pair("a", 2u), std::pair("d", 1u)}) {
    place = spec.mutable_placement()->Add();
    place->set_node(name);
    place->set_vcpus(vcpus);
  }
  EXPECT_THAT(VmText(vm, kNow), Not(HasSubstr("TSC:")));
  vm.set_tsc_unstable(true);
  EXPECT_THAT(VmText(vm, kNow), HasSubstr("TSC:               the guest is told not to trust it"));
  EXPECT_THAT(VmText(vm, kNow), Not(HasSubstr("Moves:")));
  vm.set_vcpu_moves(3);
  EXPECT_THAT(VmText(vm, kNow), HasSubstr("Moves:             3 of vCPUs between nodes\n"));
  EXPECT_THAT(VmText(vm, kNow), Not(HasSubstr("CPU:")));
  vm.mutable_cpu_model()->set_signature("GenuineIntel 6-143-8");
  for (const char* feature : {"aes", "avx\n"}) vm.mutable_cpu_model()->add_features(feature);
  EXPECT_THAT(VmText(vm, kNow), HasSubstr("CPU:               GenuineIntel 6-143-8, at each start, with aes avx?\n"));
  spec.mutable_placement()->SwapElements(0, 2);  // the I/O node need not be the first
  EXPECT_THAT(VmText(vm, kNow),
              HasSubstr("Placed:            a: vCPUs 1-2\n"
                        "Placed:            c: no vCPUs\n"
                        "Placed:            b: vCPU 0, devices, 512 MiB of memory at most, 2 GiB of swap\n"
                        "Placed:            d: vCPU 3\n"));
  // Some have moved.
  for (const auto& [vcpu, node] : {std::pair(0, "a"), std::pair(1, "d"), std::pair(2, "a"), std::pair(3, "a")}) {
    v1::VcpuTimes* const times = vm.add_vcpu_times();
    times->set_vcpu(static_cast<uint32_t>(vcpu));
    times->set_node(node);
  }
  EXPECT_THAT(VmText(vm, kNow),
              HasSubstr("Placed:            a: vCPUs 0, 2-3\n"
                        "Placed:            c: no vCPUs\n"
                        "Placed:            b: no vCPUs, devices, 512 MiB of memory at most, 2 GiB of swap\n"
                        "Placed:            d: vCPU 1\n"));
}

TEST(VmOutput, AStoppedMachineHasNoUptimeAndACrashItsReason) {
  v1::Vm vm = Running();
  vm.set_state(v1::VM_STATE_CRASHED);
  vm.clear_started();
  vm.set_reason("triple\x1b fault");
  vm.set_crashes(5);
  vm.mutable_spec()->set_on_crash(v1::ON_CRASH_RESET);
  const std::string text = VmText(vm, kNow);
  EXPECT_THAT(text, Not(HasSubstr("Uptime:")));
  EXPECT_THAT(text, Not(HasSubstr("Exits:")));
  EXPECT_THAT(text, HasSubstr("Reason:            triple? fault\n"));
  EXPECT_THAT(text, HasSubstr("On crash:          reset (5 crashes since it was started)\n"));
  EXPECT_THAT(VmTable({vm}, kNow), HasSubstr("web: triple? fault\n"));
}

TEST(VmOutput, ListHasAnAge) {
  EXPECT_EQ(VmTable({Running()}, kNow),
            "NAME  STATE    FOR  VCPUS  MEMORY  FRAMES   NODE  AGE\n"
            "web   running  10s  2      1 GiB   512 MiB  a     2h0m\n");
}

}  // namespace
}  // namespace hk::cli
