// Connections that this node has ended and the peer not yet. What was not written yet of the last message and of our
// Goodbye is written when the socket takes it. What arrives on them is read and thrown away until the
// peer ends them too: a socket that is closed with something unread, or that something reaches afterwards, is reset,
// and a reset takes from the peer what it has not read yet, our Goodbye (RFC 9293, 3.6 and 3.10.4; RFC 2525, 2.17).
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/mutex.h"
#include "rdma/byte_stream.h"

namespace hk {

// Thread-safe; Serve and Finish are one thread's at a time.
class TcpPartings {
 public:
  // A peer that lives ends its side as soon as it has read ours; one that does not must not keep Stop.
  static constexpr std::chrono::milliseconds kPatience{500};
  // All connections of a full cluster (63 x 3), and some. Beyond, the oldest is closed.
  static constexpr size_t kMost = 256;

  // `wake`: Serve is to be called soon. Called by Take.
  explicit TcpPartings(std::function<void()> wake) : wake_(std::move(wake)) {}

  absl::Status Open();
  // Readable when Serve has something to do.
  int fd() const { return epoll_.get(); }

  // Ends our side of a connection when `rest` is written. `stream`: nobody else writes to it any more.
  void Take(std::shared_ptr<ByteStream> stream, std::vector<std::byte> rest);
  // Reads what is there; closes what has ended and what is late. Returns when to call again without event.
  Monotonic Serve(Monotonic now);
  // Until all have ended, kPatience at most.
  void Finish();

 private:
  // One connection.
  struct Parting {
    std::shared_ptr<ByteStream> stream;
    std::vector<std::byte> rest;  // to be written; then our side is ended
    Monotonic deadline;
  };

  // False: the connection is over.
  bool Write(Parting* parting, uint64_t number) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Close(std::map<uint64_t, Parting>::iterator parting) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::function<void()> wake_;
  OwnedFd epoll_;
  Mutex mutex_;
  std::map<uint64_t, Parting> partings_ ABSL_GUARDED_BY(mutex_);  // by age
  uint64_t next_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace hk
