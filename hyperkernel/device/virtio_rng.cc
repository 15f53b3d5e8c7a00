#include "hyperkernel/device/virtio_rng.h"

#include <sys/random.h>

#include <algorithm>
#include <cerrno>

#include "hyperkernel/base/status.h"

namespace hk {

void VirtioRng::OnDoorbell(uint16_t index) {
  ServeQueue(run_, index, [this](Virtqueue& queue) -> absl::StatusOr<bool> {
    for (;;) {
      HK_ASSIGN_OR_RETURN(const bool popped, queue.Pop(&chain_));
      if (!popped) return true;
      std::array<std::byte, kMaxBytesPerRequest> bytes;
      const size_t wanted = std::min<uint64_t>(chain_.writable_bytes, bytes.size());
      ssize_t got = 0;
      do {
        got = ::getrandom(bytes.data(), wanted, 0);  // does not block once the host has booted
      } while (got < 0 && errno == EINTR);
      const size_t written = CopyTo(chain_, 0, std::span(bytes).first(got < 0 ? 0 : static_cast<size_t>(got)));
      chain_.Release();
      queue.AddUsed(chain_.head, static_cast<uint32_t>(written));
    }
  });
}

}  // namespace hk
