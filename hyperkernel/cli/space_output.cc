#include "hyperkernel/cli/space_output.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "hyperkernel/cli/output.h"
#include "hyperkernel/cli/space_rates.h"
#include "hyperkernel/cli/vcpu_shares.h"

namespace hk::cli {
namespace {

constexpr uint64_t kExtentBytes = 2 << 20;
constexpr uint64_t kPageBytes = 4096;
constexpr size_t kBytesPerLine = 16;

std::string Line(const char* key, const std::string& value) {
  return value.empty() ? "" : fmt::format("{:<18} {}\n", fmt::format("{}:", key), value);
}

std::string Join(const google::protobuf::RepeatedPtrField<std::string>& texts) {
  std::string out;
  for (const std::string& text : texts) out += (out.empty() ? "" : ",") + Printable(text);
  return out;
}

// "12 exclusive, 3 shared"; "-" if there is none.
std::string HoldingText(const v1::ExtentHolding& holding) {
  std::string out;
  const auto add = [&out](uint32_t pages, const char* right) {
    if (pages != 0) out += fmt::format("{}{} {}", out.empty() ? "" : ", ", pages, right);
  };
  add(holding.exclusive(), "exclusive");
  add(holding.owned(), "owned");
  add(holding.shared(), "shared");
  return out.empty() ? "-" : out;
}

std::string LatencyText(const v1::FaultLatency& latency) {
  if (latency.count() == 0) return "-";
  return fmt::format("{} / {} / {}", HumanNanoseconds(latency.p50_ns()), HumanNanoseconds(latency.p99_ns()),
                     HumanNanoseconds(latency.max_ns()));
}

// Of something that happens that often per second.
std::string RateText(double rate) {
  return rate > 0 && rate < 10 ? fmt::format("{:.1f}", rate) : fmt::format("{:.0f}", rate);
}

std::string StateLine(v1::SpaceState state, const google::protobuf::Timestamp& since,
                      std::chrono::system_clock::time_point now) {
  return fmt::format("{} since {} ({})", StateName(state), UtcTime(since), Ago(since, now));
}

// At all its nodes together.
double HeatOf(const v1::SpaceExtent& extent) {
  double heat = 0;
  for (const v1::ExtentHolding& holder : extent.holders()) heat += holder.heat();
  return heat;
}

// One line for a node that did not answer.
std::string Missing(const v1::SpacePart& part) {
  return fmt::format("{}: {}\n", Printable(part.node()), PlainReason(part.reason()));
}

// "Another node had the page: together 40% of the faults, a 60%, b 20%", if there is another and were any.
std::string FetchedText(const v1::SpaceTopResponse& top, const v1::SpaceRates& sum) {
  const auto any = [](const v1::SpaceRates& rates) {
    return rates.read_latency().count() + rates.write_latency().count() > 0;
  };
  if (top.nodes_size() < 2 || !any(sum)) return "";
  std::string out =
      fmt::format("\nAnother node had the page: together {:.0f}% of the faults", 100 * sum.fetched_share());
  for (const v1::SpaceNodeCounters& node : top.nodes()) {
    if (!any(node.rates())) continue;
    out += fmt::format(", {} {:.0f}%", Printable(node.part().node()), 100 * node.rates().fetched_share());
  }
  return out + "\n";
}

// What became of pages that nodes fetched ahead of need, if any did.
std::string PrefetchText(const v1::SpaceTopResponse& top) {
  Table table({"NODE", "FETCHED AHEAD IN ALL", "USEFUL", "WASTED"});
  bool any = false;
  for (const v1::SpaceNodeCounters& node : top.nodes()) {
    const v1::SpaceCounters& counters = node.counters();
    if (counters.prefetched() == 0) continue;
    any = true;
    table.AddRow({Printable(node.part().node()), fmt::to_string(counters.prefetched()),
                  fmt::to_string(counters.prefetch_useful()), fmt::to_string(counters.prefetch_wasted())});
  }
  return any ? "\n" + table.ToString() : "";
}

// "512 MiB at most on each node, 1.00 GiB on b, for 4 vCPUs".
std::string FramesText(const v1::Space& space) {
  std::string out = space.node_frames_bytes() == 0 ? std::string("all of it at most on each node")
                                                   : HumanBytes(space.node_frames_bytes()) + " at most on each node";
  for (const v1::SpaceNodeFrames& own : space.own_frames())
    out += fmt::format(", {} on {}", HumanBytes(own.frames_bytes()), Printable(own.node()));
  if (space.node_vcpus() > 0) out += fmt::format(", for {} vCPUs", space.node_vcpus());
  return out;
}

}  // namespace

std::string StateName(v1::SpaceState state) {
  switch (state) {
    case v1::SPACE_STATE_CREATING:
      return "creating";
    case v1::SPACE_STATE_RUNNING:
      return "running";
    case v1::SPACE_STATE_STOPPED:
      return "stopped";
    case v1::SPACE_STATE_DELETING:
      return "deleting";
    default:
      return "unknown";
  }
}

std::string SpaceTable(const std::vector<v1::Space>& spaces, std::chrono::system_clock::time_point now) {
  Table table({"NAME", "STATE", "FOR", "MEMORY", "FRAMES", "NODES", "COORDINATOR", "AGE"});
  std::string notes;
  for (const v1::Space& space : spaces) {
    table.AddRow({Printable(space.name()), StateName(space.state()), Ago(space.since(), now),
                  HumanBytes(space.memory_bytes()), HumanBytes(space.frame_bytes()), Join(space.nodes()),
                  Printable(space.coordinator()), Ago(space.created(), now)});
    if (!space.reason().empty()) notes += fmt::format("{}: {}\n", Printable(space.name()), Printable(space.reason()));
  }
  return table.ToString() + (notes.empty() ? "" : "\n" + notes);
}

std::string SpaceText(const v1::Space& space, std::chrono::system_clock::time_point now) {
  std::string out = Line("Name", Printable(space.name()));
  out += Line("State", StateLine(space.state(), space.since(), now));
  out += Line("Reason", Printable(space.reason()));
  out += Line("Id", fmt::format("{:#x}", space.id()));
  out += Line("Memory",
              fmt::format("{}, {} in frames here", HumanBytes(space.memory_bytes()), HumanBytes(space.frame_bytes())));
  if (space.node_frames_bytes() > 0 || space.own_frames_size() > 0) out += Line("Frames", FramesText(space));
  if (space.node_swap_bytes() > 0) out += Line("Swap", HumanBytes(space.node_swap_bytes()) + " at most on each node");
  out += Line("Nodes", Join(space.nodes()));
  out += Line("Coordinator", Printable(space.coordinator()));
  if (space.epoch() > 0) out += Line("Epoch", fmt::to_string(space.epoch()));
  if (space.has_drain()) {
    const v1::SpaceDrain& drain = space.drain();
    out += Line(
        "Draining",
        fmt::format("{}, since {} ({}): {} to give{}{}{}", Printable(drain.node()), UtcTime(drain.since()),
                    Ago(drain.since(), now), HumanBytes(drain.bytes_to_give()),
                    drain.bytes_pinned() == 0 ? "" : fmt::format(", {} of it pinned", HumanBytes(drain.bytes_pinned())),
                    drain.reason().empty() ? "" : "; ", PlainReason(drain.reason())));
  }
  std::string with;  // how many with whom
  size_t lost = 0;
  for (const v1::SpaceLoss& loss : space.lost()) {
    lost += loss.left() ? 0 : 1;
    out += Line(loss.left() ? "Node that left" : "Lost node",
                fmt::format("{}, since {} ({}), epoch {}", Printable(loss.node()), UtcTime(loss.since()),
                            Ago(loss.since(), now), loss.epoch()));
    if (loss.pages_lost() > 0)
      with += fmt::format("{}{} with {}", with.empty() ? ": " : ", ", loss.pages_lost(), Printable(loss.node()));
  }
  if (lost > 0) {
    out += Line("Lost pages", fmt::format("{} ({}), whose only copy was on a lost node{}", space.pages_lost(),
                                          HumanBytes(space.pages_lost() * kPageBytes), with));
  }
  out += Line("Created", fmt::format("{} ({})", UtcTime(space.created()), Ago(space.created(), now)));
  if (space.parts_size() == 0) return out;
  const bool swaps = space.node_swap_bytes() > 0;
  std::vector<std::string> header{"NODE", "STATE", "FOR", "FRAMES"};
  if (swaps) header.push_back("SWAPPED");
  Table table(std::move(header));
  std::string notes;
  for (const v1::SpacePart& part : space.parts()) {
    const bool told = part.state() != v1::SPACE_STATE_UNSPECIFIED;
    std::vector<std::string> row{Printable(part.node()), StateName(part.state()), told ? Ago(part.since(), now) : "-",
                                 told ? HumanBytes(part.frame_bytes()) : "-"};
    if (swaps) row.push_back(told ? HumanBytes(part.swapped_bytes()) : "-");
    table.AddRow(std::move(row));
    if (!part.reason().empty()) notes += Missing(part);
  }
  return out + "\n" + table.ToString() + (notes.empty() ? "" : "\n" + notes);
}

std::string SpaceMapText(const v1::SpaceMapResponse& map) {
  std::vector<std::string> header{"ADDRESS", "HOME", "HEAT"};
  for (const std::string& node : map.space().nodes()) header.push_back(Printable(node));
  Table table(std::move(header));
  for (const v1::SpaceExtent& extent : map.extents()) {
    std::vector<std::string> row{fmt::format("{:#x}", extent.extent() * kExtentBytes),
                                 extent.home().empty() ? "-" : Printable(extent.home()),
                                 fmt::format("{:.0f}", HeatOf(extent))};
    for (const std::string& node : map.space().nodes()) {
      std::string cell = "-";
      for (const v1::ExtentHolding& holder : extent.holders()) {
        if (holder.node() == node) cell = HoldingText(holder);
      }
      row.push_back(std::move(cell));
    }
    table.AddRow(std::move(row));
  }
  std::string notes;
  for (const v1::SpacePart& part : map.missing()) notes += Missing(part);
  if (map.extents().empty()) notes += "no node has a page\n";
  return table.ToString() + (notes.empty() ? "" : "\n" + notes);
}

// A page's further accesses have lines of their own.
std::string PingPongText(const v1::SpaceTopResponse& top) {
  const bool seen = std::any_of(top.ping_pong().begin(), top.ping_pong().end(),
                                [](const v1::PingPongPage& page) { return !page.accesses().empty(); });
  std::vector<std::string> columns = {"PAGE", "TAKEN AWAY", "NEW OWNER", "BETWEEN"};
  if (seen) columns.insert(columns.end(), {"BY", "CODE", "ITS ADDRESS THERE"});
  Table moves(columns);
  for (const v1::PingPongPage& page : top.ping_pong()) {
    std::vector<std::string> row = {fmt::format("{:#x}", page.address()), RateText(page.losses_per_second()),
                                    RateText(page.owner_changes_per_second()), Join(page.nodes())};
    for (const v1::GuestAccess& access : page.accesses()) {
      row.push_back(fmt::format("vCPU {} on {}", access.vcpu(), Printable(access.node())));
      row.push_back(fmt::format("{} {:#x}", access.user() ? "user" : "kernel", access.code()));
      row.push_back(access.has_address() ? fmt::format("{:#x}", access.address()) : "-");
      moves.AddRow(std::exchange(row, {"", "", "", ""}));
    }
    if (!page.accesses().empty()) continue;
    row.resize(columns.size(), "-");
    moves.AddRow(std::move(row));
  }
  return moves.ToString();
}

std::string SpaceTopText(const v1::SpaceTopResponse& top) {
  std::string out = fmt::format("{} {}, {} on {}; per second, over {:.1f} s\n\n", Printable(top.space().name()),
                                StateName(top.space().state()), HumanBytes(top.space().memory_bytes()),
                                Join(top.space().nodes()), top.interval_seconds());
  if (!top.space().reason().empty()) out += fmt::format("{}\n\n", Printable(top.space().reason()));
  std::string vcpus;
  for (const v1::SpaceNodeCounters& node : top.nodes()) {
    if (node.vcpus_size() == 0) continue;
    vcpus += fmt::format("{} {} on {}", vcpus.empty() ? "vCPUs:" : ";", fmt::join(node.vcpus(), ", "),
                         Printable(node.part().node()));
  }
  if (!vcpus.empty()) out += vcpus + "\n\n";
  Table table({"NODE", "READ FAULTS", "P50 / P99 / MAX", "WRITE FAULTS", "P50 / P99 / MAX", "UPGRADES", "SERVED",
               "REVOKED", "RETRIES", "SHARED", "OWNED", "EXCLUSIVE", "SWAPPED"});
  std::string notes;
  const auto add = [&table](const std::string& name, const v1::SpaceRates* rates, const v1::SpaceCounters* counters) {
    std::vector<std::string> row(13, "-");
    row[0] = name;
    if (rates != nullptr) {
      row[1] = RateText(rates->read_faults());
      row[2] = LatencyText(rates->read_latency());
      row[3] = RateText(rates->write_faults());
      row[4] = LatencyText(rates->write_latency());
      row[5] = RateText(rates->upgrades());
      row[6] = RateText(rates->served());
      row[7] = RateText(rates->revoked());
      row[8] = RateText(rates->retries());
    }
    if (counters != nullptr) {
      row[9] = fmt::to_string(counters->pages_shared());
      row[10] = fmt::to_string(counters->pages_owned());
      row[11] = fmt::to_string(counters->pages_exclusive());
      row[12] = fmt::to_string(counters->pages_swapped());
    }
    table.AddRow(std::move(row));
  };
  v1::SpaceCounters pages;
  for (const v1::SpaceNodeCounters& node : top.nodes()) {
    if (!node.part().reason().empty()) notes += Missing(node.part());
    add(Printable(node.part().node()), node.has_rates() ? &node.rates() : nullptr,
        node.has_counters() ? &node.counters() : nullptr);
    pages.set_pages_shared(pages.pages_shared() + node.counters().pages_shared());
    pages.set_pages_owned(pages.pages_owned() + node.counters().pages_owned());
    pages.set_pages_exclusive(pages.pages_exclusive() + node.counters().pages_exclusive());
    pages.set_pages_swapped(pages.pages_swapped() + node.counters().pages_swapped());
  }
  const v1::SpaceRates sum = SumOfRates(top);
  if (top.nodes_size() > 1) add("together", &sum, &pages);
  out += table.ToString() + FetchedText(top, sum);
  if (const std::string shares = VcpuSharesText(top); !shares.empty()) out += "\n" + shares;
  out += PrefetchText(top);
  if (top.ping_pong_size() > 0) {
    out += "\n" + PingPongText(top);
  }
  return out + (notes.empty() ? "" : "\n" + notes);
}

std::string HumanNanoseconds(uint64_t ns) {
  constexpr const char* kUnits[] = {"ns", "us", "ms", "s"};
  auto value = static_cast<double>(ns);
  size_t unit = 0;
  while (value >= 1000 && unit + 1 < std::size(kUnits)) {
    value /= 1000;
    unit++;
  }
  return value < 10 && unit > 0 ? fmt::format("{:.1f} {}", value, kUnits[unit])
                                : fmt::format("{:.0f} {}", value, kUnits[unit]);
}

std::string HexDump(uint64_t address, std::string_view bytes) {
  std::string out;
  std::string_view before;
  bool starred = false;
  for (size_t at = 0; at < bytes.size(); at += kBytesPerLine) {
    const std::string_view line = bytes.substr(at, kBytesPerLine);
    const bool last = at + kBytesPerLine >= bytes.size();
    if (line == before && !last) {
      if (!starred) out += "*\n";
      starred = true;
      continue;
    }
    before = line;
    starred = false;
    std::string hex, text;
    for (size_t i = 0; i < kBytesPerLine; i++) {
      hex += i == kBytesPerLine / 2 ? "  " : " ";
      if (i >= line.size()) {
        hex += "  ";
        continue;
      }
      const auto byte = static_cast<unsigned char>(line[i]);
      hex += fmt::format("{:02x}", byte);
      text += byte >= 0x20 && byte < 0x7f ? static_cast<char>(byte) : '.';
    }
    out += fmt::format("{:016x} {}  |{}|\n", address + at, hex, text);
  }
  return out;
}

}  // namespace hk::cli
