#include "hyperkernel/cli/node_commands.h"

#include <fmt/format.h>
#include <google/protobuf/struct.pb.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "hyperkernel/cli/output.h"

namespace hk::cli {
namespace {

// A new daemon serves within a second or two; what its own start waits for, it says in its log.
constexpr std::chrono::seconds kRestartLimit(30);
constexpr std::chrono::seconds kRestartLook(2);
constexpr std::chrono::milliseconds kRestartPause(50);

void Print(const std::string& text) {
  std::fputs(text.c_str(), stdout);
}

std::string With(const char* command, const std::string& name) {
  return name.empty() ? command : fmt::format("{} {}", command, name);
}

int ListNodes(const Options& options) {
  v1::ListNodesResponse response;
  const int code = Client(options).Call("node list", [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
    return stub->ListNodes(context, v1::ListNodesRequest(), &response);
  });
  if (code != kExitOk) return code;
  if (options.json()) {
    Print(ToJson(response));
  } else {
    Print(MemberTable({response.members().begin(), response.members().end()}, std::chrono::system_clock::now()));
  }
  return kExitOk;
}

int ShowNode(const Options& options, const std::string& name) {
  v1::GetNodeResponse response;
  v1::GetNodeRequest request;
  request.set_name(name);
  const int code = Client(options).Call(
      With("node show", name),
      [&](v1::Admin::Stub* stub, grpc::ClientContext* context) { return stub->GetNode(context, request, &response); });
  if (code != kExitOk) return code;
  Print(options.json() ? ToJson(response.member()) : MemberText(response.member(), std::chrono::system_clock::now()));
  return kExitOk;
}

int ProbeNode(const Options& options, const std::string& name) {
  v1::ProbeNodeResponse response;
  v1::ProbeNodeRequest request;
  request.set_name(name);
  const int code =
      Client(options).Call(With("node probe", name), [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
        return stub->ProbeNode(context, request, &response);
      });
  if (code != kExitOk) return code;
  Print(options.json() ? ToJson(response.report()) : ProbeText(response.report()));
  return kExitOk;
}

std::string Joined(const google::protobuf::RepeatedPtrField<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + Printable(name);
  return text;
}

// Until another run of the daemon answers than the one that began at `before`; then its machines.
grpc::Status AwaitRestart(v1::Admin::Stub* stub, const google::protobuf::Timestamp& before,
                          v1::ListVmsResponse* machines) {
  const auto limit = std::chrono::steady_clock::now() + kRestartLimit;
  while (std::chrono::steady_clock::now() < limit) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kRestartLook);
    v1::GetNodeResponse node;
    const grpc::Status status = stub->GetNode(&context, v1::GetNodeRequest(), &node);
    const auto& started = node.member().info().started();
    if (status.ok() && (started.seconds() != before.seconds() || started.nanos() != before.nanos())) {
      grpc::ClientContext list;
      list.set_deadline(std::chrono::system_clock::now() + kRestartLook);
      return stub->ListVms(&list, v1::ListVmsRequest(), machines);
    }
    std::this_thread::sleep_for(kRestartPause);
  }
  return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the new daemon does not answer; see its log");
}

int RestartNode(const Options& options, bool force) {
  v1::RestartNodeRequest request;
  request.set_force(force);
  v1::RestartNodeResponse response;
  v1::ListVmsResponse machines;
  int code = Client(options).Work("node restart", [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
    return stub->RestartNode(context, request, &response);
  });
  if (code != kExitOk) return code;
  code = Client(options).Call("node restart", [&](v1::Admin::Stub* stub, grpc::ClientContext*) {
    return AwaitRestart(stub, response.started(), &machines);
  });
  if (code != kExitOk) return code;
  if (options.json()) {
    Print(ToJson(machines));
    return kExitOk;
  }
  for (const v1::Vm& vm : machines.vms()) {
    if (std::find(response.kept().begin(), response.kept().end(), vm.spec().name()) == response.kept().end()) continue;
    Print(fmt::format("vm {}: {}\n", Printable(vm.spec().name()), Printable(vm.reason())));
  }
  if (response.ended_size() > 0) Print(fmt::format("ended: {}\n", Joined(response.ended())));
  Print("the daemon was restarted\n");
  return kExitOk;
}

