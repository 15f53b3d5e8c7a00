// What a replica table's file and the keys and values of its database may hold. The first byte says which: 0: the rest
// is laid over the file's header, 1: over its entries, both of a table that is as it should be; others: a key or value
// of the database.
//
// Must hold: refused, or opened, and then nothing but the file's own entries is served, within their limits; what is
// decoded is encoded to the same bytes.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "hyperkernel/base/check.h"
#include "storage-replica/durable_format.h"
#include "storage-replica/replica_table.h"

namespace {

using hk::DiskId;

constexpr uint64_t kPages = 512;

hk::TableIdentity Identity() {
  hk::TableIdentity identity;
  identity.guest = hk::GuestId(1);
  identity.pages = kPages;
  return identity;
}

// A table with entries of blocks 100 to 107, in its file.
int MakeFile() {
  const int file = ::memfd_create("replica", MFD_CLOEXEC);
  HK_CHECK(file >= 0);
  auto table = hk::ReplicaTable::Create(hk::OwnedFd(::dup(file)), Identity(), 1);
  HK_CHECK(table.ok());
  (*table)->AttachDisk(DiskId(0), {.image = 1, .bytes = 1 << 20, .changed_ns = 0}, false);
  const hk::IoSegment segment{.gpa = hk::Gpa(0), .bytes = 8 * hk::kPageSize};
  const hk::DiskIo io{.disk = DiskId(0), .offset = 100 * hk::kBlockSize, .segments = {&segment, 1}};
  (*table)->End((*table)->Begin(io, 0), io, true, std::vector<uint64_t>(8, 7), 0);
  return file;
}

void OpenTable(uint64_t offset, std::span<const uint8_t> over) {
  const int file = MakeFile();
  const size_t count = std::min<size_t>(over.size(), 64 * hk::kPageSize);
  HK_CHECK(::pwrite(file, over.data(), count, static_cast<off_t>(offset)) == static_cast<ssize_t>(count));
  auto opened = hk::ReplicaTable::Open(hk::OwnedFd(file), Identity());
  if (!opened.ok()) {
    HK_CHECK(opened.status().message().find('\n') == std::string_view::npos);
    return;
  }
  hk::ReplicaTable& table = **opened;
  std::vector<hk::ReplicaRun> runs;
  for (const uint8_t disk : {0, 1, hk::kMaxReplicaDisks - 1}) {
    table.AttachDisk(DiskId(disk), {.image = 1, .bytes = 1 << 20, .changed_ns = 0}, false);
    table.Lookup(DiskId(disk), {0, 256}, &runs);
    for (const hk::ReplicaRun& run : runs) {
      HK_CHECK(!run.hit || (run.check && run.node.value() < hk::kMaxNodes && run.frame.frame + run.blocks <= kPages));
      if (run.hit) table.Confirm(run, std::vector<uint64_t>(run.blocks, 7));
    }
  }
  for (uint64_t page = 0; page < kPages; ++page) table.Remove(hk::Gfn(page));
  HK_CHECK(table.Statistics().impossible == 0);
  HK_CHECK(table.Reset(1000).ok() || table.file_generation() == 1000);
}

void Decode(std::string_view bytes) {
  if (const auto frame = hk::DecodePageKey(bytes)) HK_CHECK(hk::PageKey(*frame) == bytes);
  if (const auto entry = hk::DecodePageValue(bytes)) HK_CHECK(hk::PageValue(*entry) == bytes);
  if (const auto row = hk::DecodeBlockKey(bytes)) HK_CHECK(hk::BlockKey(row->ssa, row->frame) == bytes);
  if (const auto region = hk::DecodeIntentKey(bytes)) HK_CHECK(hk::IntentKey(*region) == bytes);
  if (const auto disk = hk::DecodeDiskKey(bytes)) HK_CHECK(hk::DiskKey(*disk) == bytes);
  if (const auto disk = hk::DecodeDiskValue(bytes)) HK_CHECK(hk::DiskValue(*disk) == bytes);
  if (const auto identity = hk::DecodeIdentityValue(bytes)) HK_CHECK(hk::IdentityValue(*identity) == bytes);
  if (const auto number = hk::DecodeNumberValue(bytes)) HK_CHECK(hk::NumberValue(*number) == bytes);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::span<const uint8_t> rest(data + 1, size - 1);
  if (data[0] == 0) OpenTable(0, rest.first(std::min(rest.size(), hk::kTableHeaderBytes)));
  if (data[0] == 1) OpenTable(hk::kTableHeaderBytes, rest);
  if (data[0] > 1) Decode({reinterpret_cast<const char*>(rest.data()), rest.size()});
  return 0;
}
