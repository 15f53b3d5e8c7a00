#include "hyperkernel/cli/output.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>

namespace hk::cli {
namespace {

constexpr size_t kMaxCpuColumn = 40;

std::chrono::system_clock::time_point ToTime(const google::protobuf::Timestamp& time) {
  return std::chrono::system_clock::time_point(std::chrono::duration_cast<std::chrono::system_clock::duration>(
      std::chrono::seconds(time.seconds()) + std::chrono::nanoseconds(time.nanos())));
}

std::string CpuText(const v1::NodeInfo& info) {
  std::string text = fmt::format("{} x {}", info.cpus(), Printable(info.cpu_model()));
  if (text.size() > kMaxCpuColumn) text = text.substr(0, kMaxCpuColumn - 3) + "...";
  return text;
}

std::string Join(const google::protobuf::RepeatedPtrField<std::string>& texts) {
  std::string out;
  for (const std::string& text : texts) out += (out.empty() ? "" : ", ") + Printable(text);
  return out;
}

void AppendLine(std::string* out, std::string_view key, const std::string& value) {
  if (!value.empty()) *out += fmt::format("{:<18} {}\n", fmt::format("{}:", key), value);
}

// "up", "down", "-" for the node that was asked.
std::string DataText(const v1::Member& member) {
  if (!member.has_data_link()) return "-";
  return member.data_link().state() == v1::DATA_LINK_STATE_UP ? "up" : "down";
}

// "up since ... at 10.0.0.2:7470", "down since ...: connecting".
std::string DataLinkText(const v1::DataLink& link, std::chrono::system_clock::time_point now) {
  std::string out = fmt::format("{} since {} ({})", link.state() == v1::DATA_LINK_STATE_UP ? "up" : "down",
                                UtcTime(link.since()), Ago(link.since(), now));
  if (!link.address().empty()) out += " at " + Printable(link.address());
  if (!link.reason().empty()) out += ": " + Printable(link.reason());
  return out;
}

}  // namespace

std::string Table::ToString() const {
  std::vector<size_t> widths(rows_.front().size(), 0);
  for (const auto& row : rows_) {
    for (size_t i = 0; i < row.size(); i++) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string out;
  for (const auto& row : rows_) {
    std::string line;
    for (size_t i = 0; i < row.size(); i++) line += fmt::format("{:<{}}", row[i], widths[i] + 2);
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + '\n';
  }
  return out;
}

std::string ToJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  // Fails only for malformed well-known types, which protobuf's own parser does not let through.
  if (!google::protobuf::util::MessageToJsonString(message, &json, options).ok()) return "{}\n";
  if (json.empty() || json.back() != '\n') json += '\n';
  return json;
}

std::string HumanBytes(uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes == 0) return "0";
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    unit++;
  }
  const bool whole = value >= 100 || value == static_cast<double>(static_cast<uint64_t>(value));
  return whole ? fmt::format("{:.0f} {}", value, kUnits[unit]) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string HumanDuration(std::chrono::milliseconds duration) {
  const int64_t ms = duration.count();
  const int64_t s = ms / 1000, m = s / 60, h = m / 60;
  if (s < 1) return fmt::format("{}ms", ms);
  if (m < 1) return fmt::format("{}s", s);
  if (h < 1) return fmt::format("{}m{}s", m, s % 60);
  if (h < 24) return fmt::format("{}h{}m", h, m % 60);
  return fmt::format("{}d{}h", h / 24, h % 24);
}

std::string Ago(const google::protobuf::Timestamp& time, std::chrono::system_clock::time_point now) {
  const auto ago = std::chrono::duration_cast<std::chrono::milliseconds>(now - ToTime(time));
  return HumanDuration(std::max(ago, std::chrono::milliseconds(0)));
}

std::string UtcTime(const google::protobuf::Timestamp& time) {
  return fmt::format("{:%Y-%m-%d %H:%M:%S}Z", fmt::gmtime(static_cast<std::time_t>(time.seconds())));
}

std::string Printable(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) c = '?';
  }
  return out;
}

std::string PlainReason(std::string_view reason) {
  std::string out = Printable(reason);
  constexpr std::string_view kFraming = "failed to connect to all addresses; last error: ";
  const size_t at = out.find(kFraming);
  if (at == std::string::npos) return out;
  out.erase(at, kFraming.size());
  // The code's name that follows: capitals and a colon.
  const size_t end = out.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZ_", at);
  if (end != std::string::npos && end > at && out.compare(end, 2, ": ") == 0) out.erase(at, end + 2 - at);
  return out;
}

std::string StateText(const v1::Member& member, std::chrono::system_clock::time_point now) {
  switch (member.state()) {
    case v1::MEMBER_STATE_SELF:
      return "up (self)";
    case v1::MEMBER_STATE_UP:
      return "up";
    case v1::MEMBER_STATE_CONNECTING:
      return "connecting";
    case v1::MEMBER_STATE_UNREACHABLE:
      return fmt::format("unreachable since {} ({})", UtcTime(member.since()), Ago(member.since(), now));
    case v1::MEMBER_STATE_REJECTED:
      return "rejected";
    default:
      return "unknown";
  }
}

