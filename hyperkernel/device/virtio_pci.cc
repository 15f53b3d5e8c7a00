#include "hyperkernel/device/virtio_pci.h"

#include <linux/pci_regs.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>

#include <algorithm>
#include <bit>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

constexpr uint16_t kVirtioVendor = 0x1af4;      // 4.1.2
constexpr uint16_t kModernDeviceBase = 0x1040;  // 4.1.2.1
constexpr uint16_t kNoVector = VIRTIO_MSI_NO_VECTOR;
constexpr auto kComplaintInterval = std::chrono::seconds(10);  // a guest must not fill the log
constexpr uint8_t kIsrQueue = 1, kIsrConfig = 2;               // 4.1.4.5
constexpr uint16_t kMsixControlMasked = PCI_MSIX_FLAGS_MASKALL;
constexpr uint16_t kMsixControlEnabled = PCI_MSIX_FLAGS_ENABLE;

PciConfig::Identity IdentityOf(const VirtioDevice& device) {
  return {.vendor = kVirtioVendor,
          .device = static_cast<uint16_t>(kModernDeviceBase + device.type()),
          .subsystem_vendor = kVirtioVendor,
          .subsystem = static_cast<uint16_t>(0x40 + device.type()),  // 4.1.2.1: 0x40 or higher
          .class_code = device.class_code(),
          .revision = 1,
          .interrupt_pin = true};
}

// One vector for configuration changes and one per queue.
uint16_t VectorsOf(const VirtioDevice& device) {
  HK_CHECK(device.queue_sizes().size() <= kMaxVirtioQueues);
  return static_cast<uint16_t>(device.queue_sizes().size() + 1);
}

// struct virtio_pci_cap without its first two bytes (4.1.4).
struct [[gnu::packed]] CapabilityBody {
  uint8_t length;
  uint8_t type;
  uint8_t bar;
  uint8_t id;
  uint8_t padding[2];
  uint32_t offset;
  uint32_t bytes;
  uint32_t extra;  // notify: multiplier; configuration access: data window
};
static_assert(sizeof(CapabilityBody) + 2 == sizeof(virtio_pci_cap) + 4);

// What others are told of doorbells.
static_assert(VirtioPci::kBarBytes == kDoorbellBarBytes && VirtioPci::kNotifyOffset == kDoorbellsOffset &&
              VirtioPci::kNotifyMultiplier == kDoorbellStride && kMaxVirtioQueues * kDoorbellStride == kDoorbellsBytes);

}  // namespace

VirtioPci::VirtioPci(std::string name, VirtioDevice* device, DmaSpace* space, WorkLoop* loop, InterruptSink* interrupts)
    : PciDevice(IdentityOf(*device)),
      name_(std::move(name)),
      device_(device),
      space_(space),
      loop_(loop),
      offered_(device->features() | kVirtioVersion1 | kVirtioIndirect | kVirtioEventIndex),
      msix_(interrupts, VectorsOf(*device)),
      queue_configs_(device->queue_sizes().size()),
      queue_vectors_(device->queue_sizes().size()) {
  AddCapabilities();
  for (size_t i = 0; i < device->queue_sizes().size(); ++i) queues_.emplace_back(space);
  {
    MutexLock lock(&mutex_);
    ForgetDriver();
  }
  loop_->SetWakeHandler([this] { OnWake(); });
}

absl::Status VirtioPci::MakeDoorbells() {
  for (uint32_t queue = 0; queue < queues_.size(); ++queue) {
    HK_ASSIGN_OR_RETURN(const int event, loop_->AddEvent([this, queue] {
      doorbells_.fetch_or(uint64_t{1} << queue);
      OnWake();
    }));
    events_.push_back({.offset = kNotifyOffset + kNotifyMultiplier * queue, .event = event});
  }
  return absl::OkStatus();
}

VirtioPci::~VirtioPci() {
  if (running_) StopDevice();
}

