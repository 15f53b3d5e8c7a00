#include "rdma/verbs_connections.h"

#include <poll.h>
#include <pthread.h>
#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/status.h"
#include "rdma/send_rules.h"
#include "rdma/stranger_queue.h"
#include "rdma/verbs_queues.h"

namespace hk {

namespace {

using std::chrono::milliseconds;

// As long as it takes: the peer's class is busy, which is no failure (7 means without end).
constexpr uint8_t kReceiverNotReadyRetries = 7;
// IB_CM_REJ_CONSUMER_DEFINED: the other end has read our hello and says why in its private data.
constexpr int kRejectedByPeer = 28;
// Events handled before anything else is looked at again: a flood of hellos does not stop the heartbeats.
constexpr int kEventsPerTurn = 64;

}  // namespace

VerbsWire::VerbsWire(const TransportSettings& settings, const Address& listen)
    : settings_(settings), listen_(listen), permits_(UsableCpus()) {
  const WaitMode wait = EffectiveWaitMode(settings_.wait, 2, UsableCpus());
  for (size_t i = 0; i < kMessageClasses; ++i) {
    auto gone = [this](uint64_t key) {
      {
        MutexLock lock(&mutex_);
        gone_.push_back(key);
      }
      WakeControl();
    };
    auto early = [this](uint64_t key) {
      {
        MutexLock lock(&mutex_);
        early_.push_back(key);
      }
      WakeControl();
    };
    pollers_[i] =
        std::make_unique<VerbsPoller>(static_cast<MessageClass>(i), wait, std::chrono::microseconds(settings_.spin_us),
                                      &permits_, std::move(gone), std::move(early));
  }
}

VerbsWire::~VerbsWire() {
  Stop();
}

absl::Status VerbsWire::Start(Engine* engine) {
  engine_ = engine;
  HK_ASSIGN_OR_RETURN(events_, OpenRdmaEvents());
  HK_ASSIGN_OR_RETURN(port_, VerbsPort::Open(events_.get(), listen_, engine->memory(), settings_));
  HK_RETURN_IF_ERROR(wake_.Open());
  for (const std::unique_ptr<VerbsPoller>& poller : pollers_) HK_RETURN_IF_ERROR(poller->Start(engine));
  for (size_t i = 0; i < kMessageClasses; ++i) pollers_[i]->SetChannel(port_->channel(static_cast<MessageClass>(i)));
  thread_ = std::thread([this] { Run(); });
  ::pthread_setname_np(thread_.native_handle(), "hk-rdma-ctl");
  return absl::OkStatus();
}

void VerbsWire::Stop() {
  // Farewells are cut short by what the control thread hears of the peers.
  for (const std::unique_ptr<VerbsPoller>& poller : pollers_) poller->Stop();
  if (thread_.joinable()) {
    stop_ = true;
    wake_.Wake();
    thread_.join();
  }
  for (const std::unique_ptr<VerbsPoller>& poller : pollers_) poller->SetChannel(nullptr);
  while (!connections_.empty()) Destroy(connections_.begin()->first);
  port_.reset();
  events_.reset();
}

absl::Status VerbsWire::CheckAddress(const std::string& address) const {
  const absl::StatusOr<Address> parsed = ParseAddress(address, AddressForm::kConnectTcp);
  if (!parsed.ok()) return parsed.status();
  if (!parsed->is_literal) {
    return absl::InvalidArgumentError(fmt::format("{}: verbs connect to IP addresses, not to names", address));
  }
  return absl::OkStatus();
}

void VerbsWire::WakeClass(MessageClass message_class) {
  PollerOf(message_class).Wake();
}

void VerbsWire::WakeControl() {
  wake_.Wake();
}

uint64_t VerbsWire::Random() {
  uint64_t number = 0;
  while (number == 0) HK_CHECK(::getrandom(&number, sizeof number, 0) == sizeof number);
  return number;
}

void VerbsWire::Break(NodeId peer) {
  MutexLock lock(&mutex_);
  for (const auto& [key, link] : live_) {
    if (link->ticket().peer == peer) link->Break();
  }
}

// --- The control thread ---

void VerbsWire::Run() {
  for (;;) {
    // In this order: what wakes us after this is seen before the next sleep.
    static_cast<void>(wake_.Take());
    if (stop_.load()) return;
    TakeEvents();
    TakeDeviceEvents();
    TakeEarly();
    const Monotonic gone_due = DestroyGone();
    // Before the engine: it learns what failed, and says when to try again.
    const Monotonic port_due = TendPort(), overdue = EndOverdue();
    Monotonic due = std::min({engine_->RunControl(), overdue, port_due, gone_due});
    for (auto& [peer, message_class, attempt, detail] : std::exchange(failed_dials_, {})) {
      engine_->OnDialFailed(peer, message_class, attempt, detail);
      due = Monotonic::min();
    }
    Sleep(due);
  }
}

void VerbsWire::Sleep(Monotonic due) {
  const Monotonic now = std::chrono::steady_clock::now();
  if (due <= now || !wake_.Sleep()) return;
  const auto left = due == Monotonic::max() ? std::chrono::nanoseconds(0) : due - now;
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(left);
  const timespec timeout{.tv_sec = seconds.count(), .tv_nsec = (left - seconds).count()};
  const int async = port_ != nullptr && !device_gone_ ? port_->context()->async_fd : -1;
  std::array<pollfd, 3> fds = {pollfd{.fd = wake_.fd(), .events = POLLIN, .revents = 0},
                               pollfd{.fd = events_->fd, .events = POLLIN, .revents = 0},
                               pollfd{.fd = async, .events = POLLIN, .revents = 0}};
  ::ppoll(fds.data(), fds.size(), due == Monotonic::max() ? nullptr : &timeout, nullptr);
  wake_.Awake();
  if ((fds[0].revents & POLLIN) != 0) wake_.Drain();
}

void VerbsWire::TakeEvents() {
  rdma_cm_event* told = nullptr;
  for (int i = 0; i < kEventsPerTurn && rdma_get_cm_event(events_.get(), &told) == 0; ++i) {
    Event event{.type = told->event,
                .status = told->status,
                .id = told->id,
                .key = reinterpret_cast<uint64_t>(told->id->context),
                .private_data = {}};
    const rdma_conn_param& parameters = told->param.conn;
    if (parameters.private_data != nullptr && parameters.private_data_len != 0) {
      const auto* data = static_cast<const std::byte*>(parameters.private_data);
      event.private_data.assign(data, data + parameters.private_data_len);
    }
    rdma_ack_cm_event(told);
    OnEvent(&event);
  }
}

void VerbsWire::TakeDeviceEvents() {
  if (port_ == nullptr || device_gone_) return;
  ibv_async_event event = {};
  while (ibv_get_async_event(port_->context(), &event) == 0) {
    const ibv_event_type type = event.event_type;
    // Before it is acknowledged: until then its queue pair stays.
    if (type == IBV_EVENT_COMM_EST) {
      for (auto& [key, connection] : connections_) {
        if (connection.id->qp == event.element.qp) OnEarlyMessage(&connection);
      }
    }
    ibv_ack_async_event(&event);
    // What else befalls a queue pair shows in its completions.
    if (type == IBV_EVENT_DEVICE_FATAL) return DeviceGone("the device failed");
  }
}

void VerbsWire::TakeEarly() {
  std::vector<uint64_t> early;
  {
    MutexLock lock(&mutex_);
    early.swap(early_);
  }
  for (const uint64_t key : early) {
    const auto found = connections_.find(key);
    if (found != connections_.end()) OnEarlyMessage(&found->second);
  }
}

// The peer's first message came and its last word of the handshake (RTU) did not: rdma_cm takes the one for the other
// when it is told (rdma_notify(3)), and says ESTABLISHED. Not all devices have an event for it, so the receive queue's
// is taken too. An error: it came meanwhile (EISCONN), or the handshake's deadline ends it.
void VerbsWire::OnEarlyMessage(Connection* connection) {
  if (connection->phase != Phase::kAccepted) return;
  static_cast<void>(rdma_notify(connection->id.get(), IBV_EVENT_COMM_EST));
}

void VerbsWire::OnEvent(Event* event) {
  if (event->type == RDMA_CM_EVENT_CONNECT_REQUEST) return OnRequest(event);
  if (event->type == RDMA_CM_EVENT_DEVICE_REMOVAL) return DeviceGone("the device was removed");
  const auto found = connections_.find(event->key);
  if (found == connections_.end()) return;  // destroyed before its event was read, or the listener's
  Connection& connection = found->second;
  if (connection.link != nullptr) {
    // A peer may reject what is a connection here already, if its last word was lost.
    const bool over = event->type == RDMA_CM_EVENT_DISCONNECTED || event->type == RDMA_CM_EVENT_ADDR_CHANGE ||
                      event->type == RDMA_CM_EVENT_REJECTED || event->type == RDMA_CM_EVENT_CONNECT_ERROR ||
                      event->type == RDMA_CM_EVENT_UNREACHABLE;
    if (over) PollerOf(connection.message_class).PeerClosed(event->key);
    return;
  }
  switch (event->type) {
    case RDMA_CM_EVENT_ADDR_RESOLVED:
    case RDMA_CM_EVENT_ROUTE_RESOLVED:
      return OnDialling(event->key, &connection, *event);
    case RDMA_CM_EVENT_ESTABLISHED:
      return OnEstablished(event->key, &connection, *event);
    case RDMA_CM_EVENT_REJECTED: {
      Hello reply;
      const bool told =
          event->status == kRejectedByPeer && DecodeHello(event->private_data, &reply) == WireError::kNone;
      if (told && connection.attempt != 0) {
        // A rejection brings no ticket.
        static_cast<void>(
            engine_->OnReply(connection.peer, connection.message_class, std::exchange(connection.attempt, 0), reply));
      }
      return GiveUp(event->key, event->status == kRejectedByPeer
                                    ? std::string("its rejection cannot be read")
                                    : fmt::format("rejected, reason {}: nobody listens there", event->status));
    }
    case RDMA_CM_EVENT_ADDR_ERROR:
    case RDMA_CM_EVENT_ROUTE_ERROR:
    case RDMA_CM_EVENT_CONNECT_ERROR:
    case RDMA_CM_EVENT_UNREACHABLE:
      return GiveUp(event->key,
                    fmt::format("{}: {}", rdma_event_str(event->type), std::strerror(std::abs(event->status))));
    case RDMA_CM_EVENT_DISCONNECTED:
    case RDMA_CM_EVENT_ADDR_CHANGE:
      return GiveUp(event->key, "closed by the peer");
    default:
      return;
  }
}

// --- Dialling ---

void VerbsWire::Dial(NodeId peer, const std::string& address, const Hello& hello, uint64_t attempt) {
  const absl::Status begun = BeginDial(peer, address, hello, attempt);
  if (begun.ok()) return;
  failed_dials_.emplace_back(peer, hello.message_class, attempt, MessageOf(begun));
}

absl::Status VerbsWire::BeginDial(NodeId peer, const std::string& address, const Hello& hello, uint64_t attempt) {
  if (port_ == nullptr || device_gone_) return absl::UnavailableError("the verbs device is gone");
  HK_ASSIGN_OR_RETURN(const Address to, ParseAddress(address, AddressForm::kConnectTcp));
  const uint64_t key = next_key_++;
  rdma_cm_id* id = nullptr;
  if (rdma_create_id(events_.get(), &id, reinterpret_cast<void*>(key), RDMA_PS_TCP) != 0) {
    return ErrnoStatus(errno, "rdma_create_id");
  }
  RdmaId owned(id);
  RdmaAddress from = RdmaAddress::Of(listen_, 0), there = RdmaAddress::Of(to, to.port);
  if (rdma_resolve_addr(id, from.get(), there.get(), static_cast<int>(settings_.handshake_ms)) != 0) {
    return ErrnoStatus(errno, fmt::format("rdma_resolve_addr {}", address));
  }
  Connection& connection = connections_[key];
  connection.id = std::move(owned);
  connection.peer = peer;
  connection.message_class = hello.message_class;
  connection.hello = hello;
  connection.attempt = attempt;
  connection.deadline =
      std::chrono::steady_clock::now() + milliseconds(DialMs(settings_.handshake_ms, settings_.lease_ms));
  return absl::OkStatus();
}

void VerbsWire::OnDialling(uint64_t key, Connection* connection, const Event& event) {
  absl::Status status;
  if (event.type == RDMA_CM_EVENT_ADDR_RESOLVED) {
    connection->phase = Phase::kRoute;
    if (rdma_resolve_route(connection->id.get(), static_cast<int>(settings_.handshake_ms)) != 0) {
      status = ErrnoStatus(errno, "rdma_resolve_route");
    }
  } else {
    connection->phase = Phase::kConnecting;
    status = MakePair(key, connection);
    if (status.ok()) status = Say(connection);
  }
  if (!status.ok()) GiveUp(key, MessageOf(status));
}

absl::Status VerbsWire::MakePair(uint64_t key, Connection* connection) {
  rdma_cm_id* id = connection->id.get();
  if (port_ == nullptr || device_gone_ || id->verbs != port_->context()) {
    return absl::UnavailableError("the way to the peer is not through the device that listen.data is on");
  }
  uint8_t timeout = AckTimeout(settings_.lease_ms);
  // Without it (older kernels) a dead peer is found by the lease alone.
  static_cast<void>(rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &timeout, sizeof timeout));
  const MessageClass message_class = connection->message_class;
  HK_ASSIGN_OR_RETURN(connection->pair,
                      QueuePair::Create(id, port_->pool().domain(message_class), port_->channel(message_class).get(),
                                        settings_.window_messages, key, message_class != MessageClass::kInvalidate));
  return absl::OkStatus();
}

