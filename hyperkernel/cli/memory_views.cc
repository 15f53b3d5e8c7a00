#include "hyperkernel/cli/memory_views.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <optional>
#include <thread>
#include <utility>

#include "hyperkernel/cli/heat_map.h"
#include "hyperkernel/cli/output.h"
#include "hyperkernel/cli/png_file.h"
#include "hyperkernel/cli/space_output.h"
#include "hyperkernel/cli/space_rates.h"
#include "hyperkernel/cli/vcpu_shares.h"

namespace hk::cli {
namespace {

constexpr int kExitFailed = 1;  // a file here; what the daemon refuses has the same code
constexpr uint64_t kLeastIntervalMs = 100, kMostIntervalMs = 3600 * 1000;
constexpr uint32_t kMostZoom = 64;
// Of the pages that a node loses, so many are told as they are; ping_pong says what they mean.
constexpr int kMostHotPages = 16;

void Print(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
}

// What `map` was told to do.
struct MapOrder {
  std::string name;
  std::string png;  // empty: none
  uint32_t zoom = 1;
};

int Map(const Options& options, const MemorySource& source, const MapOrder& order) {
  const std::string what = fmt::format("{} map {}", source.kind, order.name);
  v1::SpaceMapResponse map;
  v1::SpaceMapRequest request;
  request.set_name(order.name);
  // A part at a time, over one connection.
  const int code = Client(options).Stream(what, [&](v1::Admin::Stub* stub, grpc::ClientContext*) {
    do {
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(options.timeout_ms));
      v1::SpaceMapResponse part;
      const grpc::Status status = source.map(stub, &context, request, &part);
      if (!status.ok()) return status;
      if (part.next_extent() != 0 && part.next_extent() <= request.first_extent())
        return grpc::Status(grpc::StatusCode::INTERNAL, "the daemon's answer does not come to an end");
      request.set_first_extent(part.next_extent());
      map.mutable_extents()->MergeFrom(part.extents());
      *map.mutable_space() = std::move(*part.mutable_space());
      *map.mutable_missing() = std::move(*part.mutable_missing());
    } while (request.first_extent() != 0);
    return grpc::Status::OK;
  });
  if (code != kExitOk) return code;
  if (order.png.empty()) {
    Print(options.json() ? ToJson(map) : SpaceMapText(map));
    return kExitOk;
  }
  const HeatMap picture = MakeHeatMap(map);
  if (std::max(picture.width, picture.height) > kMaxPngSide / order.zoom) {
    fmt::print(stderr, "hkctl: {}: {} x {} pixels times {} are too many; --zoom {} is the most here\n", Printable(what),
               picture.width, picture.height, order.zoom, kMaxPngSide / std::max(picture.width, picture.height));
    return kExitUsage;
  }
  if (const std::string why = WritePng(picture, order.zoom, order.png); !why.empty()) {
    fmt::print(stderr, "hkctl: {}: cannot write {}: {}\n", Printable(what), Printable(order.png), why);
    return kExitFailed;
  }
  Print(options.json() ? ToJson(map) : HeatMapLegend(picture, map, order.png));
  return kExitOk;
}

// What `top` was told to do.
struct TopOrder {
  std::string name;
  std::chrono::milliseconds interval{1000};
  std::optional<uint64_t> times;  // nothing: until it is interrupted
  bool redraw = false;
};

// Draws over what was drawn before. No line is longer than the terminal is wide, nor are there more than it has.
void Redraw(const std::string& text, bool first) {
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0 || size.ws_row == 0) size = {24, 80, 0, 0};
  std::string out = first ? "\x1b[2J\x1b[H" : "\x1b[H";
  size_t at = 0;
  for (int row = 1; row < size.ws_row && at < text.size(); row++) {
    const size_t end = std::min(text.find('\n', at), text.size());
    out += text.substr(at, std::min<size_t>(end - at, size.ws_col)) + "\x1b[K\n";
    at = end + 1;
  }
  Print(out + "\x1b[J");
}

void Show(const Options& options, const TopOrder& order, const v1::SpaceTopResponse& top, bool first) {
  if (options.json()) {
    v1::SpaceTopResponse told = top;
    for (v1::SpaceNodeCounters& node : *told.mutable_nodes()) {
      if (node.hot_pages_size() > kMostHotPages)
        node.mutable_hot_pages()->DeleteSubrange(kMostHotPages, node.hot_pages_size() - kMostHotPages);
    }
    Print(ToJson(told));
  } else if (order.redraw) {
    Redraw(SpaceTopText(top), first);
  } else {
    Print((first ? "" : "\n") + SpaceTopText(top));
  }
  std::fflush(stdout);
}