uint8_t VirtioPci::AddVirtioCapability(uint8_t type, uint32_t offset, uint32_t bytes, bool with_extra, uint32_t extra) {
  const auto size = static_cast<uint8_t>(sizeof(CapabilityBody) - (with_extra ? 0 : 4));
  const CapabilityBody body = {.length = static_cast<uint8_t>(size + 2),
                               .type = type,
                               .bar = 0,
                               .id = 0,
                               .padding = {},
                               .offset = offset,
                               .bytes = bytes,
                               .extra = extra};
  return config_.AddCapability(PCI_CAP_ID_VNDR, std::as_bytes(std::span(&body, 1)).first(size));
}

void VirtioPci::AddCapabilities() {
  MutexLock lock(&config_mutex_);
  config_.AddBar(0, kBarBytes);
  const auto queues = static_cast<uint32_t>(device_->queue_sizes().size());
  AddVirtioCapability(VIRTIO_PCI_CAP_COMMON_CFG, kCommonOffset, sizeof(virtio_pci_common_cfg), false, 0);
  AddVirtioCapability(VIRTIO_PCI_CAP_NOTIFY_CFG, kNotifyOffset, std::max(queues, 1u) * kNotifyMultiplier, true,
                      kNotifyMultiplier);
  AddVirtioCapability(VIRTIO_PCI_CAP_ISR_CFG, kIsrOffset, 1, false, 0);
  AddVirtioCapability(VIRTIO_PCI_CAP_DEVICE_CFG, kDeviceOffset, kRegionBytes, false, 0);
  config_access_ = AddVirtioCapability(VIRTIO_PCI_CAP_PCI_CFG, 0, 0, true, 0);
  const std::array<uint8_t, 16> writable = {0xff, 0,    0,    0,    0xff, 0xff, 0xff, 0xff, 0xff,
                                            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};  // bar, offset, length, data
  config_.AllowWrites(config_access_ + 4, std::as_bytes(std::span(writable)));
  struct [[gnu::packed]] {
    uint16_t control;
    uint32_t table;
    uint32_t pending;
  } const msix = {static_cast<uint16_t>(msix_.vectors() - 1), kTableOffset, kPendingOffset};
  msix_capability_ = config_.AddCapability(PCI_CAP_ID_MSIX, std::as_bytes(std::span(&msix, 1)));
  const uint16_t control = kMsixControlEnabled | kMsixControlMasked;
  config_.AllowWrites(msix_capability_ + 2, std::as_bytes(std::span(&control, 1)));
}

// The window of the configuration access capability (4.1.4.9): an access of `length` bytes to the BAR, made by an
// access to its data field. False if the driver did not set it up as it must.
bool VirtioPci::AccessThroughConfig(uint32_t offset, size_t bytes, uint32_t* bar_offset, uint32_t* length) {
  if (offset != config_access_ + 16u || bytes > 4) return false;
  MutexLock lock(&config_mutex_);
  const uint32_t bar = config_.Get32(config_access_ + 4) & 0xff;
  *bar_offset = config_.Get32(config_access_ + 8);
  *length = config_.Get32(config_access_ + 12);
  if (*length != 1 && *length != 2 && *length != 4) return false;
  return bar == 0 && *bar_offset % *length == 0 && *bar_offset < kBarBytes;
}

void VirtioPci::ReadConfig(uint32_t offset, std::span<std::byte> data) {
  uint32_t bar_offset = 0, length = 0;
  if (AccessThroughConfig(offset, data.size(), &bar_offset, &length)) {
    uint32_t value = 0;
    ReadBar(0, bar_offset, std::as_writable_bytes(std::span(&value, 1)).first(length));
    MutexLock lock(&config_mutex_);
    config_.Set32(config_access_ + 16, value);
  }
  PciDevice::ReadConfig(offset, data);
}

void VirtioPci::WriteConfig(uint32_t offset, std::span<const std::byte> data) {
  PciDevice::WriteConfig(offset, data);
  uint32_t bar_offset = 0, length = 0;
  if (AccessThroughConfig(offset, data.size(), &bar_offset, &length)) {
    std::array<std::byte, 4> value{};
    std::copy(data.begin(), data.end(), value.begin());
    WriteBar(0, bar_offset, std::span(value).first(length));
  }
  AfterConfigWrite();
}