rdma_conn_param VerbsWire::Parameters(std::span<const std::byte> private_data) const {
  rdma_conn_param parameters = {};
  parameters.private_data = private_data.data();
  parameters.private_data_len = static_cast<uint8_t>(private_data.size());
  parameters.retry_count = kRetries;
  parameters.rnr_retry_count = kReceiverNotReadyRetries;
  // No reads, no atomics: responder_resources and initiator_depth stay 0.
  return parameters;
}

absl::Status VerbsWire::Say(Connection* connection) {
  const std::array<std::byte, kHelloBytes> hello = EncodeHello(connection->hello);
  rdma_conn_param parameters = Parameters(hello);
  if (rdma_connect(connection->id.get(), &parameters) != 0) return ErrnoStatus(errno, "rdma_connect");
  return absl::OkStatus();
}

// --- Accepting ---

void VerbsWire::OnRequest(Event* event) {
  const uint64_t key = next_key_++;
  RdmaId id(event->id);
  id->context = reinterpret_cast<void*>(key);
  auto reject = [&](const Hello& reply) {
    const std::array<std::byte, kHelloBytes> bytes = EncodeHello(reply);
    rdma_reject(id.get(), bytes.data(), bytes.size());
  };
  Hello hello;
  const WireError error = DecodeHello(event->private_data, &hello);
  if (error != WireError::kNone) {
    const auto reason = error == WireError::kVersion ? StrangerEnd::kRefused : StrangerEnd::kMalformed;
    engine_->CountStranger(reason, PeerAddress(id.get()), fmt::format("hello: {}", WireErrorName(error)));
    if (error != WireError::kVersion) {
      rdma_reject(id.get(), nullptr, 0);
      return;
    }
    return reject(engine_->RefuseVersion());
  }
  const Engine::Admission admission = engine_->OnHello(hello, PeerAddress(id.get()));
  if (!admission.ticket) return reject(admission.reply);
  Connection& connection = connections_[key];
  connection.id = std::move(id);
  connection.phase = Phase::kAccepted;
  connection.peer = hello.from;
  connection.message_class = hello.message_class;
  connection.ticket = admission.ticket;
  connection.deadline = std::chrono::steady_clock::now() + milliseconds(settings_.handshake_ms);
  absl::Status status = MakePair(key, &connection);
  if (!status.ok()) {
    Hello busy = admission.reply;
    busy.kind = HelloKind::kRejectBusy;
    const std::array<std::byte, kHelloBytes> bytes = EncodeHello(busy);
    rdma_reject(connection.id.get(), bytes.data(), bytes.size());
    return GiveUp(key, MessageOf(status));
  }
  if (!connection.pair->ArmReceives()) return GiveUp(key, "ibv_req_notify_cq failed");
  const std::array<std::byte, kHelloBytes> reply = EncodeHello(admission.reply);
  rdma_conn_param parameters = Parameters(reply);
  if (rdma_accept(connection.id.get(), &parameters) != 0) {
    return GiveUp(key, MessageOf(ErrnoStatus(errno, "rdma_accept")));
  }
  BoundAccepted();
}

