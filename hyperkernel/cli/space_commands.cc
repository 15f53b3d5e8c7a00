#include "hyperkernel/cli/space_commands.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "hyperkernel/cli/memory_views.h"
#include "hyperkernel/cli/output.h"
#include "hyperkernel/cli/space_drain.h"
#include "hyperkernel/cli/space_output.h"

namespace hk::cli {
namespace {

// Most bytes of one call (ReadSpaceRequest.bytes).
constexpr uint64_t kMaxIoBytes = 64 << 10;
constexpr uint64_t kDefaultReadBytes = 64;
constexpr int kExitFailed = 1;  // a file here; what the daemon refuses has the same code

void Print(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
}

std::string What(const char* command, const std::string& name) {
  return fmt::format("space {} {}", command, name);
}

// "c=768M" becomes "c=805306368".
const CLI::Validator BytesOfNode(
    [](std::string& node) -> std::string {
      const size_t equals = node.find('=');
      if (equals == std::string::npos) return "";
      std::string size = node.substr(equals + 1);
      const std::string wrong = size.starts_with('-') ? "is negative" : CLI::AsSizeValue(false)(size);
      node = node.substr(0, equals + 1) + size;
      return wrong.empty() ? "" : fmt::format("{}: {}", node, wrong);
    },
    "");

// A name, or one that BytesOfNode made.
void AddNode(const std::string& node, v1::CreateSpaceRequest* request) {
  const size_t equals = node.find('=');
  request->add_nodes(node.substr(0, equals));
  if (equals == std::string::npos) return;
  v1::SpaceNodeFrames& own = *request->add_own_frames();
  own.set_node(node.substr(0, equals));
  own.set_frames_bytes(std::strtoull(node.c_str() + equals + 1, nullptr, 10));
}

int Create(const Options& options, const v1::CreateSpaceRequest& request) {
  v1::CreateSpaceResponse response;
  const int code =
      Client(options).Work(What("create", request.name()), [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
        return stub->CreateSpace(context, request, &response);
      });
  if (code != kExitOk) return code;
  Print(options.json() ? ToJson(response.space())
                       : fmt::format("space {} created on {} nodes\n", Printable(response.space().name()),
                                     response.space().nodes_size()));
  return kExitOk;
}

int List(const Options& options) {
  v1::ListSpacesResponse response;
  const int code = Client(options).Call("space list", [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
    return stub->ListSpaces(context, v1::ListSpacesRequest(), &response);
  });
  if (code != kExitOk) return code;
  Print(options.json()
            ? ToJson(response)
            : SpaceTable({response.spaces().begin(), response.spaces().end()}, std::chrono::system_clock::now()));
  return kExitOk;
}

int Show(const Options& options, const std::string& name) {
  v1::GetSpaceRequest request;
  request.set_name(name);
  v1::GetSpaceResponse response;
  const int code = Client(options).Call(What("show", name), [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
    return stub->GetSpace(context, request, &response);
  });
  if (code != kExitOk) return code;
  Print(options.json() ? ToJson(response.space()) : SpaceText(response.space(), std::chrono::system_clock::now()));
  return kExitOk;
}

int Delete(const Options& options, const std::string& name) {
  v1::DeleteSpaceRequest request;
  request.set_name(name);
  v1::DeleteSpaceResponse response;
  const int code = Client(options).Work(What("delete", name), [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
    return stub->DeleteSpace(context, request, &response);
  });
  if (code != kExitOk) return code;
  if (options.json()) {
    Print(ToJson(response));
    return kExitOk;
  }
  Print(fmt::format("space {} deleted\n", Printable(name)));
  for (const std::string& note : response.notes()) Print(fmt::format("note: {}\n", PlainReason(note)));
  return kExitOk;
}

// Calls for a part after another over one connection, each with the usual deadline, until `more` says that there is
// none left.
int InParts(const Options& options, const std::string& what, const std::function<bool()>& more,
            const std::function<grpc::Status(v1::Admin::Stub*, grpc::ClientContext*)>& call) {
  return Client(options).Stream(what, [&](v1::Admin::Stub* stub, grpc::ClientContext*) {
    grpc::Status status;
    while (status.ok() && more()) {
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(options.timeout_ms));
      status = call(stub, &context);
    }
    return status;
  });
}

// All of it, of any size, or a line to standard error.
bool WriteOutput(const std::string& what, const std::string& bytes) {
  if (std::fwrite(bytes.data(), 1, bytes.size(), stdout) == bytes.size()) return true;
  fmt::print(stderr, "hkctl: {}: standard output cannot be written\n", what);
  return false;
}

int Read(const Options& options, v1::ReadSpaceRequest request, uint64_t bytes, bool raw) {
  const std::string what = What("read", request.name());
  if (bytes > kMaxIoBytes && !raw) {
    fmt::print(stderr, "hkctl: {}: more than 64 KiB are not for reading; add --raw\n", what);
    return kExitUsage;
  }
  v1::ReadSpaceResponse response;
  bool written = true;
  const auto more = [&] {
    if (!written || bytes == 0) return false;
    request.set_bytes(static_cast<uint32_t>(std::min(bytes, kMaxIoBytes)));
    return true;
  };
  const auto call = [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
    grpc::Status status = stub->ReadSpace(context, request, &response);
    if (!status.ok()) return status;
    if (response.data().size() != request.bytes())
      return grpc::Status(grpc::StatusCode::INTERNAL, "the daemon's answer has another size");
    bytes -= request.bytes();
    if (raw) {
      written = WriteOutput(what, response.data());
      request.set_address(request.address() + request.bytes());
    }
    return status;
  };
  const int code = InParts(options, what, more, call);
  if (code != kExitOk || !written) return code != kExitOk ? code : kExitFailed;
  if (!raw) Print(options.json() ? ToJson(response) : HexDump(request.address(), response.data()));
  return kExitOk;
}

int Write(const Options& options, v1::WriteSpaceRequest request, bool from_input) {
  const std::string what = What("write", request.name());
  const uint64_t start = request.address();
  uint64_t written = 0;
  std::string next;
  const auto take = [&next] {
    next.resize(kMaxIoBytes);
    next.resize(std::fread(next.data(), 1, next.size(), stdin));
    return std::ferror(stdin) == 0;
  };
  if (from_input && (!take() || next.empty())) {
    fmt::print(stderr, "hkctl: {}: standard input {}\n", what,
               std::ferror(stdin) != 0 ? "cannot be read" : "is empty; give it bytes, or --text");
    return kExitUsage;
  }
  if (!from_input) next = request.data();
  bool first = true, readable = true;
  const auto more = [&] {
    if (!first) {
      written += request.data().size();
      next.clear();
      if (from_input) readable = take();
      if (!readable || next.empty()) return false;
    }
    first = false;
    request.set_address(start + written);
    request.set_data(next);
    return true;
  };
  const auto call = [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
    v1::WriteSpaceResponse response;
    return stub->WriteSpace(context, request, &response);
  };
  int code = InParts(options, what, more, call);
  if (code == kExitOk && !readable) {
    fmt::print(stderr, "hkctl: {}: standard input cannot be read\n", what);
    code = kExitFailed;
  }
  if (code != kExitOk && written > 0) fmt::print(stderr, "hkctl: {}: {} bytes were written before\n", what, written);
  if (code == kExitOk && !options.json()) Print(fmt::format("{} bytes written at {:#x}\n", written, start));
  return code;
}

// A subcommand that takes a space's name.
CLI::App* AddNamed(CLI::App* space, const char* command, const char* help, const char* footer,
                   std::shared_ptr<std::string> name) {
  CLI::App* app = space->add_subcommand(command, help)->fallthrough();
  app->add_option("name", *name, "Space")->required();
  app->footer(footer);
  return app;
}

// What is wrong with a number without a sign; empty if nothing is (CLI11's form of a check). CLI11 takes "-1" for
// 2^64-1.
std::string CheckNotNegative(const std::string& text) {
  return text.find('-') == std::string::npos ? "" : fmt::format("'{}' is negative", Printable(text));
}

void AddAt(CLI::App* app, std::shared_ptr<uint64_t> address) {
  app->add_option("--at", *address, "Guest-physical address of the first byte: 4096, 0x1000")
      ->check(CheckNotNegative)
      ->required();
}

void AddMemoryCommands(CLI::App* space, const Options* options, std::shared_ptr<std::string> name, int* exit_code) {
  auto address = std::make_shared<uint64_t>(0);
  auto bytes = std::make_shared<uint64_t>(kDefaultReadBytes);
  auto raw = std::make_shared<bool>(false);
  CLI::App* read = AddNamed(space, "read", "Reads memory through the node that is asked: what is elsewhere comes to it",
                            "Examples:\n  hkctl space read pool --at 0x1000 --bytes 64\n"
                            "  hkctl space read pool --at 0 --bytes 640M --raw | sha256sum",
                            name);
  AddAt(read, address);
  read->add_option("--bytes", *bytes, "How many, with a unit; more than 64K with --raw only")
      ->check(CheckNotNegative)
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(uint64_t{1}, std::numeric_limits<uint64_t>::max()))
      ->capture_default_str();
  read->add_flag("--raw", *raw, "The bytes as they are, not a hex dump");
  read->callback([=] {
    v1::ReadSpaceRequest request;
    request.set_name(*name);
    request.set_address(*address);
    *exit_code = Read(*options, std::move(request), *bytes, *raw);
  });

