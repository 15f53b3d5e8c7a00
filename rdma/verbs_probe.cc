#include "rdma/verbs_probe.h"

#include <fcntl.h>
#include <infiniband/verbs.h>
#include <linux/capability.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "fmt/format.h"
#include "fmt/ranges.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/file.h"
#include "hyperkernel/base/probe_group.h"
#include "hyperkernel/base/status.h"
#include "rdma/verbs_device.h"

namespace hk {
namespace {

constexpr ProbeQuestion kDevice = {.name = "active verbs device",
                                   .lost = "pages travel by TCP: a remote fault takes several times as long",
                                   .fix =
                                       "install the driver of the RDMA card, rdma-core and ibverbs-providers, and "
                                       "bring its port up; for trials on any "
                                       "network card: modprobe rdma_rxe && rdma link add rxe0 type rxe netdev DEVICE"};
constexpr ProbeQuestion kCm = {.name = "rdma_cm",
                               .lost = "connections over verbs: pages travel by TCP",
                               .fix = "modprobe rdma_ucm, and let the daemon's user open /dev/infiniband/rdma_cm"};
constexpr ProbeQuestion kMemlock = {
    .name = "locked memory limit",
    .lost = "message buffers can be too large to register: the verbs transport may not start",
    .fix = "LimitMEMLOCK=infinity in the unit (or CAP_IPC_LOCK)"};

// What the transport needs of a device: one queue pair per class and peer, page-sized messages. Limits below this are
// named.
constexpr int kNeededQueuePairs = 64;
constexpr int kNeededQueueDepth = 256;
// Registered message buffers of a node, with room: guest memory is never registered.
constexpr uint64_t kNeededLockedBytes = 64 << 20;

constexpr std::string_view kDeviceFix = "check dmesg and `rdma link` for this device, and its firmware and driver";

struct DeviceListDeleter {
  void operator()(ibv_device** list) const { ibv_free_device_list(list); }
};
struct ContextDeleter {
  void operator()(ibv_context* context) const { ibv_close_device(context); }
};
struct DomainDeleter {
  void operator()(ibv_pd* domain) const { ibv_dealloc_pd(domain); }
};
struct CompletionQueueDeleter {
  void operator()(ibv_cq* queue) const { ibv_destroy_cq(queue); }
};
using Context = std::unique_ptr<ibv_context, ContextDeleter>;

absl::StatusOr<Context> OpenDevice(const std::string& name) {
  int count = 0;
  std::unique_ptr<ibv_device*, DeviceListDeleter> list(ibv_get_device_list(&count));
  if (list == nullptr) return ErrnoStatus(errno, "ibv_get_device_list");
  for (int i = 0; i < count; ++i) {
    if (name != ibv_get_device_name(list.get()[i])) continue;
    Context context(ibv_open_device(list.get()[i]));
    if (context == nullptr) return ErrnoStatus(errno, fmt::format("ibv_open_device {}", name));
    return context;
  }
  return absl::NotFoundError(fmt::format("{}: no user space driver (package ibverbs-providers)", name));
}

// The most inline bytes a queue pair here can be made with; it cannot be asked, only tried.
absl::StatusOr<uint32_t> TryMaxInline(ibv_context* context) {
  std::unique_ptr<ibv_pd, DomainDeleter> domain(ibv_alloc_pd(context));
  if (domain == nullptr) return ErrnoStatus(errno, "ibv_alloc_pd");
  std::unique_ptr<ibv_cq, CompletionQueueDeleter> queue(ibv_create_cq(context, 4, nullptr, nullptr, 0));
  if (queue == nullptr) return ErrnoStatus(errno, "ibv_create_cq");
  int error = 0;
  for (uint32_t bytes : {1024, 512, 400, 256, 128, 64, 32, 0}) {
    ibv_qp_init_attr wanted = {};
    wanted.send_cq = wanted.recv_cq = queue.get();
    wanted.qp_type = IBV_QPT_RC;
    wanted.cap = {.max_send_wr = 2, .max_recv_wr = 2, .max_send_sge = 1, .max_recv_sge = 1, .max_inline_data = bytes};
    ibv_qp* pair = ibv_create_qp(domain.get(), &wanted);
    if (pair != nullptr) {
      ibv_destroy_qp(pair);
      return wanted.cap.max_inline_data;
    }
    error = errno;
  }
  return ErrnoStatus(error, "ibv_create_qp");
}

std::string_view LinkLayerName(uint8_t layer) {
  return layer == IBV_LINK_LAYER_ETHERNET ? "Ethernet" : layer == IBV_LINK_LAYER_INFINIBAND ? "InfiniBand" : "unknown";
}

// ibv_mtu counts powers of two from 256.
int MtuBytes(ibv_mtu mtu) {
  return mtu >= IBV_MTU_256 && mtu <= IBV_MTU_4096 ? 128 << mtu : 0;
}

std::string GidText(const ibv_gid& gid) {
  std::string text;
  for (int i = 0; i < 16; i += 2) text += fmt::format("{}{:x}", i == 0 ? "" : ":", gid.raw[i] << 8 | gid.raw[i + 1]);
  return text;
}

// Addresses of a port that are in use.
std::vector<std::string> Gids(ibv_context* context, const ibv_port_attr& port) {
  constexpr int kMostShown = 4;
  std::vector<std::string> gids;
  for (int i = 0; i < port.gid_tbl_len && gids.size() < kMostShown; ++i) {
    ibv_gid gid = {};
    if (ibv_query_gid(context, 1, i, &gid) == 0 && gid.global.interface_id != 0) gids.push_back(GidText(gid));
  }
  return gids;
}

void AnswerPort(const VerbsDevice& device, ibv_context* context, ProbeGroup* group) {
  const std::string name = fmt::format("{}: port", device.name);
  const ProbeQuestion question = {.name = name,
                                  .lost = "this device carries nothing",
                                  .fix =
                                      "bring its network interface up (ip link set DEVICE up), check cable and switch; "
                                      "InfiniBand: a subnet manager must run"};
  ibv_port_attr port = {};
  if (const int error = ibv_query_port(context, 1, &port); error != 0) {
    return group->No(question, MessageOf(ErrnoStatus(error, "ibv_query_port")));
  }
  group->Answer(question, port.state == IBV_PORT_ACTIVE,
                fmt::format("{}, {}, MTU {} of {}, netdev {}, GIDs {}", ibv_port_state_str(port.state),
                            LinkLayerName(port.link_layer), MtuBytes(port.active_mtu), MtuBytes(port.max_mtu),
                            device.netdev.empty() ? "none" : device.netdev, fmt::join(Gids(context, port), " ")));
}

void AnswerLimits(const VerbsDevice& device, ibv_context* context, ProbeGroup* group) {
  const std::string name = fmt::format("{}: limits", device.name);
  const ProbeQuestion question = {
      .name = name, .lost = "too few or too short queues: this device is not used", .fix = kDeviceFix};
  ibv_device_attr_ex limits = {};
  if (const int error = ibv_query_device_ex(context, nullptr, &limits); error != 0) {
    return group->No(question, MessageOf(ErrnoStatus(error, "ibv_query_device_ex")));
  }
  const ibv_device_attr& base = limits.orig_attr;
  group->Answer(question, base.max_qp >= kNeededQueuePairs && base.max_qp_wr >= kNeededQueueDepth && base.max_sge >= 1,
                fmt::format("max_qp {}, max_qp_wr {}, max_sge {}, max_mr {}, max_mr_size {:#x}, on-demand paging {}",
                            base.max_qp, base.max_qp_wr, base.max_sge, base.max_mr, base.max_mr_size,
                            limits.odp_caps.general_caps & IBV_ODP_SUPPORT ? "yes" : "no"));
}

void AnswerQueuePair(const VerbsDevice& device, ibv_context* context, ProbeGroup* group) {
  const std::string name = fmt::format("{}: reliable queue pair", device.name);
  const ProbeQuestion question = {.name = name, .lost = "this device is not used", .fix = kDeviceFix};
  absl::StatusOr<uint32_t> bytes = TryMaxInline(context);
  group->Answer(question, bytes.ok(),
                bytes.ok() ? fmt::format("was made; at least {} inline bytes", *bytes) : MessageOf(bytes.status()));
}

void AnswerDevice(const VerbsDevice& device, ProbeGroup* group) {
  const std::string name = fmt::format("{}: opens", device.name);
  const ProbeQuestion question = {
      .name = name,
      .lost = "this device is not used",
      .fix = "install ibverbs-providers, modprobe ib_uverbs, and let the daemon's user open /dev/infiniband/uverbs*"};
  absl::StatusOr<Context> context = OpenDevice(device.name);
  if (!context.ok()) return group->No(question, MessageOf(context.status()));
  group->Yes(question, ibv_get_device_name((*context)->device));
  AnswerPort(device, context->get(), group);
  AnswerLimits(device, context->get(), group);
  AnswerQueuePair(device, context->get(), group);
}

void AnswerSummary(const std::vector<VerbsDevice>& devices, ProbeGroup* group) {
  std::vector<std::string> names;
  for (const VerbsDevice& device : devices) {
    names.push_back(fmt::format("{} ({})", device.name, device.active ? "active" : "not active"));
  }
  group->Answer(kDevice, std::ranges::any_of(devices, &VerbsDevice::active),
                names.empty() ? "no device" : fmt::format("{}", fmt::join(names, ", ")));
}

void AnswerCm(ProbeGroup* group) {
  OwnedFd cm(open("/dev/infiniband/rdma_cm", O_RDWR | O_CLOEXEC));
  group->Answer(
      kCm, cm.valid(),
      cm.valid() ? "/dev/infiniband/rdma_cm opens" : MessageOf(ErrnoStatus(errno, "/dev/infiniband/rdma_cm")));
}

// CAP_IPC_LOCK lifts the limit.
bool MayLockAnything() {
  auto status = ReadSmallFile("/proc/self/status", 64 << 10);
  if (!status.ok()) return false;
  const size_t at = status->find("\nCapEff:");
  return at != std::string::npos && (std::strtoull(status->c_str() + at + 8, nullptr, 16) >> CAP_IPC_LOCK & 1) != 0;
}

void AnswerMemlock(ProbeGroup* group) {
  if (MayLockAnything()) return group->Yes(kMemlock, "CAP_IPC_LOCK: no limit");
  rlimit limit = {};
  if (getrlimit(RLIMIT_MEMLOCK, &limit) < 0) return group->No(kMemlock, MessageOf(ErrnoStatus(errno, "getrlimit")));
  const bool unlimited = limit.rlim_cur == RLIM_INFINITY;
  group->Answer(kMemlock, unlimited || limit.rlim_cur >= kNeededLockedBytes,
                unlimited ? "unlimited" : fmt::format("{} KiB", limit.rlim_cur >> 10));
}

}  // namespace

ProbeItems ProbeVerbs() {
  ProbeGroup group("verbs");
  absl::StatusOr<std::vector<VerbsDevice>> devices = ListVerbsDevices();
  if (!devices.ok()) {
    group.No(kDevice, MessageOf(devices.status()));
    return group.Take();
  }
  AnswerSummary(*devices, &group);
  if (devices->empty()) return group.Take();
  AnswerCm(&group);
  AnswerMemlock(&group);
  for (const VerbsDevice& device : *devices) AnswerDevice(device, &group);
  return group.Take();
}

}  // namespace hk
