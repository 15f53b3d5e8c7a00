// A guest agent for tests: answers the requests that GuestAgentExec makes. Not thread-safe.
#pragma once

#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"

namespace hk {

// Takes bytes as a guest's agent does, and gives what it would answer.
class FakeAgent {
 public:
  // Answers to guest-exec-status, one each; the last one again and again.
  std::vector<std::string> statuses{Exited(0)};
  std::string started = R"({"return": {"pid": 7}})";
  bool silent = false;
  std::string last_exec;  // the request

  static std::string Exited(int code, std::string_view output = "", std::string_view error_output = "") {
    return R"({"return": {"exited": true, "exitcode": )" + std::to_string(code) + R"(, "out-data": ")" +
           absl::Base64Escape({output.data(), output.size()}) + R"(", "err-data": ")" +
           absl::Base64Escape({error_output.data(), error_output.size()}) + "\"}}";
  }

  std::string Answer(std::string_view bytes) {
    std::string out;
    for (const char c : bytes) {
      if (c == '\xff') {
        request_.clear();
      } else if (c == '\n') {
        if (!silent) out += AnswerTo(std::exchange(request_, {}));
      } else {
        request_ += c;
      }
    }
    return out;
  }

 private:
  std::string AnswerTo(const std::string& request) {
    if (request.find("guest-sync-delimited") != std::string::npos) {
      const size_t id = request.find("\"id\":");
      return "\xff{\"return\": " + std::to_string(std::atoll(request.c_str() + id + 5)) + "}\n";
    }
    if (request.find("guest-exec-status") != std::string::npos) {
      const std::string status = statuses.front();
      if (statuses.size() > 1) statuses.erase(statuses.begin());
      return status + "\n";
    }
    last_exec = request;
    return started + "\n";
  }

  std::string request_;
};

}  // namespace hk
