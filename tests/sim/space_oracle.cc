#include "tests/sim/space_oracle.h"

#include <algorithm>

#include "fmt/format.h"

namespace hk::sim {

void SpaceOracle::Report(const std::string& violation) {
  if (violations_.size() < 10) violations_.push_back(violation);
  simulation_->Trace("VIOLATION " + violation);
}

void SpaceOracle::OnAccess(NodeId node, Gfn page, PageAccess access) {
  simulation_->Trace(fmt::format("{} access {} {}", node.value(), page.value(), static_cast<int>(access)));
  std::map<NodeId, PageAccess>& all = access_[page.value()];
  all[node] = access;
  last_[page.value()] = node;
  std::set<NodeId>& went = went_[page.value()];
  if (access == PageAccess::kNone) {
    went.insert(node);
  } else {
    went.clear();
  }
  for (const auto& [other, right] : all) {
    if (other == node || right == PageAccess::kNone || access == PageAccess::kNone || dead_.contains(other.value())) {
      continue;
    }
    if (right == PageAccess::kWrite || access == PageAccess::kWrite) {
      Report(fmt::format("nodes {} and {} have page {} at once, with access {} and {}", node.value(), other.value(),
                         page.value(), static_cast<int>(access), static_cast<int>(right)));
    }
  }
}

void SpaceOracle::OnLoad(NodeId node, Gfn page, size_t word, uint64_t value) {
  ++loads_;
  simulation_->Trace(fmt::format("{} load {}.{} {}", node.value(), page.value(), word, value));
  const uint64_t expected = expected_[page.value()][word];
  if (value != expected) {
    Report(fmt::format("node {} loads {} from word {} of page {}, which is {}", node.value(), value, word, page.value(),
                       expected));
  }
}

void SpaceOracle::OnStore(NodeId node, Gfn page, size_t word, uint64_t value) {
  simulation_->Trace(fmt::format("{} store {}.{} {}", node.value(), page.value(), word, value));
  expected_[page.value()][word] = value;
  stored_.insert(page.value());
}

void SpaceOracle::OnCrash(NodeId node, const std::set<uint64_t>& wanted) {
  dead_.insert(node.value());
  gone_.insert(wanted.begin(), wanted.end());
  for (const auto& [page, last] : last_) {
    if (!HeldBySomebody(Gfn(page)) && dead_.contains(last.value())) gone_.insert(page);
    // It may have given the page away, and the bytes did not arrive; readers may have it until they hear of the writer.
    if (!HeldBySomebody(Gfn(page)) && access_[page].contains(node)) had_.insert(page);
    if (went_[page].contains(node)) had_.insert(page);
    if (access_[page].contains(node) && access_[page][node] != PageAccess::kNone) {
      had_.insert(page);
      if (!HeldBySomebody(Gfn(page))) gone_.insert(page);
    }
  }
}

void SpaceOracle::OnComes(NodeId node) {
  dead_.erase(node.value());
  for (auto& [page, all] : access_) all.erase(node);
}

bool SpaceOracle::MayBeLost(Gfn page) const {
  const bool owner_lost = had_.contains(page.value()) && wished_.contains(page.value());
  return !stored_.contains(page.value()) || gone_.contains(page.value()) || owner_lost;
}

bool SpaceOracle::HeldBySomebody(Gfn page) const {
  const auto found = access_.find(page.value());
  if (found == access_.end()) return false;
  return std::any_of(found->second.begin(), found->second.end(), [this](const auto& holder) {
    return holder.second != PageAccess::kNone && !dead_.contains(holder.first.value());
  });
}

}  // namespace hk::sim
