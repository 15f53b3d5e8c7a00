// The part of the space manager that looks at spaces and uses their memory.

#include <algorithm>
#include <span>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/membership.h"
#include "hyperkernel/node/space_manager.h"

namespace hk {
namespace {

v1::SpaceState StateOf(bool creating, bool deleting, bool stopped) {
  if (creating) return v1::SPACE_STATE_CREATING;
  if (deleting) return v1::SPACE_STATE_DELETING;
  return stopped ? v1::SPACE_STATE_STOPPED : v1::SPACE_STATE_RUNNING;
}

absl::Status NoSuchSpace(const std::string& name, const std::string& self) {
  return absl::NotFoundError(
      fmt::format("no space '{}' on node '{}'; see hkctl space list, on one of the space's nodes", name, self));
}

// What the memory of this node says, which knows nodes by number only, for people.
absl::Status Told(const absl::Status& status, const SpaceIdentity& space, const std::string& self) {
  if (status.ok()) return status;
  return WithContext(absl::Status(status.code(), WithNodeNames(MessageOf(status), space.members)),
                     fmt::format("node '{}'", self));
}

// From now until the next look. `lost`: the most lost first.
void LookFor(const std::vector<HotPage>& lost, PageLookout* lookout) {
  std::vector<Gfn> pages;
  for (const HotPage& page : lost) {
    if (pages.size() == PageLookout::kMostPages) break;
    pages.push_back(page.page);
  }
  lookout->Want(pages);
}

v1::GuestAccess ToProto(const GuestAccess& access) {
  v1::GuestAccess out;
  out.set_vcpu(access.vcpu.value());
  out.set_code(access.code);
  out.set_user(access.user);
  if (access.address.has_value()) out.set_address(*access.address);
  return out;
}

}  // namespace

absl::StatusOr<SpaceManager::View> SpaceManager::FindName(const std::string& name) const {
  MutexLock lock(&mutex_);
  const auto found = entries_.find(name);
  if (found == entries_.end()) return NoSuchSpace(name, self_);
  const Entry& entry = found->second;
  return View{entry.identity, entry.phase, entry.since, entry.part};
}

absl::StatusOr<SpaceManager::View> SpaceManager::FindId(uint64_t id) const {
  MutexLock lock(&mutex_);
  for (const auto& [name, entry] : entries_) {
    if (entry.identity.id == id) return View{entry.identity, entry.phase, entry.since, entry.part};
  }
  return absl::NotFoundError("no such space; its daemon was started anew, or it is deleted");
}

absl::StatusOr<SpaceManager::View> SpaceManager::FindRunning(const std::string& name) const {
  HK_ASSIGN_OR_RETURN(View view, FindName(name));
  if (view.phase != Phase::kAttached) {
    return absl::FailedPreconditionError(
        fmt::format("space '{}' is being {}", name, view.phase == Phase::kCreating ? "made" : "deleted"));
  }
  if (const auto stop = view.part->stop(); stop.has_value()) {
    return absl::FailedPreconditionError(
        fmt::format("space '{}' is stopped on node '{}': {}", name, self_, MessageOf(stop->why)));
  }
  return view;
}

v1::SpacePart SpaceManager::PartOf(const View& view) const {
  v1::SpacePart part;
  part.set_node(self_);
  const auto stop = view.part == nullptr ? std::nullopt : view.part->stop();
  part.set_state(StateOf(view.phase == Phase::kCreating, view.phase == Phase::kDeleting, stop.has_value()));
  const bool stopped = part.state() == v1::SPACE_STATE_STOPPED;
  if (stopped) part.set_reason(MessageOf(stop->why));
  *part.mutable_since() = ToTimestamp(stopped ? stop->at : view.since);
  if (view.part == nullptr) return part;
  part.set_epoch(view.part->epoch());
  part.set_machine(view.part->held());
  static_cast<void>(view.part->Use([&](GuestSpace* memory) {
    const bool swaps = view.identity.node_swap_bytes > 0;
    part.set_frame_bytes(memory->frame_bytes());
    if (swaps) part.set_swapped_bytes(memory->Statistics().pages_swapped * kPageSize);
    const SpaceLeaving leaving = memory->engine().LeavingState();
    part.set_leaving(leaving.leaving);
    if (leaving.leaving) {
      part.set_bytes_to_give(leaving.pages_left * kPageSize);
      part.set_bytes_pinned(leaving.pages_pinned * kPageSize);
    }
    const SpaceEpochState epoch = memory->engine().EpochState();
    part.set_pages_lost(epoch.pages_lost);
    for (const SpaceMemberId& member : view.identity.members) {
      const auto lost = epoch.pages_lost_with.find(member.number);
      if (lost == epoch.pages_lost_with.end()) continue;
      v1::SpaceLostPages& pages = *part.add_pages_lost_with();
      pages.set_node(member.name);
      pages.set_pages(lost->second);
    }
    return absl::OkStatus();
  }));
  return part;
}

v1::Space SpaceManager::SpaceOf(const View& view) const {
  // Before who has left: a drain that is over by now is seen to be so there.
  const std::optional<SpaceDrains::Drain> drain = drains_.Of(view.identity.id);
  v1::Space space;
  space.set_name(view.identity.name);
  space.set_id(view.identity.id);
  space.set_memory_bytes(view.identity.bytes);
  space.set_node_frames_bytes(view.identity.node_frame_bytes);
  space.set_node_swap_bytes(view.identity.node_swap_bytes);
  space.set_node_vcpus(view.identity.node_vcpus);
  std::vector<std::string> names;
  for (const SpaceMemberId& member : view.identity.members) names.push_back(member.name);
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) {
    space.add_nodes(name);
    const uint64_t own = view.identity.Find(name)->frame_bytes;
    if (own == 0) continue;
    v1::SpaceNodeFrames& frames = *space.add_own_frames();
    frames.set_node(name);
    frames.set_frames_bytes(own);
  }
  space.set_coordinator(view.identity.coordinator);
  const v1::SpacePart part = PartOf(view);
  space.set_state(part.state());
  space.set_reason(part.reason());
  *space.mutable_since() = part.since();
  *space.mutable_created() = ToTimestamp(view.identity.created);
  space.set_frame_bytes(part.frame_bytes());
  space.set_swapped_bytes(part.swapped_bytes());
  space.set_epoch(part.epoch());
  if (view.part == nullptr) return space;
  for (const SpacePart::Loss& loss : view.part->losses()) {
    v1::SpaceLoss& out = *space.add_lost();
    for (const SpaceMemberId& member : view.identity.members) {
      if (member.number == loss.node) out.set_node(member.name);
    }
    out.set_epoch(loss.epoch);
    out.set_left(loss.left);
    *out.mutable_since() = ToTimestamp(loss.since);
  }
  if (!drain.has_value()) return space;
  v1::SpaceDrain& out = *space.mutable_drain();
  out.set_node(drain->node);
  *out.mutable_since() = ToTimestamp(drain->since);
  *out.mutable_progress() = ToTimestamp(drain->progress);
  out.set_bytes_to_give(drain->pages_left.value_or(0) * kPageSize);
  out.set_bytes_pinned(drain->pages_pinned * kPageSize);
  out.set_reason(drain->cancelled                ? "it is to stay after all"
                 : drain->pages_left.has_value() ? drain->reason
                                                 : "it was not asked yet");
  return space;
}

