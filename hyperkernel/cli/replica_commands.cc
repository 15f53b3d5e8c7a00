#include "hyperkernel/cli/replica_commands.h"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <string>

#include "hyperkernel/cli/output.h"
#include "hyperkernel/cli/replica_output.h"

namespace hk::cli {
namespace {

void Print(const std::string& text) {
  std::fputs(text.c_str(), stdout);
}

int Show(const Options& options, const std::string& name) {
  v1::ShowReplicaRequest request;
  request.set_name(name);
  v1::ShowReplicaResponse response;
  const int code = Client(options).Call(fmt::format("replica show {}", name),
                                        [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
                                          return stub->ShowReplica(context, request, &response);
                                        });
  if (code != kExitOk) return code;
  Print(options.json() ? ToJson(response.replica())
                       : ReplicaText(response.replica(), std::chrono::system_clock::now()));
  return kExitOk;
}

int Drop(const Options& options, const std::string& name) {
  v1::DropReplicaRequest request;
  request.set_name(name);
  v1::DropReplicaResponse response;
  const int code = Client(options).Work(fmt::format("replica drop {}", name),
                                        [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
                                          return stub->DropReplica(context, request, &response);
                                        });
  if (code != kExitOk) return code;
  if (options.json()) {
    Print(ToJson(response.replica()));
  } else {
    Print(fmt::format("vm {}: {} entries dropped, {} of warm frames given back\n", Printable(name),
                      response.replica().entries(), HumanBytes(response.replica().warm_bytes())));
  }
  return kExitOk;
}

int Verify(const Options& options, const std::string& name, uint32_t mib_per_second) {
  v1::VerifyReplicaRequest request;
  request.set_name(name);
  request.set_mib_per_second(mib_per_second);
  const bool shown = !options.json() && ::isatty(STDERR_FILENO) != 0;
  v1::ReplicaVerification found;
  const int code = Client(options).Stream(fmt::format("replica verify {}", name),
                                          [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
                                            const auto reader = stub->VerifyReplica(context, request);
                                            while (reader->Read(&found)) {
                                              if (shown && !found.finished())
                                                fmt::print(stderr, "{}", VerificationText(found));
                                            }
                                            return reader->Finish();
                                          });
  if (code != kExitOk) return code;
  Print(options.json() ? ToJson(found) : fmt::format("vm {}: {}", Printable(name), VerificationText(found)));
  return found.wrong() == 0 ? kExitOk : kExitClusterSaidNo;
}

}  // namespace

void AddReplicaCommands(CLI::App* app, const Options* options, int* exit_code) {
  CLI::App* replica = app->add_subcommand("replica", "Blocks of disks that machines' memory holds")
                          ->require_subcommand(1)
                          ->fallthrough();
  replica->footer(
      "A running machine on one node has one unless its specification says no_replica: after a reset it reads what\n"
      "its memory held from there, not from its disks. So it does when it is started again after its daemon was "
      "killed.\n\nExamples:\n  hkctl replica show web");
  auto name = std::make_shared<std::string>();
  const auto add = [&](const char* command, const char* help, const char* footer) {
    CLI::App* added = replica->add_subcommand(command, help)->fallthrough();
    added->add_option("name", *name, "Machine")->required();
    added->footer(footer);
    return added;
  };
  add("show", "How much is known, and what it saves",
      "Examples:\n  hkctl replica show web\n  hkctl replica show web -o json")
      ->callback([=] { *exit_code = Show(*options, *name); });
  add("drop", "Forgets all; what is read from then on is known again", "Examples:\n  hkctl replica drop web")
      ->callback([=] { *exit_code = Drop(*options, *name); });
  auto rate = std::make_shared<uint32_t>(64);
  CLI::App* verify = add("verify", "Compares every entry with its disk while the machine runs",
                         "Exit code 1 if an entry is wrong; those are dropped.\n\n"
                         "Examples:\n  hkctl replica verify web\n  hkctl replica verify web --rate 500");
  verify->add_option("--rate", *rate, "Most that is read from the disks, MiB per second")
      ->check(CLI::Range(1u, 65536u))
      ->capture_default_str();
  verify->callback([=] { *exit_code = Verify(*options, *name, *rate); });
}

}  // namespace hk::cli
