// What a node tells of the nodes that its space goes on without: since when, and which one had a page that is Lost.
#include <chrono>
#include <string>

#include "fmt/chrono.h"
#include "fmt/format.h"
#include "hyperkernel/memory/space_engine_impl.h"

namespace hk::space {
namespace {

// Nodes that are named where any of them may have had a page: the reason must fit a message to the others (256 bytes).
constexpr int kMostNamed = 3;

std::string Since(int64_t unix_s) {
  return fmt::format("lost since {:%Y-%m-%d %H:%M:%S}Z", fmt::gmtime(static_cast<std::time_t>(unix_s)));
}

}  // namespace

void Engine::NoteLosses(NodeSet lost) {
  const auto now = std::chrono::duration_cast<std::chrono::seconds>(clock_.Wall().time_since_epoch()).count();
  for (const NodeId node : config_.nodes) {
    if (lost.Contains(node)) lost_at_s_[node.value()].store(now);
  }
}

std::string Engine::WhyLost(NodeId had_it) const {
  const int64_t at = IsNode(had_it) ? lost_at_s_[had_it.value()].load() : 0;
  if (at != 0) return fmt::format("it is lost: node {} had its only copy, and is {}", had_it.value(), Since(at));
  std::string named;
  int count = 0;
  for (const NodeId node : config_.nodes) {
    const int64_t lost_at = lost_at_s_[node.value()].load();
    if (lost_at == 0 || ++count > kMostNamed) continue;
    named += fmt::format("{}node {} ({})", named.empty() ? "" : ", ", node.value(), Since(lost_at));
  }
  if (named.empty()) return "it is lost, and it is not known with which node";
  if (count > kMostNamed) named += fmt::format(" and {} more", count - kMostNamed);
  return fmt::format("it is lost: one of {} had its only copy", named);
}

}  // namespace hk::space
