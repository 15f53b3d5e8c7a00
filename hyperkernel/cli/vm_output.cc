#include "hyperkernel/cli/vm_output.h"

#include <fmt/format.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "hyperkernel/cli/output.h"

namespace hk::cli {
namespace {

std::string Line(const std::string& key, const std::string& value) {
  return value.empty() ? "" : fmt::format("{:<18} {}\n", fmt::format("{}:", key), value);
}

// "120, 5 per second now: 100 port, 20 hlt", the most frequent first.
std::string ExitsText(const v1::Vm& vm) {
  std::vector<std::pair<uint64_t, std::string>> kinds;
  for (const auto& [kind, count] : vm.exits_by_kind()) {
    if (kind != "injected") kinds.emplace_back(count, Printable(kind));
  }
  std::sort(kinds.begin(), kinds.end(), std::greater<>());
  std::string text = fmt::format("{}, {} per second now", vm.exits(), vm.exits_per_second());
  for (size_t i = 0; i < kinds.size(); i++) {
    text += fmt::format("{} {} {}", i == 0 ? ":" : ",", kinds[i].first, kinds[i].second);
  }
  return text;
}

std::string DiskText(const v1::DiskSpec& disk) {
  std::string out = Printable(disk.path());
  if (disk.readonly()) out += ", read-only";
  if (disk.exclusive()) out += ", exclusive";
  if (!disk.serial().empty()) out += ", serial " + Printable(disk.serial());
  if (disk.queues() > 1) out += fmt::format(", {} queues", disk.queues());
  if (disk.cache() == v1::DISK_CACHE_BUFFERED) out += ", buffered";
  if (disk.bps_limit() != 0) out += fmt::format(", {} per second at most", HumanBytes(disk.bps_limit()));
  return out;
}

std::string NetText(const v1::NetSpec& net) {
  std::string out = net.bridge().empty() ? "tap " + Printable(net.tap()) : "bridge " + Printable(net.bridge());
  out += ", " + Printable(net.mac());
  if (net.queues() > 1) out += fmt::format(", {} queues", net.queues());
  return out;
}

// The vCPUs of each node, ascending.
using VcpusOf = std::map<std::string, std::vector<uint32_t>>;

// As specified: numbered from the I/O node's, which boots, on.
VcpusOf SpecifiedVcpus(const v1::VmSpec& spec) {
  VcpusOf all;
  uint32_t next = 0;
  const auto add = [&](const v1::PlacementSpec& place) {
    for (uint32_t i = 0; i < place.vcpus() && next < spec.vcpus(); i++) all[place.node()].push_back(next++);
  };
  for (const v1::PlacementSpec& place : spec.placement()) {
    if (place.node() == spec.io_node()) add(place);
  }
  for (const v1::PlacementSpec& place : spec.placement()) {
    if (place.node() != spec.io_node()) add(place);
  }
  return all;
}

// "no vCPUs", "vCPU 1", "vCPUs 0, 2-4".
std::string VcpusText(const std::vector<uint32_t>& vcpus) {
  if (vcpus.empty()) return "no vCPUs";
  std::string out = vcpus.size() == 1 ? "vCPU" : "vCPUs";
  for (size_t i = 0; i < vcpus.size();) {
    size_t end = i + 1;
    while (end < vcpus.size() && vcpus[end] == vcpus[end - 1] + 1) end++;
    out += fmt::format("{} {}", i == 0 ? "" : ",", vcpus[i]);
    if (end - i > 1) out += fmt::format("-{}", vcpus[end - 1]);
    i = end;
  }
  return out;
}

// "vCPUs 1-2, 512 MiB of memory at most", of one node.
std::string PlaceText(const v1::PlacementSpec& place, const std::vector<uint32_t>& vcpus, bool io_node) {
  std::string out = Printable(place.node()) + ": " + VcpusText(vcpus);
  if (io_node) out += ", devices";
  if (place.memory_mib() != 0) out += fmt::format(", {} of memory at most", HumanBytes(place.memory_mib() << 20));
  if (place.swap_mib() != 0) out += fmt::format(", {} of swap", HumanBytes(place.swap_mib() << 20));
  return out;
}

std::string PlacesText(const v1::VmSpec& spec, VcpusOf vcpus) {
  std::string out;
  for (const v1::PlacementSpec& place : spec.placement())
    out += Line("Placed", PlaceText(place, vcpus[place.node()], place.node() == spec.io_node()));
  return out;
}

// Where they are now, if that is known of all: they may have moved.
VcpusOf PresentVcpus(const v1::Vm& vm) {
  if (static_cast<uint32_t>(vm.vcpu_times_size()) != vm.spec().vcpus()) return SpecifiedVcpus(vm.spec());
  VcpusOf all;
  for (const v1::VcpuTimes& times : vm.vcpu_times()) all[times.node()].push_back(times.vcpu());
  return all;
}

// "a: 40% halted; waits 12% for pages to read, 8% to write, 5% to upgrade, 3% for exits", of its time since it began.
std::string TimesText(const v1::VcpuTimes& times) {
  const auto share = [&times](uint64_t ns) {
    const double of_all = times.lived_ns() == 0 ? 0 : static_cast<double>(ns) / static_cast<double>(times.lived_ns());
    return fmt::format("{:.0f}%", 100 * of_all);
  };
  return fmt::format("{}: {} halted; waits {} for pages to read, {} to write, {} to upgrade, {} for exits",
                     Printable(times.node()), share(times.halted_ns()), share(times.reads().ns()),
                     share(times.writes().ns()), share(times.upgrades().ns()), share(times.exits_ns()));
}

// "GenuineIntel 6-143-8, at each start, with aes avx avx2".
std::string CpuText(const v1::CpuModel& cpu) {
  std::string out = Printable(cpu.signature()) + ", at each start, with";
  for (const std::string& feature : cpu.features()) out += " " + Printable(feature);
  return cpu.features().empty() ? out + " nothing that not every processor has" : out;
}

// "b within 31 us of a's, c the same as a's".
std::string ClocksText(const v1::Vm& vm) {
  std::string out;
  const std::string io_node = Printable(vm.spec().io_node());
  for (const v1::NodeClock& clock : vm.clocks()) {
    out += (out.empty() ? "" : ", ") + Printable(clock.node());
    if (!clock.has_bound_ns()) {
      out += " not known";
    } else if (clock.bound_ns() == 0) {
      out += fmt::format(" the same as {}'s", io_node);
    } else {
      out += fmt::format(" within {} us of {}'s", (clock.bound_ns() + 999) / 1000, io_node);
    }
  }
  return out;
}

}  // namespace

std::string StateName(v1::VmState state) {
  switch (state) {
    case v1::VM_STATE_STOPPED:
      return "stopped";
    case v1::VM_STATE_STARTING:
      return "starting";
    case v1::VM_STATE_RUNNING:
      return "running";
    case v1::VM_STATE_PAUSED:
      return "paused";
    case v1::VM_STATE_STOPPING:
      return "stopping";
    case v1::VM_STATE_CRASHED:
      return "crashed";
    default:
      return "unknown";
  }
}

std::string VmTable(const std::vector<v1::Vm>& vms, std::chrono::system_clock::time_point now) {
  Table table({"NAME", "STATE", "FOR", "VCPUS", "MEMORY", "FRAMES", "NODE", "AGE"});
  std::string notes;
  for (const v1::Vm& vm : vms) {
    table.AddRow({Printable(vm.spec().name()), StateName(vm.state()), Ago(vm.since(), now),
                  fmt::to_string(vm.spec().vcpus()), HumanBytes(vm.spec().memory_mib() << 20),
                  HumanBytes(vm.frame_bytes()), Printable(vm.node()), vm.has_created() ? Ago(vm.created(), now) : "-"});
    if (!vm.reason().empty()) notes += fmt::format("{}: {}\n", Printable(vm.spec().name()), Printable(vm.reason()));
  }
  return table.ToString() + (notes.empty() ? "" : "\n" + notes);
}

std::string PlacementText(const v1::VmSpec& spec) {
  return PlacesText(spec, SpecifiedVcpus(spec));
}

std::string VmText(const v1::Vm& vm, std::chrono::system_clock::time_point now) {
  const v1::VmSpec& spec = vm.spec();
  std::string out = Line("Name", Printable(spec.name()));
  out +=
      Line("State", fmt::format("{} since {} ({})", StateName(vm.state()), UtcTime(vm.since()), Ago(vm.since(), now)));
  out += Line("Reason", Printable(vm.reason()));
  if (vm.has_started()) out += Line("Uptime", Ago(vm.started(), now));
  out += Line("Node", Printable(vm.node()));
  out += Line("vCPUs", fmt::format("{}, profile {}", spec.vcpus(), Printable(spec.cpu().profile())));
  if (spec.placement_size() > 1) out += PlacesText(spec, PresentVcpus(vm));
  if (spec.placement_size() > 1) out += Line("Policy", Printable(spec.policy()));
  if (vm.tsc_unstable()) out += Line("TSC", "the guest is told not to trust it: its vCPUs are on several hosts");
  if (vm.clocks_size() > 0) out += Line("Clocks", ClocksText(vm));
  if (vm.has_cpu_model()) out += Line("CPU", CpuText(vm.cpu_model()));
  std::string hidden;
  for (const std::string& feature : spec.cpu().disable()) hidden += (hidden.empty() ? "" : ", ") + Printable(feature);
  out += Line("Hidden features", hidden);
  out += Line("Memory",
              fmt::format("{}, {} in frames", HumanBytes(spec.memory_mib() << 20), HumanBytes(vm.frame_bytes())));
  out += Line("Kernel", Printable(spec.kernel()));
  out += Line("Initrd", Printable(spec.initrd()));
  out += Line("Command line", Printable(spec.cmdline()));
  for (const v1::DiskSpec& disk : spec.disks()) out += Line("Disk", DiskText(disk));
  for (const v1::NetSpec& net : spec.nets()) out += Line("Network", NetText(net));
  for (const std::string& device : vm.broken_devices())
    out += Line("Broken", Printable(device) + ": its driver broke the protocol and has not reset it");
  if (vm.has_started()) out += Line("Exits", ExitsText(vm));
  if (vm.vcpu_moves() != 0) out += Line("Moves", fmt::format("{} of vCPUs between nodes", vm.vcpu_moves()));
  for (const v1::VcpuTimes& times : vm.vcpu_times())
    out += Line(fmt::format("vCPU {}", times.vcpu()), TimesText(times));
  std::string channels;
  for (const v1::VmChannel& channel : vm.channels()) {
    channels +=
        fmt::format("{}{} ({})", channels.empty() ? "" : ", ", Printable(channel.name()),
                    channel.output_bytes() == 0 ? "nothing written" : HumanBytes(channel.output_bytes()) + " written");
  }
  out += Line("Channels", channels);
  out += Line("On crash",
              fmt::format("{}{}", spec.on_crash() == v1::ON_CRASH_RESET ? "reset" : "stop",
                          vm.crashes() == 0 ? "" : fmt::format(" ({} crashes since it was started)", vm.crashes())));
  out += Line("Autostart", spec.autostart() ? "yes" : "no");
  if (vm.has_created()) out += Line("Created", fmt::format("{} ({})", UtcTime(vm.created()), Ago(vm.created(), now)));
  out += Line("Starts", fmt::to_string(vm.generation()));
  return out;
}

std::string ToTextProto(const google::protobuf::Message& message) {
  std::string text;
  google::protobuf::TextFormat::PrintToString(message, &text);
  return text;
}

}  // namespace hk::cli
