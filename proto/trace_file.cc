#include "proto/trace_file.h"

#include <algorithm>

namespace hk {
namespace {

// As types.h has them, which this folder does not know.
constexpr uint32_t kMostNodes = 64;
// APIC ids of a guest (kMostGuestVcpus).
constexpr int kMostVcpus = 255;
constexpr size_t kMostName = 63;
// 52 bits of guest-physical address.
constexpr uint64_t kMostPages = uint64_t{1} << 40;
// A century: what is added up does not overflow.
constexpr uint64_t kMostNs = uint64_t{100} * 365 * 24 * 3600 * 1'000'000'000;
// An upper bound of what one read of the source is asked for.
constexpr size_t kPiece = size_t{64} << 10;
// Of 7 bits each.
constexpr int kMostLengthBytes = 4;

bool IsName(const std::string& text) {
  return !text.empty() && text.size() <= kMostName && std::all_of(text.begin(), text.end(), [](char each) {
    return (each >= 'a' && each <= 'z') || (each >= '0' && each <= '9') || each == '-';
  });
}

}  // namespace

std::string TraceBytes(const v1::TraceRecord& record) {
  std::string out;
  for (size_t left = record.ByteSizeLong();; left >>= 7) {
    out += static_cast<char>((left & 0x7f) | (left > 0x7f ? 0x80 : 0));
    if (left <= 0x7f) break;
  }
  record.AppendToString(&out);
  return out;
}

bool TraceReader::Refuse(const std::string& why) {
  error_ = records_ == 0 ? "not a trace: " + why : "record " + std::to_string(records_ + 1) + ": " + why;
  return false;
}

// False: the file ends before that.
bool TraceReader::Fill(size_t bytes) {
  while (buffer_.size() - at_ < bytes && !ended_) {
    buffer_.erase(0, at_);
    at_ = 0;
    const size_t before = buffer_.size();
    buffer_.resize(before + kPiece);
    const size_t more = source_(buffer_.data() + before, kPiece);
    buffer_.resize(before + std::min(more, kPiece));
    ended_ = more == 0;
  }
  return buffer_.size() - at_ >= bytes;
}

bool TraceReader::ReadLength(size_t* length) {
  *length = 0;
  for (int i = 0; i < kMostLengthBytes; ++i) {
    if (!Fill(1)) {
      torn_ = i > 0;
      return false;
    }
    const auto byte = static_cast<uint8_t>(buffer_[at_++]);
    *length |= static_cast<size_t>(byte & 0x7f) << 7 * i;
    if ((byte & 0x80) == 0) {
      return *length <= kMostTraceRecordBytes || Refuse("it is longer than any");
    }
  }
  return Refuse("it is longer than any");
}

bool TraceReader::Next(v1::TraceRecord* record) {
  size_t length = 0;
  if (!error_.empty() || torn_) return false;
  if (!ReadLength(&length)) {
    if (records_ == 0 && error_.empty()) Refuse("it is empty, or ends within its header");
    return false;
  }
  if (!Fill(length)) {
    torn_ = true;
    if (records_ == 0) Refuse("it ends within its header");
    return false;
  }
  if (!record->ParseFromArray(buffer_.data() + at_, static_cast<int>(length))) return Refuse("its bytes are no record");
  at_ += length;
  const std::string why = WhyRefused(*record);
  if (!why.empty()) return Refuse(why);
  ++records_;
  return true;
}

std::string TraceReader::WhyRefused(const v1::TraceHeader& header) {
  if (header.version() != kTraceVersion) {
    return "version " + std::to_string(header.version()) + "; this program reads " + std::to_string(kTraceVersion);
  }
  if (!IsName(header.machine()) || !IsName(header.policy())) return "machine or policy: no name";
  if (header.nodes_size() == 0 || header.nodes_size() > static_cast<int>(kMostNodes)) return "nodes: not 1 to 64";
  for (const v1::TraceNode& node : header.nodes()) {
    if (node.number() >= kMostNodes || (nodes_ >> node.number() & 1) != 0) return "nodes: a number twice, or above 63";
    const auto same = [&node](const v1::TraceNode& other) { return other.name() == node.name(); };
    if (!IsName(node.name()) || std::count_if(header.nodes().begin(), header.nodes().end(), same) != 1)
      return "nodes: no name, or one twice";
    nodes_ |= uint64_t{1} << node.number();
  }
  if (header.vcpu_nodes_size() == 0 || header.vcpu_nodes_size() > kMostVcpus) return "vcpu_nodes: not 1 to 255";
  for (const uint32_t node : header.vcpu_nodes()) {
    if (node >= kMostNodes || (nodes_ >> node & 1) == 0) return "vcpu_nodes: a node that is not there";
  }
  if (header.has_io_node() && (header.io_node() >= kMostNodes || (nodes_ >> header.io_node() & 1) == 0)) {
    return "io_node: a node that is not there";
  }
  vcpus_ = static_cast<uint32_t>(header.vcpu_nodes_size());
  return "";
}

std::string TraceReader::WhyRefused(const v1::TraceRecord& record) {
  const auto strange = [this](uint32_t node) { return node >= kMostNodes || (nodes_ >> node & 1) == 0; };
  if (record.has_header() != (records_ == 0)) {
    return records_ == 0 ? "it does not begin with a header" : "a second header";
  }
  if (record.has_header()) return WhyRefused(record.header());
  for (const v1::Stall& stall : record.stalls().stalls()) {
    if (stall.vcpu() >= vcpus_) return "a vCPU that the machine does not have";
    if (strange(stall.node())) return "a node that the machine does not have";
    if (stall.has_holder() && stall.holder() >= kMostNodes) return "a holder that is no node";
    if (stall.page() >= kMostPages) return "a page beyond any memory";
    if (stall.kind() < v1::STALL_KIND_READ || stall.kind() > v1::STALL_KIND_UPGRADE) return "an unknown kind";
    if (stall.time_ns() > kMostNs || stall.waited_ns() > kMostNs) return "a time beyond any";
  }
  if (record.has_move() && (record.move().vcpu() >= vcpus_ || strange(record.move().to())))
    return "a move of a vCPU or to a node that the machine does not have";
  if (record.move().time_ns() > kMostNs || record.dropped().time_ns() > kMostNs || record.tick().time_ns() > kMostNs)
    return "a time beyond any";
  for (const v1::TraceRan& ran : record.tick().ran()) {
    if (ran.vcpu() >= vcpus_) return "a vCPU that the machine does not have";
    if (ran.running_ns() > kMostNs || ran.ready_ns() > kMostNs) return "a time beyond any";
  }
  if (record.dropped().has_node() && strange(record.dropped().node())) return "a node that the machine does not have";
  return "";
}

}  // namespace hk
