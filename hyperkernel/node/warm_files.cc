#include "hyperkernel/node/warm_files.h"

#include <algorithm>
#include <utility>

#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

uint64_t EndOf(const std::vector<RamRange>& ranges) {
  return ranges.empty() ? 0 : (ranges.back().start.value() + ranges.back().bytes) / kPageSize;
}

}  // namespace

std::vector<bool> WarmFiles::Served(uint64_t generation, size_t frames) const {
  std::vector<bool> served(frames);
  table_->ForEachServed(generation, [&served](uint64_t frame) {
    if (frame < served.size()) served[frame] = true;
  });
  return served;
}

absl::Status WarmFiles::Add(std::shared_ptr<FrameFile> file, std::vector<RamRange> ranges, uint64_t next) {
  MutexLock lock(&mutex_);
  const uint64_t generation = table_->file_generation();
  bool any = HK_MUTANT(warm_failed_runs_count);
  table_->ForEachServed(generation, [&any](uint64_t) { any = true; });
  if (!any) {
    // A run that has read nothing, or did not come to be: it takes no bank from one that has.
    table_->RenamePresent(next);
    std::erase_if(files_, [generation](const File& known) { return known.generation == generation; });
    return absl::OkStatus();
  }
  HK_ASSIGN_OR_RETURN(const uint64_t gone, table_->Reset(next));
  std::erase_if(files_, [gone](const File& known) { return known.generation == gone; });
  if (file == nullptr) return absl::OkStatus();
  File warm{.generation = generation, .file = std::move(file), .ranges = std::move(ranges), .held = {}, .count = 0};
  warm.held.assign(EndOf(warm.ranges), false);
  for (const RamRange& range : warm.ranges) {
    const uint64_t first = GfnOf(range.start).value();
    std::fill_n(warm.held.begin() + static_cast<ptrdiff_t>(first), range.bytes / kPageSize, true);
    warm.count += range.bytes / kPageSize;
  }
  const std::vector<bool> served = Served(generation, warm.held.size());
  PunchOthers(&warm, served, ~uint64_t{0});
  if (warm.count == 0) return absl::OkStatus();
  files_.push_back(std::move(warm));
  return absl::OkStatus();
}

absl::Status WarmFiles::Adopt(const FrameStore& frames, const std::string& name, std::vector<RamRange> ranges,
                              uint64_t generation) {
  File warm{.generation = generation, .file = nullptr, .ranges = std::move(ranges), .held = {}, .count = 0};
  warm.held.assign(EndOf(warm.ranges), false);
  const std::vector<bool> served = Served(generation, warm.held.size());
  uint64_t bytes = 0;
  for (const RamRange& range : warm.ranges) bytes += range.bytes;
  std::vector<bool> kept(bytes / kPageSize);  // by the place in the file
  const auto place = [&warm](uint64_t frame) { return FrameOffset(warm.ranges, Gfn(frame)); };
  for (uint64_t frame = 0; frame < served.size(); ++frame) {
    if (served[frame] && place(frame).has_value()) kept[*place(frame) / kPageSize] = true;
  }
  absl::StatusOr<std::unique_ptr<FrameFile>> file = FrameFile::Adopt(frames, name, generation, bytes, &kept);
  if (file.ok()) warm.file = *std::move(file);
  for (uint64_t frame = 0; frame < served.size(); ++frame) {
    if (!served[frame]) continue;
    if (warm.file != nullptr && place(frame).has_value() && kept[*place(frame) / kPageSize]) {
      warm.held[frame] = true;
      ++warm.count;
    } else {
      table_->RemoveFrames({.file_generation = generation, .frame = frame}, 1);
    }
  }
  if (!file.ok() || warm.count == 0) return file.status();
  MutexLock lock(&mutex_);
  const auto later = [generation](const File& known) { return known.generation > generation; };
  files_.insert(std::find_if(files_.begin(), files_.end(), later), std::move(warm));
  return absl::OkStatus();
}