std::string MemberTable(const std::vector<v1::Member>& members, std::chrono::system_clock::time_point now) {
  Table table({"NAME", "STATE", "VERSION", "CPU", "MEMORY", "FRAMES", "KERNEL", "TRANSPORT", "DATA"});
  std::string notes;
  for (const v1::Member& member : members) {
    const v1::NodeInfo& info = member.info();
    const std::string name = Printable(member.name());
    if (member.has_info()) {
      table.AddRow(
          {name, StateText(member, now), Printable(info.version()), CpuText(info),
           HumanBytes(info.memory_total_bytes()),
           fmt::format("{} of {}", HumanBytes(info.frames_used_bytes()), HumanBytes(info.frame_budget_bytes())),
           Printable(info.kernel()), Printable(info.transport()), DataText(member)});
    } else {
      table.AddRow({name, StateText(member, now), "-", "-", "-", "-", "-", "-", DataText(member)});
    }
    // Why there is no data plane matters when the member is there.
    if (member.state() == v1::MEMBER_STATE_UP && !member.data_link().reason().empty())
      notes += fmt::format("{}: data plane: {}\n", name, Printable(member.data_link().reason()));
    if (!member.reason().empty()) notes += fmt::format("{}: {}\n", name, PlainReason(member.reason()));
    for (const std::string& warning : info.warnings())
      notes += fmt::format("warning: {}: {}\n", name, Printable(warning));
  }
  return table.ToString() + (notes.empty() ? "" : "\n" + notes);
}

// "3 MiB of 16 MiB, 12 MiB reserved"
std::string BudgetText(uint64_t used, uint64_t budget, uint64_t reserved) {
  if (budget == 0) return "none";
  return fmt::format("{} of {}, {} reserved", HumanBytes(used), HumanBytes(budget), HumanBytes(reserved));
}

std::string MemberText(const v1::Member& member, std::chrono::system_clock::time_point now) {
  std::string out;
  AppendLine(&out, "Name", Printable(member.name()));
  AppendLine(&out, "State", StateText(member, now));
  AppendLine(&out, "Reason", PlainReason(member.reason()));
  AppendLine(&out, "Reached at", Printable(member.admin_address()));
  if (member.state() == v1::MEMBER_STATE_UP)
    AppendLine(&out, "Round trip", fmt::format("{} us", member.round_trip_us()));
  if (member.has_data_link()) AppendLine(&out, "Data plane", DataLinkText(member.data_link(), now));
  if (!member.has_info()) return out;
  const v1::NodeInfo& info = member.info();
  AppendLine(&out, "Number", fmt::to_string(info.number()));
  AppendLine(&out, "Node id", Printable(info.node_id()));
  AppendLine(&out, "Cluster", Printable(info.cluster()));
  AppendLine(&out, "Version", Printable(info.version()));
  AppendLine(&out, "Serving since", fmt::format("{} ({})", UtcTime(info.started()), Ago(info.started(), now)));
  AppendLine(&out, "Process", fmt::format("{}", info.pid()));
  AppendLine(&out, "Host", Printable(info.host_name()));
  AppendLine(&out, "Kernel", Printable(info.kernel()));
  AppendLine(&out, "Boot id", Printable(info.boot_id()));
  AppendLine(&out, "CPU", fmt::format("{} x {}", info.cpus(), Printable(info.cpu_model())));
  AppendLine(&out, "Memory",
             fmt::format("{}, {} available", HumanBytes(info.memory_total_bytes()),
                         HumanBytes(info.memory_available_bytes())));
  AppendLine(&out, "Frames",
             BudgetText(info.frames_used_bytes(), info.frame_budget_bytes(), info.frames_reserved_bytes()));
  AppendLine(&out, "Swap", BudgetText(info.swap_used_bytes(), info.swap_budget_bytes(), info.swap_reserved_bytes()));
  AppendLine(&out, "Transport", Printable(info.transport()));
  AppendLine(&out, "Admin", Join(info.admin_addresses()));
  AppendLine(&out, "Data", Printable(info.data_address()));
  AppendLine(&out, "Metrics", Printable(info.metrics_address()));
  for (const std::string& warning : info.warnings()) AppendLine(&out, "Warning", Printable(warning));
  return out;
}

std::string ProbeText(const v1::ProbeReport& report) {
  size_t width = 0;
  for (const v1::ProbeItem& item : report.items()) width = std::max(width, item.name().size());
  std::string out, group;
  int missing = 0, missing_required = 0;
  for (const v1::ProbeItem& item : report.items()) {
    if (item.group() != group) {
      group = item.group();
      out += fmt::format("{}{}\n", out.empty() ? "" : "\n", Printable(group));
    }
    const bool yes = item.verdict() == v1::PROBE_VERDICT_YES;
    out += fmt::format("  {:<{}}  {:<3}  {}\n", Printable(item.name()), width, yes ? "yes" : "NO",
                       Printable(item.detail()));
    if (yes) continue;
    missing++;
    missing_required += item.required() ? 1 : 0;
    out += fmt::format("  {:<{}}       lost: {}\n", "", width, Printable(item.lost()));
    out += fmt::format("  {:<{}}       fix:  {}\n", "", width, Printable(item.fix()));
  }
  out += fmt::format("\n{}: {} of {} answers are yes", Printable(report.node()), report.items_size() - missing,
                     report.items_size());
  out += missing_required == 0 ? "; nothing required is missing\n"
                               : fmt::format("; {} of the no are required\n", missing_required);
  return out;
}

}  // namespace hk::cli
