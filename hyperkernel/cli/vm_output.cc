#include "hyperkernel/cli/vm_output.h"

#include <fmt/format.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <functional>
#include <utility>

#include "hyperkernel/cli/output.h"

namespace hk::cli {
namespace {

std::string Line(const char* key, const std::string& value) {
  return value.empty() ? "" : fmt::format("{:<18} {}\n", fmt::format("{}:", key), value);
}

// "120: 100 port, 20 hlt", the most frequent first.
std::string ExitsText(const v1::Vm& vm) {
  std::vector<std::pair<uint64_t, std::string>> kinds;
  for (const auto& [kind, count] : vm.exits_by_kind()) {
    if (kind != "injected") kinds.emplace_back(count, Printable(kind));
  }
  std::sort(kinds.begin(), kinds.end(), std::greater<>());
  std::string text = fmt::to_string(vm.exits());
  for (size_t i = 0; i < kinds.size(); i++) {
    text += fmt::format("{} {} {}", i == 0 ? ":" : ",", kinds[i].first, kinds[i].second);
  }
  return text;
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
  Table table({"NAME", "STATE", "SINCE", "VCPUS", "MEMORY", "FRAMES", "NODE"});
  std::string notes;
  for (const v1::Vm& vm : vms) {
    table.AddRow({Printable(vm.spec().name()), StateName(vm.state()), fmt::format("{} ago", Ago(vm.since(), now)),
                  fmt::to_string(vm.spec().vcpus()), HumanBytes(vm.spec().memory_mib() << 20),
                  HumanBytes(vm.frame_bytes()), Printable(vm.node())});
    if (!vm.reason().empty()) notes += fmt::format("{}: {}\n", Printable(vm.spec().name()), Printable(vm.reason()));
  }
  return table.ToString() + (notes.empty() ? "" : "\n" + notes);
}

std::string VmText(const v1::Vm& vm, std::chrono::system_clock::time_point now) {
  const v1::VmSpec& spec = vm.spec();
  std::string out = Line("Name", Printable(spec.name()));
  out +=
      Line("State", fmt::format("{} since {} ({})", StateName(vm.state()), UtcTime(vm.since()), Ago(vm.since(), now)));
  out += Line("Reason", Printable(vm.reason()));
  out += Line("Node", Printable(vm.node()));
  out += Line("vCPUs", fmt::format("{}, profile {}", spec.vcpus(), Printable(spec.cpu().profile())));
  out += Line("Memory",
              fmt::format("{}, {} in frames", HumanBytes(spec.memory_mib() << 20), HumanBytes(vm.frame_bytes())));
  out += Line("Kernel", Printable(spec.kernel()));
  out += Line("Initrd", Printable(spec.initrd()));
  out += Line("Command line", Printable(spec.cmdline()));
  for (const v1::DiskSpec& disk : spec.disks())
    out += Line("Disk", Printable(disk.path()) + (disk.readonly() ? " (read-only)" : ""));
  out += Line("Exits", ExitsText(vm));
  return out;
}

std::string ToTextProto(const google::protobuf::Message& message) {
  std::string text;
  google::protobuf::TextFormat::PrintToString(message, &text);
  return text;
}

}  // namespace hk::cli