v1::SpaceStatusResponse SpaceManager::StatusOf(const View& view, const v1::SpaceStatusRequest& request) const {
  v1::SpaceStatusResponse response;
  *response.mutable_part() = PartOf(view);
  if (view.part == nullptr) return response;
  static_cast<void>(view.part->Use([&](GuestSpace* memory) {
    *response.mutable_counters() = CountersOf(memory->Statistics());
    response.mutable_counters()->set_counted_at_ns(
        static_cast<uint64_t>(std::chrono::nanoseconds(clock_.Now().time_since_epoch()).count()));
    const size_t most_hot = std::min(request.most_hot_pages(), kMaxHotPages);
    const std::vector<HotPage> lost = most_hot == 0 ? std::vector<HotPage>() : memory->engine().MostLost(most_hot);
    PageLookout* const lookout = memory->faults() == nullptr ? nullptr : &memory->faults()->lookout();
    if (lookout != nullptr && most_hot != 0) LookFor(lost, lookout);
    for (const HotPage& page : lost) {
      v1::HotPage& hot = *response.add_hot_pages();
      hot.set_address(GpaOf(page.page).value());
      hot.set_losses(page.losses);
      hot.set_owner_losses(page.owner_losses);
      for (const SpaceMemberId& member : view.identity.members) {
        if (member.number == page.taker) hot.set_taker(member.name);
      }
      const std::optional<GuestAccess> seen = lookout == nullptr ? std::nullopt : lookout->Seen(page.page);
      if (seen.has_value()) *hot.mutable_access() = ToProto(*seen);
    }
    const size_t most = std::min(request.most_extents(), kMaxExtentsPerCall);
    if (most == 0) return absl::OkStatus();
    for (const ExtentUse& use : memory->Uses(request.first_extent(), most)) {
      v1::ExtentHolding& extent = *response.add_extents();
      extent.set_extent(use.extent);
      extent.set_shared(use.shared);
      extent.set_owned(use.owned);
      extent.set_exclusive(use.exclusive);
      extent.set_heat(use.heat);
    }
    return absl::OkStatus();
  }));
  return response;
}

