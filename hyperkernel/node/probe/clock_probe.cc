#include <sys/timex.h>

#include <cerrno>
#include <string>

#include "fmt/format.h"
#include "hyperkernel/base/file.h"
#include "hyperkernel/base/probe_group.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/probe/host_parts.h"

namespace hk {
namespace {

constexpr ProbeQuestion kSource = {
    .name = "the host's clock is its TSC",
    .lost = "one guest TSC over several nodes: guests that span nodes are told that their TSC is unstable",
    .fix =
        "see dmesg | grep -i tsc for why the kernel dropped it; firmware settings that change the TSC must be off; in "
        "a virtual machine its host must offer an invariant TSC"};
constexpr ProbeQuestion kInvariant = {
    .name = "invariant TSC (constant_tsc, nonstop_tsc)",
    .lost = "one guest TSC over several nodes: guests that span nodes are told that their TSC is unstable",
    .fix = "a CPU with invariant TSC; in a virtual machine CPU model host with +invtsc"};
constexpr ProbeQuestion kSynchronised = {
    .name = "wall clock is synchronised",
    .lost = "logs of nodes do not line up, and guests start with a wrong wall clock (leases do not depend on it)",
    .fix = "apt install chrony (or enable systemd-timesyncd) and give it a reachable server"};

void AnswerSource(ProbeGroup* group) {
  auto text = ReadSmallFile("/sys/devices/system/clocksource/clocksource0/current_clocksource", 64);
  if (!text.ok()) return group->No(kSource, MessageOf(text.status()));
  const std::string source = text->substr(0, text->find('\n'));
  group->Answer(kSource, source == "tsc", source);
}

void AnswerInvariant(ProbeGroup* group) {
  auto cpuinfo = ReadSmallFile("/proc/cpuinfo", 16 << 20);
  if (!cpuinfo.ok()) return group->No(kInvariant, MessageOf(cpuinfo.status()));
  const bool constant = cpuinfo->find(" constant_tsc") != std::string::npos;
  const bool nonstop = cpuinfo->find(" nonstop_tsc") != std::string::npos;
  group->Answer(kInvariant, constant && nonstop,
                fmt::format("constant_tsc {}, nonstop_tsc {}", constant ? "yes" : "no", nonstop ? "yes" : "no"));
}

// adjtimex with no modes only reads, and needs no privilege.
void AnswerSynchronised(ProbeGroup* group) {
  timex state = {};
  if (adjtimex(&state) < 0) return group->No(kSynchronised, MessageOf(ErrnoStatus(errno, "adjtimex")));
  const bool synchronised = (state.status & STA_UNSYNC) == 0;
  group->Answer(kSynchronised, synchronised,
                synchronised ? fmt::format("error at most {} us", state.maxerror) : "adjtimex says unsynchronised");
}

}  // namespace

ProbeItems ProbeClock() {
  ProbeGroup group("clock");
  AnswerSource(&group);
  AnswerInvariant(&group);
  AnswerSynchronised(&group);
  return group.Take();
}

}  // namespace hk
