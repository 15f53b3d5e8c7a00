// A guest, its disks and its nodes, as plain as can be, around the production tables: what the oracle test plays with.
// Node 0 is the I/O node. Everything has two halves, so that requests can be partial. A half's bytes are a number; no
// two writes write the same.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "hyperkernel/base/clock.h"
#include "storage-replica/durable_replica.h"
#include "storage-replica/lossy_env_testing.h"
#include "storage-replica/replica_testing.h"

namespace hk {

inline constexpr uint64_t kWorldPages = 24;
inline constexpr uint64_t kWorldDisks = 2;  // the second is read-only
// Apart, so that there are several regions.
inline constexpr uint64_t kWorldGroups = 4;
inline constexpr uint64_t kWorldGroupBlocks = 3;
inline constexpr uint64_t kWorldGroupStride = 2 * kRegionBlocks;
inline constexpr uint64_t kHalf = kPageSize / 2;
inline constexpr uint16_t kWorldNodes = 3;

// Time that passes only between steps.
class WorldClock final : public Clock {
 public:
  Monotonic Now() const override { return now_; }
  WallTime Wall() const override { return {}; }
  void Advance(std::chrono::milliseconds by) { now_ += by; }
  uint64_t Ns() const { return static_cast<uint64_t>(now_.time_since_epoch().count()); }

 private:
  Monotonic now_{std::chrono::hours(1)};
};

// The two halves of a page or block.
using Halves = std::array<uint64_t, 2>;
uint64_t ChecksumOfHalves(const Halves& halves);

// A half of a block over time. Plain value.
struct HalfHistory {
  struct Version {
    uint64_t from = 0;  // step
    uint64_t bytes = 0;
    bool done = true;  // the request that wrote it has ended
  };
  std::vector<Version> versions{{}};
  size_t stable = 0;  // the first that a crash of the host may leave
  uint64_t now() const { return versions.back().bytes; }
  // Whether the half had these bytes at some time since the step.
  bool HadSince(uint64_t step, uint64_t bytes) const;
};

// A request on its way. Its pieces are moved one by one, in any order.
struct WorldRequest {
  enum class Stage { kNew, kMarking, kMoving, kEnding };
  // A half of a page and a half of a block. `source`: bytes taken before they were moved (the page left).
  struct Piece {
    uint64_t block = 0, block_half = 0, page = 0, page_half = 0;
    bool moved = false;
    std::optional<uint64_t> source{};
    size_t version = 0;  // that it wrote
  };
  // A run that was copied and is not yet confirmed.
  struct Copied {
    ReplicaRun run;
    std::vector<Halves> bytes;
  };
  DiskIoKind kind = DiskIoKind::kRead;
  uint8_t disk = 0;
  uint64_t first_half = 0, halves = 0;
  std::vector<IoSegment> segments;
  std::vector<Piece> pieces;
  Stage stage = Stage::kNew;
  bool may_write = false;
  bool fails = false;
  bool looked = false;
  std::deque<Copied> copied;
  IoTicket ticket;
  uint64_t begun = 0;  // step
  uint64_t begun_ns = 0;
  DiskIo Io() const {
    return {.kind = kind,
            .disk = DiskId(disk),
            .offset = first_half * kHalf,
            .bytes = halves * kHalf,
            .segments = segments};
  }
};

// See above. Deterministic from its seed.
class ReplicaWorld {
 public:
  ReplicaWorld(uint64_t seed, bool durable);
  ~ReplicaWorld();

  // Does something. False: a promise does not hold, and error() says which.
  bool Step();
  const std::string& error() const { return error_; }
  uint64_t served() const { return served_; }
  // Of them, what was checked because an earlier process had left it; and because the host had crashed.
  uint64_t served_checked() const { return served_checked_; }
  uint64_t served_after_crash() const { return served_after_crash_; }

 private:
  struct Frames {
    std::vector<Halves> pages = std::vector<Halves>(kWorldPages);
  };

  uint64_t Random(uint64_t below) { return random_() % below; }
  bool Chance(uint64_t percent) { return Random(100) < percent; }
  uint64_t NewBytes() { return ++last_bytes_; }
  void Fail(const std::string& why);
  Frames& FramesOf(uint16_t node, uint64_t file) { return frames_[{node, file}]; }
  Halves& PageOf(uint16_t node, uint64_t page) { return FramesOf(node, file_).pages[page]; }
  HalfHistory& BlockOf(uint8_t disk, uint64_t block, uint64_t half) { return disks_[disk][block][half]; }
  size_t WriteHalf(uint8_t disk, uint64_t block, uint64_t half, uint64_t bytes, bool done);

  void GuestWrite();
  void MovePage(uint64_t page, uint16_t to);
  bool IsPinned(uint64_t page) const;
  void NewRequest();
  void StepRequest(size_t index);
  void Submit(WorldRequest& request);
  void LookUp(WorldRequest& request);
  void ConfirmOne(WorldRequest& request);
  void Serve(WorldRequest& request, const WorldRequest::Copied& copied);
  void MovePiece(WorldRequest& request, WorldRequest::Piece& piece);
  void EndRequest(WorldRequest& request);
  void BeginFlush();
  void EndFlush();
  // Some quiet seconds: flushed, and written to the database.
  void Settle();
  // The device forgets what is not stable; each half is one of the versions that may be left.
  void ForgetUnstable();
  void Reset();
  void DropWarm();
  // Requests in flight end somewhere, unseen.
  void AbandonRequests();
  void KillDaemon();
  void CrashHost();
  void RestartGuest();
  void OpenDurable();
  void Check();
  void Tear(const std::vector<uint8_t>& before);
  std::vector<uint8_t> FileBytes() const;
  void MakeTable(uint16_t node, uint64_t first_generation);
  TableIdentity Identity(uint16_t node) const;
  DiskImageIdentity Image(uint8_t disk) const;

  // A flush under way.
  struct FlushUnderWay {
    uint32_t number = 0;
    std::map<std::pair<uint64_t, uint64_t>, size_t> floors;  // block, half: version
  };

  std::mt19937_64 random_;
  const bool durable_;
  WorldClock clock_;
  LossyEnv env_;
  std::array<std::unique_ptr<MemoryFile>, kWorldNodes> files_;
  std::array<std::unique_ptr<ReplicaTable>, kWorldNodes> tables_;
  std::unique_ptr<DurableReplica> replica_;
  std::map<std::pair<uint16_t, uint64_t>, Frames> frames_;
  std::array<std::map<uint64_t, std::array<HalfHistory, 2>>, kWorldDisks> disks_;
  std::array<uint64_t, kWorldDisks> image_changed_ns_{};
  std::array<uint16_t, kWorldPages> owner_{};
  std::array<bool, kWorldPages> protected_{};
  std::vector<std::unique_ptr<WorldRequest>> requests_;
  std::vector<FlushUnderWay> flushes_;
  std::deque<uint64_t> warm_;
  uint64_t file_ = 1, boot_ = 1, step_ = 1, last_bytes_ = 0;
  uint64_t served_ = 0, served_checked_ = 0, served_after_crash_ = 0;
  uint64_t written_group_ = 0;  // writes go there, for a while
  uint64_t crashed_at_ = 0;     // step
  std::string error_;
};

}  // namespace hk
