#include "hyperkernel/cli/vm_commands.h"

#include <fmt/format.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <thread>

#include "hyperkernel/cli/console.h"
#include "hyperkernel/cli/memory_views.h"
#include "hyperkernel/cli/output.h"
#include "hyperkernel/cli/vm_exec.h"
#include "hyperkernel/cli/vm_log.h"
#include "hyperkernel/cli/vm_output.h"
#include "hyperkernel/cli/vm_trace.h"

namespace hk::cli {
namespace {

// More lines than the daemon keeps bytes.
constexpr uint64_t kMaxTailLines = 1'000'000'000;
// How often `vm wait` asks.
constexpr std::chrono::milliseconds kWaitInterval(100);
// As the daemon has it.
constexpr uint64_t kMostTraceMs = 24 * 3600 * 1000;

void Print(const std::string& text) {
  std::fputs(text.c_str(), stdout);
}

// Keeps the first error of protobuf's parser, with its place.
class FirstError final : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int line, google::protobuf::io::ColumnNumber column, const std::string& message) override {
    if (text_.empty()) text_ = fmt::format("{}:{}: {}", line + 1, column + 1, message);
  }
  void AddWarning(int, google::protobuf::io::ColumnNumber, const std::string&) override {}
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

// False after a line to standard error.
bool ReadSpec(const std::string& path, v1::VmSpec* spec) {
  std::ostringstream text;
  if (path == "-") {
    text << std::cin.rdbuf();
  } else {
    std::ifstream file(path, std::ios::binary);
    text << file.rdbuf();
    if (!file.good()) {
      fmt::print(stderr, "hkctl: vm create: cannot read {}\n", Printable(path));
      return false;
    }
  }
  FirstError error;
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  if (parser.ParseFromString(text.str(), spec)) return true;
  fmt::print(stderr, "hkctl: vm create: {}:{}\n", Printable(path), Printable(error.text()));
  return false;
}

void PrintVm(const Options& options, const v1::Vm& vm) {
  Print(options.json()   ? ToJson(vm)
        : options.text() ? ToTextProto(vm.spec())
                         : VmText(vm, std::chrono::system_clock::now()));
}

int Create(const Options& options, const std::string& path, bool dry_run) {
  v1::CreateVmRequest request;
  if (!ReadSpec(path, request.mutable_spec())) return kExitUsage;
  request.set_dry_run(dry_run);
  v1::CreateVmResponse response;
  const int code = Client(options).Work("vm create", [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
    return stub->CreateVm(context, request, &response);
  });
  if (code != kExitOk) return code;
  if (options.json() || options.text()) {
    PrintVm(options, response.vm());
  } else {
    Print(fmt::format("vm {} {}\n", Printable(response.vm().spec().name()),
                      dry_run ? "could be created (dry run)" : "created"));
    if (request.spec().has_automatic_placement()) Print(PlacementText(response.vm().spec()));
  }
  return kExitOk;
}

int List(const Options& options) {
  v1::ListVmsResponse response;
  const int code = Client(options).Call("vm list", [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
    return stub->ListVms(context, v1::ListVmsRequest(), &response);
  });
  if (code != kExitOk) return code;
  Print(options.json() ? ToJson(response)
                       : VmTable({response.vms().begin(), response.vms().end()}, std::chrono::system_clock::now()));
  return kExitOk;
}

int Get(const Options& options, const std::string& what, const std::string& name, v1::Vm* vm) {
  v1::GetVmRequest request;
  request.set_name(name);
  v1::GetVmResponse response;
  const int code = Client(options).Call(
      fmt::format("vm {} {}", what, name),
      [&](v1::Admin::Stub* stub, grpc::ClientContext* context) { return stub->GetVm(context, request, &response); });
  *vm = response.vm();
  return code;
}

int Show(const Options& options, const std::string& name) {
  v1::Vm vm;
  const int code = Get(options, "show", name, &vm);
  if (code == kExitOk) PrintVm(options, vm);
  return code;
}

int Wait(const Options& options, const std::string& name, const std::string& wanted) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(options.timeout_ms);
  while (true) {
    v1::Vm vm;
    const int code = Get(options, "wait", name, &vm);
    if (code != kExitOk) return code;
    if (StateName(vm.state()) == wanted) return kExitOk;
    if (std::chrono::steady_clock::now() + kWaitInterval > deadline) {
      fmt::print(stderr, "hkctl: vm wait {}: is {} after {}, not {}; see hkctl vm show {}\n", Printable(name),
                 StateName(vm.state()), HumanDuration(std::chrono::milliseconds(options.timeout_ms)), wanted,
                 Printable(name));
      return kExitClusterSaidNo;
    }
    std::this_thread::sleep_for(kWaitInterval);
  }
}