absl::StatusOr<v1::SpaceStatusResponse> SpaceManager::Status(const v1::SpaceStatusRequest& request) const {
  HK_ASSIGN_OR_RETURN(const View view, FindId(request.id()));
  return StatusOf(view, request);
}

std::vector<v1::SpaceStatusResponse> SpaceManager::AskAll(const View& view, uint64_t first_extent, uint32_t most,
                                                          uint32_t most_hot_pages) const {
  v1::SpaceStatusRequest request;
  request.set_from(self_);
  request.set_id(view.identity.id);
  request.set_first_extent(first_extent);
  request.set_most_extents(most);
  request.set_most_hot_pages(most_hot_pages);
  std::vector<v1::SpaceStatusResponse> answers;
  NodeSet left;  // have no part any more
  if (view.part != nullptr) {
    for (const SpacePart::Loss& loss : view.part->losses()) {
      if (loss.left) left.Add(loss.node);
    }
  }
  for (const SpaceMemberId& member : view.identity.members) {
    if (left.Contains(member.number)) continue;
    if (member.name == self_) {
      answers.push_back(StatusOf(view, request));
      continue;
    }
    absl::Status status = peers_->CheckUp(member.name);
    if (status.ok()) {
      absl::StatusOr<v1::SpaceStatusResponse> answer = peers_->Status(member.name, request);
      if (answer.ok()) answers.push_back(*std::move(answer));
      status = answer.status();
    }
    if (status.ok()) continue;
    answers.emplace_back().mutable_part()->set_reason(MessageOf(status));
    answers.back().mutable_part()->set_node(member.name);
  }
  std::sort(answers.begin(), answers.end(),
            [](const auto& a, const auto& b) { return a.part().node() < b.part().node(); });
  return answers;
}

std::vector<SpaceSample> SpaceManager::Samples() const {
  std::vector<std::pair<std::string, std::shared_ptr<SpacePart>>> parts;
  {
    MutexLock lock(&mutex_);
    for (const auto& [name, entry] : entries_) {
      if (entry.part != nullptr) parts.emplace_back(name, entry.part);
    }
  }
  std::vector<SpaceSample> samples;
  for (const auto& [name, part] : parts) {
    SpaceSample sample{.space = name, .running = !part->stop().has_value(), .statistics = {}};
    const absl::Status used = part->Use([&sample](GuestSpace* memory) {
      sample.statistics = memory->Statistics();
      sample.frame_bytes = memory->frame_bytes();
      return absl::OkStatus();
    });
    if (used.ok()) samples.push_back(std::move(sample));  // else it is being deleted
  }
  return samples;
}

std::vector<v1::Space> SpaceManager::List() const {
  std::vector<View> views;
  {
    MutexLock lock(&mutex_);
    for (const auto& [name, entry] : entries_) views.push_back({entry.identity, entry.phase, entry.since, entry.part});
  }
  std::vector<v1::Space> spaces;
  for (const View& view : views) spaces.push_back(SpaceOf(view));
  return spaces;
}

