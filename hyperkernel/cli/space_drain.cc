#include "hyperkernel/cli/space_drain.h"

#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>

#include "hyperkernel/cli/output.h"
#include "hyperkernel/cli/space_output.h"

namespace hk::cli {
namespace {

constexpr std::chrono::milliseconds kLookInterval(500);
constexpr std::chrono::seconds kTellInterval(2);  // of progress
// Without progress for so long: people are told what may hinder it.
constexpr std::chrono::seconds kStall(20);

struct Drain {
  std::string space, node;
  bool cancel = false;
  bool no_wait = false;
};

std::string What(const Drain& drain) {
  return fmt::format("space drain {}", drain.space);
}

int Get(const Options& options, const Drain& drain, v1::Space* space) {
  v1::GetSpaceRequest request;
  request.set_name(drain.space);
  v1::GetSpaceResponse response;
  const int code = Client(options).Call(What(drain), [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
    return stub->GetSpace(context, request, &response);
  });
  *space = response.space();
  return code;
}

// The end of a drain, as the space shows it.
int End(const Options& options, const Drain& drain, const v1::Space& space) {
  const v1::SpaceLoss* loss = nullptr;
  for (const v1::SpaceLoss& one : space.lost()) {
    if (one.node() == drain.node) loss = &one;
  }
  const std::string node = Printable(drain.node), name = Printable(drain.space);
  std::string wrong;
  if (space.state() != v1::SPACE_STATE_RUNNING) {
    wrong = fmt::format("the space is {}: {}", StateName(space.state()), PlainReason(space.reason()));
  } else if (loss != nullptr && !loss->left()) {
    wrong = fmt::format("node {} was lost before it was empty; see hkctl space show {}", node, name);
  } else if (drain.cancel != (loss == nullptr)) {
    wrong = loss == nullptr ? fmt::format("node {} is to stay after all, by another command", node)
                            : fmt::format("node {} had left already", node);
  }
  if (!wrong.empty()) {
    fmt::print(stderr, "hkctl: {}: {}\n", Printable(What(drain)), wrong);
    return kExitClusterSaidNo;
  }
  if (options.json()) {
    fmt::print("{}", ToJson(space));
  } else if (drain.cancel) {
    fmt::print("node {} stays in space {}\n", node, name);
  } else {
    fmt::print("node {} has left space {} (epoch {})\n", node, name, loss->epoch());
  }
  return kExitOk;
}

// To standard error, so that the output of -o json is only that.
void Tell(const Drain& drain, const v1::SpaceDrain& state) {
  const auto now = std::chrono::system_clock::now();
  const auto progress = std::chrono::system_clock::from_time_t(state.progress().seconds());
  std::string line = fmt::format("node {}: {} to give", Printable(drain.node), HumanBytes(state.bytes_to_give()));
  if (state.bytes_pinned() > 0) line += fmt::format(", {} of it pinned by devices", HumanBytes(state.bytes_pinned()));
  if (!state.reason().empty()) line += fmt::format(" ({})", PlainReason(state.reason()));
  if (now - progress > kStall) {
    line += fmt::format("; no progress for {}{} (hkctl space show; --cancel ends it)", Ago(state.progress(), now),
                        state.reason().empty() ? ": the others have no room, or a device has it" : "");
  }
  fmt::print(stderr, "{}\n", line);
}

int Follow(const Options& options, const Drain& drain) {
  const auto start = std::chrono::steady_clock::now();
  const auto limit = std::chrono::milliseconds(options.timeout_ms);
  auto told = start - kTellInterval;
  while (true) {
    v1::Space space;
    const int code = Get(options, drain, &space);
    if (code != kExitOk) {
      if (!drain.cancel) fmt::print(stderr, "the drain goes on; see hkctl space show {}\n", Printable(drain.space));
      return code;
    }
    if (!space.has_drain() || space.drain().node() != drain.node) return End(options, drain, space);
    const auto now = std::chrono::steady_clock::now();
    if (now - told >= kTellInterval && !drain.cancel) {
      Tell(drain, space.drain());
      told = now;
    }
    if (options.timeout_given && now + kLookInterval > start + limit) {
      fmt::print(stderr, "hkctl: {}: not done after {}; it goes on: see hkctl space show {}\n", Printable(What(drain)),
                 HumanDuration(limit), Printable(drain.space));
      return kExitClusterSaidNo;
    }
    std::this_thread::sleep_for(kLookInterval);
  }
}

int Run(const Options& options, const Drain& drain) {
  v1::DrainSpaceRequest request;
  request.set_name(drain.space);
  request.set_node(drain.node);
  request.set_cancel(drain.cancel);
  v1::DrainSpaceResponse response;
  const int code = Client(options).Call(What(drain), [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
    return stub->DrainSpace(context, request, &response);
  });
  if (code != kExitOk) return code;
  if (!drain.no_wait) return Follow(options, drain);
  if (options.json()) {
    fmt::print("{}", ToJson(response));
  } else {
    fmt::print("node {} is {}; see hkctl space show {}\n", Printable(drain.node),
               drain.cancel ? "to stay after all" : "being drained", Printable(drain.space));
  }
  return kExitOk;
}

}  // namespace

void AddDrainCommand(CLI::App* space, const Options* options, int* exit_code) {
  auto drain = std::make_shared<Drain>();
  CLI::App* app = space->add_subcommand("drain", "Empties a node of a space, which goes on without it")->fallthrough();
  app->add_option("name", drain->space, "Space")->required();
  app->add_option("--node", drain->node, "The node; the space's coordinator is asked (--endpoint), and cannot be it")
      ->required();
  app->add_flag("--cancel", drain->cancel, "The node stays after all; too late when all is given away");
  app->add_flag("--no-wait", drain->no_wait, "Does not wait until it is done");
  app->footer(
      "The node gives its pages to the others, and takes none; programs there that touch the space wait, and end with\n"
      "its part of it. Nothing is lost. The drain goes on when this command is ended.\n\n"
      "Examples:\n  hkctl space drain pool --node c\n  hkctl space drain pool --node c --no-wait\n"
      "  hkctl space drain pool --node c --cancel");
  app->callback([=] { *exit_code = Run(*options, *drain); });
}

void AddJoinCommand(CLI::App* space, const Options* options, int* exit_code) {
  auto request = std::make_shared<v1::JoinSpaceRequest>();
  auto name = std::make_shared<std::string>(), node = std::make_shared<std::string>();
  CLI::App* app = space->add_subcommand("join", "Has a node of the cluster take part in a space")->fallthrough();
  app->add_option("name", *name, "Space")->required();
  app->add_option("--node", *node, "The node; the space's coordinator is asked (--endpoint)")->required();
  app->footer(
      "The node becomes the home of a share of the space's pages, and can read and write it; pages come to it as it\n"
      "uses them. If it cannot join, nothing changes for the others. One that was drained or lost may come again.\n"
      "Examples:\n  hkctl space join pool --node d\n  hkctl space drain pool --node c && hkctl space join pool --node "
      "c");
  app->callback([=] {
    request->set_name(*name);
    request->set_node(*node);
    v1::JoinSpaceResponse response;
    *exit_code = Client(*options).Work(fmt::format("space join {}", *name), [&](auto* stub, auto* context) {
      return stub->JoinSpace(context, *request, &response);
    });
    if (*exit_code != kExitOk) return;
    if (options->json()) {
      fmt::print("{}", ToJson(response.space()));
    } else {
      fmt::print("node {} takes part in space {} (epoch {})\n", Printable(*node), Printable(*name),
                 response.space().epoch());
    }
  });
}

}  // namespace hk::cli
