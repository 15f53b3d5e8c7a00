// For unit tests of what coordinates spaces: the other nodes, without daemons.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "fmt/format.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/node/space_peers.h"

namespace hk {

// The others, by name: they do what they are told, and what was asked is noted. Thread-safe, but for what is set
// before.
class FakeSpacePeers final : public SpacePeers {
 public:
  absl::StatusOr<NodeId> NumberOf(const std::string&) const override { return NodeId(0); }
  absl::Status CheckUp(const std::string& node) const override {
    return down.contains(node) ? absl::UnavailableError("node '" + node + "' is unreachable") : absl::OkStatus();
  }
  absl::Status WaitDataUp(const std::vector<std::string>&) override { return absl::OkStatus(); }
  absl::Status Attach(const std::string&, const v1::AttachSpaceRequest&) override { return absl::OkStatus(); }
  absl::Status Detach(const std::string& node, uint64_t) override {
    MutexLock lock(&mutex_);
    calls_.push_back("detach " + node);
    changed_.SignalAll();
    return absl::OkStatus();
  }
  absl::StatusOr<v1::LeaveSpaceResponse> Leave(const std::string& node, const v1::LeaveSpaceRequest& request) override {
    MutexLock lock(&mutex_);
    calls_.push_back(fmt::format("{} {} {}", node, request.leave() ? "leaves" : "stays", request.number()));
    calls_.push_back(fmt::format("{} {}", node, request.leave() ? "leaves" : "stays"));
    changed_.SignalAll();
    return leaving_;
  }
  absl::StatusOr<v1::SpaceStatusResponse> Status(const std::string&, const v1::SpaceStatusRequest&) override {
    return v1::SpaceStatusResponse();
  }
  absl::StatusOr<v1::RemoveSpaceResponse> Remove(const std::string&, uint64_t) override {
    return v1::RemoveSpaceResponse();
  }
  absl::StatusOr<v1::ChangeSpaceEpochResponse> ChangeEpoch(const std::string& node,
                                                           const v1::ChangeSpaceEpochRequest& request,
                                                           std::chrono::milliseconds) override {
    const std::string call = fmt::format("{} {}", node, static_cast<int>(request.step()));
    const std::string of = fmt::format("{} of {}", call, request.epoch());
    if (before) before(of);
    MutexLock lock(&mutex_);
    calls_.push_back(of);
    requests_.push_back(request);
    changed_.SignalAll();
    if (silent.contains(node)) return absl::UnavailableError("node '" + node + "' does not answer");
    const auto found = answers.find(call);
    if (found == answers.end()) return v1::ChangeSpaceEpochResponse();
    const absl::StatusOr<v1::ChangeSpaceEpochResponse> answer = found->second;
    answers.erase(found);
    return answer;
  }
  absl::Status TellLost(const std::string& coordinator, uint64_t id, NodeId lost) override {
    MutexLock lock(&mutex_);
    calls_.push_back(fmt::format("tell {} of {} {}", coordinator, id, lost.value()));
    changed_.SignalAll();
    return absl::OkStatus();
  }
  void Fence(const std::string& node) override {
    MutexLock lock(&mutex_);
    calls_.push_back("fence " + node);
    fenced_at = std::chrono::steady_clock::now();
  }

  // Until this was called.
  std::vector<std::string> CallsUntil(const std::string& call) {
    const Monotonic limit = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    MutexLock lock(&mutex_);
    while (std::find(calls_.begin(), calls_.end(), call) == calls_.end()) {
      if (!changed_.WaitUntil(&mutex_, limit)) {
        ADD_FAILURE() << "no " << call;
        break;
      }
    }
    return calls_;
  }
  std::vector<v1::ChangeSpaceEpochRequest> all() {
    MutexLock lock(&mutex_);
    return requests_;
  }
  v1::ChangeSpaceEpochRequest last() {
    MutexLock lock(&mutex_);
    return requests_.back();
  }

  void SetLeaving(const absl::StatusOr<v1::LeaveSpaceResponse>& answer) {
    MutexLock lock(&mutex_);
    leaving_ = answer;
  }

  std::set<std::string> silent, down;
  std::function<void(const std::string&)> before;
  std::map<std::string, absl::StatusOr<v1::ChangeSpaceEpochResponse>> answers;  // by node and step, each once
  Monotonic fenced_at;

 private:
  Mutex mutex_;
  absl::StatusOr<v1::LeaveSpaceResponse> leaving_ ABSL_GUARDED_BY(mutex_) = v1::LeaveSpaceResponse();
  CondVar changed_;
  std::vector<std::string> calls_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::ChangeSpaceEpochRequest> requests_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hk
