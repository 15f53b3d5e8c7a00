#include "storage-replica/table_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <new>
#include <string_view>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

constexpr uint64_t kChunkBytes = kChunkSlots * sizeof(TableSlot);
static_assert(kChunkBytes % kPageSize == 0 && kTableHeaderBytes == kPageSize);
constexpr std::string_view kWhat = "replica table";

uint64_t BankSlots(uint64_t pages) {
  return (pages + kChunkSlots - 1) / kChunkSlots * kChunkSlots;
}
uint64_t FileBytes(uint64_t pages) {
  return kTableHeaderBytes + kTableBanks * BankSlots(pages) * sizeof(TableSlot);
}

absl::Status CheckIdentity(const TableIdentity& identity) {
  if (identity.pages == 0 || identity.pages > kMaxTablePages) {
    return absl::InvalidArgumentError(
        fmt::format("{}: {} pages of guest memory, 1 to {} can be tracked", kWhat, identity.pages, kMaxTablePages));
  }
  if (identity.node.value() >= kMaxNodes) {
    return absl::InvalidArgumentError(fmt::format("{}: no node {}", kWhat, identity.node.value()));
  }
  return absl::OkStatus();
}

absl::Status Allocate(int fd, uint64_t offset, uint64_t bytes) {
  while (::fallocate(fd, FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset), static_cast<off_t>(bytes)) != 0) {
    if (errno != EINTR) return ErrnoStatus(errno, fmt::format("memory for the {}", kWhat));
  }
  return absl::OkStatus();
}

// Held until the last descriptor of this open file is closed, be it by the end of the process.
absl::Status Lock(int fd) {
  if (::flock(fd, LOCK_EX | LOCK_NB) == 0 || HK_MUTANT(replica_table_unlocked)) return absl::OkStatus();
  if (errno == EWOULDBLOCK) return absl::FailedPreconditionError(fmt::format("{}: another process uses it", kWhat));
  return ErrnoStatus(errno, fmt::format("lock of the {}", kWhat));
}

absl::Status Damaged(std::string_view what) {
  return absl::DataLossError(fmt::format("{}: {}", kWhat, what));
}
absl::Status NoRoom() {
  return absl::ResourceExhaustedError(fmt::format("{}: there is no room for it", kWhat));
}
absl::Status Foreign(std::string_view what) {
  return absl::FailedPreconditionError(fmt::format("{}: {}", kWhat, what));
}

}  // namespace

TableFile::TableFile(OwnedFd file, Mapping mapping, uint64_t pages, std::shared_ptr<TableRoom> room)
    : room_(std::move(room)),
      file_(std::move(file)),
      mapping_(std::move(mapping)),
      header_(reinterpret_cast<TableHeader*>(mapping_.data())),
      slots_(reinterpret_cast<TableSlot*>(mapping_.data() + kTableHeaderBytes)),
      bank_slots_(BankSlots(pages)),
      chunks_(new std::atomic<uint8_t>[kTableBanks * BankSlots(pages) / kChunkSlots]()) {}

TableFile::~TableFile() {
  GiveRoom(BytesInUse());
}

absl::StatusOr<std::unique_ptr<TableFile>> TableFile::Map(OwnedFd file, uint64_t pages,
                                                          std::shared_ptr<TableRoom> room) {
  HK_ASSIGN_OR_RETURN(Mapping mapping, Mapping::Create(FileBytes(pages), PROT_READ | PROT_WRITE,
                                                       MAP_SHARED | MAP_NORESERVE, file.get(), kWhat));
  // Entries are few beside each other; and no child process is to have them.
  ::madvise(mapping.data(), mapping.size(), MADV_NOHUGEPAGE);
  ::madvise(mapping.data(), mapping.size(), MADV_DONTFORK);
  if (room != nullptr && !room->Take(kTableHeaderBytes)) return NoRoom();
  return std::unique_ptr<TableFile>(new TableFile(std::move(file), std::move(mapping), pages, std::move(room)));
}