bool WarmFiles::Punch(File* file, uint64_t first, uint64_t count) {
  if (!HK_MUTANT(warm_frames_left_in_table)) {
    table_->RemoveFrames({.file_generation = file->generation, .frame = first}, count);
  }
  for (uint64_t at = first; at < first + count;) {
    const std::optional<uint64_t> offset = FrameOffset(file->ranges, Gfn(at));
    uint64_t pages = 1;
    if (!offset.has_value()) {
      ++at;
      continue;
    }
    while (at + pages < first + count && FrameOffset(file->ranges, Gfn(at + pages)) == *offset + pages * kPageSize) {
      ++pages;
    }
    if (const absl::Status status = file->file->Punch(*offset, pages * kPageSize); !status.ok()) {
      log::Error("replica", "frames of an earlier run stay", {{"error", MessageOf(status)}});
      return false;
    }
    for (uint64_t i = 0; i < pages; ++i) {
      if (!file->held[at + i]) continue;
      file->held[at + i] = false;
      --file->count;
    }
    at += pages;
  }
  return true;
}

uint64_t WarmFiles::PunchOthers(File* file, const std::vector<bool>& keep, uint64_t bytes) {
  const uint64_t before = file->count;
  for (uint64_t at = 0; at < file->held.size() && (before - file->count) * kPageSize < bytes;) {
    uint64_t end = at;
    const uint64_t most = (bytes / kPageSize) + 1;
    while (end < file->held.size() && end - at < most && file->held[end] && !keep[end]) ++end;
    if (end == at) {
      ++at;
      continue;
    }
    if (!Punch(file, at, end - at)) break;
    at = end;
  }
  file->file->MakeSpare(file->count * kPageSize);
  return (before - file->count) * kPageSize;
}

std::shared_ptr<FrameFile> WarmFiles::Find(const FrameRef& frame, uint64_t* offset) const {
  MutexLock lock(&mutex_);
  for (const File& file : files_) {
    if (file.generation != frame.file_generation) continue;
    const std::optional<uint64_t> at = FrameOffset(file.ranges, Gfn(frame.frame));
    if (!at.has_value()) return nullptr;
    *offset = *at;
    return file.file;
  }
  return nullptr;
}

void WarmFiles::MoveOut(const FrameRef& first, uint64_t count) {
  MutexLock lock(&mutex_);
  for (File& file : files_) {
    if (file.generation != first.file_generation || first.frame + count > file.held.size()) continue;
    Punch(&file, first.frame, count);
    file.file->MakeSpare(file.count * kPageSize);
  }
  std::erase_if(files_, [](const File& file) { return file.count == 0; });
}

void WarmFiles::GiveBack(uint64_t bytes) {
  MutexLock lock(&mutex_);
  uint64_t given = 0;
  // What nothing can be read from any more goes before what something can.
  for (const bool all : {false, true}) {
    for (File& file : files_) {
      if (given >= bytes) break;
      const std::vector<bool> none(file.held.size());
      given += PunchOthers(&file, all ? none : Served(file.generation, file.held.size()), bytes - given);
    }
  }
  std::erase_if(files_, [](const File& file) { return file.count == 0; });
}

void WarmFiles::Drop() {
  MutexLock lock(&mutex_);
  for (const File& file : files_) {
    table_->RemoveFrames({.file_generation = file.generation, .frame = 0}, file.held.size());
  }
  files_.clear();
}

void WarmFiles::WithTable(const std::function<void(ReplicaTable& table)>& body) {
  MutexLock lock(&mutex_);
  body(*table_);
}

std::vector<uint64_t> WarmFiles::Generations() const {
  MutexLock lock(&mutex_);
  std::vector<uint64_t> generations;
  for (const File& file : files_) generations.push_back(file.generation);
  return generations;
}

uint64_t WarmFiles::bytes() const {
  MutexLock lock(&mutex_);
  uint64_t bytes = 0;
  for (const File& file : files_) bytes += file.count * kPageSize;
  return bytes;
}

uint64_t WarmFiles::entries() const {
  MutexLock lock(&mutex_);
  uint64_t entries = 0;
  for (const File& file : files_) table_->ForEachServed(file.generation, [&entries](uint64_t) { ++entries; });
  return entries;
}

}  // namespace hk
