// A stranger over verbs: the first bytes written are the private data of its connection, each later Write is one send.
#pragma once

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

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
  // The reply's private data; messages after it are not kept.
  std::vector<std::byte> Read() override { return read_; }
  bool Closed() override;

 private:
  static constexpr uint32_t kReceives = 128;  // more than a node says to a peer that never answers, in any test
  static constexpr uint32_t kBytes = 512;

  void Connect(std::span<const std::byte> hello);
  void TakeReply();

  const std::string address_;
  std::vector<std::byte> read_;
  bool connected_ = false, closed_ = false;
  // In this order: what uses another goes before it.
  RdmaId id_;
  VerbsObject<ibv_pd> domain_;
  std::vector<std::byte> memory_;
  VerbsObject<ibv_mr> region_;
  VerbsObject<ibv_cq> sends_, receives_;
};

}  // namespace hk