void VerbsWire::BoundAccepted() {
  StrangerQueue accepted;
  for (const auto& [key, connection] : connections_) {
    if (connection.phase == Phase::kAccepted) accepted.Add(key, PeerSource(connection.id.get()));
  }
  if (accepted.size() <= settings_.strangers) return;
  const uint64_t victim = *accepted.Victim();
  engine_->CountStranger(StrangerEnd::kCrowded, PeerAddress(connections_.at(victim).id.get()), "too many at once");
  GiveUp(victim, "closed for a newer one");
}

// --- Both ---

void VerbsWire::OnEstablished(uint64_t key, Connection* connection, const Event& event) {
  const absl::Status status = connection->pair->Connected();
  if (!status.ok()) return GiveUp(key, MessageOf(status));
  if (connection->phase == Phase::kAccepted) {
    return MakeLink(key, connection, *std::exchange(connection->ticket, std::nullopt));
  }
  Hello reply;
  const WireError error = DecodeHello(event.private_data, &reply);
  if (error != WireError::kNone) return GiveUp(key, fmt::format("its reply: {}", WireErrorName(error)));
  const std::optional<LinkTicket> ticket =
      engine_->OnReply(connection->peer, connection->message_class, std::exchange(connection->attempt, 0), reply);
  if (!ticket) return Destroy(key);
  MakeLink(key, connection, *ticket);
}

