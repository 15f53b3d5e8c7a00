#include "rdma/verbs_queue_pair.h"

#include <arpa/inet.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/status.h"

namespace hk {

namespace {

// 0.64 ms (InfiniBand Architecture Specification, 9.7.5.2.8, table 45): how long a peer waits that found no buffer.
// rdma_cm's own value is the longest, 655 ms.
constexpr uint8_t kMinRnrTimer = 12;

}  // namespace

absl::StatusOr<std::unique_ptr<QueuePair>> QueuePair::Create(rdma_cm_id* id, ibv_pd* domain, ibv_comp_channel* channel,
                                                             uint32_t window, uint64_t key, bool writable) {
  const QueueDepths depths = QueueDepths::For(window);
  const uint32_t longest = std::max(depths.send, depths.receive);
  ibv_device_attr limits = {};
  if (const int error = ibv_query_device(id->verbs, &limits); error != 0) return ErrnoStatus(error, "ibv_query_device");
  const auto most = static_cast<uint32_t>(std::min(limits.max_qp_wr, limits.max_cqe));
  if (most < longest) {
    return absl::FailedPreconditionError(
        fmt::format("window_messages {} needs queues of {} entries, {} has at most {}: lower it", window, longest,
                    ibv_get_device_name(id->verbs->device), most));
  }
  std::unique_ptr<QueuePair> pair(new QueuePair(id, depths));
  HK_RETURN_IF_ERROR(pair->Make(domain, channel, key, writable));
  return pair;
}

QueuePair::QueuePair(rdma_cm_id* id, QueueDepths depths) : id_(id), depths_(depths), ring_(depths.send) {}

QueuePair::~QueuePair() {
  if (id_->qp != nullptr) rdma_destroy_qp(id_);
}

absl::Status QueuePair::Make(ibv_pd* domain, ibv_comp_channel* channel, uint64_t key, bool writable) {
  const size_t size = size_t{depths_.send + depths_.receive} * kBufferBytes;
  HK_ASSIGN_OR_RETURN(buffers_, Mapping::Create(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                                                "buffers of a connection"));
  HK_ASSIGN_OR_RETURN(region_, RegisterMemory(domain, {reinterpret_cast<std::byte*>(buffers_.data()), size},
                                              IBV_ACCESS_LOCAL_WRITE, "a connection's messages"));
  void* const context = reinterpret_cast<void*>(key);
  sends_.reset(ibv_create_cq(id_->verbs, static_cast<int>(depths_.send), context, channel, 0));
  receives_.reset(ibv_create_cq(id_->verbs, static_cast<int>(depths_.receive), context, channel, 0));
  if (sends_ == nullptr || receives_ == nullptr) return ErrnoStatus(errno, "ibv_create_cq");
  ibv_qp_init_attr wanted = {};
  wanted.send_cq = sends_.get();
  wanted.recv_cq = receives_.get();
  wanted.qp_type = IBV_QPT_RC;
  wanted.sq_sig_all = 0;
  wanted.cap = {.max_send_wr = depths_.send,
                .max_recv_wr = depths_.receive,
                .max_send_sge = 2,
                .max_recv_sge = 1,
                .max_inline_data = kMaxControlBytes};
  if (rdma_create_qp(id_, domain, &wanted) != 0) {
    // A device that takes less inline reads control messages from memory.
    wanted.cap.max_inline_data = 0;
    if (rdma_create_qp(id_, domain, &wanted) != 0) return ErrnoStatus(errno, "rdma_create_qp");
  }
  max_inline_ = wanted.cap.max_inline_data;
  // Devices round up, never down: the relations hold for what was really made.
  HK_CHECK(wanted.cap.max_send_wr >= depths_.send && wanted.cap.max_recv_wr >= depths_.receive);
  HK_CHECK(sends_->cqe >= static_cast<int>(depths_.send) && receives_->cqe >= static_cast<int>(depths_.receive));
  if (!writable) {
    ibv_qp_attr attributes = {};
    attributes.qp_access_flags = 0;
    if (const int error = ibv_modify_qp(id_->qp, &attributes, IBV_QP_ACCESS_FLAGS); error != 0) {
      return ErrnoStatus(error, "ibv_modify_qp (access)");
    }
  }
  for (uint32_t number = 0; number < depths_.receive; ++number) {
    if (!Repost(number)) return ErrnoStatus(errno, "ibv_post_recv");
  }
  return absl::OkStatus();
}

absl::Status QueuePair::Connected() {
  ibv_qp_attr attributes = {};
  attributes.qp_state = IBV_QPS_RTS;
  attributes.min_rnr_timer = kMinRnrTimer;
  const int error = ibv_modify_qp(id_->qp, &attributes, IBV_QP_STATE | IBV_QP_MIN_RNR_TIMER);
  return error == 0 ? absl::OkStatus() : ErrnoStatus(error, "ibv_modify_qp (receiver-not-ready timer)");
}

// --- Sending ---

std::byte* QueuePair::Room() {
  if (!send_error_.empty()) return nullptr;
  if ((ring_.IsCrowded() && !Reap()) || ring_.IsFull()) return nullptr;
  return reinterpret_cast<std::byte*>(buffers_.data()) + size_t{depths_.receive + ring_.Next()} * kBufferBytes;
}

ibv_send_wr& QueuePair::Next(bool signalled) {
  HK_CHECK(pending_ < chain_.size());
  const SendRing::Send send = ring_.Add(signalled);
  ibv_send_wr& work = chain_[pending_];
  work = {};
  work.wr_id = send.number;
  work.send_flags = send.signalled ? unsigned{IBV_SEND_SIGNALED} : 0;
  work.sg_list = parts_[pending_].data();
  if (pending_ > 0) chain_[pending_ - 1].next = &work;
  ++pending_;
  return work;
}

bool QueuePair::Finish(bool more) {
  return (more && pending_ < chain_.size()) || Flush();
}

bool QueuePair::PostControl(std::span<const std::byte> bytes, bool signalled, bool more) {
  ibv_sge& part = parts_[pending_][0];
  part = {.addr = reinterpret_cast<uintptr_t>(bytes.data()),
          .length = static_cast<uint32_t>(bytes.size()),
          .lkey = region_->lkey};
  ibv_send_wr& work = Next(signalled);
  work.num_sge = 1;
  work.opcode = IBV_WR_SEND;
  if (bytes.size() <= max_inline_) work.send_flags |= IBV_SEND_INLINE;
  return Finish(more);
}

bool QueuePair::PostWrite(std::span<const std::byte> control, std::span<const std::byte> payload, uint32_t payload_key,
                          const SlotWrite& to, bool more) {
  std::array<ibv_sge, 2>& parts = parts_[pending_];
  parts[0] = {.addr = reinterpret_cast<uintptr_t>(control.data()),
              .length = static_cast<uint32_t>(control.size()),
              .lkey = region_->lkey};
  parts[1] = {.addr = reinterpret_cast<uintptr_t>(payload.data()),
              .length = static_cast<uint32_t>(payload.size()),
              .lkey = payload_key};
  ibv_send_wr& work = Next(false);
  work.num_sge = 2;
  work.opcode = IBV_WR_RDMA_WRITE_WITH_IMM;
  work.imm_data = htonl(to.immediate);
  work.wr.rdma.remote_addr = to.address;
  work.wr.rdma.rkey = to.key;
  return Finish(more);
}

bool QueuePair::Flush() {
  if (pending_ == 0) return send_error_.empty();
  ibv_send_wr* bad = nullptr;
  const int error = ibv_post_send(id_->qp, chain_.data(), &bad);
  pending_ = 0;
  if (error != 0) send_error_ = fmt::format("ibv_post_send: {}", std::strerror(error));
  return send_error_.empty();
}

bool QueuePair::Reap() {
  std::array<ibv_wc, 8> done;
  int count = 0;
  do {
    count = ibv_poll_cq(sends_.get(), done.size(), done.data());
    for (int i = 0; i < count; ++i) {
      const ibv_wc& one = done[static_cast<size_t>(i)];
      ring_.Completed(one.wr_id);
      if (one.status != IBV_WC_SUCCESS && (send_error_.empty() || one.status != IBV_WC_WR_FLUSH_ERR)) {
        send_error_ = fmt::format("send: {}", ibv_wc_status_str(one.status));
      }
    }
  } while (count == static_cast<int>(done.size()));
  if (count < 0) send_error_ = "ibv_poll_cq failed";
  return send_error_.empty();
}

bool QueuePair::ArmSends() {
  return ibv_req_notify_cq(sends_.get(), 0) == 0;
}

// --- Receiving ---

int QueuePair::PollReceives(std::span<ibv_wc> completions) {
  return ibv_poll_cq(receives_.get(), static_cast<int>(completions.size()), completions.data());
}

const std::byte* QueuePair::Buffer(uint64_t number) const {
  HK_CHECK(number < depths_.receive);
  return reinterpret_cast<const std::byte*>(buffers_.data()) + number * kBufferBytes;
}

bool QueuePair::Repost(uint64_t number) {
  ibv_sge part = {
      .addr = reinterpret_cast<uintptr_t>(Buffer(number)), .length = kMaxControlBytes, .lkey = region_->lkey};
  ibv_recv_wr work = {};
  work.wr_id = number;
  work.sg_list = &part;
  work.num_sge = 1;
  ibv_recv_wr* bad = nullptr;
  return ibv_post_recv(id_->qp, &work, &bad) == 0;
}

bool QueuePair::ArmReceives() {
  return ibv_req_notify_cq(receives_.get(), 0) == 0;
}

// --- State ---

bool QueuePair::ForbidWrites() {
  ibv_qp_attr attributes = {};
  attributes.qp_state = IBV_QPS_RTS;
  attributes.qp_access_flags = 0;
  return ibv_modify_qp(id_->qp, &attributes, IBV_QP_STATE | IBV_QP_ACCESS_FLAGS) == 0;
}

void QueuePair::Reset() {
  ibv_qp_attr attributes = {};
  attributes.qp_state = IBV_QPS_RESET;
  // Fails only if the device is gone: then nothing lands either.
  static_cast<void>(ibv_modify_qp(id_->qp, &attributes, IBV_QP_STATE));
}

std::string QueuePair::WhyBroken(ibv_wc_status status) {
  // A queue pair that fails flushes its receives; what made it fail is told by a send, if it was one. What is taken
  // from the ring here nobody misses: the pair is in error.
  std::array<ibv_wc, 8> done;
  int count = 0;
  do {
    count = ibv_poll_cq(sends_.get(), done.size(), done.data());
    for (int i = 0; i < count; ++i) {
      const ibv_wc_status told = done[static_cast<size_t>(i)].status;
      if (told != IBV_WC_SUCCESS && told != IBV_WC_WR_FLUSH_ERR)
        return fmt::format("send: {}", ibv_wc_status_str(told));
    }
  } while (count == static_cast<int>(done.size()));
  return ibv_wc_status_str(status);
}

void QueuePair::Fail() {
  ibv_qp_attr attributes = {};
  attributes.qp_state = IBV_QPS_ERR;
  static_cast<void>(ibv_modify_qp(id_->qp, &attributes, IBV_QP_STATE));
}

}  // namespace hk
