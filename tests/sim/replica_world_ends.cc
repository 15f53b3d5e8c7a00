// Resets, kills and crashes: see replica_world.h.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "hyperkernel/base/check.h"
#include "tests/sim/replica_world.h"

namespace hk {

void ReplicaWorld::Reset() {
  while (!requests_.empty() && error_.empty()) {
    if (durable_) replica_->Work();
    StepRequest(Random(requests_.size()));
  }
  RestartGuest();
}

void ReplicaWorld::RestartGuest() {
  for (uint16_t node = 0; node < kWorldNodes; ++node) {
    if (tables_[node] == nullptr) continue;
    std::set<uint64_t> kept;
    tables_[node]->ForEachServed(file_, [&](uint64_t frame) { kept.insert(frame); });
    for (uint64_t page = 0; page < kWorldPages; ++page) {
      if (!kept.contains(page)) PageOf(node, page) = {NewBytes(), NewBytes()};
    }
    const absl::StatusOr<uint64_t> gone = tables_[node]->Reset(file_ + 1);
    HK_CHECK(gone.ok());
    if (*gone != 0) frames_.erase({node, *gone});
  }
  warm_.push_back(file_);
  if (warm_.size() >= kTableBanks) warm_.pop_front();
  ++file_;
  owner_.fill(0);
  protected_.fill(false);
}

void ReplicaWorld::DropWarm() {
  if (warm_.empty()) return;
  const FrameRef frame{.file_generation = warm_[Random(warm_.size())], .frame = Random(kWorldPages)};
  const uint16_t node = static_cast<uint16_t>(Random(kWorldNodes));
  tables_[node]->RemoveFrames(frame, 1);
  if (node != 0) tables_[0]->RemoveFrames(frame, 1);
  FramesOf(node, frame.file_generation).pages[frame.frame] = {NewBytes(), NewBytes()};
}

void ReplicaWorld::AbandonRequests() {
  for (const auto& request : requests_) {
    for (WorldRequest::Piece& piece : request->pieces) {
      if (request->stage >= WorldRequest::Stage::kMoving && !piece.moved && Chance(50)) MovePiece(*request, piece);
      if (piece.version > 0) {
        BlockOf(request->disk, piece.block, piece.block_half).versions.at(piece.version).done = true;
      }
    }
  }
  requests_.clear();
  flushes_.clear();
}

std::vector<uint8_t> ReplicaWorld::FileBytes() const {
  struct stat info;
  HK_CHECK(::fstat(files_[0]->get(), &info) == 0);
  std::vector<uint8_t> bytes(static_cast<size_t>(info.st_size));
  HK_CHECK(::pread(files_[0]->get(), bytes.data(), bytes.size(), 0) == info.st_size);
  return bytes;
}

void ReplicaWorld::Tear(const std::vector<uint8_t>& before) {
  std::vector<uint8_t> after = FileBytes();
  for (size_t at = kTableHeaderBytes; at + sizeof(TableSlot) <= after.size(); at += sizeof(TableSlot)) {
    if (std::memcmp(&before[at], &after[at], sizeof(TableSlot)) == 0) continue;
    const uint64_t how = Random(3);
    if (how == 1) continue;
    const size_t words = how == 0 ? 0 : Random(5) * 8;
    std::memcpy(&after[at + 8 + words], &before[at + 8 + words], sizeof(TableSlot) - 8 - words);
    std::memcpy(&after[at], &before[at], 4);
    if (how == 2) after[at] |= 1;
    HK_CHECK(::pwrite(files_[0]->get(), &after[at], sizeof(TableSlot), static_cast<off_t>(at)) == sizeof(TableSlot));
  }
}

void ReplicaWorld::KillDaemon() {
  const bool quiet = requests_.empty();
  const std::vector<uint8_t> before = FileBytes();
  // In the middle of something, which nobody has acted on.
  for (const auto& request : requests_) {
    const bool moved =
        std::all_of(request->pieces.begin(), request->pieces.end(), [](const auto& p) { return p.moved; });
    if (request->stage >= WorldRequest::Stage::kMoving && moved && request->copied.empty() && Chance(70)) {
      EndRequest(*request);
      break;
    }
  }
  if (Chance(50)) tables_[0]->Remove(Gfn(Random(kWorldPages)));
  AbandonRequests();
  env_.Kill();
  replica_.reset();
  env_.ReviveProcess();
  tables_[0].reset();
  Tear(before);
  clock_.Advance(std::chrono::seconds(1));
  const bool changed = Chance(15);
  if (changed) {
    image_changed_ns_[0] = clock_.Ns();
    WriteHalf(0, Random(kWorldGroupBlocks), Random(2), NewBytes(), true);
  }
  auto opened = ReplicaTable::Open(files_[0]->Fd(), Identity(0));
  if (!opened.ok()) return Fail(opened.status().ToString());
  tables_[0] = *std::move(opened);
  for (uint8_t disk = 0; disk < kWorldDisks; ++disk) {
    const bool counts = tables_[0]->AttachDisk(DiskId(disk), Image(disk), disk == 1);
    if (counts != !(changed && disk == 0)) Fail("an image was taken for changed, or not");
  }
  if (quiet && !changed && Chance(50)) {
    protected_.fill(true);  // the guest goes on: the views are protected before a vCPU runs
  } else {
    RestartGuest();
  }
  if (durable_) OpenDurable();
}

void ReplicaWorld::CrashHost() {
  AbandonRequests();
  env_.Kill();
  replica_.reset();
  env_.Revive(random_);
  ForgetUnstable();
  ++boot_;
  tables_[0].reset();
  RestartGuest();
  for (auto at = frames_.begin(); at != frames_.end();) at = at->first.first == 0 ? frames_.erase(at) : std::next(at);
  auto store = DurableStore::Open({.directory = "/replica", .identity = Identity(0), .env = &env_});
  if (!store.ok()) return Fail(store.status().ToString());
  const uint64_t first_generation = (*store)->first_generation();
  store->reset();
  MakeTable(0, first_generation);
  for (const uint64_t file : warm_) HK_CHECK(tables_[0]->AddWarm(file).ok());
  OpenDurable();
  crashed_at_ = step_;
}

}  // namespace hk