// The client's version always; the daemon's if it answers.
int Version(const Options& options, bool client_only) {
  v1::GetVersionResponse response;
  int code = kExitOk;
  if (!client_only) {
    code = Client(options).Call("version", [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
      return stub->GetVersion(context, v1::GetVersionRequest(), &response);
    });
  }
  const std::string daemon = code == kExitOk && !client_only ? Printable(response.version()) : "";
  if (options.json()) {
    google::protobuf::Struct versions;
    (*versions.mutable_fields())["client"].set_string_value(HKCTL_VERSION);
    (*versions.mutable_fields())["daemon"].set_string_value(daemon);
    (*versions.mutable_fields())["node"].set_string_value(response.node());
    Print(ToJson(versions));
    return code;
  }
  Print(fmt::format("hkctl {}\n", HKCTL_VERSION));
  if (!daemon.empty()) Print(fmt::format("hyperkerneld {} (node {})\n", daemon, Printable(response.node())));
  return code;
}

}  // namespace

void AddNodeCommands(CLI::App* app, const Options* options, int* exit_code) {
  CLI::App* node = app->add_subcommand("node", "Nodes of the cluster")->require_subcommand(1)->fallthrough();
  node->footer("Examples:\n  hkctl node list\n  hkctl node show b\n  hkctl node probe b\n  hkctl node restart");

  CLI::App* list = node->add_subcommand("list", "All nodes with their state")->fallthrough();
  list->footer(
      "Examples:\n  hkctl node list\n  hkctl node list -o json | jq '.members[] | select(.state != "
      "\"MEMBER_STATE_UP\")'");
  list->callback([=] { *exit_code = ListNodes(*options); });

  auto show_name = std::make_shared<std::string>();
  CLI::App* show = node->add_subcommand("show", "Everything known of one node")->fallthrough();
  show->add_option("name", *show_name, "Node; default: the one that is asked");
  show->footer("Examples:\n  hkctl node show\n  hkctl node show b -o json");
  show->callback([=] { *exit_code = ShowNode(*options, *show_name); });

  auto probe_name = std::make_shared<std::string>();
  CLI::App* probe =
      node->add_subcommand("probe", "What a node's host can do: KVM, userfaultfd, verbs, ... (takes a few seconds)")
          ->fallthrough();
  probe->add_option("name", *probe_name, "Node; default: the one that is asked");
  probe->footer("Examples:\n  hkctl node probe\n  hkctl node probe b --timeout 30s");
  probe->callback([=] { *exit_code = ProbeNode(*options, *probe_name); });

  auto force = std::make_shared<bool>(false);
  CLI::App* restart =
      node->add_subcommand("restart", "Replace the daemon that is asked by a new one, which goes on with its machines")
          ->fallthrough();
  restart->add_flag("--force", *force, "Also if machines or spaces over several nodes end with it");
  restart->footer("Examples:\n  hkctl node restart\n  hkctl --endpoint 10.0.0.2:7711 node restart --force");
  restart->callback([=] { *exit_code = RestartNode(*options, *force); });

  auto client_only = std::make_shared<bool>(false);
  CLI::App* version =
      app->add_subcommand("version", "Versions of hkctl and of the daemon that is asked")->fallthrough();
  version->add_flag("--client", *client_only, "Only hkctl's; asks no daemon");
  version->footer("Examples:\n  hkctl version\n  hkctl version --client");
  version->callback([=] { *exit_code = Version(*options, *client_only); });
}

}  // namespace hk::cli