int Top(const Options& options, const MemorySource& source, const TopOrder& order) {
  v1::SpaceTopRequest request;
  request.set_name(order.name);
  const auto body = [&](v1::Admin::Stub* stub, grpc::ClientContext*) {
    v1::SpaceTopResponse before;
    auto next = std::chrono::steady_clock::now();
    for (uint64_t i = 0; !order.times.has_value() || i <= *order.times; i++) {
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(options.timeout_ms));
      v1::SpaceTopResponse top;
      const grpc::Status status = source.top(stub, &context, request, &top);
      if (!status.ok()) return status;
      if (i > 0) {
        AddRates(before, &top);
        AddVcpuShares(before, &top);
        Show(options, order, top, i == 1);
        if (std::ferror(stdout) != 0) break;
      }
      before = std::move(top);
      if (order.times.has_value() && i == *order.times) break;
      // A slow answer moves what follows: each look has its whole interval.
      next = std::max(next + order.interval, std::chrono::steady_clock::now());
      std::this_thread::sleep_until(next);
    }
    return grpc::Status::OK;
  };
  return Client(options).Stream(fmt::format("{} top {}", source.kind, order.name), body);
}

void AddMap(CLI::App* parent, const MemorySource& source, const Options* options, int* exit_code) {
  auto order = std::make_shared<MapOrder>();
  CLI::App* map = parent->add_subcommand("map", "Who has which pages, by extent of 2 MiB, and how busy they are");
  map->fallthrough();
  map->footer(
      fmt::format("Examples:\n  hkctl {0} map {1}\n  hkctl {0} map {1} -o json\n"
                  "  hkctl {0} map {1} --png {1}.png --zoom 8",
                  source.kind, source.example));
  map->add_option("name", order->name, source.kind == "vm" ? "Machine" : "Space")->required();
  auto* png = map->add_option("--png", order->png,
                              "Write a picture to this file: a pixel per extent, its colour the node, its brightness "
                              "how busy it is; what the colours mean is printed");
  map->add_option("--zoom", order->zoom, "Make each pixel of the picture a square of that many")
      ->check(CLI::Range(uint32_t{1}, kMostZoom))
      ->needs(png);
  map->callback([=] {
    if (png->count() > 0 && order->png.empty()) throw CLI::ValidationError("--png", "is empty");
    *exit_code = Map(*options, source, *order);
  });
}

void AddTop(CLI::App* parent, const MemorySource& source, const Options* options, int* exit_code) {
  auto order = std::make_shared<TopOrder>();
  auto interval_ms = std::make_shared<uint64_t>(1000);
  auto once = std::make_shared<bool>(false);
  auto times = std::make_shared<std::optional<uint64_t>>();
  CLI::App* top =
      parent->add_subcommand("top",
                             "Faults per second by kind with their times, what vCPUs' time goes to, and pages "
                             "that go to and fro");
  top->fallthrough();
  top->footer(
      fmt::format("On a terminal it goes on until Ctrl-C; elsewhere, and with -o json, it looks once, but for -n.\n\n"
                  "Examples:\n  hkctl {0} top {1}\n  hkctl {0} top {1} --once -o json\n"
                  "  hkctl {0} top {1} -n 60 --interval 10s > log",
                  source.kind, source.example));
  top->add_option("name", order->name, source.kind == "vm" ? "Machine" : "Space")->required();
  const std::map<std::string, uint64_t> units{{"ms", 1}, {"s", 1000}, {"m", 60000}};
  top->add_option("--interval", *interval_ms, "Time between two looks, with a unit: 500ms, 1s, 1m (default 1s)")
      ->transform(CLI::AsNumberWithUnit(units, CLI::AsNumberWithUnit::UNIT_REQUIRED, "DURATION"))
      ->check(CLI::Range(kLeastIntervalMs, kMostIntervalMs));
  auto* count = top->add_option("-n", *times, "Look that many times")
                    ->check(CLI::Range(uint64_t{1}, uint64_t{1'000'000'000}))
                    ->type_name("N");
  top->add_flag("--once", *once, "Look once: what happens in one interval")->excludes(count);
  top->callback([=] {
    const bool terminal = isatty(STDOUT_FILENO) == 1 && !options->json();
    order->interval = std::chrono::milliseconds(*interval_ms);
    order->times = *times;
    if (*once || (!terminal && !order->times.has_value())) order->times = 1;
    order->redraw = terminal && order->times != uint64_t{1};
    *exit_code = Top(*options, source, *order);
  });
}

}  // namespace

void AddMemoryViews(CLI::App* parent, const MemorySource& source, const Options* options, int* exit_code) {
  AddMap(parent, source, options, exit_code);
  AddTop(parent, source, options, exit_code);
}

}  // namespace hk::cli
