#include "tests/sim/replica_world.h"

#include <algorithm>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"

namespace hk {
namespace {

constexpr uint64_t kStepsAfterCrash = 100;

}  // namespace

uint64_t ChecksumOfHalves(const Halves& halves) {
  return ChecksumOf(std::as_bytes(std::span(halves)));
}

bool HalfHistory::HadSince(uint64_t step, uint64_t bytes) const {
  for (size_t i = versions.size(); i-- > 0;) {
    if (versions[i].bytes == bytes) return true;
    if (versions[i].from <= step) return false;
  }
  return false;
}

ReplicaWorld::ReplicaWorld(uint64_t seed, bool durable) : random_(seed), durable_(durable) {
  for (uint8_t disk = 0; disk < kWorldDisks; ++disk) {
    for (uint64_t group = 0; group < kWorldGroups; ++group) {
      for (uint64_t i = 0; i < kWorldGroupBlocks; ++i) {
        for (uint64_t half = 0; half < 2; ++half) {
          BlockOf(disk, group * kWorldGroupStride + i, half).versions = {{.from = 0, .bytes = NewBytes()}};
        }
      }
    }
  }
  for (uint16_t node = 0; node < kWorldNodes; ++node) MakeTable(node, kGenerationStep);
  if (durable_) OpenDurable();
}

ReplicaWorld::~ReplicaWorld() {
  replica_.reset();
}

void ReplicaWorld::Fail(const std::string& why) {
  if (error_.empty()) error_ = fmt::format("step {}: {}", step_, why);
}

TableIdentity ReplicaWorld::Identity(uint16_t node) const {
  TableIdentity identity = TestIdentity(kWorldPages, NodeId(node));
  if (node == 0) identity.boot.bytes[0] = static_cast<uint8_t>(boot_);
  return identity;
}

DiskImageIdentity ReplicaWorld::Image(uint8_t disk) const {
  return {.image = disk + 1u, .bytes = 1 << 30, .changed_ns = image_changed_ns_[disk]};
}

void ReplicaWorld::MakeTable(uint16_t node, uint64_t first_generation) {
  files_[node] = std::make_unique<MemoryFile>();
  auto made = ReplicaTable::Create(files_[node]->Fd(), Identity(node), file_, first_generation);
  HK_CHECK(made.ok());
  tables_[node] = *std::move(made);
  for (uint8_t disk = 0; node == 0 && disk < kWorldDisks; ++disk) {
    tables_[0]->AttachDisk(DiskId(disk), Image(disk), disk == 1);
  }
}

void ReplicaWorld::OpenDurable() {
  auto store = DurableStore::Open({.directory = "/replica", .identity = Identity(0), .env = &env_});
  if (!store.ok()) return Fail(store.status().ToString());
  if (boot_ > 1 || step_ > 1) {
    const absl::Status loaded =
        (*store)->Load([&](DiskId disk) { return Image(disk.value()); },
                       [&](const FrameRef& frame, const ReplicaEntry& entry) { tables_[0]->Restore(frame, entry); });
    if (!loaded.ok()) return Fail(loaded.ToString());
  }
  replica_ =
      std::make_unique<DurableReplica>(*std::move(store), tables_[0].get(), clock_, DurableReplica::Writer::kByHand);
  for (uint8_t disk = 0; disk < kWorldDisks; ++disk) {
    replica_->NoteDisk(DiskId(disk), Image(disk));
  }
}

size_t ReplicaWorld::WriteHalf(uint8_t disk, uint64_t block, uint64_t half, uint64_t bytes, bool done) {
  HalfHistory& history = BlockOf(disk, block, half);
  history.versions.push_back({.from = step_, .bytes = bytes, .done = done});
  return history.versions.size() - 1;
}

// --- The guest and its pages.

void ReplicaWorld::GuestWrite() {
  const uint64_t page = Random(kWorldPages);
  const uint16_t node = owner_[page];
  if (protected_[page]) {
    tables_[node]->Remove(Gfn(page));
    protected_[page] = false;
  }
  PageOf(node, page)[Random(2)] = NewBytes();
}

bool ReplicaWorld::IsPinned(uint64_t page) const {
  return std::any_of(requests_.begin(), requests_.end(), [&](const auto& request) {
    return request->kind == DiskIoKind::kRead && request->stage >= WorldRequest::Stage::kMoving &&
           std::any_of(request->pieces.begin(), request->pieces.end(),
                       [&](const WorldRequest::Piece& piece) { return piece.page == page; });
  });
}

void ReplicaWorld::MovePage(uint64_t page, uint16_t to) {
  const uint16_t from = owner_[page];
  if (from == to || IsPinned(page)) return;
  // What a write has yet to take from the page it takes from the bytes that are kept for it.
  for (const auto& request : requests_) {
    if (from != 0 || request->kind != DiskIoKind::kWrite || request->stage < WorldRequest::Stage::kMoving) continue;
    for (WorldRequest::Piece& piece : request->pieces) {
      if (piece.page == page && !piece.source.has_value()) piece.source = PageOf(0, page)[piece.page_half];
    }
  }
  const std::optional<ReplicaEntry> entry = tables_[from]->Leaves(Gfn(page), NodeId(to), from == 0);
  PageOf(to, page) = PageOf(from, page);
  PageOf(from, page) = {NewBytes(), NewBytes()};
  owner_[page] = to;
  tables_[to]->Comes(Gfn(page), entry, to == 0);
  // The I/O node may hear of it late or never.
  if (from != 0 && to != 0 && entry.has_value() && Chance(70)) tables_[0]->Relocate(Gfn(page), *entry, NodeId(to));
  protected_[page] = tables_[to]->IsTracked(Gfn(page)) || Chance(30);
}

// --- Requests.

void ReplicaWorld::NewRequest() {
  auto request = std::make_unique<WorldRequest>();
  request->disk = Chance(85) ? 0 : 1;
  // After a crash what was left is asked for before it is overwritten.
  const bool after_crash = crashed_at_ != 0 && step_ < crashed_at_ + kStepsAfterCrash;
  const uint64_t writes = after_crash ? 5 : durable_ ? 30 : 50;
  request->kind = request->disk == 1 || !Chance(writes) ? DiskIoKind::kRead
                  : Chance(85)                          ? DiskIoKind::kWrite
                                                        : DiskIoKind::kErase;
  const bool whole = Chance(75);
  const uint64_t size = whole ? 2 * (1 + Random(2)) : 1 + Random(3);
  uint64_t begin = Random(2 * kWorldGroupBlocks - size + 1);
  if (whole) begin = begin / 2 * 2;
  uint64_t group = Random(kWorldGroups);
  if (durable_ && request->kind != DiskIoKind::kRead && Chance(95)) group = written_group_;
  request->first_half = group * kWorldGroupStride * 2 + begin;
  request->halves = size;
  request->fails = Chance(8);
  for (uint64_t i = 0; i < size; ++i) {
    const uint64_t half = request->first_half + i;
    WorldRequest::Piece piece{.block = half / 2, .block_half = half % 2, .page = kWorldPages};
    if (request->kind != DiskIoKind::kErase) {
      if (whole && i % 2 == 1) {
        piece.page = request->pieces.back().page;
        piece.page_half = 1;
        request->segments.back().bytes += kHalf;
      } else {
        piece.page = Random(kWorldPages);
        piece.page_half = whole ? 0 : Random(2);
        request->segments.push_back({.gpa = Gpa(piece.page * kPageSize + piece.page_half * kHalf), .bytes = kHalf});
      }
    }
    request->pieces.push_back(piece);
  }
  requests_.push_back(std::move(request));
}

void ReplicaWorld::Submit(WorldRequest& request) {
  if (durable_ && request.kind != DiskIoKind::kRead && !request.may_write) {
    if (request.stage == WorldRequest::Stage::kMarking) return;
    request.may_write = replica_->BeginWrite(request.Io(), [this, &request](const absl::Status& status) {
      if (!status.ok()) Fail(status.ToString());
      request.stage = WorldRequest::Stage::kNew;
    });
    if (!request.may_write) {
      request.stage = WorldRequest::Stage::kMarking;
      return;
    }
  }
  for (const WorldRequest::Piece& piece : request.pieces) {
    if (piece.page < kWorldPages) MovePage(piece.page, 0);
  }
  request.begun = step_;
  request.begun_ns = clock_.Ns();
  request.ticket = tables_[0]->Begin(request.Io(), request.begun_ns);
  request.stage = WorldRequest::Stage::kMoving;
  if (Chance(30)) GuestWrite();
  for (const WorldRequest::Piece& piece : request.pieces) {
    if (piece.page < kWorldPages && tables_[0]->IsTracked(Gfn(piece.page))) protected_[piece.page] = true;
  }
  if (request.kind == DiskIoKind::kRead && Chance(85)) LookUp(request);
}

void ReplicaWorld::LookUp(WorldRequest& request) {
  std::vector<ReplicaRun> runs;
  tables_[0]->Lookup(DiskId(request.disk), BlocksOf(request.Io()), &runs);
  for (const ReplicaRun& run : runs) {
    if (!run.hit) continue;
    WorldRequest::Copied copied{.run = run, .bytes = {}};
    for (uint64_t i = 0; i < run.blocks; ++i) {
      copied.bytes.push_back(FramesOf(run.node.value(), run.frame.file_generation).pages.at(run.frame.frame + i));
    }
    request.copied.push_back(std::move(copied));
  }
}

void ReplicaWorld::ConfirmOne(WorldRequest& request) {
  const WorldRequest::Copied copied = std::move(request.copied.front());
  request.copied.pop_front();
  std::vector<uint64_t> sums;
  for (const Halves& each : copied.bytes) sums.push_back(ChecksumOfHalves(each));
  const uint16_t node = copied.run.node.value();
  if (node != 0 && !tables_[node]->Confirm(copied.run, sums)) return;
  if (!tables_[0]->Confirm(copied.run, sums)) return;
  Serve(request, copied);
  if (copied.run.frame.file_generation != file_ && Chance(50)) {
    tables_[0]->RemoveFrames(copied.run.frame, copied.run.blocks);
    if (node != 0) tables_[node]->RemoveFrames(copied.run.frame, copied.run.blocks);
    for (uint64_t i = 0; i < copied.run.blocks; ++i) {
      FramesOf(node, copied.run.frame.file_generation).pages[copied.run.frame.frame + i] = {NewBytes(), NewBytes()};
    }
  }
}

void ReplicaWorld::Serve(WorldRequest& request, const WorldRequest::Copied& copied) {
  for (WorldRequest::Piece& piece : request.pieces) {
    const uint64_t in_run = piece.block - copied.run.first.block;
    if (piece.block < copied.run.first.block || in_run >= copied.run.blocks || piece.moved) continue;
    const uint64_t bytes = copied.bytes[in_run][piece.block_half];
    if (!BlockOf(request.disk, piece.block, piece.block_half).HadSince(request.begun, bytes)) {
      Fail(fmt::format("disk {} block {} was served from node {} file {} frame {} generation {}{} with other bytes",
                       request.disk, piece.block, copied.run.node.value(), copied.run.frame.file_generation,
                       copied.run.frame.frame + in_run, copied.run.generation, copied.run.check ? ", checked" : ""));
    }
    PageOf(0, piece.page)[piece.page_half] = bytes;
    piece.moved = true;
    ++served_;
    if (copied.run.check) ++served_checked_;
    if (copied.run.check && crashed_at_ != 0 && request.begun < crashed_at_ + kStepsAfterCrash) ++served_after_crash_;
  }
}

void ReplicaWorld::MovePiece(WorldRequest& request, WorldRequest::Piece& piece) {
  piece.moved = true;
  if (request.kind == DiskIoKind::kRead) {
    PageOf(0, piece.page)[piece.page_half] = BlockOf(request.disk, piece.block, piece.block_half).now();
    return;
  }
  uint64_t bytes = 0;
  if (request.kind == DiskIoKind::kWrite) bytes = piece.source.value_or(PageOf(0, piece.page)[piece.page_half]);
  piece.version = WriteHalf(request.disk, piece.block, piece.block_half, bytes, false);
  uint64_t& changed_ns = image_changed_ns_[request.disk];
  changed_ns = std::max(changed_ns, request.begun_ns);
}

void ReplicaWorld::EndRequest(WorldRequest& request) {
  const DiskIo io = request.Io();
  std::vector<uint64_t> sums;
  if (Chance(90)) {
    ForEachPiece(io, [&](const IoPiece& piece) {
      if (piece.whole) sums.push_back(ChecksumOfHalves(PageOf(0, piece.gfn.value())));
    });
  }
  if (Chance(30)) GuestWrite();
  const uint32_t flush = tables_[0]->End(request.ticket, io, !request.fails, sums, clock_.Ns());
  if (durable_ && request.kind != DiskIoKind::kRead) replica_->EndWrite(io, flush);
  for (const WorldRequest::Piece& piece : request.pieces) {
    if (request.kind != DiskIoKind::kRead && piece.moved) {
      BlockOf(request.disk, piece.block, piece.block_half).versions.at(piece.version).done = true;
    }
  }
}

void ReplicaWorld::StepRequest(size_t index) {
  WorldRequest& request = *requests_[index];
  if (request.stage < WorldRequest::Stage::kMoving) return Submit(request);
  if (!request.copied.empty()) return ConfirmOne(request);
  std::vector<WorldRequest::Piece*> left;
  for (WorldRequest::Piece& piece : request.pieces) {
    if (!piece.moved) left.push_back(&piece);
  }
  if (!left.empty() && !(request.fails && Chance(40))) return MovePiece(request, *left[Random(left.size())]);
  EndRequest(request);
  requests_.erase(requests_.begin() + static_cast<ptrdiff_t>(index));
}

// --- Flushes.

void ReplicaWorld::BeginFlush() {
  FlushUnderWay flush{.number = tables_[0]->FlushBegins(DiskId(0)), .floors = {}};
  for (const auto& [block, halves] : disks_[0]) {
    for (uint64_t half = 0; half < 2; ++half) {
      const auto& versions = halves[half].versions;
      size_t last = versions.size() - 1;
      while (!versions[last].done) --last;
      flush.floors[{block, half}] = last;
    }
  }
  flushes_.push_back(std::move(flush));
}

void ReplicaWorld::EndFlush() {
  if (flushes_.empty()) return;
  const size_t index = Random(flushes_.size());
  const FlushUnderWay flush = std::move(flushes_[index]);
  flushes_.erase(flushes_.begin() + static_cast<ptrdiff_t>(index));
  const bool ok = !Chance(5);
  if (ok) {
    for (const auto& [where, floor] : flush.floors) {
      HalfHistory& history = BlockOf(0, where.first, where.second);
      history.stable = std::max(history.stable, floor);
    }
  } else {
    ForgetUnstable();
  }
  tables_[0]->FlushEnds(DiskId(0), flush.number, ok);
}

void ReplicaWorld::Settle() {
  BeginFlush();
  const size_t all = flushes_.size();
  for (size_t i = 0; i < all; ++i) EndFlush();
  clock_.Advance(std::chrono::milliseconds(2 * kIntentIdleMs));
  replica_->Work();
  replica_->Work();
}

void ReplicaWorld::ForgetUnstable() {
  for (auto& [block, halves] : disks_[0]) {
    for (uint64_t half = 0; half < 2; ++half) {
      HalfHistory& history = halves[half];
      const uint64_t left = history.versions[history.stable + Random(history.versions.size() - history.stable)].bytes;
      history.stable = WriteHalf(0, block, half, left, true);
    }
  }
}

// --- What must hold.

void ReplicaWorld::Check() {
  for (uint32_t slot = 0; slot < tables_[0]->slot_count(); ++slot) {
    const std::optional<ReplicaTable::Served> served = tables_[0]->ServedAt(slot);
    if (!served.has_value() || served->entry.state != EntryState::kValid || served->entry.node != NodeId(0)) continue;
    const ReplicaEntry& entry = served->entry;
    const Halves& page = FramesOf(0, served->frame.file_generation).pages.at(served->frame.frame);
    for (uint64_t half = 0; half < 2; ++half) {
      if (page[half] == BlockOf(entry.ssa.disk.value(), entry.ssa.block, half).now()) continue;
      Fail(fmt::format("file {} frame {} is not disk {} block {}, generation {}", served->frame.file_generation,
                       served->frame.frame, entry.ssa.disk.value(), entry.ssa.block, entry.generation));
    }
  }
  if (tables_[0]->Statistics().impossible != 0) Fail("a request ended that had not begun");
}

bool ReplicaWorld::Step() {
  ++step_;
  const uint64_t what = Random(1000);
  if (what < 150) {
    GuestWrite();
  } else if (what < 270) {
    // Most pages of the durable form are elsewhere, so that something is left when node 0 is not.
    const uint16_t to = static_cast<uint16_t>(Random(kWorldNodes));
    MovePage(Random(kWorldPages), durable_ && to == 0 && Chance(80) ? uint16_t{1} : to);
  } else if (what < 420) {
    if (requests_.size() < 6) NewRequest();
  } else if (what < 890) {
    if (!requests_.empty()) StepRequest(Random(requests_.size()));
  } else if (what < 905) {
    BeginFlush();
  } else if (what < 925) {
    EndFlush();
  } else if (what < 935) {
    DropWarm();
  } else if (what < 940) {
    Reset();
  } else if (what < 945) {
    KillDaemon();
  } else if (what < 950) {
    if (durable_) CrashHost();
  } else if (what < 955) {
    written_group_ = Random(kWorldGroups);
  } else if (what < 965) {
    if (durable_) Settle();
  } else if (what < 985) {
    if (durable_) replica_->Work();
  } else {
    clock_.Advance(std::chrono::milliseconds(Random(4000)));
  }
  if (step_ % 8 == 0) Check();
  return error_.empty();
}

}  // namespace hk
