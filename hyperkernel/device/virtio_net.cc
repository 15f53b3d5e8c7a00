#include "hyperkernel/device/virtio_net.h"

#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "fmt/format.h"
#include "hyperkernel/base/byte_archive.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/device/virtio_net_format.h"

namespace hk {
namespace {

constexpr uint64_t Bit(int feature) {
  return uint64_t{1} << feature;
}
constexpr uint64_t kMultiqueue = Bit(VIRTIO_NET_F_MQ);
constexpr uint64_t kMergeable = Bit(VIRTIO_NET_F_MRG_RXBUF);
static_assert(sizeof(virtio_net_hdr_v1) == kNetHeaderBytes);
constexpr uint16_t kStateVersion = 1;

void LogFailure(const absl::Status& status) {
  if (!status.ok()) log::Warning("device", "network backend", {{"reason", MessageOf(status)}});
}

}  // namespace

VirtioNet::VirtioNet(std::unique_ptr<NetBackend> backend, const Mac& mac)
    : backend_(std::move(backend)),
      mac_(mac),
      pairs_(backend_->queues().size()),
      queue_sizes_(2 * pairs_ + (pairs_ > 1 ? 1 : 0), kQueueSize),
      receivers_(pairs_) {
  merged_.reserve(kMaxMerged);
  for (size_t i = 0; i < kMaxMerged; ++i) merged_.emplace_back(kQueueSize + 8);
}

absl::StatusOr<std::unique_ptr<VirtioNet>> VirtioNet::Create(std::unique_ptr<NetBackend> backend, const Mac& mac) {
  const size_t pairs = backend->queues().size();
  if (pairs < 1 || pairs > kMaxPairs) {
    return absl::InvalidArgumentError(fmt::format("network queues: {} is not 1 to {}", pairs, kMaxPairs));
  }
  return std::unique_ptr<VirtioNet>(new VirtioNet(std::move(backend), mac));
}

VirtioNet::Counters VirtioNet::counters() const {
  return {.received = received_, .sent = sent_, .dropped_receive = dropped_receive_, .dropped_send = dropped_send_};
}

uint64_t VirtioNet::features() const {
  uint64_t features = Bit(VIRTIO_NET_F_CSUM) | Bit(VIRTIO_NET_F_GUEST_CSUM) | Bit(VIRTIO_NET_F_GUEST_TSO4) |
                      Bit(VIRTIO_NET_F_GUEST_TSO6) | Bit(VIRTIO_NET_F_HOST_TSO4) | Bit(VIRTIO_NET_F_HOST_TSO6) |
                      Bit(VIRTIO_NET_F_MAC) | Bit(VIRTIO_NET_F_STATUS) | kMergeable;
  if (pairs_ > 1) features |= kMultiqueue | Bit(VIRTIO_NET_F_CTRL_VQ);
  return features;
}

void VirtioNet::ReadConfig(uint64_t offset, std::span<std::byte> data) {
  virtio_net_config config{};
  std::copy(mac_.begin(), mac_.end(), config.mac);
  config.status = VIRTIO_NET_S_LINK_UP;
  config.max_virtqueue_pairs = static_cast<uint16_t>(pairs_);
  ReadBlock(std::as_bytes(std::span(&config, 1)), offset, data);
}

// 5.1.2: after the queue pairs there are; without multiqueue there is one.
uint16_t VirtioNet::ControlQueue() const {
  return static_cast<uint16_t>(run_->has(kMultiqueue) ? 2 * pairs_ : 2);
}

void VirtioNet::Activate(VirtioRun* run) {
  run_ = run;
  LogFailure(backend_->SetOffloads({.checksum = run->has(Bit(VIRTIO_NET_F_GUEST_CSUM)),
                                    .tso4 = run->has(Bit(VIRTIO_NET_F_GUEST_TSO4)),
                                    .tso6 = run->has(Bit(VIRTIO_NET_F_GUEST_TSO6))}));
  active_pairs_ = 1;
  LogFailure(backend_->SetActiveQueues(active_pairs_));
  for (size_t pair = 0; pair < pairs_; ++pair) {
    const absl::Status status = run->loop->Watch(backend_->queues()[pair], [this, pair] { Receive(pair); });
    if (!status.ok()) run->transport->MarkBroken(status);
  }
}

void VirtioNet::Stop() {
  for (int fd : backend_->queues()) run_->loop->Unwatch(fd);
  for (Receiver& receiver : receivers_) receiver.bytes = 0;
  run_ = nullptr;
}

std::vector<std::byte> VirtioNet::SaveState() {
  ByteWriter writer;
  writer.Numbers(kStateVersion, active_pairs_);
  return writer.Take();
}

absl::Status VirtioNet::RestoreState(std::span<const std::byte> bytes) {
  uint16_t pairs = 0;
  const auto fields = [&](ByteReader& reader) {
    reader.Number(pairs);
    if (pairs < 1 || pairs > pairs_) reader.Fail("queue pairs that there are not");
  };
  HK_RETURN_IF_ERROR(ReadVersioned("network card", kStateVersion, bytes, fields));
  active_pairs_ = pairs;
  return backend_->SetActiveQueues(pairs);
}

void VirtioNet::OnDoorbell(uint16_t queue) {
  if (pairs_ > 1 && queue == ControlQueue()) return Control(queue);
  const size_t pair = queue / 2;
  if (pair >= pairs_) return;
  if (queue % 2 == 0) {
    run_->loop->Arm(backend_->queues()[pair], true);
    if (receivers_[pair].bytes != 0) Receive(pair);
  } else {
    Send(queue);
  }
}

// A frame waits, or one is held. Without buffers (or memory) the descriptor is not watched until the driver rings.
void VirtioNet::Receive(size_t pair) {
  Receiver& receiver = receivers_[pair];
  const int fd = backend_->queues()[pair];
  bool watching = false, gone = false;
  ServeQueue(run_, static_cast<uint16_t>(2 * pair), [&](Virtqueue& queue) -> absl::StatusOr<bool> {
    watching = true;
    for (int frames = 0; frames < kBatch; ++frames) {
      if (receiver.bytes == 0) {
        const ssize_t got = ::read(fd, receiver.frame.data(), receiver.frame.size());
        // None now: the loop calls again. Another error, or an end: the backend is gone for good.
        gone = got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR);
        if (got <= 0) return false;
        if (got < static_cast<ssize_t>(kNetHeaderBytes)) {
          ++dropped_receive_;
          continue;
        }
        receiver.bytes = static_cast<size_t>(got);
      }
      HK_ASSIGN_OR_RETURN(const Delivery delivery, Deliver(&receiver, &queue));
      if (delivery == Delivery::kNoBuffers) {
        watching = false;
        return true;  // asks for a doorbell, and looks again
      }
      receiver.bytes = 0;
    }
    return false;
  });
  if (gone) {
    log::Warning("device", "the network backend is gone; nothing more is received", {{"queue", std::to_string(pair)}});
    return run_->loop->Unwatch(fd);
  }
  run_->loop->Arm(fd, watching);
}

