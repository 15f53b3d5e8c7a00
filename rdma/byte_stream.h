// A connected, non-blocking stream of bytes: a TCP socket, bare or under TLS. Read and Write may run at the same time,
// from two threads; two Reads, or two Writes, may not. EndReading and Abort may be called by any thread at any time.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <memory>
#include <span>

#include "hyperkernel/base/fd.h"

namespace hk {

// A connected stream.
class ByteStream {
 public:
  virtual ~ByteStream() = default;

  // Bytes moved, at least 1; 0: the other end said that nothing follows (Read only); -EAGAIN: nothing can be moved now;
  // other negative errno: the stream is broken. `parts`: at least one, not all empty.
  virtual ssize_t Read(std::span<const iovec> parts) = 0;
  virtual ssize_t Write(std::span<const iovec> parts) = 0;
  // How many of the bytes that a Write got -EAGAIN for have to come first in the next one, and as many at least (fewer
  // only if there were fewer).
  virtual size_t RetryBytes() const { return 0; }
  // Bytes wait that polling the socket does not show.
  virtual bool HasBuffered() const { return false; }
  // Reading ends after what is there; whoever polls the socket is told.
  void EndReading();
  // Ends both directions, so that readers see the end. What was written may be lost, and the other end gets a reset.
  void Abort();
  int fd() const { return fd_.get(); }

 protected:
  explicit ByteStream(OwnedFd fd) : fd_(std::move(fd)) {}

 private:
  const OwnedFd fd_;
};

// The socket itself. `fd`: a connected non-blocking stream socket.
std::unique_ptr<ByteStream> MakeSocketStream(OwnedFd fd);

}  // namespace hk
