// hyperkerneld: the daemon's command line, signals and exit codes.
//
// Exit codes: 0 stopped by a signal, or a probe or check that went well; 1 could not start or serve; 2 wrong usage or
// configuration.

#include <malloc.h>
#include <signal.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>

#include "CLI/CLI.hpp"
#include "fmt/format.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/base/version.h"
#include "hyperkernel/cli/output.h"
#include "hyperkernel/node/config.h"
#include "hyperkernel/node/daemon.h"
#include "hyperkernel/node/descriptors.h"
#include "hyperkernel/node/node_info.h"
#include "hyperkernel/node/probe_report.h"
#include "hyperkernel/node/restart.h"

namespace {

constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;

int Complain(const absl::Status& status, int code) {
  // One line, whatever a configuration or lock file holds.
  fmt::print(stderr, "hyperkerneld: {}\n", hk::cli::Printable(hk::MessageOf(status)));
  return code;
}

// What was printed has arrived, or that is the error.
int Flushed(int code) {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return code;
  fmt::print(stderr, "hyperkerneld: cannot write to standard output\n");
  return code == 0 ? kExitFailed : code;
}

int Probe(const std::string& format) {
  const hk::v1::ProbeReport report = hk::ProbeThisHost(hk::ReadHostFacts().host_name);
  const std::string text = format == "json" ? hk::cli::ToJson(report) : hk::cli::ProbeText(report);
  std::fputs(text.c_str(), stdout);
  return Flushed(0);
}

// glibc keeps what each of many threads once used, per arena: after a burst of requests a daemon would hold 130 MiB.
// One arena gives it back, and costs little where no hot path allocates.
constexpr int kMaxArenas = 1;

// Serves until SIGTERM or SIGINT. SIGUSR2, or `hkctl node restart`: the next daemon takes over the guests;
// `keep_guests`: so it is with the others too, whenever that one starts.
int Serve(const hk::NodeSettings& settings, const std::string& config_path, const hk::Restart& restart,
          bool keep_guests) {
  hk::log::Init(settings.name, settings.log_level);
  // Blocked before the first thread starts, so that every thread inherits it and only sigwait sees them.
  sigset_t stops;
  sigemptyset(&stops);
  sigaddset(&stops, SIGTERM);
  sigaddset(&stops, SIGINT);
  sigaddset(&stops, SIGUSR2);
  pthread_sigmask(SIG_BLOCK, &stops, nullptr);
  signal(SIGPIPE, SIG_IGN);
  // gRPC stops to listen for good when accept() finds no descriptor left, so 1,000 silent connections under the usual
  // soft limit would cut this node off until it is restarted; and spaces take two for each GiB.
  hk::RaiseDescriptorLimit();
  mallopt(M_ARENA_MAX, kMaxArenas);
  const auto ask = [&]() -> absl::Status {
    HK_RETURN_IF_ERROR(restart.Check(config_path));
    return kill(getpid(), SIGUSR2) == 0 ? absl::OkStatus() : hk::ErrnoStatus(errno, "kill");
  };
  auto daemon = hk::Daemon::Start(settings, hk::RealClock(), ask);
  if (!daemon.ok()) return Complain(daemon.status(), kExitFailed);
  sd_notify(0, "READY=1");
  int signal_number = 0;
  while (sigwait(&stops, &signal_number) == 0 && signal_number == SIGUSR2) {
    if (const absl::Status checked = restart.Check(config_path); !checked.ok()) {
      hk::log::Error("daemon", "is not restarted", {{"error", hk::MessageOf(checked)}});
      continue;
    }
    hk::log::Info("daemon", "restarting");
    (*daemon)->KeepGuests();
    // Whoever starts this program again finds the guests.
    return Complain(restart.Become(), kExitFailed);
  }
  sd_notify(0, "STOPPING=1");
  hk::log::Info("daemon", "stopping", {{"signal", signal_number == SIGTERM ? "SIGTERM" : "SIGINT"}});
  if (keep_guests) (*daemon)->KeepGuests();
  daemon->reset();
  hk::log::Info("daemon", "stopped");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"hyperkerneld: the hyper-kernel's daemon, one per node", "hyperkerneld"};
  app.set_version_flag("--version", std::string("hyperkerneld ") + hk::kVersion);
  std::string config_path = hk::kDefaultConfigPath;
  app.add_option("--config", config_path, "Node configuration (protobuf text)")->capture_default_str();
  bool probe = false, check = false;
  CLI::Option* probe_flag =
      app.add_flag("--probe", probe, "Print what this host can do, and exit; needs no configuration and no daemon");
  app.add_flag("--check-config", check, "Check the configuration, touch nothing, and exit")->excludes(probe_flag);
  bool keep_guests = false;
  app.add_flag(
      "--keep-guests", keep_guests,
      "When stopped by a signal, leave guests of this node to the next daemon, paused, instead of ending them");
  std::string format = "table";
  app.add_option("-o,--output", format, "Form of --probe's output")
      ->check(CLI::IsMember({"table", "json"}))
      ->capture_default_str();
  app.footer(
      "Examples:\n"
      "  hyperkerneld --config /etc/hyperkernel/node.textproto\n"
      "  hyperkerneld --probe -o json\n"
      "  hyperkerneld --check-config --config new.textproto");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    fmt::print(stderr, "hyperkerneld: {}; see hyperkerneld --help\n", hk::cli::Printable(error.what()));
    return kExitUsage;
  }
  if (probe) return Probe(format);
  const absl::StatusOr<hk::NodeSettings> settings = hk::LoadConfig(config_path, hk::ReadHostFacts());
  if (!settings.ok()) return Complain(settings.status(), kExitUsage);
  if (check) {
    for (const std::string& warning : settings->warnings) fmt::print("warning: {}\n", warning);
    fmt::print("{}: ok (node {}, cluster {}, {} peers)\n", hk::cli::Printable(config_path), settings->name,
               settings->cluster, settings->peers.size());
    return Flushed(0);
  }
  return Serve(*settings, config_path, hk::Restart(argv), keep_guests);
}
