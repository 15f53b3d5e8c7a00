// One simulated connection of one class, as the engine sees it: messages from and to the bytes of a SimSocket.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "rdma/engine.h"
#include "rdma/link.h"
#include "rdma/sim_network.h"

namespace hk {

class SimWire;

// Not thread-safe: the simulation's thread.
class SimLink final : public Link, public SimSocketHandler, public std::enable_shared_from_this<SimLink> {
 public:
  // `early`: what arrived behind the handshake.
  SimLink(SimWire* wire, const LinkTicket& ticket, std::unique_ptr<SimSocket> socket, std::vector<std::byte> early);

  // Link.
  Sent Send(const Header& header, std::span<const std::byte> body, std::span<const std::byte> payload,
            bool more) override;
  void Close(bool abort) override;
  void Resume() override;

  // SimSocketHandler.
  void OnConnected() override {}
  void OnBytes(std::span<const std::byte> bytes) override;
  void OnWrite(SlotId slot, std::span<const std::byte> payload) override;
  void OnClosed() override;

  // Takes itself as the socket's handler, and the messages that are there already.
  void Begin();
  // Hands messages to the engine as far as they have arrived, unless the class is busy.
  void Parse();
  const LinkTicket& ticket() const { return ticket_; }
  bool closed() const { return socket_ == nullptr; }

 private:
  // Whether to go on.
  enum class Step : uint8_t { kGoOn, kWait, kClosed };
  Step ParseOne();
  void CheckWindow(const Header& header);
  Step ParseDirect(std::span<const std::byte> body);
  Step FillPayload();
  Step StepOf(Engine::Fate fate);
  Step Malformed(const std::string& detail);
  bool SendStream(const Header& header, const std::vector<std::byte>& bytes);
  std::span<std::byte> ReceiveSlot(SlotId slot) const;
  void Drop(size_t bytes);

  SimWire* const wire_;
  const LinkTicket ticket_;
  std::unique_ptr<SimSocket> socket_;              // null: closed
  std::deque<std::vector<std::byte>> repeatable_;  // numbered messages that were sent, the last ones
  std::vector<std::byte> in_;                      // arrived and not taken
  bool held_ = false;                              // until Resume
  bool full_ = false;                              // OnSendable follows
  bool sent_ = false;                              // the Setup, which finds room on every new connection
  bool in_payload_ = false;
  Header header_;                  // of the message whose payload is coming
  std::vector<std::byte> body_;    // its body
  std::span<std::byte> payload_;   // where it goes
  std::vector<std::byte> refuse_;  // where it goes if nobody wants it
  size_t filled_ = 0;
  uint64_t free_until_ = 0;  // number of the last message that there is a buffer for; 0: not known yet
};

}  // namespace hk
