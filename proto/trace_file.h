// The file of a trace (trace.proto): records one after another, each behind its length. Written so that a file that
// ends in the middle of a record, or is being written, is read up to its last whole one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "proto/trace.pb.h"

namespace hk {

inline constexpr uint32_t kTraceVersion = 1;
// No writer makes longer records: a node's stalls of a second are 0.3 MiB.
inline constexpr size_t kMostTraceRecordBytes = size_t{1} << 20;

// The bytes of one record, with its length. REQUIRES: it is not longer than kMostTraceRecordBytes.
std::string TraceBytes(const v1::TraceRecord& record);

// Reads a trace. Not thread-safe. Nothing is believed of the file: a record that is no record, or says something that
// no trace has, ends it with the reason.
class TraceReader {
 public:
  // Gives at most `most` more bytes of the file; 0: it ends here.
  using Source = std::function<size_t(char* to, size_t most)>;
  explicit TraceReader(Source source) : source_(std::move(source)) {}

  // The header first. False: the file ends here, or is refused (error()).
  bool Next(v1::TraceRecord* record);
  // Empty, or why the rest is not read: one line.
  const std::string& error() const { return error_; }
  // Valid after the end: the last record was cut off.
  bool torn() const { return torn_; }

 private:
  bool Fill(size_t bytes);
  bool ReadLength(size_t* length);
  bool Refuse(const std::string& why);
  std::string WhyRefused(const v1::TraceRecord& record);
  std::string WhyRefused(const v1::TraceHeader& header);

  const Source source_;
  std::string buffer_;
  size_t at_ = 0;  // in it
  bool ended_ = false, torn_ = false;
  uint64_t records_ = 0;
  uint32_t vcpus_ = 0;
  uint64_t nodes_ = 0;  // bit N: node N
  std::string error_;
};

}  // namespace hk
