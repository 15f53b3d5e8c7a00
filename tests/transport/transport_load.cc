// One node of a pair that exchange pages over verbs, for tests between hosts and for benches. `serve` answers every
// request with a page; the others ask:
//   latency    one request at a time; prints the median and 99th percentile of --count round trips
//   bulk       all bulk slots in flight; prints the rate of --count answers of 64 KiB
//   transfer   all fault slots in flight, each page checked byte by byte, until the peer fails, or --count pages came
//   and
//              --reconnects connections were made again
// One JSON line on standard output for the result; "up", "progress" (every 200 pages) and "failed REASON" lines as they
// happen.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/status.h"
#include "rdma/transport.h"
#include "rdma/verbs_transport.h"

namespace hk {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

constexpr uint16_t kRequest = kFirstUserType, kAnswer = kFirstUserType + 1;
constexpr std::chrono::seconds kHangGuard(300);
constexpr uint64_t kTransferDepth = 32;
constexpr uint64_t kProgressPages = 200;

// What stands in a page, told by its number alone.
void FillPage(uint64_t number, std::span<std::byte> page) {
  for (size_t i = 0; i < page.size(); i += sizeof(uint64_t)) {
    const uint64_t word = (number + 1) * 0x9e3779b97f4a7c15 + i;
    std::memcpy(page.data() + i, &word, sizeof word);
  }
}

bool IsPage(uint64_t number, std::span<const std::byte> page) {
  std::vector<std::byte> expected(page.size());
  FillPage(number, expected);
  return std::ranges::equal(page, expected);
}

// The handler of both ends. Members without a lock are set before Start, or are one class's thread's.
class Load final : public TransportHandler {
 public:
  Transport* transport = nullptr;
  std::string mode;
  NodeId peer;
  uint64_t count = 0, reconnects = 0;
  bool check = false, stay = false;
  TransportSettings settings;

  MessageClass Class() const { return mode == "bulk" ? MessageClass::kBulk : MessageClass::kFault; }

  void OnMessage(NodeId from, const Message& message, std::span<const std::byte> payload, bool late) override {
    if (message.type == kRequest) return Answer(from, message);
    if (message.type != kAnswer) return;
    // Those that were under way when the last one that counts came.
    if (all_came_) return transport->ReleaseSlot(message.slot);
    const auto now = Clock::now();
    const auto asked = asked_.find(message.transaction);
    if (late || asked == asked_.end()) {
      ++wrong_;
    } else {
      latencies_.push_back(std::chrono::duration<double, std::micro>(now - asked->second).count());
      asked_.erase(asked);
      if (mode == "transfer" && !IsPage(message.transaction, payload)) ++wrong_;
    }
    last_ = now;
    transport->ReleaseSlot(message.slot);
    if (++answered_ % kProgressPages == 0 && mode == "transfer") Say("progress");
    all_came_ = answered_ >= count && (reconnects == 0 || Reconnects() >= reconnects);
    if (all_came_) return Finish();
    Ask();
  }
  void OnPeerUp(NodeId /*node*/) override {
    Say("up");
    if (mode == "serve") return;
    first_ = Clock::now();
    // No message is delivered before this returns: nobody else asks yet.
    const uint64_t in_flight = mode == "latency" ? 1 : mode == "bulk" ? settings.bulk_receive_slots : kTransferDepth;
    for (uint64_t i = 0; i < in_flight; ++i) Ask();
  }
  void OnPeerFailed(NodeId /*node*/, PeerFailure why, const std::string& detail) override {
    const auto quiet = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - last_).count();
    Say(fmt::format("failed {} after {} ms: {}", static_cast<int>(why), quiet, detail));
    if (mode != "serve" && !stay) Finish();
  }
  void OnWritable(NodeId /*peer*/, MessageClass /*message_class*/) override {}
  void OnSlotsFree(MessageClass /*message_class*/, SlotUse /*use*/) override {}
  void OnRequestExpired(NodeId /*asked*/, MessageClass /*message_class*/, uint64_t /*transaction*/, SlotId /*slot*/,
                        RequestFailure /*why*/) override {
    ++expired_;
  }

  void Ask() {
    const auto slot = transport->AcquireSlot(Class(), SlotUse::kReceive);
    if (!slot.ok()) return;
    Message request;
    request.message_class = Class();
    request.type = kRequest;
    request.transaction = next_++;
    request.slot_node = NodeId(0);
    request.slot = *slot;
    asked_[request.transaction] = Clock::now();
    if (!transport->Send(peer, request).ok()) transport->ReleaseSlot(*slot);
  }

  bool WaitUntilDone() {
    const auto guard = Clock::now() + kHangGuard;
    MutexLock lock(&mutex_);
    while (!done_ && changed_.WaitUntil(&mutex_, guard)) {
    }
    return done_;
  }