absl::StatusOr<v1::Space> SpaceManager::Get(const std::string& name) const {
  HK_ASSIGN_OR_RETURN(const View view, FindName(name));
  v1::Space space = SpaceOf(view);
  for (v1::SpaceStatusResponse& answer : AskAll(view, 0, 0, 0)) {
    // A node that was lost and lives has a part of an epoch that is over.
    if (answer.part().epoch() == space.epoch()) {
      space.set_pages_lost(space.pages_lost() + answer.part().pages_lost());
      for (v1::SpaceLoss& loss : *space.mutable_lost()) {
        for (const v1::SpaceLostPages& lost : answer.part().pages_lost_with()) {
          if (lost.node() == loss.node()) loss.set_pages_lost(loss.pages_lost() + lost.pages());
        }
      }
    }
    *space.add_parts() = std::move(*answer.mutable_part());
  }
  return space;
}

absl::StatusOr<std::string> SpaceManager::Read(const std::string& name, uint64_t address, uint32_t bytes,
                                               Monotonic deadline) {
  HK_ASSIGN_OR_RETURN(const View view, FindRunning(name));
  HK_RETURN_IF_ERROR(CheckSpaceRange(view.identity.bytes, address, bytes));
  std::string data(bytes, '\0');
  const absl::Status status = view.part->Use([&](GuestSpace* memory) {
    return memory->Read(Gpa(address), std::as_writable_bytes(std::span(data)),
                        std::min(deadline, clock_.Now() + kSpaceIoLimit));
  });
  if (!status.ok()) return Told(status, view.identity, self_);
  return data;
}

absl::Status SpaceManager::Write(const std::string& name, uint64_t address, const std::string& data,
                                 Monotonic deadline) {
  HK_ASSIGN_OR_RETURN(const View view, FindRunning(name));
  HK_RETURN_IF_ERROR(CheckSpaceRange(view.identity.bytes, address, data.size()));
  const absl::Status status = view.part->Use([&](GuestSpace* memory) {
    return memory->Write(Gpa(address), std::as_bytes(std::span(data)),
                         std::min(deadline, clock_.Now() + kSpaceIoLimit));
  });
  return Told(status, view.identity, self_);
}

absl::StatusOr<v1::SpaceMapResponse> SpaceManager::Map(const std::string& name, uint64_t first_extent) const {
  HK_ASSIGN_OR_RETURN(const View view, FindName(name));
  v1::SpaceMapResponse response;
  *response.mutable_space() = SpaceOf(view);
  std::vector<NodeExtents> nodes;
  for (v1::SpaceStatusResponse& answer : AskAll(view, first_extent, kMaxExtentsPerCall, 0)) {
    if (answer.part().state() == v1::SPACE_STATE_UNSPECIFIED) {
      *response.add_missing() = std::move(*answer.mutable_part());
    } else {
      nodes.push_back({answer.part().node(), {answer.extents().begin(), answer.extents().end()}});
    }
  }
  response.set_next_extent(MergeExtents(nodes, &response));
  if (view.part == nullptr) return response;
  static_cast<void>(view.part->Use([&](GuestSpace* memory) {
    for (v1::SpaceExtent& extent : *response.mutable_extents()) {
      // A peer that tells of more than there is must not lead the engine astray.
      if (extent.extent() > (view.identity.bytes - 1) / (kExtentPages * kPageSize)) continue;
      const NodeId home = memory->engine().HomeOf(Gfn(extent.extent() * kExtentPages));
      for (const SpaceMemberId& member : view.identity.members) {
        if (member.number == home) extent.set_home(member.name);
      }
    }
    return absl::OkStatus();
  }));
  return response;
}

absl::StatusOr<v1::SpaceTopResponse> SpaceManager::Top(const std::string& name) const {
  HK_ASSIGN_OR_RETURN(const View view, FindName(name));
  v1::SpaceTopResponse response;
  *response.mutable_space() = SpaceOf(view);
  const uint32_t most =
      std::min(kMaxHotPages, kMaxHotPagesTogether / static_cast<uint32_t>(view.identity.members.size()));
  for (v1::SpaceStatusResponse& answer : AskAll(view, 0, 0, most)) {
    v1::SpaceNodeCounters& node = *response.add_nodes();
    *node.mutable_part() = std::move(*answer.mutable_part());
    if (answer.has_counters()) *node.mutable_counters() = std::move(*answer.mutable_counters());
    // Of a peer as much as it should have said.
    for (int i = 0; i < std::min<int>(answer.hot_pages_size(), static_cast<int>(most)); i++)
      *node.add_hot_pages() = std::move(*answer.mutable_hot_pages(i));
  }
  return response;
}

}  // namespace hk
