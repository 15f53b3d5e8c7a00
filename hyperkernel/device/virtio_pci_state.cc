// Drain, SaveState and RestoreState of VirtioPci.
#include <linux/virtio_config.h>

#include <array>
#include <bit>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/byte_archive.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/device/virtio_pci.h"

namespace hk {
namespace {

constexpr uint16_t kStateVersion = 1;
// Above what the largest parts take: 128 vectors; the console's 16 ports with 64 KiB of input each.
constexpr size_t kMostMsixBytes = 4 << 10;
constexpr size_t kMostDeviceBytes = 2 << 20;

// An atomic register.
template <typename Archive, typename T>
void Register(Archive& a, std::atomic<T>& value) {
  T copy = value.load();
  a.Number(copy);
  value = copy;
}

}  // namespace

absl::Status VirtioPci::Drain(Monotonic deadline) {
  return running_ ? WithContext(device_->Drain(deadline), name_) : absl::OkStatus();
}

// Doorbells are not among them: whoever goes on from here looks at all queues.
template <typename Archive>
void VirtioPci::RegisterFields(Archive& a) {
  a.Numbers(status_, device_feature_select_, driver_feature_select_, driver_features_, queue_select_, generation_,
            start_wanted_, reset_wanted_, started_);
  Register(a, config_vector_);
  Register(a, isr_);
  Register(a, broken_);
  auto count = static_cast<uint16_t>(queue_configs_.size());
  a.Number(count);
  if constexpr (Archive::kReads) {
    if (count != queue_configs_.size()) return a.Fail("another number of queues");
  }
  for (size_t i = 0; i < queue_configs_.size(); ++i) {
    QueueConfig& queue = queue_configs_[i];
    a.Numbers(queue.size, queue.enabled, queue.descriptors, queue.available, queue.used);
    Register(a, queue_vectors_[i]);
  }
}

bool VirtioPci::RegistersAreLegal() const {
  const auto legal_vector = [this](uint16_t vector) { return vector == Vector(vector); };
  if (!legal_vector(config_vector_.load())) return false;
  for (size_t i = 0; i < queue_configs_.size(); ++i) {
    const uint16_t size = queue_configs_[i].size;
    if (!std::has_single_bit(size) || size > device_->queue_sizes()[i]) return false;
    if (!legal_vector(queue_vectors_[i].load())) return false;
  }
  return true;
}

std::vector<std::byte> VirtioPci::SaveState() {
  std::array<std::byte, PciConfig::kSavedBytes> config{};
  {
    MutexLock lock(&config_mutex_);
    std::ranges::copy(config_.Saved(), config.begin());
  }
  return WriteVersioned(kStateVersion, [&](ByteWriter& writer) {
    writer.Raw(config);
    writer.Bytes(msix_.SaveState(), kMostMsixBytes);
    {
      MutexLock lock(&mutex_);
      RegisterFields(writer);
    }
    writer.Number(running_);
    for (const Virtqueue& queue : queues_) {
      const Virtqueue::Progress progress = queue.progress();
      writer.Numbers(progress.next_available, HK_MUTANT(saved_queue_forgets_used) ? uint16_t{0} : progress.next_used);
    }
    writer.Bytes(running_ ? device_->SaveState() : std::vector<std::byte>(), kMostDeviceBytes);
  });
}

absl::Status VirtioPci::RestoreState(std::span<const std::byte> bytes) {
  std::array<std::byte, PciConfig::kSavedBytes> config{};
  std::vector<std::byte> msix, device;
  std::vector<Virtqueue::Progress> progress(queues_.size());
  bool ran = false;
  const auto fields = [&](ByteReader& reader) {
    reader.Raw(config);
    reader.Bytes(msix, kMostMsixBytes);
    {
      MutexLock lock(&mutex_);
      RegisterFields(reader);
      if (reader.failure() == nullptr && !RegistersAreLegal()) reader.Fail("a queue or vector that there is not");
      // Of two versions the later one offers what the earlier one did.
      const bool frozen = (status_ & VIRTIO_CONFIG_S_FEATURES_OK) != 0;
      if (frozen && (driver_features_ & ~offered_) != 0) reader.Fail("its driver uses what this device does not offer");
    }
    reader.Number(ran);
    for (Virtqueue::Progress& queue : progress) reader.Numbers(queue.next_available, queue.next_used);
    reader.Bytes(device, kMostDeviceBytes);
  };
  HK_RETURN_IF_ERROR(ReadVersioned(name_, kStateVersion, bytes, fields));
  {
    MutexLock lock(&config_mutex_);
    HK_RETURN_IF_ERROR(WithContext(config_.Restore(config), name_));
  }
  HK_RETURN_IF_ERROR(WithContext(msix_.RestoreState(msix), name_));
  if (ran) HK_RETURN_IF_ERROR(WithContext(RunAgain(progress, device), name_));
  BarsChanged();
  AfterConfigWrite();
  RingAll();  // a start, a reset or a doorbell may have been under way
  return absl::OkStatus();
}

// As Start, but from where the queues are.
absl::Status VirtioPci::RunAgain(const std::vector<Virtqueue::Progress>& progress, std::span<const std::byte> device) {
  std::vector<QueueConfig> configs;
  {
    MutexLock lock(&mutex_);
    configs = queue_configs_;
    run_ = {.features = driver_features_, .queues = queues_, .transport = this, .loop = loop_};
    // The driver is where Start saw it: only a reset leaves that, and it is done by the worker.
    if (!started_ || start_wanted_) return absl::InvalidArgumentError("it runs without having been started");
  }
  for (size_t i = 0; i < configs.size(); ++i) {
    if (!configs[i].enabled) continue;
    const absl::Status status = queues_[i].Enable(LayoutOf(configs[i]));
    // One with a bad layout was marked broken when it began.
    if (!status.ok() && !broken_.load()) return WithContext(status, fmt::format("queue {}", i));
    if (status.ok()) queues_[i].GoOnFrom(progress[i]);
  }
  running_ = true;
  driver_ok_ = true;
  device_->Activate(&run_);
  return device_->RestoreState(device);
}

}  // namespace hk