// Follows the command register, the BAR and MSI-X's control, whichever access changed them. A BAR that goes elsewhere
// rings all its doorbells: a write to one of them that was made before, and is on its way from another node, finds
// nothing there any more.
void VirtioPci::AfterConfigWrite() {
  bool look = false;
  {
    MutexLock apply(&apply_mutex_);
    uint16_t command = 0, control = 0;
    {
      MutexLock lock(&config_mutex_);
      command = config_.Get(PciRegister::kCommand);
      control = config_.Get16(msix_capability_ + 2);
      const std::optional<uint64_t> decoded = config_.DecodedBar(0);
      look = std::exchange(decoded_, decoded) != decoded && !HK_MUTANT(moved_doorbells_lose_kicks);
    }
    const bool master = (command & kPciCommandMaster) != 0;
    msix_.SetControl((control & kMsixControlEnabled) != 0, (control & kMsixControlMasked) != 0, master);
    if (!bus_master_.exchange(master) && master) look = true;  // work that was held back
  }
  if (look) RingAll();
  UpdateIntx();
}

// PCI 3.0, 6.2.2 and 6.2.3: the line and the interrupt status bit.
void VirtioPci::UpdateIntx() {
  MutexLock apply(&apply_mutex_);
  const bool pending = isr_.load() != 0 && !msix_.enabled();
  bool allowed = false;
  {
    MutexLock lock(&config_mutex_);
    constexpr auto kStatus = static_cast<uint16_t>(PciRegister::kStatus);
    allowed = (config_.Get(PciRegister::kCommand) & kPciCommandIntxDisable) == 0;
    const uint16_t status = config_.Get16(kStatus) & ~kPciStatusInterrupt;
    config_.Set16(kStatus, pending ? status | kPciStatusInterrupt : status);
  }
  PciDevice::SetIntx(pending && allowed);
}

void VirtioPci::ReadBar(int, uint64_t offset, std::span<std::byte> data) {
  const uint64_t in_region = offset % kRegionBytes;
  switch (offset - in_region) {
    case kCommonOffset:
      return ReadCommon(in_region, data);
    case kIsrOffset:
      StoreLe(data, 0);
      if (in_region != 0) return;
      data[0] = std::byte{isr_.exchange(0)};  // reading acknowledges (4.1.4.5)
      return UpdateIntx();
    case kDeviceOffset:
      return device_->ReadConfig(in_region, data);
    case kTableOffset:
      return msix_.ReadTable(in_region, data);
    case kPendingOffset:
      return msix_.ReadPending(in_region, data);
    default:
      return StoreLe(data, 0);
  }
}

void VirtioPci::WriteBar(int, uint64_t offset, std::span<const std::byte> data) {
  const uint64_t in_region = offset % kRegionBytes;
  switch (offset - in_region) {
    case kCommonOffset:
      return WriteCommon(in_region, data);
    case kDeviceOffset:
      return device_->WriteConfig(in_region, data);
    case kNotifyOffset:
      // Each queue has its own address, so the value need not be looked at (4.1.4.4).
      if (in_region / kNotifyMultiplier < queues_.size()) Ring(static_cast<uint16_t>(in_region / kNotifyMultiplier));
      return;
    case kTableOffset:
      return msix_.WriteTable(in_region, data);
    default:
      return;
  }
}

