#include "hyperkernel/cli/node_commands.h"

#include <fmt/format.h>
#include <google/protobuf/struct.pb.h>

#include <memory>
#include <string>

#include "hyperkernel/cli/output.h"

namespace hk::cli {
namespace {

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
  node->footer("Examples:\n  hkctl node list\n  hkctl node show b\n  hkctl node probe b");

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

  auto client_only = std::make_shared<bool>(false);
  CLI::App* version =
      app->add_subcommand("version", "Versions of hkctl and of the daemon that is asked")->fallthrough();
  version->add_flag("--client", *client_only, "Only hkctl's; asks no daemon");
  version->footer("Examples:\n  hkctl version\n  hkctl version --client");
  version->callback([=] { *exit_code = Version(*options, *client_only); });
}

}  // namespace hk::cli