  void Report() {
    std::ranges::sort(latencies_);
    const auto at = [&](double part) {
      return latencies_.empty() ? 0
                                : latencies_[static_cast<size_t>(part * static_cast<double>(latencies_.size() - 1))];
    };
    const double seconds = std::chrono::duration<double>(last_ - first_).count();
    const double bytes = static_cast<double>(answered_) * (mode == "bulk" ? kBulkSlotBytes : kFaultSlotBytes);
    Say(fmt::format(
        R"({{"mode": "{}", "answered": {}, "wrong": {}, "p50_us": {:.2f}, "p99_us": {:.2f}, "mb_s": {:.2f}, "reconnects": {}}})",
        mode, answered_.load(), wrong_.load(), at(0.5), at(0.99), seconds > 0 ? bytes / seconds / 1e6 : 0,
        Reconnects()));
  }

 private:
  uint64_t Reconnects() const {
    const auto statistics = transport->Statistics(peer);
    uint64_t sum = 0;
    if (statistics.ok()) {
      for (const ClassStatistics& one : statistics->classes) sum += one.reconnects;
    }
    return sum;
  }
  void Answer(NodeId from, const Message& request) {
    const bool bulk = request.message_class == MessageClass::kBulk;
    const auto slot = transport->AcquireSlot(request.message_class, SlotUse::kSend);
    if (!slot.ok()) {
      ++wrong_;  // as many as the other end has receive slots: there is one
      return;
    }
    const uint32_t size = bulk ? kBulkSlotBytes : kFaultSlotBytes;
    if (check) FillPage(request.transaction, transport->SlotBytes(*slot).first(size));
    Message answer = request;
    answer.type = kAnswer;
    answer.answer = true;
    answer.body = {};
    SendOptions options;
    options.payload = *slot;
    options.payload_bytes = size;
    // The peer may have failed meanwhile.
    static_cast<void>(transport->Send(from, answer, options));
    transport->ReleaseSlot(*slot);
  }
  void Finish() {
    MutexLock lock(&mutex_);
    done_ = true;
    changed_.SignalAll();
  }
  static void Say(const std::string& line) {
    std::cout << line << std::endl;  // NOLINT: whoever reads waits for it
  }

  Mutex mutex_;
  CondVar changed_;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  std::atomic<uint64_t> answered_{0}, wrong_{0}, expired_{0};
  bool all_came_ = false;
  uint64_t next_ = 0;
  std::map<uint64_t, Clock::time_point> asked_;
  std::vector<double> latencies_;
  Clock::time_point first_{}, last_{};
};

int Main(int argc, char** argv) {
  CLI::App app{"one node of a pair that exchange pages over verbs"};
  std::string mode, listen, peer;
  uint64_t count = 1000, reconnects = 0;
  uint32_t lease_ms = 2000;
  bool check = false, stay = false;
  app.add_option("mode", mode)->required()->check(CLI::IsMember({"serve", "latency", "bulk", "transfer"}));
  app.add_option("--listen", listen, "IP:PORT")->required();
  app.add_option("--peer", peer, "IP:PORT of the other")->required();
  app.add_option("--count", count, "answers");
  app.add_option("--reconnects", reconnects, "go on until so many connections were made again");
  app.add_option("--lease-ms", lease_ms);
  app.add_flag("--check", check, "serve: fill each page by its number");
  app.add_flag("--stay", stay, "go on when the peer has failed, until standard input ends");
  CLI11_PARSE(app, argc, argv);

  TransportSettings settings;
  settings.cluster = "load";
  settings.self = NodeId(mode == "serve" ? 1 : 0);
  settings.lease_ms = lease_ms;
  settings.heartbeat_ms = std::min(settings.heartbeat_ms, lease_ms / 4);
  settings.request_ms = std::max(settings.request_ms, 2 * lease_ms);  // none expires while connections are made again
  Load load;
  load.mode = mode;
  load.settings = settings;
  load.check = check;
  load.stay = stay;
  load.count = count;
  load.reconnects = reconnects;
  load.peer = NodeId(mode == "serve" ? 0 : 1);
  auto transport = MakeVerbsTransport(settings, listen, &load);
  absl::Status status = transport.status();
  if (status.ok()) {
    load.transport = transport->get();
    status = (*transport)->Start();
  }
  if (status.ok()) status = (*transport)->AddPeer(load.peer, peer);
  if (!status.ok()) {
    std::cerr << MessageOf(status) << "\n";
    return 1;
  }
  if (mode == "serve" || stay) {
    // Until whoever started us ends.
    char byte;
    while (::read(STDIN_FILENO, &byte, 1) > 0) {
    }
    (*transport)->Stop();
    if (stay) load.Report();
    return 0;
  }
  const bool done = load.WaitUntilDone();
  (*transport)->Stop();
  load.Report();
  return done ? 0 : 1;
}

}  // namespace
}  // namespace hk

int main(int argc, char** argv) {
  return hk::Main(argc, argv);
}
