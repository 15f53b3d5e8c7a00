#include "hyperkernel/memory/memory_probe.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <string>

#include "fmt/format.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/file.h"
#include "hyperkernel/base/probe_group.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/host_swap.h"

namespace hk {
namespace {

constexpr ProbeQuestion kMemfd = {.name = "memfd with holes",
                                  .lost = "guest memory: a page that leaves this node would not free its frame",
                                  .fix = "boot a stock kernel, 6.1 or later, with CONFIG_SHMEM and CONFIG_MEMFD_CREATE",
                                  .required = true};
constexpr ProbeQuestion kShm = {.name = "tmpfs at /dev/shm (optional)",
                                .lost = "trials without a frame store of their own; production mounts one",
                                .fix = "mount -t tmpfs -o size=50% tmpfs /dev/shm"};
constexpr ProbeQuestion kHuge = {
    .name = "tmpfs keeps 4 KiB pages",
    .lost = "frames are freed in 2 MiB units only: memory does not pool, and the frame budget is overrun",
    .fix =
        "echo never > /sys/kernel/mm/transparent_hugepage/shmem_enabled (it is 'force', which overrides the frame "
        "store's huge=never)"};
constexpr ProbeQuestion kHugetlb = {.name = "hugetlb pages configured (optional)",
                                    .lost = "nothing: guest memory is in 4 KiB pages",
                                    .fix = "sysctl vm.nr_hugepages=N, if you want them for something else"};
constexpr ProbeQuestion kSwap = {
    .name = "frames stay in memory",
    .lost = "frames can be swapped out: remote faults then wait for a disk, and leases may be missed under pressure",
    .fix =
        "swapoff -a, or MemorySwapMax=0 in the unit, or a kernel from 6.4 on and the right to mount (the "
        "frame store is then noswap)"};

// The first word of a file that shows its choices as "a b [c]"; the bracketed one, else the line.
std::string Chosen(const std::string& path) {
  auto text = ReadSmallFile(path, 4096);
  if (!text.ok()) return MessageOf(text.status());
  const size_t open = text->find('['), close = text->find(']');
  if (open == std::string::npos || close == std::string::npos) return text->substr(0, text->find('\n'));
  return text->substr(open + 1, close - open - 1);
}

// A page written and punched out again must be given back.
absl::Status TryMemfd() {
  OwnedFd file(memfd_create("hk-probe", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!file.valid()) return ErrnoStatus(errno, "memfd_create");
  const char byte = 1;
  if (pwrite(file.get(), &byte, 1, kPageSize) != 1) return ErrnoStatus(errno, "pwrite to a memfd");
  if (fallocate(file.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, kPageSize, kPageSize) < 0) {
    return ErrnoStatus(errno, "punching a hole into a memfd");
  }
  if (lseek(file.get(), 0, SEEK_DATA) >= 0) return absl::InternalError("a punched hole still has data");
  return absl::OkStatus();
}

void AnswerShm(ProbeGroup* group) {
  struct statfs info = {};
  if (statfs("/dev/shm", &info) < 0) return group->No(kShm, MessageOf(ErrnoStatus(errno, "/dev/shm")));
  if (info.f_type != TMPFS_MAGIC) return group->No(kShm, "/dev/shm is not a tmpfs");
  const uint64_t unit = static_cast<uint64_t>(info.f_bsize);
  group->Yes(kShm, fmt::format("{} MiB, {} MiB free", info.f_blocks * unit >> 20, info.f_bavail * unit >> 20));
}

void AnswerHugetlb(ProbeGroup* group) {
  const std::string count = Chosen("/proc/sys/vm/nr_hugepages");
  group->Answer(kHugetlb, std::atoll(count.c_str()) > 0, fmt::format("vm.nr_hugepages={}", count));
}

void AnswerSwap(ProbeGroup* group) {
  const absl::StatusOr<uint64_t> areas = CountSwapAreas();
  if (!areas.ok()) return group->No(kSwap, MessageOf(areas.status()));
  if (*areas == 0) return group->Yes(kSwap, "no swap");
  const absl::Status noswap = TryNoswapTmpfs();
  group->Answer(kSwap, noswap.ok(),
                fmt::format("{} swap area(s); {}", *areas,
                            noswap.ok() ? "a frame store that is mounted now is noswap" : MessageOf(noswap)));
}

}  // namespace

ProbeItems ProbeMemory() {
  ProbeGroup group("memory");
  const absl::Status memfd = TryMemfd();
  group.Answer(kMemfd, memfd.ok(), memfd.ok() ? "a punched page was given back" : MessageOf(memfd));
  AnswerShm(&group);
  const std::string huge = Chosen("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  group.Answer(kHuge, huge != "force", fmt::format("shmem_enabled: {}", huge));
  AnswerHugetlb(&group);
  AnswerSwap(&group);
  return group.Take();
}

}  // namespace hk
