#include "hyperkernel/base/fd.h"

#include <unistd.h>

namespace hk {

void OwnedFd::Reset() {
  // EINTR from close leaves the descriptor closed on Linux (close(2), Notes); a retry could close another thread's.
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

}  // namespace hk