int Delete(const Options& options, const std::string& name) {
  v1::DeleteVmRequest request;
  request.set_name(name);
  v1::DeleteVmResponse response;
  const int code = Client(options).Call(
      fmt::format("vm delete {}", name),
      [&](v1::Admin::Stub* stub, grpc::ClientContext* context) { return stub->DeleteVm(context, request, &response); });
  if (code == kExitOk && !options.json()) Print(fmt::format("vm {} deleted\n", Printable(name)));
  return code;
}

int Control(const Options& options, const std::string& what, const std::string& name, v1::VmAction action,
            bool cold = false) {
  v1::ControlVmRequest request;
  request.set_cold(cold);
  request.set_name(name);
  request.set_action(action);
  v1::ControlVmResponse response;
  const int code = Client(options).Work(fmt::format("vm {} {}", what, name),
                                        [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
                                          return stub->ControlVm(context, request, &response);
                                        });
  if (code != kExitOk) return code;
  if (options.json()) {
    Print(ToJson(response.vm()));
  } else {
    Print(fmt::format("vm {} is {}\n", Printable(name), StateName(response.vm().state())));
  }
  return kExitOk;
}

int MoveVcpu(const Options& options, const std::string& name, uint32_t vcpu, const std::string& node) {
  v1::MoveVcpuRequest request;
  request.set_name(name);
  request.set_vcpu(vcpu);
  request.set_node(node);
  v1::MoveVcpuResponse response;
  const int code = Client(options).Work(
      fmt::format("vm move-vcpu {}", name),
      [&](v1::Admin::Stub* stub, grpc::ClientContext* context) { return stub->MoveVcpu(context, request, &response); });
  if (code != kExitOk) return code;
  if (options.json()) {
    Print(ToJson(response));
  } else if (response.from() == response.to()) {
    Print(fmt::format("vm {}: vCPU {} is on '{}' already\n", Printable(name), vcpu, Printable(response.to())));
  } else {
    Print(fmt::format("vm {}: vCPU {} moved from '{}' to '{}', stopped for {:.1f} ms\n", Printable(name), vcpu,
                      Printable(response.from()), Printable(response.to()),
                      static_cast<double>(response.stopped_ns()) / 1e6));
  }
  return kExitOk;
}

// A subcommand that takes a machine's name.
CLI::App* AddNamed(CLI::App* vm, const char* command, const char* help, const char* footer,
                   std::shared_ptr<std::string> name) {
  CLI::App* app = vm->add_subcommand(command, help)->fallthrough();
  app->add_option("name", *name, "Machine")->required();
  app->footer(footer);
  return app;
}

void AddChannel(CLI::App* app, std::shared_ptr<std::string> channel) {
  app->add_option("--channel", *channel, "Which console: serial (ttyS0) or virtio (hvc0)")
      ->check(CLI::IsMember({"serial", "virtio"}))
      ->capture_default_str();
}

v1::ConsoleChannel ChannelOf(const std::string& text) {
  return text == "virtio" ? v1::CONSOLE_CHANNEL_VIRTIO : v1::CONSOLE_CHANNEL_SERIAL;
}