void VerbsWire::MakeLink(uint64_t key, Connection* connection, const LinkTicket& ticket) {
  VerbsPoller& poller = PollerOf(connection->message_class);
  connection->phase = Phase::kLive;
  connection->link =
      std::make_shared<VerbsLink>(ticket, key, std::move(connection->pair), port_->pool(), engine_, &poller);
  {
    MutexLock lock(&mutex_);
    live_[key] = connection->link.get();
  }
  if (!engine_->Attach(ticket, connection->link)) return Destroy(key);
  poller.Add(connection->link);
}

void VerbsWire::DialFailed(Connection* connection, const std::string& detail) {
  const uint64_t attempt = std::exchange(connection->attempt, 0);
  if (attempt != 0) engine_->OnDialFailed(connection->peer, connection->message_class, attempt, detail);
}

void VerbsWire::GiveUp(uint64_t key, const std::string& detail) {
  Connection& connection = connections_.at(key);
  HK_CHECK(connection.link == nullptr);
  DialFailed(&connection, detail);
  if (connection.ticket) engine_->OnBroken(*connection.ticket, detail);
  Destroy(key);
}

void VerbsWire::Destroy(uint64_t key) {
  const auto found = connections_.find(key);
  HK_CHECK(found != connections_.end());
  Connection& connection = found->second;
  {
    MutexLock lock(&mutex_);
    live_.erase(key);
  }
  connection.link.reset();
  connection.pair.reset();
  // Tells the peer at once; without effect on what was never connected.
  if (connection.phase == Phase::kLive) static_cast<void>(rdma_disconnect(connection.id.get()));
  connections_.erase(found);
}

