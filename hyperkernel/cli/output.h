// What operators read: tables, JSON, sizes and times. Pure functions; thread-safe.
#pragma once

#include <google/protobuf/message.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "proto/node.pb.h"

namespace hk::cli {

// Rows of cells under a header, columns padded to the widest cell, two spaces between; no trailing spaces.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}
  // REQUIRES: as many cells as the header has.
  void AddRow(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  std::string ToString() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

// A message as JSON: proto field names, fields with default values included, one trailing newline.
std::string ToJson(const google::protobuf::Message& message);

// "1.5 GiB", "0", "512 MiB": three significant digits at most.
std::string HumanBytes(uint64_t bytes);
// "250ms", "34s", "5m12s", "3h20m", "2d4h".
std::string HumanDuration(std::chrono::milliseconds duration);
// "2026-11-20 18:01:02Z".
std::string UtcTime(const google::protobuf::Timestamp& time);
// How long ago that was, as HumanDuration has it.
std::string Ago(const google::protobuf::Timestamp& time, std::chrono::system_clock::time_point now);
// Text from another node or guest with control characters replaced by '?': it must not steer the operator's terminal.
std::string Printable(std::string_view text);
// gRPC's reason for a failed connection without its own framing: "unix:/x: No such file or directory" instead of
// "failed to connect to all addresses; last error: UNKNOWN: unix:/x: No such file or directory". Printable.
std::string PlainReason(std::string_view reason);

// The state column: "up", "unreachable since 2026-11-20 18:01:02Z (34s)", ...
std::string StateText(const v1::Member& member, std::chrono::system_clock::time_point now);
// `node list`: a table, then one line per reason and warning.
std::string MemberTable(const std::vector<v1::Member>& members, std::chrono::system_clock::time_point now);
// `node show`: one "key: value" line per fact.
std::string MemberText(const v1::Member& member, std::chrono::system_clock::time_point now);
// `node probe` and `hyperkerneld --probe`: groups of yes/no lines; a no is followed by what is lost and how to get it.
std::string ProbeText(const v1::ProbeReport& report);

}  // namespace hk::cli