absl::StatusOr<std::unique_ptr<TableFile>> TableFile::Create(OwnedFd file, const TableIdentity& identity,
                                                             uint64_t file_generation, uint64_t first_generation,
                                                             std::shared_ptr<TableRoom> room) {
  HK_RETURN_IF_ERROR(CheckIdentity(identity));
  HK_CHECK(file_generation != 0 && first_generation != 0 && first_generation % kGenerationStep == 0 &&
           first_generation < kMaxGeneration);
  HK_RETURN_IF_ERROR(Lock(file.get()));
  if (::ftruncate(file.get(), 0) != 0 || ::ftruncate(file.get(), static_cast<off_t>(FileBytes(identity.pages))) != 0) {
    return ErrnoStatus(errno, fmt::format("size of the {}", kWhat));
  }
  HK_RETURN_IF_ERROR(Allocate(file.get(), 0, kTableHeaderBytes));
  HK_ASSIGN_OR_RETURN(std::unique_ptr<TableFile> table, Map(std::move(file), identity.pages, std::move(room)));
  TableHeader& header = table->header();
  header.version = kTableVersion;
  header.header_bytes = kTableHeaderBytes;
  header.guest = identity.guest.value();
  header.pages = identity.pages;
  header.node = identity.node.value();
  header.banks = kTableBanks;
  header.boot = identity.boot;
  header.frame_store = identity.frame_store;
  header.generation_limit = GenerationWord(first_generation);
  for (uint32_t bank = 0; bank < kTableBanks; ++bank) table->NameBank(bank, bank == 0 ? file_generation : 0);
  for (uint32_t disk = 0; disk < kMaxReplicaDisks; ++disk) header.disk[disk].check = DiskCheck(0, 0, disk);
  header.magic = kTableMagic;
  header.check = HeaderCheck(header);
  return table;
}

absl::StatusOr<std::unique_ptr<TableFile>> TableFile::Open(OwnedFd file, const TableIdentity& identity,
                                                           std::shared_ptr<TableRoom> room) {
  HK_RETURN_IF_ERROR(CheckIdentity(identity));
  struct stat info;
  if (::fstat(file.get(), &info) != 0) return ErrnoStatus(errno, kWhat);
  if (!S_ISREG(info.st_mode)) return Foreign("not a regular file");
  HK_RETURN_IF_ERROR(Lock(file.get()));
  if (static_cast<uint64_t>(info.st_size) < kTableHeaderBytes) return Damaged("shorter than its header");
  // The header may be a hole: a read, unlike a touch, takes no memory for it.
  uint64_t magic = 0;
  uint32_t version = 0;
  if (::pread(file.get(), &magic, sizeof(magic), 0) != sizeof(magic) ||
      ::pread(file.get(), &version, sizeof(version), sizeof(magic)) != sizeof(version)) {
    return ErrnoStatus(errno, kWhat);
  }
  if (magic != kTableMagic) return Damaged("not a replica table");
  if (version != kTableVersion) {
    return Foreign(fmt::format("of format version {}, this program has {}", version, kTableVersion));
  }
  if (static_cast<uint64_t>(info.st_size) != FileBytes(identity.pages)) {
    return Foreign(fmt::format("{} bytes long, a guest of {} pages has {}", info.st_size, identity.pages,
                               FileBytes(identity.pages)));
  }
  HK_RETURN_IF_ERROR(Allocate(file.get(), 0, kTableHeaderBytes));
  HK_ASSIGN_OR_RETURN(std::unique_ptr<TableFile> table, Map(std::move(file), identity.pages, std::move(room)));
  HK_RETURN_IF_ERROR(table->CheckHeader(identity));
  HK_RETURN_IF_ERROR(table->FindChunks());
  for (uint32_t bank = 0; bank < kTableBanks; ++bank) {
    if (table->BankHolds(bank) && table->header().bank[bank].file_generation != 0) continue;
    HK_RETURN_IF_ERROR(table->ClearBank(bank));
    table->NameBank(bank, 0);
  }
  return table;
}

absl::Status TableFile::CheckHeader(const TableIdentity& identity) const {
  const TableHeader& header = *header_;
  if (header.check != HeaderCheck(header)) return Damaged("its header's checksum is wrong");
  if (header.header_bytes != kTableHeaderBytes || header.banks != kTableBanks) return Damaged("its shape is wrong");
  if (header.guest != identity.guest.value()) {
    return Foreign(fmt::format("of guest {}, not {}", header.guest, identity.guest.value()));
  }
  if (header.node != identity.node.value()) {
    return Foreign(fmt::format("of node {}, not {}", header.node, identity.node.value()));
  }
  if (header.pages != identity.pages) {
    return Foreign(fmt::format("of a guest of {} pages, not {}", header.pages, identity.pages));
  }
  if (header.boot != identity.boot) return Foreign("of another boot of this host");
  if (header.frame_store != identity.frame_store) return Foreign("of another frame store");
  if (!GenerationLimit(header.generation_limit).has_value()) return Damaged("its generations are damaged");
  const uint32_t current = header.current_bank;
  if (current >= kTableBanks || header.bank[current].file_generation == 0 || !BankHolds(current)) {
    return Damaged("it has no present bank");
  }
  return absl::OkStatus();
}

