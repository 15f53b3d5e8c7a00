#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <string>

#include "fmt/format.h"
#include "hyperkernel/base/file.h"
#include "hyperkernel/base/probe_group.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/probe/host_parts.h"

namespace hk {
namespace {

constexpr ProbeQuestion kKernel = {
    .name = "Linux 6.1 or later",
    .lost = "everything: older kernels lack write protection on tmpfs and more",
    .fix = "install a newer kernel (Debian 12: apt install linux-image-amd64) and reboot",
    .required = true};
constexpr ProbeQuestion kInterruptible = {
    .name = "remote faults can be interrupted, 6.2 (optional)",
    .lost = "stopping a vCPU that waits for a page whose source is dead: its guest is given up the hard way",
    .fix = "boot kernel 6.2 or later (Debian 12: linux-image-amd64 from bookworm-backports)"};
constexpr ProbeQuestion kCpu = {.name = "CPU with 64-bit mode and cmpxchg16b",
                                .lost = "everything: hyper-kernel and its guests are 64-bit x86 programs",
                                .fix = "use an x86-64 machine; in a virtual machine CPU model host",
                                .required = true};
constexpr ProbeQuestion kMemory = {.name = "memory",
                                   .lost = "guest memory: the frame store has no room",
                                   .fix = "add memory, or stop what uses it; 1 GiB must be available",
                                   .required = true};
constexpr ProbeQuestion kFiles = {.name = "file descriptors",
                                  .lost = "large guests: each vCPU, memory stripe, device queue and peer takes some",
                                  .fix = "LimitNOFILE=65536 in the unit (or ulimit -n 65536)"};
constexpr uint64_t kLeastMemoryMib = 1024;
constexpr rlim_t kLeastFiles = 4096;

void AnswerKernel(ProbeGroup* group) {
  utsname name = {};
  int major = 0, minor = 0;
  if (uname(&name) < 0) return group->No(kKernel, MessageOf(ErrnoStatus(errno, "uname")));
  const bool parsed = std::sscanf(name.release, "%d.%d", &major, &minor) == 2;
  const auto at_least = [&](int wanted_major, int wanted_minor) {
    return parsed && (major > wanted_major || (major == wanted_major && minor >= wanted_minor));
  };
  group->Answer(kKernel, at_least(6, 1), name.release);
  group->Answer(kInterruptible, at_least(6, 2), name.release);
}

// The value of the first "key : value" line of /proc/cpuinfo; "" if there is none.
std::string CpuinfoValue(const std::string& cpuinfo, const std::string& key) {
  const size_t line = cpuinfo.starts_with(key) ? 0 : cpuinfo.find("\n" + key) + 1;
  if (line == 0 && !cpuinfo.starts_with(key)) return "";
  const size_t colon = cpuinfo.find(": ", line), end = cpuinfo.find('\n', line);
  return colon == std::string::npos || colon > end ? "" : cpuinfo.substr(colon + 2, end - colon - 2);
}

void AnswerCpu(ProbeGroup* group) {
  auto cpuinfo = ReadSmallFile("/proc/cpuinfo", 16 << 20);
  if (!cpuinfo.ok()) return group->No(kCpu, MessageOf(cpuinfo.status()));
  const std::string flags = " " + CpuinfoValue(*cpuinfo, "flags") + " ";
  const auto has = [&](std::string_view flag) { return flags.find(fmt::format(" {} ", flag)) != std::string::npos; };
  group->Answer(kCpu, has("lm") && has("cx16"),
                fmt::format("{}, {} of {} CPUs online, {}{}", CpuinfoValue(*cpuinfo, "model name"),
                            sysconf(_SC_NPROCESSORS_ONLN), sysconf(_SC_NPROCESSORS_CONF),
                            has("vmx")   ? "VT-x"
                            : has("svm") ? "AMD-V"
                                         : "no VT-x or AMD-V",
                            has("hypervisor") ? ", itself a virtual machine" : ""));
}

void AnswerMemory(ProbeGroup* group) {
  auto text = ReadSmallFile("/proc/meminfo", 64 << 10);
  unsigned long long total_kib = 0, available_kib = 0;
  const auto read = [&](const char* key, const char* format, unsigned long long* value) {
    const size_t at = text->find(key);
    return at != std::string::npos && std::sscanf(text->c_str() + at, format, value) == 1;
  };
  if (!text.ok()) return group->No(kMemory, MessageOf(text.status()));
  if (!read("MemTotal:", "MemTotal: %llu", &total_kib) ||
      !read("MemAvailable:", "MemAvailable: %llu", &available_kib)) {
    return group->No(kMemory, "/proc/meminfo is not understood");
  }
  group->Answer(kMemory, available_kib >> 10 >= kLeastMemoryMib,
                fmt::format("{} MiB, {} MiB available", total_kib >> 10, available_kib >> 10));
}

void AnswerFiles(ProbeGroup* group) {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) < 0) return group->No(kFiles, MessageOf(ErrnoStatus(errno, "getrlimit")));
  // The daemon may raise its soft limit to the hard one.
  group->Answer(kFiles, limit.rlim_max >= kLeastFiles, fmt::format("{}, at most {}", limit.rlim_cur, limit.rlim_max));
}

}  // namespace

ProbeItems ProbeHostFacts() {
  ProbeGroup group("host");
  AnswerKernel(&group);
  AnswerCpu(&group);
  AnswerMemory(&group);
  AnswerFiles(&group);
  return group.Take();
}

}  // namespace hk