  auto text = std::make_shared<std::optional<std::string>>();
  CLI::App* write = AddNamed(space, "write", "Writes memory through the node that is asked",
                             "Without --text the bytes are standard input, to its end.\n\n"
                             "Examples:\n  hkctl space write pool --at 0x1000 --text \"hello\"\n"
                             "  hkctl space write pool --at 0 < image",
                             name);
  AddAt(write, address);
  write->add_option("--text", *text, "The bytes");
  write->callback([=] {
    v1::WriteSpaceRequest request;
    request.set_name(*name);
    request.set_address(*address);
    if (text->has_value()) request.set_data(**text);
    *exit_code = Write(*options, std::move(request), !text->has_value());
  });
}

}  // namespace

void AddSpaceCommands(CLI::App* app, const Options* options, int* exit_code) {
  CLI::App* space =
      app->add_subcommand("space", "Memory that several nodes present as one")->require_subcommand(1)->fallthrough();
  space->footer(
      "Examples:\n  hkctl space create pool --memory 640M --nodes a,b,c\n  hkctl space list\n  hkctl space map pool");
  auto name = std::make_shared<std::string>();

  auto memory = std::make_shared<uint64_t>(0);
  auto frames = std::make_shared<uint64_t>(0);
  auto swap = std::make_shared<uint64_t>(0);
  auto vcpus = std::make_shared<uint32_t>(0);
  auto nodes = std::make_shared<std::vector<std::string>>();
  CLI::App* create = AddNamed(space, "create", "Makes a space over some nodes; the one that is asked is one of them",
                              "A space lasts until it is deleted, or the daemon of the node that is asked, its "
                              "coordinator, ends. It goes on without other nodes that are lost; pages that only they "
                              "had are lost with them.\n\n"
                              "Examples:\n  hkctl space create pool --memory 640M --nodes a,b,c\n"
                              "  hkctl space create pool --memory 640M --frames 240M --nodes a,b,c\n"
                              "  hkctl space create pool --memory 1G --frames 256M --nodes a,b,c=768M\n"
                              "  hkctl space create big --memory 64G --frames 8G --swap 16G --nodes a,b,c\n"
                              "  hkctl space create scratch --memory 64M --nodes a,b -o json",
                              name);
  create->add_option("--memory", *memory, "Size, with a unit: 640M, 1T (powers of 1024); a multiple of 4K")
      ->check(CheckNotNegative)
      ->transform(CLI::AsSizeValue(false))
      ->required();
  create
      ->add_option("--frames", *frames,
                   "Most that each node gives, with a unit; all nodes together, with --swap, at least a sixteenth more "
                   "than --memory. "
                   "Default: each can hold all of it")
      ->check(CheckNotNegative)
      ->transform(CLI::AsSizeValue(false));
  create
      ->add_option("--swap", *swap,
                   "Most that each node may swap to its disk, with a unit, beside --frames; its configuration must "
                   "allow it (swap_mib). Default: none")
      ->check(CheckNotNegative)
      ->transform(CLI::AsSizeValue(false));
  create
      ->add_option("--vcpus", *vcpus,
                   "Virtual CPUs that will run on each node at once: --frames must have 8 pages for each. Default: 1")
      ->check(CLI::Range(1, 255));
  create
      ->add_option("--nodes", *nodes,
                   "Nodes, with commas between; one with a bound of its own, instead of --frames: NODE=SIZE")
      ->transform(BytesOfNode)
      ->delimiter(',')
      ->allow_extra_args(false)
      ->required();
  create->callback([=] {
    v1::CreateSpaceRequest request;
    request.set_name(*name);
    request.set_memory_bytes(*memory);
    request.set_node_frames_bytes(*frames);
    request.set_node_swap_bytes(*swap);
    request.set_node_vcpus(*vcpus);
    for (const std::string& node : *nodes) AddNode(node, &request);
    *exit_code = Create(*options, request);
  });

  CLI::App* list = space->add_subcommand("list", "The spaces of the node that is asked")->fallthrough();
  list->footer("Examples:\n  hkctl space list\n  hkctl space list -o json");
  list->callback([=] { *exit_code = List(*options); });

  AddNamed(space, "show", "Everything known of a space, at all its nodes",
           "Examples:\n  hkctl space show pool\n  hkctl space show pool -o json", name)
      ->callback([=] { *exit_code = Show(*options, *name); });
  AddNamed(space, "delete", "Deletes a space on all its nodes; whoever reads or writes it gets an error",
           "Examples:\n  hkctl space delete pool", name)
      ->callback([=] { *exit_code = Delete(*options, *name); });
  AddDrainCommand(space, options, exit_code);
  AddJoinCommand(space, options, exit_code);
  AddMemoryCommands(space, options, name, exit_code);
  AddMemoryViews(space,
                 {.kind = "space",
                  .example = "pool",
                  .map = [](auto* stub, auto* context, const auto& request,
                            auto* response) { return stub->SpaceMap(context, request, response); },
                  .top = [](auto* stub, auto* context, const auto& request,
                            auto* response) { return stub->SpaceTop(context, request, response); }},
                 options, exit_code);
}

}  // namespace hk::cli