// console, log, exec: what is inside a machine.
void AddChannelCommands(CLI::App* vm, const Options* options, std::shared_ptr<std::string> name, int* exit_code) {
  auto channel = std::make_shared<std::string>("serial");
  CLI::App* console = AddNamed(vm, "console", "A terminal on the machine's console; Ctrl-] detaches",
                               "Examples:\n  hkctl vm console web\n  hkctl vm console web --channel virtio\n"
                               "  hkctl vm console web < /dev/null > boot.log",
                               name);
  AddChannel(console, channel);
  console->callback([=] { *exit_code = RunConsole(*options, *name, ChannelOf(*channel)); });

  auto follow = std::make_shared<bool>(false);
  auto tail = std::make_shared<std::optional<uint64_t>>();
  CLI::App* log = AddNamed(vm, "log", "What the machine wrote to its console in its present or last run",
                           "The daemon keeps the last 256 KiB of each console, until the machine is started again.\n\n"
                           "Examples:\n  hkctl vm log web\n  hkctl vm log web -f --tail 20\n"
                           "  hkctl vm log web --channel virtio",
                           name);
  log->add_flag("-f,--follow", *follow, "Go on with what comes, until the run ends");
  log->add_option("--tail", *tail, "Only the last N lines")
      ->check(CLI::Range(uint64_t{0}, kMaxTailLines))
      ->type_name("N");
  AddChannel(log, channel);
  log->callback([=] { *exit_code = RunLog(*options, *name, {ChannelOf(*channel), *follow, *tail}); });

  CLI::App* exec = AddNamed(
      vm, kExecCommand, "Runs a command inside the machine, by qemu-guest-agent",
      "NAME -- COMMAND [ARGUMENT...]: no shell is involved. Standard input, unless it is a terminal, is read to its "
      "end\n"
      "first (at most 512 KiB); the output comes when the command has ended. --timeout is how long that may take; the\n"
      "command goes on in the guest when the time is up, or hkctl is interrupted.\n\n"
      "Exit codes: the command's own; 125 hkctl's (one line says why), 126 the guest could not start the command,\n"
      "128+N signal N ended it\n\n"
      "Examples:\n  hkctl vm exec web -- uptime\n  hkctl vm exec web --timeout 5m -- apt-get -y upgrade\n"
      "  hkctl vm exec web -- sh -c 'cat > /etc/motd' < motd",
      name);
  exec->callback([=] {
    if (options->guest_command.empty()) throw CLI::RequiredError("a command after --");
    *exit_code = RunExec(*options, *name, options->guest_command);
  });
}

