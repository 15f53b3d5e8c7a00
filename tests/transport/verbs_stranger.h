// A stranger over verbs: the first bytes written are the private data of its connection, each later Write is one send.
// A hostile peer: it also writes where it was told to, and where it was not.
#pragma once

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "rdma/verbs_message.h"
#include "rdma/verbs_pool.h"
#include "rdma/verbs_port.h"
#include "tests/transport/conformance.h"

namespace hk {

// Not thread-safe. A failure of the host's verbs is a failure of the test.
class VerbsStranger final : public Stranger {
 public:
  explicit VerbsStranger(const std::string& address) : address_(address) {}
  ~VerbsStranger() override;

  void Write(std::span<const std::byte> bytes) override;
  // The reply's private data.
  std::vector<std::byte> Read() override { return read_; }
  bool Closed() override;

  // Before the first Write: the handshake's last word (RTU) is never said.
  void OmitLastWord() { says_last_word_ = false; }
  // The first message after the reply, once it is there: the node's Setup. Empty: not yet.
  std::span<const std::byte> FirstMessage();
  // Writes up to kBytes into the node's memory, with this immediate.
  void WriteInto(const SlotWrite& where, std::span<const std::byte> bytes);

 private:
  static constexpr uint32_t kReceives = 128;  // more than a node says to a peer that never answers, in any test
  static constexpr uint32_t kBytes = 512;

  void Connect(std::span<const std::byte> hello);
  void TakeReply();
  ibv_qp* pair() const { return bare_pair_ != nullptr ? bare_pair_ : id_->qp; }
  // rdma_cm leaves a queue pair that it does not know to its user, and says RTU when he says so.
  void ChangeBarePair(ibv_qp_state state);
  void Post(ibv_send_wr* work, ibv_sge* part);

  const std::string address_;
  std::vector<std::byte> read_;
  size_t first_bytes_ = 0;  // of the first message, which is at the beginning of memory_
  bool connected_ = false, closed_ = false, says_last_word_ = true;
  ibv_qp* bare_pair_ = nullptr;  // without last word
  // In this order: what uses another goes before it.
  RdmaId id_;
  VerbsObject<ibv_pd> domain_;
  std::vector<std::byte> memory_;
  VerbsObject<ibv_mr> region_;
  VerbsObject<ibv_cq> sends_, receives_;
};

}  // namespace hk