Monotonic VerbsWire::DestroyGone() {
  std::vector<uint64_t> gone, held;
  {
    MutexLock lock(&mutex_);
    gone.swap(gone_);
  }
  for (const uint64_t key : gone) {
    // Who closed it may not have let go of it yet, and the queue pair goes before its identifier.
    if (connections_.at(key).link.use_count() > 1) {
      held.push_back(key);
    } else {
      Destroy(key);
    }
  }
  if (held.empty()) return Monotonic::max();
  MutexLock lock(&mutex_);
  gone_.insert(gone_.end(), held.begin(), held.end());
  return std::chrono::steady_clock::now() + milliseconds(1);
}

Monotonic VerbsWire::EndOverdue() {
  const Monotonic now = std::chrono::steady_clock::now();
  Monotonic next = Monotonic::max();
  std::vector<uint64_t> overdue;
  for (const auto& [key, connection] : connections_) {
    if (connection.phase == Phase::kLive) continue;
    if (connection.deadline <= now) {
      overdue.push_back(key);
    } else {
      next = std::min(next, connection.deadline);
    }
  }
  for (const uint64_t key : overdue) {
    if (connections_.at(key).phase == Phase::kAccepted) {
      engine_->CountStranger(StrangerEnd::kSilent, PeerAddress(connections_.at(key).id.get()),
                             "the handshake took too long");
    }
    GiveUp(key, "no answer in time");
  }
  return next;
}