// Copies the frame into as many of the guest's buffers as it takes (5.1.6.4). All of them are pinned for the copy only.
absl::StatusOr<VirtioNet::Delivery> VirtioNet::Deliver(Receiver* receiver, Virtqueue* queue) {
  const std::span<const std::byte> frame = std::span(receiver->frame).first(receiver->bytes);
  const size_t limit = run_->has(kMergeable) ? kMaxMerged : 1;
  size_t count = 0;
  uint64_t room = 0;
  absl::StatusOr<bool> popped = true;
  while (room < frame.size() && count < limit) {
    popped = queue->Pop(&merged_[count]);
    if (!popped.ok() || !*popped) break;
    room += merged_[count++].writable_bytes;
  }
  auto release = [&] {
    for (size_t i = 0; i < count; ++i) merged_[i].Release();
  };
  if (room < frame.size()) {
    release();
    queue->UndoPop(static_cast<uint16_t>(count));
    if (!popped.ok()) return popped.status();
    if (!*popped) return Delivery::kNoBuffers;
    ++dropped_receive_;  // the guest's buffers are too small
    return Delivery::kDone;
  }
  // The header says how many buffers there are; it is ours until it is copied.
  const auto buffers = static_cast<uint16_t>(count);
  std::memcpy(receiver->frame.data() + offsetof(virtio_net_hdr_v1, num_buffers), &buffers, sizeof(buffers));
  size_t done = 0;
  for (size_t i = 0; i < count; ++i) {
    const size_t take = CopyTo(merged_[i], 0, frame.subspan(done));
    done += take;
    merged_[i].Release();
    queue->AddUsed(merged_[i].head, static_cast<uint32_t>(take));
  }
  ++received_;
  return Delivery::kDone;
}

void VirtioNet::Send(uint16_t index) {
  ServeQueue(run_, index, [&](Virtqueue& queue) -> absl::StatusOr<bool> {
    for (int frames = 0; frames < kBatch; ++frames) {
      HK_ASSIGN_OR_RETURN(const bool popped, queue.Pop(&chain_));
      if (!popped) return true;
      const std::span<const int> fds = backend_->queues();
      const bool sane = chain_.readable_bytes > kNetHeaderBytes && chain_.readable_bytes <= kMaxFrameBytes;
      ssize_t sent = -1;
      if (sane) {
        std::array<iovec, kQueueSize + 8> iov;
        size_t count = 0;
        for (const DmaChain::Piece& piece : chain_.readable()) {
          iov[count++] = {.iov_base = piece.bytes.data(), .iov_len = piece.bytes.size()};
        }
        sent = ::writev(fds[index / 2], iov.data(), static_cast<int>(count));
      }
      ++(sent < 0 ? dropped_send_ : sent_);
      chain_.Release();
      queue.AddUsed(chain_.head, 0);
    }
    run_->transport->Ring(index);
    return false;
  });
}

void VirtioNet::Control(uint16_t index) {
  ServeQueue(run_, index, [&](Virtqueue& queue) -> absl::StatusOr<bool> {
    for (;;) {
      HK_ASSIGN_OR_RETURN(const bool popped, queue.Pop(&chain_));
      if (!popped) return true;
      const std::byte ack{static_cast<uint8_t>(HandleControl() ? VIRTIO_NET_OK : VIRTIO_NET_ERR)};
      const size_t written = CopyTo(chain_, 0, std::span(&ack, 1));
      chain_.Release();
      queue.AddUsed(chain_.head, static_cast<uint32_t>(written));
    }
  });
}

// 5.1.6.5: the one command there is, since no other feature is offered: how many pairs are used.
bool VirtioNet::HandleControl() {
  struct [[gnu::packed]] {
    uint8_t command_class;
    uint8_t command;
    uint16_t pairs;
  } request;
  if (CopyFrom(chain_, 0, std::as_writable_bytes(std::span(&request, 1))) != sizeof(request)) return false;
  if (request.command_class != VIRTIO_NET_CTRL_MQ || request.command != VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) return false;
  if (request.pairs < 1 || request.pairs > pairs_ || !run_->has(kMultiqueue)) return false;
  const absl::Status status = backend_->SetActiveQueues(request.pairs);
  LogFailure(status);
  if (status.ok()) active_pairs_ = request.pairs;
  return status.ok();
}

}  // namespace hk
