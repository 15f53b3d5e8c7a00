#include "hyperkernel/node/agent_answer.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

namespace hk {
namespace {

using Json = nlohmann::json;

// An agent's answers to us are two levels deep and have a dozen members; the rest is room for members to come.
constexpr int kMaxDepth = 8;
constexpr int kMaxValues = 256;

// Takes the members out as the parser meets them. Every callback answers whether to go on.
class AnswerReader final : public nlohmann::json_sax<Json> {
 public:
  explicit AnswerReader(AgentAnswer* answer) : answer_(answer) {}

  bool null() override { return Count(); }
  bool boolean(bool value) override {
    if (depth_ == 2 && top_ == "return") {
      if (key_ == "exited") answer_->exited = value;
      if (key_ == "out-truncated") answer_->output_truncated = value;
      if (key_ == "err-truncated") answer_->error_output_truncated = value;
    }
    return Count();
  }
  bool number_integer(number_integer_t value) override {
    if (depth_ == 1 && top_ == "return") answer_->number = value;
    if (depth_ == 2 && top_ == "return") {
      if (key_ == "pid") answer_->pid = value;
      if (key_ == "exitcode") answer_->exit_code = value;
      if (key_ == "signal") answer_->signal = value;
    }
    return Count();
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (value > static_cast<number_unsigned_t>(std::numeric_limits<number_integer_t>::max())) return Count();
    return number_integer(static_cast<number_integer_t>(value));
  }
  bool number_float(number_float_t, const string_t&) override { return Count(); }
  bool string(string_t& value) override {
    if (depth_ == 2 && top_ == "return") {
      if (key_ == "out-data") answer_->output = std::move(value);
      if (key_ == "err-data") answer_->error_output = std::move(value);
    } else if (depth_ == 2 && top_ == "error") {
      if (key_ == "class") answer_->error_class = std::move(value);
      if (key_ == "desc") answer_->error_text = std::move(value);
    }
    return Count();
  }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override {
    depth_++;
    if (depth_ == 2 && top_ == "error") answer_->is_error = true;
    return depth_ <= kMaxDepth && Count();
  }
  bool key(string_t& name) override {
    if (depth_ == 1) top_ = name.size() <= kMaxName ? name : "";
    if (depth_ == 2) key_ = name.size() <= kMaxName ? name : "";
    return true;
  }
  bool end_object() override {
    depth_--;
    return true;
  }
  // An array's elements are at a depth of their own, where no member that we know is; outside an object it is no
  // answer.
  bool start_array(std::size_t) override {
    if (depth_ == 0) return false;
    depth_ += 2;
    return depth_ <= kMaxDepth && Count();
  }
  bool end_array() override {
    depth_ -= 2;
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception&) override { return false; }

  bool saw_object() const { return saw_object_; }

 private:
  static constexpr size_t kMaxName = 32;  // longer than any member's name that we know

  bool Count() {
    saw_object_ = saw_object_ || depth_ > 0;
    return ++values_ <= kMaxValues;
  }

  AgentAnswer* const answer_;
  int depth_ = 0;
  int values_ = 0;
  bool saw_object_ = false;
  std::string top_;  // the member of the outermost object that is being read
  std::string key_;  // the member of the object within it
};

}  // namespace

absl::StatusOr<AgentAnswer> ParseAgentAnswer(std::string_view line) {
  AgentAnswer answer;
  AnswerReader reader(&answer);
  if (!Json::sax_parse(line.begin(), line.end(), &reader) || !reader.saw_object()) {
    return absl::InvalidArgumentError("not a JSON object as guest agents send them");
  }
  return answer;
}

}  // namespace hk