// --- The device ---

void VerbsWire::DeviceGone(const std::string& detail) {
  if (port_ == nullptr || device_gone_) return;
  device_gone_ = true;
  log::Error("transport", "the verbs device is gone; it is opened again when it is back",
             {{"address", listen_.ToString()}, {"detail", detail}});
  engine_->FailAll(detail);
  std::vector<uint64_t> unfinished;
  for (const auto& [key, connection] : connections_) {
    if (connection.link == nullptr) unfinished.push_back(key);
  }
  for (const uint64_t key : unfinished) GiveUp(key, detail);
  for (const std::unique_ptr<VerbsPoller>& poller : pollers_) poller->SetChannel(nullptr);
}

// Closes the port of a device that is gone as soon as nothing uses it, and opens it again.
Monotonic VerbsWire::TendPort() {
  const Monotonic now = std::chrono::steady_clock::now();
  if (port_ != nullptr && !device_gone_) return Monotonic::max();
  const milliseconds least(settings_.backoff_ms), most(settings_.backoff_max_ms);
  if (port_ != nullptr) {
    if (!connections_.empty() || port_->IsInUse()) return now + least;
    CloseRemovedDevice(std::move(port_));
    device_gone_ = false;
    reopen_pause_ = least;
    reopen_ = now + reopen_pause_;
  }
  if (now < reopen_) return reopen_;
  absl::StatusOr<std::unique_ptr<VerbsPort>> port =
      VerbsPort::Open(events_.get(), listen_, engine_->memory(), settings_);
  if (!port.ok()) {
    reopen_pause_ = std::clamp(reopen_pause_ * 2, least, most);
    reopen_ = std::chrono::steady_clock::now() + reopen_pause_;
    return reopen_;
  }
  port_ = *std::move(port);
  for (size_t i = 0; i < kMessageClasses; ++i) pollers_[i]->SetChannel(port_->channel(static_cast<MessageClass>(i)));
  log::Info("transport", "the verbs device is back", {{"address", listen_.ToString()}});
  return Monotonic::max();
}

}  // namespace hk