void VirtioPci::ReadCommon(uint64_t offset, std::span<std::byte> data) {
  virtio_pci_common_cfg common{};
  {
    MutexLock lock(&mutex_);
    common.device_feature_select = device_feature_select_;
    if (device_feature_select_ < 2)
      common.device_feature = static_cast<uint32_t>(offered_ >> 32 * device_feature_select_);
    common.guest_feature_select = driver_feature_select_;
    if (driver_feature_select_ < 2) {
      common.guest_feature = static_cast<uint32_t>(driver_features_ >> 32 * driver_feature_select_);
    }
    common.msix_config = config_vector_.load();
    common.num_queues = static_cast<uint16_t>(queue_configs_.size());
    common.device_status = status_;
    common.config_generation = generation_;
    common.queue_select = queue_select_;
    if (queue_select_ < queue_configs_.size()) {  // else the queue is unavailable: size 0 (4.1.4.3.1)
      const QueueConfig& queue = queue_configs_[queue_select_];
      common.queue_size = queue.size;
      common.queue_msix_vector = queue_vectors_[queue_select_].load();
      common.queue_enable = queue.enabled;
      common.queue_notify_off = queue_select_;
      common.queue_desc_lo = static_cast<uint32_t>(queue.descriptors);
      common.queue_desc_hi = static_cast<uint32_t>(queue.descriptors >> 32);
      common.queue_avail_lo = static_cast<uint32_t>(queue.available);
      common.queue_avail_hi = static_cast<uint32_t>(queue.available >> 32);
      common.queue_used_lo = static_cast<uint32_t>(queue.used);
      common.queue_used_hi = static_cast<uint32_t>(queue.used >> 32);
    }
  }
  ReadBlock(std::as_bytes(std::span(&common, 1)), offset, data);
}

void VirtioPci::WriteCommon(uint64_t offset, std::span<const std::byte> data) {
  bool wake = false;
  {
    MutexLock lock(&mutex_);
    if (reset_wanted_) return;  // the driver has to wait for status 0
    WriteCommonField(offset, LoadLe(data), data.size());
    wake = reset_wanted_ || start_wanted_;
  }
  if (wake) loop_->Wake();
}

uint16_t VirtioPci::Vector(uint16_t wanted) const {
  return wanted < msix_.vectors() ? wanted : kNoVector;  // 4.1.5.1.2
}

// Fields have one width each (4.1.3.1); another access is dropped.
void VirtioPci::WriteCommonField(uint64_t offset, uint64_t value, size_t bytes) {
  switch (offset) {
    case VIRTIO_PCI_COMMON_DFSELECT:
      if (bytes == 4) device_feature_select_ = static_cast<uint32_t>(value);
      return;
    case VIRTIO_PCI_COMMON_GFSELECT:
      if (bytes == 4) driver_feature_select_ = static_cast<uint32_t>(value);
      return;
    case VIRTIO_PCI_COMMON_GF: {
      if (bytes != 4 || driver_feature_select_ > 1 || (status_ & VIRTIO_CONFIG_S_FEATURES_OK)) return;
      const uint32_t shift = 32 * driver_feature_select_;
      driver_features_ = (driver_features_ & ~(uint64_t{0xffffffff} << shift)) | value << shift;
      return;
    }
    case VIRTIO_PCI_COMMON_MSIX:
      if (bytes == 2) config_vector_ = Vector(static_cast<uint16_t>(value));
      return;
    case VIRTIO_PCI_COMMON_STATUS:
      if (bytes == 1) WriteStatus(static_cast<uint8_t>(value));
      return;
    case VIRTIO_PCI_COMMON_Q_SELECT:
      if (bytes == 2) queue_select_ = static_cast<uint16_t>(value);
      return;
    case VIRTIO_PCI_COMMON_Q_MSIX:
      if (bytes == 2 && queue_select_ < queue_vectors_.size()) {
        queue_vectors_[queue_select_] = Vector(static_cast<uint16_t>(value));
      }
      return;
    default:
      return WriteQueueField(offset, value, bytes);
  }
}