// trace: what a machine's vCPUs wait for.
void AddTrace(CLI::App* vm, const Options* options, std::shared_ptr<std::string> name, int* exit_code) {
  auto file = std::make_shared<std::string>();
  auto for_ms = std::make_shared<uint64_t>(0);
  CLI::App* trace = AddNamed(
      vm, "trace", "Records what a machine's vCPUs wait for on other nodes, and moves of them, into a file",
      "Until Ctrl-C, or the machine's run ends. hk_policy_replay says what a policy would have made of it; most\n"
      "if the machine's own is \"fetch\".\n\n"
      "Examples:\n  hkctl vm trace web --for 60s -f web.trace\n"
      "  hkctl vm trace web --for 60s -f web.trace && hk_policy_replay web.trace --policy balance",
      name);
  trace->add_option("-f,--file", *file, "File, which is replaced")->required();
  const std::map<std::string, uint64_t> units{{"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000}};
  trace->add_option("--for", *for_ms, "How long, with a unit: 500ms, 10s, 5m")
      ->transform(CLI::AsNumberWithUnit(units, CLI::AsNumberWithUnit::UNIT_REQUIRED, "DURATION"))
      ->check(CLI::Range(uint64_t{1}, kMostTraceMs));
  trace->callback([=] { *exit_code = RunTrace(*options, *name, *file, *for_ms); });
}

}  // namespace

void AddVmCommands(CLI::App* app, const Options* options, int* exit_code) {
  CLI::App* vm = app->add_subcommand("vm", "Virtual machines")->require_subcommand(1)->fallthrough();
  vm->footer("Examples:\n  hkctl vm create -f vm.textproto\n  hkctl vm start web\n  hkctl vm console web");
  auto name = std::make_shared<std::string>();

  auto path = std::make_shared<std::string>();
  auto dry_run = std::make_shared<bool>(false);
  CLI::App* create = vm->add_subcommand("create", "Defines a machine from a specification")->fallthrough();
  create->add_option("-f,--file", *path, "Specification (protobuf text; - for standard input)")->required();
  create->add_flag("--dry-run", *dry_run, "Check only");
  create->footer(
      "Examples:\n  hkctl vm create -f vm.textproto --dry-run\n  hkctl vm show web -o textproto | sed s/web/web2/ | "
      "hkctl vm create -f -");
  create->callback([=] { *exit_code = Create(*options, *path, *dry_run); });

  CLI::App* list = vm->add_subcommand("list", "All machines with their state")->fallthrough();
  list->footer("Examples:\n  hkctl vm list\n  hkctl vm list -o json");
  list->callback([=] { *exit_code = List(*options); });

  AddNamed(vm, "show", "Everything known of a machine",
           "Examples:\n  hkctl vm show web\n  hkctl vm show web -o textproto", name)
      ->callback([=] { *exit_code = Show(*options, *name); });
  AddNamed(vm, "delete", "Removes a machine that does not run", "Examples:\n  hkctl vm delete web", name)
      ->callback([=] { *exit_code = Delete(*options, *name); });
  AddNamed(vm, "start", "Builds and runs a machine", "Examples:\n  hkctl vm start web", name)->callback([=] {
    *exit_code = Control(*options, "start", *name, v1::VM_ACTION_START);
  });
  auto force = std::make_shared<bool>(false);
  CLI::App* stop = AddNamed(
      vm, "stop", "Presses the power button; with --force takes the power away",
      "Examples:\n  hkctl vm stop web && hkctl vm wait web --for stopped --timeout 2m\n  hkctl vm stop web --force",
      name);
  stop->add_flag("--force", *force, "Do not ask the guest");
  stop->callback(
      [=] { *exit_code = Control(*options, "stop", *name, *force ? v1::VM_ACTION_FORCE_STOP : v1::VM_ACTION_STOP); });
  auto cold = std::make_shared<bool>(false);
  CLI::App* reset =
      AddNamed(vm, "reset", "Presses the reset button",
               "What the machine's memory holds of its disks is read from there by the next run, not from the "
               "disks\n(hkctl replica).\n\nExamples:\n  hkctl vm reset web\n  hkctl vm reset web --cold",
               name);
  reset->add_flag("--cold", *cold, "Have all read from the disks again");
  reset->callback([=] { *exit_code = Control(*options, "reset", *name, v1::VM_ACTION_RESET, *cold); });
  AddNamed(vm, "pause", "Holds the machine's vCPUs", "Examples:\n  hkctl vm pause web", name)->callback([=] {
    *exit_code = Control(*options, "pause", *name, v1::VM_ACTION_PAUSE);
  });
  AddNamed(vm, "unpause", "Lets a paused machine run again", "Examples:\n  hkctl vm unpause web", name)->callback([=] {
    *exit_code = Control(*options, "unpause", *name, v1::VM_ACTION_UNPAUSE);
  });
  AddNamed(vm, "renew", "Moves the machine into a fresh KVM VM in place; the guest notices nothing",
           "Examples:\n  hkctl vm renew web", name)
      ->callback([=] { *exit_code = Control(*options, "renew", *name, v1::VM_ACTION_RENEW); });

  auto vcpu = std::make_shared<uint32_t>(0);
  auto node = std::make_shared<std::string>();
  CLI::App* move = AddNamed(
      vm, "move-vcpu", "Moves a vCPU of a machine over several nodes to another of them while it runs",
      "The node is one that has vCPUs in the machine's placement, or takes_vcpus there. The machine goes on meanwhile; "
      "a paused one stays\n"
      "paused. A reset, or a new start, begins with the placement again.\n\n"
      "Examples:\n  hkctl vm move-vcpu web --vcpu 1 --to node2\n  hkctl vm move-vcpu web --vcpu 1 --to node2 -o json",
      name);
  move->add_option("--vcpu", *vcpu, "Which, from 0 on")->required();
  move->add_option("--to", *node, "Node that it is to run on")->required();
  move->callback([=] { *exit_code = MoveVcpu(*options, *name, *vcpu, *node); });

  auto wanted = std::make_shared<std::string>("running");
  CLI::App* wait = AddNamed(vm, "wait", "Waits until a machine is in a state (--timeout is how long)",
                            "Examples:\n  hkctl vm wait web --for stopped --timeout 2m", name);
  wait->add_option("--for", *wanted, "State")
      ->check(CLI::IsMember({"running", "stopped", "paused", "crashed"}))
      ->capture_default_str();
  wait->callback([=] { *exit_code = Wait(*options, *name, *wanted); });

  AddChannelCommands(vm, options, name, exit_code);
  AddTrace(vm, options, name, exit_code);
  AddMemoryViews(vm,
                 {.kind = "vm",
                  .example = "web",
                  .map = [](auto* stub, auto* context, const auto& request,
                            auto* response) { return stub->VmMap(context, request, response); },
                  .top = [](auto* stub, auto* context, const auto& request,
                            auto* response) { return stub->VmTop(context, request, response); }},
                 options, exit_code);
}

}  // namespace hk::cli
