#include "tests/transport/verbs_stranger.h"

#include <poll.h>

#include <arpa/inet.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "hyperkernel/base/address.h"
#include "hyperkernel/base/check.h"

namespace hk {

namespace {

constexpr int kResolveMs = 10'000;
// Unused by anybody: events of an identifier without a channel are waited for in its calls.
constexpr rdma_event_channel* kSynchronous = nullptr;

}  // namespace

VerbsStranger::~VerbsStranger() {
  if (id_ == nullptr) return;
  // It waits for the event of the end, which Closed may have taken: then another 4 s for nothing.
  // Without last word there is no connection to end, as far as rdma_cm here knows, and no such event.
  if (connected_ && !closed_ && says_last_word_) rdma_disconnect(id_.get());
  if (id_->qp != nullptr) rdma_destroy_qp(id_.get());
  if (bare_pair_ != nullptr) ibv_destroy_qp(bare_pair_);
  sends_.reset();
  receives_.reset();
  region_.reset();
  domain_.reset();
}

void VerbsStranger::Write(std::span<const std::byte> bytes) {
  if (id_ == nullptr) return Connect(bytes);
  ibv_sge part = {
      .addr = reinterpret_cast<uintptr_t>(bytes.data()), .length = static_cast<uint32_t>(bytes.size()), .lkey = 0};
  ibv_send_wr work = {};
  work.opcode = IBV_WR_SEND;
  work.send_flags = IBV_SEND_SIGNALED | IBV_SEND_INLINE;
  Post(&work, &part);
}

void VerbsStranger::WriteInto(const SlotWrite& where, std::span<const std::byte> bytes) {
  // Behind the receives, and never in use twice: a test writes once.
  std::byte* const room = memory_.data() + size_t{kReceives} * kBytes;
  HK_CHECK(bytes.size() <= kBytes);
  std::copy(bytes.begin(), bytes.end(), room);
  ibv_sge part = {
      .addr = reinterpret_cast<uintptr_t>(room), .length = static_cast<uint32_t>(bytes.size()), .lkey = region_->lkey};
  ibv_send_wr work = {};
  work.opcode = IBV_WR_RDMA_WRITE_WITH_IMM;
  work.send_flags = IBV_SEND_SIGNALED;
  work.imm_data = htonl(where.immediate);
  work.wr.rdma.remote_addr = where.address;
  work.wr.rdma.rkey = where.key;
  Post(&work, &part);
}

std::span<const std::byte> VerbsStranger::FirstMessage() {
  ibv_wc done = {};
  if (first_bytes_ == 0 && id_ != nullptr && ibv_poll_cq(receives_.get(), 1, &done) == 1) {
    HK_CHECK(done.status == IBV_WC_SUCCESS && done.wr_id == 0);
    first_bytes_ = done.byte_len;
  }
  return std::span<const std::byte>(memory_).first(first_bytes_);
}

void VerbsStranger::Post(ibv_send_wr* work, ibv_sge* part) {
  std::array<ibv_wc, 8> done;
  while (ibv_poll_cq(sends_.get(), done.size(), done.data()) > 0) {
  }
  work->sg_list = part;
  work->num_sge = 1;
  ibv_send_wr* bad = nullptr;
  // The node may have closed the connection already; then the bytes go nowhere.
  static_cast<void>(ibv_post_send(pair(), work, &bad));
}

void VerbsStranger::Connect(std::span<const std::byte> hello) {
  rdma_cm_id* id = nullptr;
  HK_CHECK(rdma_create_id(kSynchronous, &id, nullptr, RDMA_PS_TCP) == 0);
  id_.reset(id);
  const auto address = ParseAddress(address_, AddressForm::kConnectTcp);
  HK_CHECK(address.ok());
  RdmaAddress to = RdmaAddress::Of(*address, address->port);
  HK_CHECK(rdma_resolve_addr(id, nullptr, to.get(), kResolveMs) == 0);
  HK_CHECK(rdma_resolve_route(id, kResolveMs) == 0);
  domain_.reset(ibv_alloc_pd(id->verbs));
  memory_.resize((kReceives + 1) * kBytes);
  region_.reset(ibv_reg_mr(domain_.get(), memory_.data(), memory_.size(), IBV_ACCESS_LOCAL_WRITE));
  sends_.reset(ibv_create_cq(id->verbs, 64, nullptr, nullptr, 0));
  receives_.reset(ibv_create_cq(id->verbs, kReceives, nullptr, nullptr, 0));
  HK_CHECK(domain_ != nullptr && region_ != nullptr && sends_ != nullptr && receives_ != nullptr);
  ibv_qp_init_attr wanted = {};
  wanted.send_cq = sends_.get();
  wanted.recv_cq = receives_.get();
  wanted.qp_type = IBV_QPT_RC;
  wanted.cap = {
      .max_send_wr = 64, .max_recv_wr = kReceives, .max_send_sge = 1, .max_recv_sge = 1, .max_inline_data = 400};
  if (says_last_word_) {
    HK_CHECK(rdma_create_qp(id, domain_.get(), &wanted) == 0);
  } else {
    bare_pair_ = ibv_create_qp(domain_.get(), &wanted);
    HK_CHECK(bare_pair_ != nullptr);
    ChangeBarePair(IBV_QPS_INIT);
  }
  for (uint32_t i = 0; i < kReceives; ++i) {
    ibv_sge part = {.addr = reinterpret_cast<uintptr_t>(memory_.data() + size_t{i} * kBytes),
                    .length = kBytes,
                    .lkey = region_->lkey};
    ibv_recv_wr work = {};
    work.wr_id = i;
    work.sg_list = &part;
    work.num_sge = 1;
    ibv_recv_wr* bad = nullptr;
    HK_CHECK(ibv_post_recv(pair(), &work, &bad) == 0);
  }
  rdma_conn_param parameters = {};
  parameters.private_data = hello.data();
  parameters.private_data_len = static_cast<uint8_t>(hello.size());
  parameters.retry_count = parameters.rnr_retry_count = 7;
  if (bare_pair_ != nullptr) parameters.qp_num = bare_pair_->qp_num;
  connected_ = rdma_connect(id, &parameters) == 0;
  closed_ = !connected_;
  TakeReply();
  if (bare_pair_ == nullptr) return;
  HK_CHECK(connected_);
  ChangeBarePair(IBV_QPS_RTR);
  ChangeBarePair(IBV_QPS_RTS);
}

void VerbsStranger::ChangeBarePair(ibv_qp_state state) {
  ibv_qp_attr attributes = {};
  attributes.qp_state = state;
  int mask = 0;
  HK_CHECK(rdma_init_qp_attr(id_.get(), &attributes, &mask) == 0);
  HK_CHECK(ibv_modify_qp(bare_pair_, &attributes, mask) == 0);
}

void VerbsStranger::TakeReply() {
  const rdma_cm_event* event = id_->event;
  if (event == nullptr || event->param.conn.private_data == nullptr) return;
  const auto* data = static_cast<const std::byte*>(event->param.conn.private_data);
  read_.assign(data, data + event->param.conn.private_data_len);
}

bool VerbsStranger::Closed() {
  if (closed_ || id_ == nullptr) return closed_;
  pollfd events = {.fd = id_->channel->fd, .events = POLLIN, .revents = 0};
  rdma_cm_event* event = nullptr;
  if (::poll(&events, 1, 0) == 1 && rdma_get_cm_event(id_->channel, &event) == 0) {
    closed_ = event->event == RDMA_CM_EVENT_DISCONNECTED;
    rdma_ack_cm_event(event);
  }
  return closed_;
}

}  // namespace hk