void VirtioPci::WriteQueueField(uint64_t offset, uint64_t value, size_t bytes) {
  if (queue_select_ >= queue_configs_.size() || (status_ & VIRTIO_CONFIG_S_DRIVER_OK)) return;
  QueueConfig& queue = queue_configs_[queue_select_];
  if (queue.enabled) return;  // 4.1.4.3.2: enabled last
  // 64-bit fields may be written as two halves (4.1.3.1).
  auto set64 = [&](uint64_t* field, uint64_t field_offset) {
    if (bytes == 8 && offset == field_offset) {
      *field = value;
    } else if (bytes == 4 && offset == field_offset) {
      *field = (*field & 0xffffffff00000000) | value;
    } else if (bytes == 4 && offset == field_offset + 4) {
      *field = (*field & 0xffffffff) | value << 32;
    }
  };
  switch (offset & ~uint64_t{7}) {
    case VIRTIO_PCI_COMMON_Q_DESCLO:
      return set64(&queue.descriptors, VIRTIO_PCI_COMMON_Q_DESCLO);
    case VIRTIO_PCI_COMMON_Q_AVAILLO:
      return set64(&queue.available, VIRTIO_PCI_COMMON_Q_AVAILLO);
    case VIRTIO_PCI_COMMON_Q_USEDLO:
      return set64(&queue.used, VIRTIO_PCI_COMMON_Q_USEDLO);
    default:
      break;
  }
  if (bytes != 2) return;
  if (offset == VIRTIO_PCI_COMMON_Q_SIZE) {
    // The driver may make it smaller (4.1.4.3.2).
    if (value != 0 && value <= device_->queue_sizes()[queue_select_] && std::has_single_bit(value)) {
      queue.size = static_cast<uint16_t>(value);
    }
  } else if (offset == VIRTIO_PCI_COMMON_Q_ENABLE) {
    queue.enabled = value == 1;  // writing 0 is forbidden to drivers, and nothing here
  }
}

// The status machine (2.1, 3.1.1).
void VirtioPci::WriteStatus(uint8_t value) {
  if (value == 0) {
    if (started_) {
      reset_wanted_ = true;  // the worker finishes it
      start_wanted_ = false;
    } else {
      ForgetDriver();
    }
    return;
  }
  if ((value & VIRTIO_CONFIG_S_FEATURES_OK) && !(status_ & VIRTIO_CONFIG_S_FEATURES_OK)) {
    const bool acceptable = (driver_features_ & ~offered_) == 0 && (driver_features_ & kVirtioVersion1) != 0;
    if (!acceptable) value &= ~VIRTIO_CONFIG_S_FEATURES_OK;
  }
  // Bits are never taken back but by a reset.
  status_ |= value & ~VIRTIO_CONFIG_S_NEEDS_RESET;
  const bool ready = (status_ & VIRTIO_CONFIG_S_DRIVER_OK) && (status_ & VIRTIO_CONFIG_S_FEATURES_OK);
  if (ready && !started_) {
    started_ = true;
    start_wanted_ = true;
  }
}

void VirtioPci::ForgetDriver() {
  status_ = 0;
  driver_features_ = 0;
  device_feature_select_ = driver_feature_select_ = 0;
  queue_select_ = 0;
  start_wanted_ = reset_wanted_ = started_ = false;
  for (size_t i = 0; i < queue_configs_.size(); ++i) {
    queue_configs_[i] = {.size = device_->queue_sizes()[i]};
    queue_vectors_[i] = kNoVector;
  }
  config_vector_ = kNoVector;
  isr_ = 0;
  doorbells_ = 0;
  broken_ = false;
  driver_ok_ = false;
}

void VirtioPci::Ring(uint16_t queue) {
  doorbells_.fetch_or(uint64_t{1} << queue);
  loop_->Wake();
}

void VirtioPci::RingAll() {
  if (queues_.empty()) return;
  doorbells_.fetch_or(~uint64_t{0} >> (kMaxVirtioQueues - queues_.size()));
  loop_->Wake();
}

void VirtioPci::SetIsr(uint8_t bit) {
  isr_.fetch_or(bit);
  UpdateIntx();
}

void VirtioPci::InterruptQueue(uint16_t queue) {
  if (msix_.enabled()) {
    msix_.Notify(queue_vectors_[queue].load());  // no vector: no interrupt (4.1.5.1.2)
  } else {
    SetIsr(kIsrQueue);
  }
}

