#include "hyperkernel/node/machine_virtio.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mapping.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/boot/address_map.h"
#include "hyperkernel/device/virtio_blk.h"
#include "hyperkernel/device/virtio_net.h"
#include "hyperkernel/device/virtio_rng.h"
#include "hyperkernel/kvm/io_event.h"
#include "hyperkernel/node/vm_spec.h"

namespace hk {
namespace {

static_assert(kFirstNetSlot + kMaxNets <= kFirstDiskSlot && kFirstDiskSlot + kMaxDisks <= PciRoot::kSlots);
static_assert(kMaxQueues <= VirtioBlk::kMaxQueues && kMaxQueues <= VirtioNet::kMaxPairs);
static_assert(std::is_same_v<MacAddress, VirtioNet::Mac>);

// Ports of the console device.
constexpr size_t kConsolePort = 0, kAgentPort = 1;
// qemu-guest-agent looks for this name.
constexpr char kAgentPortName[] = "org.qemu.guest_agent.0";

// Of memory whose pages others may want: the disks' requests in flight pin a quarter of what may be pinned, so that
// there is always room for rings and network cards, and a disk not more than a few of Linux's largest requests (1.25
// MiB).
constexpr uint64_t kMostPinnedByDisk = 4 << 20;
uint64_t PinnedByDisk(uint64_t most_pinned, int disks) {
  if (most_pinned == 0) return 0;
  return std::clamp<uint64_t>(most_pinned / 4 / static_cast<uint64_t>(disks), 1, kMostPinnedByDisk);
}

// One request may have half of it: with the fewest frames that a placed machine's node has, a page for each segment.
static_assert((kMinPlacedMib << 20) / 2 / 2 >= VirtioBlk::kMaxSegments * kPageSize);

// What an empty PCI slot reads as: all of ECAM's range in ones, one for the process.
absl::StatusOr<std::byte*> AllOnes() {
  static const absl::StatusOr<Mapping> ones = []() -> absl::StatusOr<Mapping> {
    HK_ASSIGN_OR_RETURN(Mapping mapping, Mapping::Create(kEcamBytes, PROT_READ | PROT_WRITE,
                                                         MAP_PRIVATE | MAP_ANONYMOUS, -1, "empty PCI slots"));
    std::memset(mapping.data(), 0xff, mapping.size());
    ::mprotect(mapping.data(), mapping.size(), PROT_READ);
    return mapping;
  }();
  if (!ones.ok()) return ones.status();
  return reinterpret_cast<std::byte*>(ones->data());
}

VirtioConsole::Port PortOf(Channel channel, std::string name, const MachineVirtio::Output& output) {
  return {.name = std::move(name), .output = [channel, output](std::span<const std::byte> bytes) {
            output(channel, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
          }};
}

}  // namespace

absl::StatusOr<std::unique_ptr<MachineVirtio>> MachineVirtio::Create(const v1::VmSpec& spec, MachineBackends backends,
                                                                     GuestMemory* memory, PciRoot* root,
                                                                     InterruptSink* interrupts, Output output,
                                                                     GuestReplica* replica) {
  std::unique_ptr<MachineVirtio> virtio(new MachineVirtio(root));
  root->SetDoorbellRegistrar(&virtio->doorbells_);
  HK_ASSIGN_OR_RETURN(virtio->set_, VirtioSet::Create(memory, root, interrupts, spec.name()));
  HK_RETURN_IF_ERROR(virtio->Add(spec, std::move(backends), memory->most_pinned_bytes(), std::move(output), replica));
  return virtio;
}

absl::Status MachineVirtio::Add(const v1::VmSpec& spec, MachineBackends backends, uint64_t most_pinned, Output output,
                                GuestReplica* replica) {
  HK_CHECK(static_cast<int>(backends.disks.size()) == spec.disks_size());
  HK_CHECK(static_cast<int>(backends.nets.size()) == spec.nets_size());
  std::vector<VirtioConsole::Port> ports;
  ports.push_back(PortOf(Channel::kVirtioConsole, "", output));
  ports.push_back(PortOf(Channel::kAgent, kAgentPortName, output));
  auto console = std::make_unique<VirtioConsole>(std::move(ports));
  console_ = console.get();
  HK_RETURN_IF_ERROR(set_->Add(kConsoleSlot, "console", std::move(console)));
  HK_RETURN_IF_ERROR(set_->Add(kRngSlot, "rng", std::make_unique<VirtioRng>()));
  for (int i = 0; i < spec.nets_size(); i++) {
    const std::string field = fmt::format("nets[{}]", i);
    const absl::StatusOr<MacAddress> mac = ParseMac(spec.nets(i).mac());
    if (!mac.ok()) return WithContext(mac.status(), field + ".mac");
    auto net = VirtioNet::Create(std::move(backends.nets[static_cast<size_t>(i)]), *mac);
    if (!net.ok()) return WithContext(net.status(), field);
    HK_RETURN_IF_ERROR(set_->Add(static_cast<uint8_t>(kFirstNetSlot + i), fmt::format("net{}", i), *std::move(net)));
  }
  for (int i = 0; i < spec.disks_size(); i++) {
    const v1::DiskSpec& disk = spec.disks(i);
    DiskImage& image = backends.disks[static_cast<size_t>(i)];
    std::unique_ptr<BlockReplica> account;
    if (replica != nullptr && IsLockedAgainstWriters(image, disk.exclusive())) {
      account = replica->AttachDisk(static_cast<size_t>(i), image);
    }
    auto blk = VirtioBlk::Create(std::move(image), {.serial = disk.serial(),
                                                    .queues = static_cast<uint16_t>(std::max(disk.queues(), 1u)),
                                                    .bps_limit = disk.bps_limit(),
                                                    .most_pinned_bytes = PinnedByDisk(most_pinned, spec.disks_size()),
                                                    .most_request_bytes = most_pinned / 2,
                                                    .replica = std::move(account)});
    if (!blk.ok()) return WithContext(blk.status(), fmt::format("disks[{}]", i));
    HK_RETURN_IF_ERROR(set_->Add(static_cast<uint8_t>(kFirstDiskSlot + i), fmt::format("disk{}", i), *std::move(blk)));
  }
  return absl::OkStatus();
}

bool KvmDoorbells::Add(Gpa address, int event) {
  MutexLock lock(&mutex_);
  if (vm_ == nullptr) return false;
  if (const absl::Status status = AddIoEvent(*vm_, address, event); !status.ok()) {
    log::Debug("guest", "a doorbell exits", {{"reason", MessageOf(status)}});
    return false;
  }
  taken_.emplace(address, event);
  return true;
}

void KvmDoorbells::Remove(Gpa address, int event) {
  MutexLock lock(&mutex_);
  if (taken_.erase({address, event}) == 0 || vm_ == nullptr) return;
  if (const absl::Status status = RemoveIoEvent(*vm_, address, event); !status.ok()) {
    log::Warning("guest", "a doorbell stays", {{"reason", MessageOf(status)}});
  }
}

void KvmDoorbells::MoveTo(Vm* vm) {
  MutexLock lock(&mutex_);
  vm_ = vm;
  if (vm == nullptr) return;
  std::erase_if(taken_, [&](const auto& doorbell) { return !AddIoEvent(*vm, doorbell.first, doorbell.second).ok(); });
}

absl::Status MachineVirtio::AttachTo(Vm* vm) {
  HK_ASSIGN_OR_RETURN(std::byte* const ones, AllOnes());
  for (const PciRoot::EmptyRange& range : root_->EmptySlotPages()) {
    const uint64_t offset = range.start.value() - kEcamStart.value();
    HK_CHECK(offset + range.bytes <= kEcamBytes);
    HK_RETURN_IF_ERROR(
        vm->AddMemory({.start = range.start, .bytes = range.bytes, .host = ones + offset, .readonly = true}).status());
  }
  doorbells_.MoveTo(vm);
  return absl::OkStatus();
}

absl::Status MachineVirtio::Start() {
  return set_->Start();
}

size_t MachineVirtio::Input(Channel channel, std::string_view bytes) {
  const size_t port = channel == Channel::kAgent ? kAgentPort : kConsolePort;
  if (!console_->GuestOpen(port)) return 0;  // nobody would read it, or who comes later would
  return console_->Input(port, std::as_bytes(std::span(bytes.data(), bytes.size())));
}

}  // namespace hk
