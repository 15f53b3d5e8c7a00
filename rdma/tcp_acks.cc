#include "rdma/tcp_acks.h"

// Not <netinet/tcp.h>: its tcp_info is that of old kernels, and the two cannot be had together.
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>

namespace hk {

std::optional<AckState> AckStateOf(int fd) {
  tcp_info info{};
  socklen_t size = sizeof info;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0) return std::nullopt;
  // A window that is shut is asked for again and again, by probes, which are counted until one is answered, or by data
  // that came when it was shut already; answers say that it still is.
  const bool answered = info.tcpi_snd_wnd == 0 && info.tcpi_last_ack_recv <= info.tcpi_last_data_sent;
  return AckState{.waits = (info.tcpi_unacked > 0 && !answered) || info.tcpi_probes > 0,
                  .acked_bytes = info.tcpi_bytes_acked};
}

}  // namespace hk
