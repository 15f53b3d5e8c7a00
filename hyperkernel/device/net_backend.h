// The host's side of a network device: one descriptor per queue pair, each read and write a frame with its virtio
// header.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/fd.h"

namespace hk {

// Size of the header before every frame: struct virtio_net_hdr_v1 (virtio 1.2: 5.1.6), with VIRTIO_F_VERSION_1 always.
inline constexpr size_t kNetHeaderBytes = 12;
// The largest frame: a 64 KiB segment with its Ethernet header.
inline constexpr size_t kMaxFrameBytes = kNetHeaderBytes + 14 + 65535 + 4;

// What the guest can take from the host. Plain value.
struct NetOffloads {
  bool checksum = false;
  bool tso4 = false;
  bool tso6 = false;
};

// A place that frames go to and come from. Belongs to the device's worker.
class NetBackend {
 public:
  virtual ~NetBackend() = default;
  // One per queue pair, non-blocking.
  virtual std::span<const int> queues() const = 0;
  // What may be sent to the guest from now on.
  virtual absl::Status SetOffloads(const NetOffloads& offloads) = 0;
  // Frames for the guest go to the first `count` queues only.
  virtual absl::Status SetActiveQueues(size_t count) = 0;
};

// A tap interface (Linux, Documentation/networking/tuntap.rst).
class Tap final : public NetBackend {
 public:
  // Opens `queues` queues of the tap `name`, which is made if it is not there and that is permitted; with "%d" in the
  // name, one with a free number is made. One that was made is down, and goes with the last descriptor. Errors, one
  // line each with the name: no /dev/net/tun, not permitted, in use, not a tap or not made for several queues.
  static absl::StatusOr<std::unique_ptr<Tap>> Open(const std::string& name, uint16_t queues);

  // The interface's.
  const std::string& name() const { return name_; }
  std::span<const int> queues() const override { return fds_; }
  absl::Status SetOffloads(const NetOffloads& offloads) override;
  absl::Status SetActiveQueues(size_t count) override;

 private:
  Tap() = default;

  std::string name_;
  std::vector<OwnedFd> owned_;
  std::vector<int> fds_;
  size_t active_ = 0;
};

}  // namespace hk
