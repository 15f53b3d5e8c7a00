// hkctl: the operator's command line. Exit codes: 0 done, 1 the cluster said no, 2 usage, 3 cannot reach.

#include <fmt/format.h>
#include <grpc/support/log.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "hyperkernel/cli/client.h"
#include "hyperkernel/cli/completion.h"
#include "hyperkernel/cli/node_commands.h"
#include "hyperkernel/cli/output.h"
#include "hyperkernel/cli/replica_commands.h"
#include "hyperkernel/cli/space_commands.h"
#include "hyperkernel/cli/vm_commands.h"
#include "hyperkernel/cli/vm_exec.h"

namespace {

constexpr uint64_t kMaxTimeoutMs = 24ull * 3600 * 1000;

// What is wrong with an endpoint; empty if nothing is (CLI11's form of a check).
std::string CheckEndpoint(const std::string& text) {
  if (text.rfind("unix:/", 0) == 0 && text.find_first_of("%?#") == std::string::npos) return "";
  const size_t colon = text.rfind(':');
  uint16_t port = 0;
  if (colon != std::string::npos && colon > 0 && text.rfind("unix:", 0) != 0 && text.find('/') == std::string::npos) {
    const char* const end = text.data() + text.size();
    const auto [parsed, error] = std::from_chars(text.data() + colon + 1, end, port);
    if (error == std::errc() && parsed == end && port != 0) return "";
  }
  return fmt::format("'{}' is not unix:/PATH or HOST:PORT", hk::cli::Printable(text));
}

void AddGlobalOptions(CLI::App* app, hk::cli::Options* options) {
  app->add_option("--endpoint", options->endpoint, "Daemon to ask: unix:/PATH or HOST:PORT")
      ->envname("HKCTL_ENDPOINT")
      ->check(CheckEndpoint)
      ->capture_default_str();
  app->add_option("-o,--output", options->output, "Form of the output")
      ->check(CLI::IsMember({"table", "json", "textproto"}))
      ->capture_default_str();
  const std::map<std::string, uint64_t> units{{"ms", 1}, {"s", 1000}, {"m", 60000}};
  app->add_option(
         "--timeout", options->timeout_ms,
         "Longest wait for an answer, with a unit: 500ms, 10s, 2m (default 10s; 60s for vm create, start, reset and "
         "space create, delete)")
      ->transform(CLI::AsNumberWithUnit(units, CLI::AsNumberWithUnit::UNIT_REQUIRED, "DURATION"))
      ->check(CLI::Range(uint64_t{1}, kMaxTimeoutMs))
      ->each([options](const std::string&) { options->timeout_given = true; });
  app->add_option("--tls-ca", options->tls_ca, "Cluster's certificate authority, PEM")->envname("HKCTL_TLS_CA");
  app->add_option("--tls-cert", options->tls_certificate, "Own certificate, PEM")->envname("HKCTL_TLS_CERT");
  app->add_option("--tls-key", options->tls_key, "Own private key, PEM")->envname("HKCTL_TLS_KEY");
}

// `vm exec` keeps the small exit codes for the guest's command.
bool ExecIsMeant(const CLI::App& app) {
  const CLI::App* const vm = app.get_subcommand("vm");
  return vm->parsed() && vm->get_subcommand(hk::cli::kExecCommand)->parsed();
}

// What is wrong with the command line, one line. CLI11 reports a missing command before it reports the word it did not
// know.
std::string UsageError(const CLI::App& app, const CLI::ParseError& error) {
  const std::vector<std::string> unknown = app.remaining(true);
  if (ExecIsMeant(app) && !unknown.empty() && unknown.front().front() != '-')
    return "the command comes after --: hkctl vm exec NAME -- COMMAND";
  if (dynamic_cast<const CLI::RequiredError*>(&error) == nullptr || unknown.empty())
    return hk::cli::Printable(error.what());
  return fmt::format("unknown command '{}'", hk::cli::Printable(unknown.front()));
}

// Takes the words after the first -- off an `exec` command line: CLI11 would read lists into them ("[a,b]").
std::vector<std::string> TakeGuestCommand(std::vector<std::string>* words) {
  const auto separator = std::find(words->begin(), words->end(), "--");
  if (std::find(words->begin(), separator, hk::cli::kExecCommand) == separator || separator == words->end()) return {};
  std::vector<std::string> command(separator + 1, words->end());
  words->erase(separator, words->end());
  return command;
}

}  // namespace

int main(int argc, char** argv) {
  hk::cli::Options options;
  int exit_code = hk::cli::kExitOk;
  // gRPC's own lines are for its developers, and a failed call's reason is in its status. GRPC_VERBOSITY brings them
  // back.
  if (std::getenv("GRPC_VERBOSITY") == nullptr) gpr_set_log_function([](gpr_log_func_args*) {});
  CLI::App app{"hkctl: administers a hyper-kernel cluster", "hkctl"};
  app.set_version_flag("--version", std::string("hkctl ") + HKCTL_VERSION);
  app.require_subcommand(1);
  AddGlobalOptions(&app, &options);
  hk::cli::AddNodeCommands(&app, &options, &exit_code);
  hk::cli::AddVmCommands(&app, &options, &exit_code);
  hk::cli::AddSpaceCommands(&app, &options, &exit_code);
  hk::cli::AddReplicaCommands(&app, &options, &exit_code);
  CLI::App* completion = app.add_subcommand("completion", "Prints a shell's completion script")->require_subcommand(1);
  CLI::App* bash = completion->add_subcommand("bash", "For bash: source <(hkctl completion bash)");
  completion->footer("Examples:\n  source <(hkctl completion bash)");
  bash->footer("Examples:\n  source <(hkctl completion bash)\n  hkctl completion bash > /etc/bash_completion.d/hkctl");
  bash->callback([&app] { std::fputs(hk::cli::BashCompletion(app).c_str(), stdout); });
  app.footer(
      "Examples:\n"
      "  hkctl node list\n"
      "  hkctl --endpoint 10.0.0.2:7469 --tls-ca ca.crt --tls-cert admin.crt --tls-key admin.key node show\n"
      "  source <(hkctl completion bash)\n\n"
      "Exit codes: 0 done, 1 the cluster said no, 2 usage, 3 cannot reach the daemon");
  try {
    std::vector<std::string> words(argv + 1, argv + argc);
    options.guest_command = TakeGuestCommand(&words);
    std::reverse(words.begin(), words.end());  // as CLI11 takes them
    app.parse(words);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    fmt::print(stderr, "hkctl: {}; see hkctl --help\n", UsageError(app, error));
    return ExecIsMeant(app) ? hk::cli::kExitExecFailed : hk::cli::kExitUsage;
  }
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    fmt::print(stderr, "hkctl: cannot write to standard output\n");
    if (exit_code == hk::cli::kExitOk)
      exit_code = ExecIsMeant(app) ? hk::cli::kExitExecFailed : hk::cli::kExitClusterSaidNo;
  }
  return exit_code;
}
