#include "hyperkernel/memory/userfaultfd_probe.h"

#include <linux/userfaultfd.h>

#include <string>

#include "fmt/format.h"
#include "hyperkernel/base/file.h"
#include "hyperkernel/base/probe_group.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/memory/userfaultfd_trial.h"

namespace hk {
namespace {

// Newer than Debian 12's headers (<linux/userfaultfd.h> of 6.8).
constexpr uint64_t kFeatureWpUnpopulated = 1 << 13;
constexpr uint64_t kFeaturePoison = 1 << 14;
constexpr uint64_t kFeatureWpAsync = 1 << 15;
constexpr uint64_t kFeatureMove = 1 << 16;

constexpr std::string_view kStock = "boot a stock kernel, 6.1 or later, with CONFIG_USERFAULTFD and CONFIG_SHMEM";

constexpr ProbeQuestion kOpen = {
    .name = "userfaultfd with kernel-mode faults",
    .lost = "guest memory: this node can neither run guests nor hold their pages",
    .fix =
        "give the daemon CAP_SYS_PTRACE (AmbientCapabilities= in the unit), or access to /dev/userfaultfd (kernel "
        "6.1: chgrp and chmod 0660 by a udev rule), or set sysctl vm.unprivileged_userfaultfd=1; no such call at all: "
        "boot a kernel with CONFIG_USERFAULTFD",
    .required = true};

struct Feature {
  uint64_t bit;
  std::string_view use;  // shown with a yes
  ProbeQuestion question;
};

constexpr Feature kFeatures[] = {
    {UFFD_FEATURE_MISSING_SHMEM,
     "pages are fetched on demand",
     {"MISSING_SHMEM", "fetching pages on demand: no guest memory", kStock, true}},
    {UFFD_FEATURE_PAGEFAULT_FLAG_WP,
     "shared pages are write-protected",
     {"PAGEFAULT_FLAG_WP", "shared pages: no guest memory", kStock, true}},
    {UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
     "write protection on tmpfs",
     {"WP_HUGETLBFS_SHMEM", "write protection of pages on tmpfs: no guest memory",
      "boot kernel 5.19 or later with CONFIG_PTE_MARKER_UFFD_WP (Debian 12's has it; x86-64 only)", true}},
    {UFFD_FEATURE_SIGBUS,
     "the daemon's view never allocates",
     {"SIGBUS", "the daemon's own view of guest memory, which must not allocate pages: no guest memory", kStock, true}},
    {UFFD_FEATURE_THREAD_ID,
     "stalls are counted by vCPU",
     {"THREAD_ID", "stalls are not counted by vCPU, and the move policy is blind", kStock}},
    {UFFD_FEATURE_EXACT_ADDRESS,
     "traces name the byte",
     {"EXACT_ADDRESS (optional)", "traces of stalls name the page only, not the byte", "boot kernel 5.18 or later"}},
    {UFFD_FEATURE_MINOR_SHMEM,
     "not used today (pages are dropped by punching holes)",
     {"MINOR_SHMEM (optional)", "nothing today: pages are dropped by punching holes", "boot kernel 5.14 or later"}},
    {UFFD_FEATURE_EVENT_REMOVE,
     "left off: holes are punched without an event",
     {"EVENT_REMOVE (optional)", "nothing: the design leaves it off", kStock}},
    {kFeatureWpUnpopulated,
     "not used: for anonymous memory",
     {"WP_UNPOPULATED (optional)", "nothing: it concerns anonymous memory", "boot kernel 6.4 or later"}},
    {kFeaturePoison,
     "a lost page can be a machine check",
     {"POISON (optional)", "nothing today: a lost page stops its guest by way of the daemon",
      "boot kernel 6.6 or later"}},
    {kFeatureWpAsync,
     "left off: a write fault must wait for its grant",
     {"WP_ASYNC (optional)", "nothing: the design leaves it off", "boot kernel 6.7 or later"}},
    {kFeatureMove,
     "not used: for anonymous memory",
     {"MOVE (optional)", "nothing: it concerns anonymous memory", "boot kernel 6.8 or later"}},
};

constexpr std::string_view kBroken =
    "the kernel has the feature and it does not work: boot a stock kernel, 6.1 or later, and report this";
constexpr ProbeQuestion kRegister = {"trial: register MISSING and WP on a memfd", "guest memory", kBroken, true};
constexpr ProbeQuestion kMissing = {"trial: missing page installed write-protected", "guest memory", kBroken, true};
constexpr ProbeQuestion kProtect = {"trial: write fault on a protected page", "guest memory", kBroken, true};
constexpr ProbeQuestion kRearm = {"trial: protection before the first touch",
                                  "restarting the daemon under running guests (R1): stop them before a restart",
                                  kBroken};
constexpr ProbeQuestion kSigbus = {"trial: a hole is an error in the daemon's view", "guest memory", kBroken, true};

void AnswerStatus(const ProbeQuestion& question, const absl::Status& status, ProbeGroup* group) {
  group->Answer(question, status.ok(), status.ok() ? "works" : MessageOf(status));
}

std::string HowOpened(bool by_device) {
  auto sysctl = ReadSmallFile("/proc/sys/vm/unprivileged_userfaultfd", 64);
  return fmt::format("by {}; vm.unprivileged_userfaultfd={}", by_device ? "/dev/userfaultfd" : "the system call",
                     sysctl.ok() ? sysctl->substr(0, sysctl->find('\n')) : "?");
}

}  // namespace

ProbeItems ProbeUserfaultfd() {
  ProbeGroup group("userfaultfd");
  absl::StatusOr<KernelModeUserfaultfd> opened = OpenKernelModeUserfaultfd();
  if (!opened.ok()) {
    group.No(kOpen, MessageOf(opened.status()));
    return group.Take();
  }
  group.Yes(kOpen, HowOpened(opened->by_device));

  absl::StatusOr<uint64_t> features = UserfaultfdHandshake(opened->fd.get(), 0);
  for (const Feature& feature : kFeatures) {
    const bool yes = features.ok() && (*features & feature.bit) != 0;
    group.Answer(feature.question, yes,
                 !features.ok() ? MessageOf(features.status())
                 : yes          ? std::string(feature.use)
                                : fmt::format("not among features {:#x}", *features));
  }
  const UserfaultfdTrial trial = TryFaults();
  AnswerStatus(kRegister, trial.registers, &group);
  AnswerStatus(kMissing, trial.missing, &group);
  AnswerStatus(kProtect, trial.write_protect, &group);
  AnswerStatus(kRearm, trial.rearm, &group);
  AnswerStatus(kSigbus, TrySigbusMapping(), &group);
  return group.Take();
}

}  // namespace hk