void VirtioPci::ConfigChanged() {
  {
    MutexLock lock(&mutex_);
    ++generation_;
    if ((status_ & VIRTIO_CONFIG_S_DRIVER_OK) == 0) return;
  }
  if (msix_.enabled()) {
    msix_.Notify(config_vector_.load());
  } else {
    SetIsr(kIsrConfig);
  }
}

void VirtioPci::MarkBroken(const absl::Status& reason) {
  if (broken_.exchange(true)) return;
  bool complain = false;
  {
    MutexLock lock(&mutex_);
    status_ |= VIRTIO_CONFIG_S_NEEDS_RESET;
    const Monotonic now = std::chrono::steady_clock::now();
    complain = !last_complaint_ || now - *last_complaint_ > kComplaintInterval;
    if (complain) last_complaint_ = now;
  }
  if (complain) {
    log::Warning("device", "a driver broke the virtio protocol; its device needs a reset",
                 {{"device", name_}, {"reason", MessageOf(reason)}});
  }
  ConfigChanged();
}

void VirtioPci::OnWake() {
  bool start = false, reset = false;
  {
    MutexLock lock(&mutex_);
    start = std::exchange(start_wanted_, false);
    reset = reset_wanted_;
  }
  if (reset) {
    StopDevice();
    {
      MutexLock lock(&mutex_);
      ForgetDriver();
      stopped_.SignalAll();
    }
    return UpdateIntx();
  }
  if (start) Start();
  if (!running_ || broken_.load() || !bus_master_.load()) return;  // bells stay rung
  device_->OnWake();
  uint64_t bells = doorbells_.exchange(0);
  for (; bells != 0 && !broken_.load(); bells &= bells - 1) {
    device_->OnDoorbell(static_cast<uint16_t>(std::countr_zero(bells)));
  }
}

void VirtioPci::Start() {
  std::vector<QueueConfig> configs;
  {
    MutexLock lock(&mutex_);
    configs = queue_configs_;
    run_ = {.features = driver_features_, .queues = queues_, .transport = this, .loop = loop_};
  }
  for (size_t i = 0; i < configs.size(); ++i) {
    if (!configs[i].enabled) continue;
    const absl::Status status = queues_[i].Enable(LayoutOf(configs[i]));
    if (!status.ok()) MarkBroken(WithContext(status, fmt::format("queue {}", i)));
  }
  running_ = true;
  driver_ok_ = true;
  device_->Activate(&run_);
  RingAll();  // requests may wait from before
}

Virtqueue::Layout VirtioPci::LayoutOf(const QueueConfig& config) const {
  return {.size = config.size,
          .descriptors = config.descriptors,
          .available = config.available,
          .used = config.used,
          .event_index = run_.has(kVirtioEventIndex),
          .indirect = run_.has(kVirtioIndirect)};
}

void VirtioPci::StopDevice() {
  if (!running_) return;
  device_->Stop();
  for (Virtqueue& queue : queues_) queue.Disable();
  running_ = false;
}

void VirtioPci::RequestReset() {
  bool wake = false;
  {
    MutexLock lock(&mutex_);
    WriteStatus(0);
    wake = reset_wanted_;
  }
  if (wake) loop_->Wake();
}

absl::Status VirtioPci::ResetAndWait(Monotonic deadline) {
  RequestReset();
  {
    MutexLock lock(&mutex_);
    while (reset_wanted_) {
      if (!stopped_.WaitUntil(&mutex_, deadline) && reset_wanted_) {
        return absl::DeadlineExceededError(fmt::format("{}: I/O in flight does not end", name_));
      }
    }
  }
  const uint16_t zero = 0;
  WriteConfig(static_cast<uint32_t>(PciRegister::kCommand), std::as_bytes(std::span(&zero, 1)));
  WriteConfig(msix_capability_ + 2u, std::as_bytes(std::span(&zero, 1)));
  msix_.Reset();
  BarsChanged();
  return absl::OkStatus();
}

}  // namespace hk
