// What the layers' probes share: a question with its two texts for the operator, and the list that answers go to.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "hyperkernel/base/probe.h"

namespace hk {

// One question a layer asks of the host. Constants: a layer's questions stand in a table at the top of its probe.
struct ProbeQuestion {
  std::string_view name;  // what is asked, for people; ends in "(optional)" if a no is fine for most
  std::string_view lost;  // what does not work after a no
  std::string_view fix;   // how to turn a no into a yes
  bool required = false;  // nothing on this node works after a no
};

// Collects the answers of one group. Not thread-safe.
class ProbeGroup {
 public:
  explicit ProbeGroup(std::string_view group) : group_(group) {}

  // Adds an answer. `lost` and `fix` are kept for a no only. `detail` is one line.
  void Answer(const ProbeQuestion& question, bool yes, std::string detail) {
    items_.push_back({.group = group_,
                      .name = std::string(question.name),
                      .yes = yes,
                      .detail = std::move(detail),
                      .lost = yes ? std::string() : std::string(question.lost),
                      .fix = yes ? std::string() : std::string(question.fix),
                      .required = question.required});
  }
  void Yes(const ProbeQuestion& question, std::string detail) { Answer(question, true, std::move(detail)); }
  void No(const ProbeQuestion& question, std::string detail) { Answer(question, false, std::move(detail)); }

  // The answers so far; the group is empty afterwards.
  ProbeItems Take() { return std::exchange(items_, {}); }

 private:
  std::string group_;
  ProbeItems items_;
};

}  // namespace hk
