#include "hyperkernel/node/space_part.h"

#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

// As much as a machine's own memory fills (guest_memory.cc): a kernel touches memory in runs, and a fault costs far
// more than a page of zeroes.
constexpr uint32_t kFillAroundPages = 16;

}  // namespace

absl::StatusOr<std::unique_ptr<SpacePart>> SpacePart::Attach(const SpaceIdentity& space, NodeId self,
                                                             const SpaceFactory& factory, const Clock& clock,
                                                             std::function<void(NodeId)> lost) {
  auto note = std::make_shared<Note>();
  GuestSpace::Options options;
  options.config.guest = GuestId(space.id);
  options.config.self = self;
  for (const SpaceMemberId& member : space.cluster.empty() ? space.members : space.cluster) {
    options.config.nodes.push_back(member.number);
  }
  for (const SpaceMemberId& member : space.members) options.config.live.Add(member.number);
  if (!space.committed.empty()) {
    options.config.live = space.committed.back();
    options.config.committed = space.committed;
    options.config.epoch = Epoch(space.epoch);
  }
  if (const SpaceMemberId* const coordinator = space.Find(space.coordinator)) {
    options.config.coordinator = coordinator->number;
  }
  options.config.homes_at_coordinator = space.homes_at_coordinator;
  if (space.homes_at_coordinator) options.config.fill_around = kFillAroundPages;
  options.lost = std::move(lost);
  options.config.pages = space.bytes / kPageSize;
  uint64_t frame_bytes = space.node_frame_bytes;
  for (const SpaceMemberId& member : space.members) {
    if (member.number == self) frame_bytes = space.FramesOf(member);
  }
  options.config.max_pages = frame_bytes < space.bytes ? frame_bytes / kPageSize : 0;
  options.config.vcpus = space.node_vcpus;
  options.config.swap_pages = options.config.max_pages == 0 ? 0 : space.node_swap_bytes / kPageSize;
  // A machine of the same name has NAME.GENERATION; a dot is in no machine's name.
  options.name = space.name + ".space";
  options.stopped = [note, &clock, name = space.name,
                     members = space.cluster.empty() ? space.members : space.cluster](const absl::Status& cause) {
    const absl::Status why(cause.code(), WithNodeNames(MessageOf(cause), members));
    std::function<void(const absl::Status&)> watcher;
    {
      MutexLock lock(&note->mutex);
      if (note->stop.has_value()) return;
      note->stop = Stop{why, clock.Wall()};
      watcher = std::exchange(note->watcher, nullptr);
    }
    if (watcher) watcher(why);
    // Cancelled: by an operator, or because the daemon ends.
    log::Write(absl::IsCancelled(why) ? log::Level::kInfo : log::Level::kWarning, "space", "stopped",
               {{"guest", name}, {"reason", MessageOf(why)}});
  };
  HK_ASSIGN_OR_RETURN(std::unique_ptr<GuestSpace> memory, factory(std::move(options)));
  return std::unique_ptr<SpacePart>(new SpacePart(std::move(note), std::move(memory)));
}

absl::Status SpacePart::Use(const std::function<absl::Status(GuestSpace*)>& body) {
  {
    MutexLock lock(&mutex_);
    if (closing_) return absl::FailedPreconditionError("the space is being deleted");
    users_++;
  }
  const absl::Status status = body(memory_.get());
  MutexLock lock(&mutex_);
  users_--;
  unused_.SignalAll();
  return status;
}

absl::StatusOr<std::shared_ptr<GuestSpace>> SpacePart::Hold(const std::shared_ptr<SpacePart>& part,
                                                            std::function<void(const absl::Status&)> stopped) {
  {
    MutexLock lock(&part->mutex_);
    if (part->closing_) return absl::FailedPreconditionError("the space is being deleted");
    if (part->held_) return absl::FailedPreconditionError("the space is a machine's already");
    if (part->memory_->engine().LeavingState().leaving) {
      return absl::FailedPreconditionError("the node is being drained of the space; wait for that, or cancel it");
    }
    part->held_ = true;
    part->users_++;
  }
  std::optional<Stop> stop;
  {
    MutexLock lock(&part->note_->mutex);
    stop = part->note_->stop;
    if (!stop.has_value()) part->note_->watcher = stopped;
  }
  if (stop.has_value()) stopped(stop->why);
  return std::shared_ptr<GuestSpace>(part->memory_.get(), [part](GuestSpace*) { part->LetGo(); });
}

void SpacePart::LetGo() {
  {
    MutexLock lock(&note_->mutex);
    note_->watcher = nullptr;
  }
  MutexLock lock(&mutex_);
  held_ = false;
  users_--;
  unused_.SignalAll();
}

bool SpacePart::held() const {
  MutexLock lock(&mutex_);
  return held_;
}

absl::StatusOr<SpaceLeaving> SpacePart::Leave(uint64_t number, bool leave) {
  MutexLock lock(&orders_mutex_);
  if (number <= last_order_ && !HK_MUTANT(space_late_order_counts)) {
    return absl::AbortedError(fmt::format("order {} to leave or stay came after order {}", number, last_order_));
  }
  last_order_ = number;
  SpaceLeaving state;
  HK_RETURN_IF_ERROR(Use([&](GuestSpace* memory) {
    memory->engine().Leave(leave);
    state = memory->engine().LeavingState();
    return absl::OkStatus();
  }));
  return state;
}

void SpacePart::StopNow(const absl::Status& why) {
  static_cast<void>(Use([&why](GuestSpace* memory) {
    memory->engine().Stop(why);
    return absl::OkStatus();
  }));
}

bool SpacePart::Close(Monotonic deadline) {
  MutexLock lock(&mutex_);
  closing_ = true;
  while (users_ > 0) {
    if (!unused_.WaitUntil(&mutex_, deadline) && users_ > 0) return false;
  }
  memory_.reset();
  return true;
}

std::optional<SpacePart::Stop> SpacePart::stop() const {
  MutexLock lock(&note_->mutex);
  return note_->stop;
}

void SpacePart::NoteEpoch(uint64_t epoch, NodeSet lost, NodeSet left, NodeSet joined, WallTime now) {
  MutexLock lock(&note_->mutex);
  note_->epoch = epoch;
  std::erase_if(note_->losses, [&](const Loss& loss) {
    return !lost.Contains(loss.node) && !joined.Contains(loss.node);  // it takes part again
  });
  for (const Loss& loss : note_->losses) lost.Remove(loss.node);
  for (uint16_t number = 0; number < kMaxNodes; ++number) {
    const NodeId node(number);
    if (lost.Contains(node)) note_->losses.push_back({node, epoch, now, left.Contains(node)});
  }
}

uint64_t SpacePart::epoch() const {
  MutexLock lock(&note_->mutex);
  return note_->epoch;
}

std::vector<SpacePart::Loss> SpacePart::losses() const {
  MutexLock lock(&note_->mutex);
  return note_->losses;
}

}  // namespace hk