bool TableFile::BankHolds(uint32_t bank) const {
  return header_->bank[bank].check == BankCheck(header_->bank[bank].file_generation, bank);
}

absl::Status TableFile::FindChunks() {
  const auto end = static_cast<off_t>(mapping_.size());
  off_t at = kTableHeaderBytes;
  while (at < end) {
    const off_t data = ::lseek(file_.get(), at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) return absl::OkStatus();
    const off_t hole = data < 0 ? data : ::lseek(file_.get(), data, SEEK_HOLE);
    if (hole < 0) return ErrnoStatus(errno, kWhat);
    if (data >= end) return absl::OkStatus();
    const uint64_t first = (static_cast<uint64_t>(data) - kTableHeaderBytes) / kChunkBytes;
    const uint64_t last = (static_cast<uint64_t>(std::min(hole, end)) - 1 - kTableHeaderBytes) / kChunkBytes;
    if (!TakeRoom((last - first + 1) * kChunkBytes)) return NoRoom();
    // A chunk may have got only some of its pages before the process died.
    const absl::Status made =
        Allocate(file_.get(), kTableHeaderBytes + first * kChunkBytes, (last - first + 1) * kChunkBytes);
    if (!made.ok()) {
      GiveRoom((last - first + 1) * kChunkBytes);
      return made;
    }
    for (uint64_t chunk = first; chunk <= last; ++chunk) chunks_[chunk].store(kHere, std::memory_order_release);
    at = static_cast<off_t>(kTableHeaderBytes + (last + 1) * kChunkBytes);
  }
  return absl::OkStatus();
}

TableSlot* TableFile::FindOrMake(uint32_t slot) {
  const uint64_t chunk = slot / kChunkSlots;
  const uint8_t seen = chunks_[chunk].load(std::memory_order_acquire);
  if (seen == kHere) [[likely]]
    return SlotAt(slot);
  if (seen == kRefused) return nullptr;
  MutexLock lock(&making_);
  if (chunks_[chunk].load(std::memory_order_relaxed) == kUntouched) {
    const bool room = TakeRoom(kChunkBytes);
    const bool made = room && Allocate(file_.get(), kTableHeaderBytes + chunk * kChunkBytes, kChunkBytes).ok();
    if (room && !made) GiveRoom(kChunkBytes);
    chunks_[chunk].store(made ? kHere : kRefused, std::memory_order_release);
  }
  return Find(slot);
}

absl::Status TableFile::ClearBank(uint32_t bank) {
  const uint64_t chunks = bank_slots_ / kChunkSlots;
  uint64_t held = 0;
  for (uint64_t chunk = bank * chunks; chunk < (bank + 1) * chunks; ++chunk) {
    held += HasMemory(chunk) ? kChunkBytes : 0;
    chunks_[chunk].store(kUntouched, std::memory_order_release);
  }
  while (::fallocate(file_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                     static_cast<off_t>(kTableHeaderBytes + bank * chunks * kChunkBytes),
                     static_cast<off_t>(chunks * kChunkBytes)) != 0) {
    if (errno != EINTR) return ErrnoStatus(errno, fmt::format("clearing the {}", kWhat));
  }
  GiveRoom(held);
  return absl::OkStatus();
}

void TableFile::NameBank(uint32_t bank, uint64_t file_generation) {
  BankRecord& record = header_->bank[bank];
  // A process that dies between leaves a bank that does not count.
  record.file_generation.store(file_generation, std::memory_order_release);
  record.check.store(BankCheck(file_generation, bank), std::memory_order_release);
}

uint64_t TableFile::BytesInUse() const {
  uint64_t bytes = kTableHeaderBytes;
  for (uint64_t chunk = 0; chunk < chunk_count(); ++chunk) bytes += HasMemory(chunk) ? kChunkBytes : 0;
  return bytes;
}

}  // namespace hk
