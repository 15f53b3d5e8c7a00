// The account of one disk's blocks in its guest's memory: the disk's requests, told to the guest's replica table, and
// reads answered from frames (storage-replica/README.md, "A disk request").
//
// Belongs to the disk's worker.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "hyperkernel/device/block_replica.h"
#include "hyperkernel/node/guest_replica.h"

namespace hk {

// One disk's. `memory` outlives it.
class DiskReplica : public BlockReplica {
 public:
  DiskReplica(std::shared_ptr<GuestReplica> guest, DiskId disk, GuestMemory* memory)
      : guest_(std::move(guest)), disk_(disk), memory_(memory) {}

  bool MayChange(const BlockIo& io, std::function<void(const absl::Status&)> ready) override;
  void Begin(BlockIo* io, const DmaChain& chain) override;
  void Serve(BlockIo* io, std::vector<BlockExtent>* gaps) override;
  void End(BlockIo* io, bool ok) override;
  uint32_t FlushBegins() override { return guest_->table_->FlushBegins(disk_); }
  void FlushEnds(uint32_t flush, bool ok) override { guest_->table_->FlushEnds(disk_, flush, ok); }

 protected:
  // A hit's bytes were copied, and are about to be confirmed. Tests step in here.
  virtual void OnCopied() {}

 private:
  // The request in the table's terms; good until the next call.
  DiskIo Translate(const BlockIo& io);
  // Write-protects the pages that the request may make valid; those that cannot be, cannot become it.
  void Protect(const DiskIo& io);
  void ProtectRun(Gfn first, uint64_t pages);
  // Copies a hit's bytes, as far as the request wants them. False: the frames are gone, or changed meanwhile, or are
  // not what their checksums say.
  bool Copy(const BlockIo& io, const ReplicaRun& run);
  // What an earlier daemon left is looked at before its first use: all of the run is what its checksums say. What is
  // not is forgotten. `from`: where in the file it begins.
  bool Check(const ReplicaRun& run, const FrameFile& file, uint64_t from);
  // Of the whole pieces that may become valid, as ReplicaTable::End wishes; the request's memory is pinned.
  std::span<const uint64_t> Checksums(const BlockIo& io, const DiskIo& request);

  const std::shared_ptr<GuestReplica> guest_;
  const DiskId disk_;
  GuestMemory* const memory_;
  std::vector<IoSegment> segments_;
  std::vector<ReplicaRun> runs_;
  std::vector<uint64_t> checksums_;
  std::vector<std::byte> page_;
};

}  // namespace hk
