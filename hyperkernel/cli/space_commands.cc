#include "hyperkernel/cli/space_commands.h"

#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "hyperkernel/cli/output.h"
#include "hyperkernel/cli/space_output.h"

namespace hk::cli {
namespace {

// Most bytes that one command reads or writes (ReadSpaceRequest.bytes).
constexpr uint64_t kMaxIoBytes = 64 << 10;
constexpr uint64_t kDefaultReadBytes = 64;

void Print(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
}

std::string What(const char* command, const std::string& name) {
  return fmt::format("space {} {}", command, name);
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

int Read(const Options& options, const v1::ReadSpaceRequest& request, bool raw) {
  v1::ReadSpaceResponse response;
  const int code =
      Client(options).Call(What("read", request.name()), [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
        return stub->ReadSpace(context, request, &response);
      });
  if (code != kExitOk) return code;
  Print(raw ? response.data() : options.json() ? ToJson(response) : HexDump(request.address(), response.data()));
  return kExitOk;
}

// Standard input to its end. Nothing after a line to standard error.
std::optional<std::string> ReadInput(const std::string& name) {
  std::string input(kMaxIoBytes + 1, '\0');
  input.resize(std::fread(input.data(), 1, input.size(), stdin));
  if (!input.empty() && input.size() <= kMaxIoBytes && std::ferror(stdin) == 0) return input;
  fmt::print(stderr, "hkctl: space write {}: standard input {}\n", Printable(name),
             std::ferror(stdin) != 0 ? "cannot be read"
             : input.empty()         ? "is empty; give it bytes, or --text"
                                     : "is longer than 64 KiB; write it in pieces (--at)");
  return std::nullopt;
}

int Write(const Options& options, v1::WriteSpaceRequest request, bool from_input) {
  if (from_input) {
    std::optional<std::string> input = ReadInput(request.name());
    if (!input.has_value()) return kExitUsage;
    request.set_data(*std::move(input));
  }
  v1::WriteSpaceResponse response;
  const int code =
      Client(options).Call(What("write", request.name()), [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
        return stub->WriteSpace(context, request, &response);
      });
  if (code == kExitOk && !options.json())
    Print(fmt::format("{} bytes written at {:#x}\n", request.data().size(), request.address()));
  return code;
}

int Map(const Options& options, const std::string& name) {
  v1::SpaceMapResponse map;
  v1::SpaceMapRequest request;
  request.set_name(name);
  do {  // a part at a time
    v1::SpaceMapResponse part;
    const int code = Client(options).Call(What("map", name), [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
      return stub->SpaceMap(context, request, &part);
    });
    if (code != kExitOk) return code;
    if (part.next_extent() != 0 && part.next_extent() <= request.first_extent()) break;
    request.set_first_extent(part.next_extent());
    map.mutable_extents()->MergeFrom(part.extents());
    *map.mutable_space() = std::move(*part.mutable_space());
    *map.mutable_missing() = std::move(*part.mutable_missing());
  } while (request.first_extent() != 0);
  Print(options.json() ? ToJson(map) : SpaceMapText(map));
  return kExitOk;
}

int Top(const Options& options, const std::string& name) {
  v1::SpaceTopRequest request;
  request.set_name(name);
  v1::SpaceTopResponse response;
  const int code = Client(options).Call(What("top", name), [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
    return stub->SpaceTop(context, request, &response);
  });
  if (code != kExitOk) return code;
  Print(options.json() ? ToJson(response) : SpaceTopText(response));
  return kExitOk;
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
                            "  hkctl space read pool --at 0 --bytes 64K --raw > page",
                            name);
  AddAt(read, address);
  read->add_option("--bytes", *bytes, "How many, at most 64K")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(uint64_t{1}, kMaxIoBytes))
      ->capture_default_str();
  read->add_flag("--raw", *raw, "The bytes as they are, not a hex dump");
  read->callback([=] {
    v1::ReadSpaceRequest request;
    request.set_name(*name);
    request.set_address(*address);
    request.set_bytes(static_cast<uint32_t>(*bytes));
    *exit_code = Read(*options, request, *raw);
  });

  auto text = std::make_shared<std::optional<std::string>>();
  CLI::App* write = AddNamed(space, "write", "Writes memory through the node that is asked",
                             "Without --text the bytes are standard input, at most 64 KiB.\n\n"
                             "Examples:\n  hkctl space write pool --at 0x1000 --text \"hello\"\n"
                             "  hkctl space write pool --at 0 < page",
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
  auto nodes = std::make_shared<std::vector<std::string>>();
  CLI::App* create = AddNamed(space, "create", "Makes a space over some nodes; the one that is asked is one of them",
                              "A space lasts as long as the daemons of all its nodes.\n\n"
                              "Examples:\n  hkctl space create pool --memory 640M --nodes a,b,c\n"
                              "  hkctl space create pool --memory 640M --frames 240M --nodes a,b,c\n"
                              "  hkctl space create scratch --memory 64M --nodes a,b -o json",
                              name);
  create->add_option("--memory", *memory, "Size, with a unit: 640M, 1T (powers of 1024); a multiple of 4K")
      ->check(CheckNotNegative)
      ->transform(CLI::AsSizeValue(false))
      ->required();
  create
      ->add_option(
          "--frames", *frames,
          "Most that each node gives, with a unit; all nodes together at least a sixteenth more than --memory. "
          "Default: each can hold all of it")
      ->check(CheckNotNegative)
      ->transform(CLI::AsSizeValue(false));
  create->add_option("--nodes", *nodes, "Nodes, with commas between")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->required();
  create->callback([=] {
    v1::CreateSpaceRequest request;
    request.set_name(*name);
    request.set_memory_bytes(*memory);
    request.set_node_frames_bytes(*frames);
    for (const std::string& node : *nodes) request.add_nodes(node);
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
  AddMemoryCommands(space, options, name, exit_code);
  AddNamed(space, "map", "Who has which pages, by extent of 2 MiB",
           "Examples:\n  hkctl space map pool\n  hkctl space map pool -o json", name)
      ->callback([=] { *exit_code = Map(*options, *name); });
  AddNamed(space, "top", "Faults by kind with their times, by node",
           "Examples:\n  hkctl space top pool\n  hkctl space top pool -o json", name)
      ->callback([=] { *exit_code = Top(*options, *name); });
}

}  // namespace hk::cli
