#include "rdma/byte_stream.h"

#include <sys/socket.h>

#include <cerrno>
#include <utility>

namespace hk {

namespace {

// Reads and writes a socket directly.
class SocketStream final : public ByteStream {
 public:
  explicit SocketStream(OwnedFd fd) : ByteStream(std::move(fd)) {}

  ssize_t Read(std::span<const iovec> parts) override {
    // recv costs less than recvmsg, and one part is the rule.
    for (;;) {
      const ssize_t read = parts.size() == 1
                               ? ::recv(fd(), parts[0].iov_base, parts[0].iov_len, MSG_DONTWAIT)
                               : Message(parts, [](int fd, msghdr* m) { return ::recvmsg(fd, m, MSG_DONTWAIT); });
      if (read >= 0) return read;
      if (errno != EINTR) return -errno;
    }
  }

  ssize_t Write(std::span<const iovec> parts) override {
    for (;;) {
      // As of recv.
      const ssize_t written =
          parts.size() == 1
              ? ::send(fd(), parts[0].iov_base, parts[0].iov_len, MSG_DONTWAIT | MSG_NOSIGNAL)
              : Message(parts, [](int fd, msghdr* m) { return ::sendmsg(fd, m, MSG_DONTWAIT | MSG_NOSIGNAL); });
      if (written >= 0) return written;
      if (errno != EINTR) return -errno;
    }
  }

 private:
  template <typename Call>
  ssize_t Message(std::span<const iovec> parts, Call call) {
    msghdr message{};
    message.msg_iov = const_cast<iovec*>(parts.data());
    message.msg_iovlen = parts.size();
    return call(fd(), &message);
  }
};

}  // namespace

void ByteStream::EndReading() {
  ::shutdown(fd_.get(), SHUT_RD);
}

void ByteStream::Abort() {
  const linger at_once{.l_onoff = 1, .l_linger = 0};
  ::setsockopt(fd_.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  ::shutdown(fd_.get(), SHUT_RDWR);
}

std::unique_ptr<ByteStream> MakeSocketStream(OwnedFd fd) {
  return std::make_unique<SocketStream>(std::move(fd));
}

}  // namespace hk
