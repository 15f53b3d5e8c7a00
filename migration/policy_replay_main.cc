// hk_policy_replay: what a policy would have made of a trace of hkctl vm trace. Exit codes: 0; 1: the trace cannot be
// read, or is none; 2: usage.
#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>

#include "fmt/format.h"
#include "migration/policy_replay.h"

namespace {

constexpr int kExitRefused = 1, kExitUsage = 2;

int Run(const std::string& path, const std::string& policy, bool json) {
  const auto refuse = [&path](const std::string& why) {
    fmt::print(stderr, "hk_policy_replay: {}: {}\n", path, why);
    return kExitRefused;
  };
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), &std::fclose);
  if (file == nullptr) return refuse(std::strerror(errno));
  int error = 0;
  hk::TraceReader trace([&](char* to, size_t most) {
    const size_t bytes = std::fread(to, 1, most, file.get());
    if (bytes == 0 && std::ferror(file.get()) != 0) error = errno;
    return bytes;
  });
  const absl::StatusOr<hk::ReplayScore> score = hk::ReplayTrace(&trace, policy);
  if (error != 0) return refuse(std::strerror(error));
  if (!score.ok()) return refuse(std::string(score.status().message()));
  fmt::print("{}", json ? hk::ScoreJson(*score) : hk::ScoreText(*score));
  return std::fflush(stdout) == 0 ? 0 : refuse("the result cannot be written");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("What a placement policy would have made of a recorded trace");
  app.footer(
      "Examples:\n  hkctl vm trace web --for 60s -f web.trace && hk_policy_replay web.trace\n"
      "  hk_policy_replay web.trace --policy fetch -o json");
  std::string path, policy(hk::kDefaultPolicy), output = "table";
  app.add_option("FILE", path, "Trace (hkctl vm trace)")->required();
  app.add_option("--policy", policy, "Policy")
      ->check(CLI::IsMember({std::string(hk::kFetchPolicy), std::string(hk::kBalancePolicy)}))
      ->capture_default_str();
  app.add_option("-o,--output", output, "Form")->check(CLI::IsMember({"table", "json"}))->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? 0 : kExitUsage;
  }
  return Run(path, policy, output == "json");
}
