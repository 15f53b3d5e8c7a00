#include "rdma/sim_wire.h"

#include <algorithm>
#include <utility>

namespace hk {

using std::chrono::milliseconds;

void SimHandshake::OnBytes(std::span<const std::byte> bytes) {
  received.insert(received.end(), bytes.begin(), bytes.end());
  if (received.size() < kHelloBytes) return;
  if (dialled) {
    wire_->TakeReply(shared_from_this());
  } else {
    wire_->TakeHello(shared_from_this());
  }
}

void SimHandshake::OnClosed() {
  wire_->HandshakeEnded(shared_from_this(), StrangerEnd::kGone, "closed before the handshake's end");
}

SimWire::SimWire(SimNetwork* network, const TransportSettings& settings) : network_(network), settings_(settings) {}

SimWire::~SimWire() = default;

absl::Status SimWire::Start(Engine* engine) {
  if (!network_->Listen(settings_.self, this)) {
    return absl::AlreadyExistsError(SimNetwork::AddressOf(settings_.self) + " is in use");
  }
  engine_ = engine;
  alive_ = std::make_shared<bool>(true);
  return absl::OkStatus();
}

void SimWire::Stop() {
  alive_.reset();
  network_->StopListening(settings_.self, this);
  for (auto* list : {&dialled_, &strangers_}) {
    for (const auto& handshake : *list) handshake->over = true;
    list->clear();
  }
  const auto links = std::exchange(links_, {});
  for (const auto& link : links) link->Close(true);
  for (auto& events : when_free_) events.clear();
}

// --- Turns ---

void SimWire::After(Simulation::Duration delay, std::function<void()> event) {
  simulation().After(delay, [alive = std::weak_ptr<bool>(alive_), event = std::move(event)] {
    if (!alive.expired()) event();
  });
}

void SimWire::WhenFree(MessageClass message_class, std::function<void()> event) {
  if (!busy(message_class)) return event();
  when_free_[static_cast<size_t>(message_class)].push_back(std::move(event));
}

void SimWire::SetBusy(MessageClass message_class, bool busy) {
  const auto index = static_cast<size_t>(message_class);
  if (std::exchange(busy_[index], busy) == busy || busy || alive_ == nullptr) return;
  After({}, [this, index, message_class] {
    if (busy_[index]) return;
    const auto events = std::exchange(when_free_[index], {});
    for (const auto& event : events) event();
    const auto links = links_;
    for (const auto& link : links) {
      if (link->ticket().message_class == message_class) link->Parse();
    }
    ClassDue(message_class);
  });
}

void SimWire::ClassDue(MessageClass message_class) {
  const auto index = static_cast<size_t>(message_class);
  if (alive_ == nullptr || std::exchange(class_due_[index], true)) return;
  After({}, [this, message_class] { RunClass(message_class); });
}

void SimWire::RunClass(MessageClass message_class) {
  class_due_[static_cast<size_t>(message_class)] = false;
  if (busy(message_class)) return;  // again when it is not
  const Monotonic next = engine_->RunClass(message_class);
  if (next == Monotonic::max()) return;
  After(next - simulation().Now(), [this, message_class] { ClassDue(message_class); });
}

void SimWire::WakeClass(MessageClass message_class) {
  ClassDue(message_class);
}

void SimWire::WakeControl() {
  if (alive_ == nullptr || std::exchange(control_due_, true)) return;
  After({}, [this] { RunControl(); });
}

void SimWire::RunControl() {
  control_due_ = false;
  const Monotonic next = engine_->RunControl();
  if (next == Monotonic::max()) return;
  After(next - simulation().Now(), [this] { WakeControl(); });
}

uint64_t SimWire::Random() {
  uint64_t number = 0;
  while (number == 0) number = simulation().Random();
  return number;
}

// --- Connections ---

absl::Status SimWire::CheckAddress(const std::string& address) const {
  if (SimNetwork::NodeOf(address) != SimNetwork::kNowhere) return absl::OkStatus();
  return absl::InvalidArgumentError("'" + address + "' is no simulated address");
}

// Ends the handshake if it takes too long.
void SimWire::Expect(const std::shared_ptr<SimHandshake>& handshake) {
  After(milliseconds(settings_.handshake_ms), [this, weak = std::weak_ptr<SimHandshake>(handshake)] {
    if (const auto still = weak.lock()) HandshakeEnded(still, StrangerEnd::kSilent, "no hello in time");
  });
}

void SimWire::HandshakeEnded(const std::shared_ptr<SimHandshake>& handshake, StrangerEnd why,
                             const std::string& detail) {
  if (std::exchange(handshake->over, true)) return;
  std::erase(handshake->dialled ? dialled_ : strangers_, handshake);
  if (handshake->socket != nullptr) handshake->socket->Close();
  if (handshake->dialled) {
    engine_->OnDialFailed(handshake->peer, handshake->hello.message_class, handshake->attempt, detail);
  } else if (why != StrangerEnd::kRefused) {  // the engine has counted those
    engine_->CountStranger(why, "sim", detail);
  }
}

void SimWire::Dial(NodeId peer, const std::string& address, const Hello& hello, uint64_t attempt) {
  auto handshake = std::make_shared<SimHandshake>(this);
  handshake->dialled = true;
  handshake->peer = peer;
  handshake->hello = hello;
  handshake->attempt = attempt;
  handshake->socket = network_->Connect(settings_.self, SimNetwork::NodeOf(address), handshake);
  dialled_.push_back(handshake);
  Expect(handshake);
}

void SimWire::OnConnection(std::unique_ptr<SimSocket> socket) {
  auto handshake = std::make_shared<SimHandshake>(this);
  socket->SetHandler(handshake);
  handshake->socket = std::move(socket);
  strangers_.push_back(handshake);
  Expect(handshake);
  if (strangers_.size() > settings_.strangers) {
    const auto oldest = strangers_.front();
    HandshakeEnded(oldest, StrangerEnd::kCrowded, "closed for a newer one");
  }
}

void SimWire::TakeHello(const std::shared_ptr<SimHandshake>& handshake) {
  Hello hello;
  const WireError error = DecodeHello(handshake->received, &hello);
  if (error == WireError::kVersion) {
    handshake->socket->Send(EncodeHello(engine_->RefuseVersion()));
    engine_->CountStranger(StrangerEnd::kRefused, "sim", "its version");
    return HandshakeEnded(handshake, StrangerEnd::kRefused, "");
  }
  if (error != WireError::kNone) {
    return HandshakeEnded(handshake, StrangerEnd::kMalformed, std::string(WireErrorName(error)));
  }
  const Engine::Admission admission = engine_->OnHello(hello, "sim");
  handshake->socket->Send(EncodeHello(admission.reply));
  if (!admission.ticket) return HandshakeEnded(handshake, StrangerEnd::kRefused, "");
  Attach(*admission.ticket, handshake);
}

void SimWire::TakeReply(const std::shared_ptr<SimHandshake>& handshake) {
  Hello reply;
  if (const WireError error = DecodeHello(handshake->received, &reply); error != WireError::kNone) {
    return HandshakeEnded(handshake, StrangerEnd::kMalformed, "its reply: " + std::string(WireErrorName(error)));
  }
  const std::optional<LinkTicket> ticket =
      engine_->OnReply(handshake->peer, handshake->hello.message_class, handshake->attempt, reply);
  if (ticket) return Attach(*ticket, handshake);
  handshake->over = true;
  std::erase(dialled_, handshake);
  handshake->socket->Close();
}

void SimWire::Attach(const LinkTicket& ticket, const std::shared_ptr<SimHandshake>& handshake) {
  handshake->over = true;
  std::erase(handshake->dialled ? dialled_ : strangers_, handshake);
  std::vector<std::byte> early(handshake->received.begin() + kHelloBytes, handshake->received.end());
  auto link = std::make_shared<SimLink>(this, ticket, std::move(handshake->socket), std::move(early));
  links_.push_back(link);
  if (engine_->Attach(ticket, link)) return link->Begin();
  link->Close(true);
}

void SimWire::Forget(SimLink* link) {
  std::erase_if(links_, [&](const auto& one) { return one.get() == link; });
}

void SimWire::Written(SlotId slot, std::span<const std::byte> payload) {
  if (network_->observer() != nullptr) network_->observer()->OnSlotWrite(settings_.self, slot, payload);
}

}  // namespace hk
