#include "rdma/tcp_wire.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "rdma/send_rules.h"

namespace hk {

namespace {

using std::chrono::milliseconds;

// What epoll's events carry: one of these, or a handshake's number.
constexpr uint64_t kWakeId = 0, kListenerId = 1, kPartingsId = 2, kFirstHandshakeId = 3;
// Connections accepted before anything else is looked at again: a flood does not stop the heartbeats.
constexpr int kAcceptsPerTurn = 64;
// How long the listener rests when there are no file descriptors left: others give some back meanwhile.
constexpr milliseconds kAcceptRest{100};
constexpr int kEvents = 64;
// How often connections are looked at: a dead one is found within a lease and a quarter.
constexpr int kLooksPerLease = 4;

uint32_t Interest(const TcpHandshake& handshake) {
  return handshake.WantsWrite() ? uint32_t{EPOLLOUT} : uint32_t{EPOLLIN};
}

}  // namespace

// --- HostResolver ---

HostResolver::HostResolver(std::function<void()> wake) : shared_(std::make_shared<Shared>()) {
  MutexLock lock(&shared_->mutex);
  shared_->wake = std::move(wake);
}

bool HostResolver::Look(const Address& address, const DialTarget& target) {
  {
    MutexLock lock(&shared_->mutex);
    if (shared_->running >= kMaxLookups) return false;
    ++shared_->running;
  }
  const auto look = [shared = shared_, address, target] {
    absl::StatusOr<SocketAddress> found = Resolve(address);
    MutexLock lock(&shared->mutex);
    --shared->running;
    if (!shared->wake) return;
    shared->found.push_back({target, std::move(found)});
    shared->wake();
  };
  try {
    std::thread(look).detach();
  } catch (const std::system_error&) {  // no more threads or memory now
    MutexLock lock(&shared_->mutex);
    --shared_->running;
    return false;
  }
  return true;
}

std::vector<HostResolver::Found> HostResolver::Take() {
  MutexLock lock(&shared_->mutex);
  return std::exchange(shared_->found, {});
}

void HostResolver::Stop() {
  MutexLock lock(&shared_->mutex);
  shared_->wake = nullptr;
}

// --- TcpWire ---

TcpWire::TcpWire(const TransportSettings& settings, TcpOptions options, std::unique_ptr<TlsContext> tls, unsigned cpus)
    : settings_(settings),
      listen_(std::move(options.listen)),
      listener_(std::move(options.listener)),
      name_of_(options.tls ? std::move(options.tls->name_of) : nullptr),
      tls_(std::move(tls)),
      permits_(cpus),
      partings_([this] { wake_.Wake(); }),
      resolver_([this] { wake_.Wake(); }),
      next_id_(kFirstHandshakeId) {
  const WaitMode wait = EffectiveWaitMode(settings_.wait, 2, cpus);
  for (size_t i = 0; i < kMessageClasses; ++i) {
    loops_[i] = std::make_unique<TcpLoop>(static_cast<MessageClass>(i), wait,
                                          std::chrono::microseconds(settings_.spin_us), &permits_, &partings_);
  }
}

TcpWire::~TcpWire() {
  Stop();
}

absl::Status TcpWire::Start(Engine* engine) {
  engine_ = engine;
  if (!listener_.valid()) {
    HK_ASSIGN_OR_RETURN(const Address address, ParseAddress(listen_, AddressForm::kListenTcp));
    HK_ASSIGN_OR_RETURN(listener_, BindTcp(address));
  }
  HK_RETURN_IF_ERROR(ListenTcp(listener_.get()));
  epoll_ = OwnedFd(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_.valid()) return ErrnoStatus(errno, "epoll_create1");
  HK_RETURN_IF_ERROR(wake_.Open());
  epoll_event event{.events = EPOLLIN, .data = {.u64 = kWakeId}};
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.fd(), &event) != 0) return ErrnoStatus(errno, "epoll_ctl");
  HK_RETURN_IF_ERROR(partings_.Open());
  event.data.u64 = kPartingsId;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, partings_.fd(), &event) != 0) return ErrnoStatus(errno, "epoll_ctl");
  for (const std::unique_ptr<TcpLoop>& loop : loops_) HK_RETURN_IF_ERROR(loop->Start(engine));
  thread_ = std::thread([this] { Run(); });
  ::pthread_setname_np(thread_.native_handle(), "hk-tcp-control");
  return absl::OkStatus();
}

void TcpWire::Stop() {
  resolver_.Stop();
  if (thread_.joinable()) {
    stop_ = true;
    wake_.Wake();
    thread_.join();
  }
  for (const std::unique_ptr<TcpLoop>& loop : loops_) loop->Stop();
  partings_.Finish();
  handshakes_.clear();
  listener_.Reset();
}

void TcpWire::WakeClass(MessageClass message_class) {
  loops_[static_cast<size_t>(message_class)]->Wake();
}

void TcpWire::WakeControl() {
  wake_.Wake();
}

uint64_t TcpWire::Random() {
  uint64_t number = 0;
  while (number == 0) {
    if (::getrandom(&number, sizeof number, 0) != static_cast<ssize_t>(sizeof number)) HK_CHECK(errno == EINTR);
  }
  return number;
}

absl::Status TcpWire::CheckAddress(const std::string& address) const {
  return ParseAddress(address, AddressForm::kConnectTcp).status();
}

void TcpWire::Run() {
  std::array<epoll_event, kEvents> events;
  for (;;) {
    // In this order: Stop wakes us after it has said so.
    static_cast<void>(wake_.Take());
    if (stop_.load()) return;
    Monotonic due = std::min(engine_->RunControl(), NextDeadline());
    const Monotonic now = std::chrono::steady_clock::now();
    due = std::min({due, partings_.Serve(now), BreakDead(now)});
    if (!listening_) due = std::min(due, Listen(now));
    const bool sleeps = failed_.empty() && due > now && wake_.Sleep();
    // The deadlines here are of milliseconds; rounded up, so that they have passed when the thread wakes.
    const auto left =
        std::chrono::ceil<milliseconds>(std::min<std::chrono::nanoseconds>(due - now, std::chrono::hours(1)));
    const int count = ::epoll_wait(epoll_.get(), events.data(), kEvents, sleeps ? static_cast<int>(left.count()) : 0);
    if (sleeps) wake_.Awake();
    for (int i = 0; i < count; ++i) {
      const uint64_t id = events[static_cast<size_t>(i)].data.u64;
      if (id == kWakeId) {
        uint64_t times = 0;
        static_cast<void>(::read(wake_.fd(), &times, sizeof times));
      } else if (id == kListenerId) {
        Accept();
      } else if (id != kPartingsId) {  // they are served in every turn
        Progress(id);
      }
    }
    TakeDials();
    CloseLate();
  }
}

// Connections that are lost and carry nothing that anybody waits for show by this alone: a lost host fails its lease.
Monotonic TcpWire::BreakDead(Monotonic now) {
  if (now < dead_due_) return dead_due_;
  const milliseconds lease(settings_.lease_ms);
  for (const std::unique_ptr<TcpLoop>& loop : loops_) loop->BreakDead(now, lease);
  return dead_due_ = now + lease / kLooksPerLease;
}

// Goes on accepting, or says when.
Monotonic TcpWire::Listen(Monotonic now) {
  if (now < accept_after_) return accept_after_;
  epoll_event event{.events = EPOLLIN, .data = {.u64 = kListenerId}};
  listening_ = ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, listener_.get(), &event) == 0;
  if (listening_) return Monotonic::max();
  Rest(MessageOf(ErrnoStatus(errno, "epoll_ctl")));
  return accept_after_;
}

void TcpWire::Rest(const std::string& why) {
  engine_->CountStranger(StrangerEnd::kNoFiles, "listener", fmt::format("{}; the listener rests", why));
  accept_after_ = std::chrono::steady_clock::now() + kAcceptRest;
}

Monotonic TcpWire::NextDeadline() const {
  // All have the same time to live, so the oldest ends first.
  return handshakes_.empty() ? Monotonic::max() : handshakes_.begin()->second->deadline();
}

void TcpWire::CloseLate() {
  const Monotonic now = std::chrono::steady_clock::now();
  while (!handshakes_.empty() && handshakes_.begin()->second->deadline() <= now && !HK_MUTANT(silent_strangers_stay)) {
    End(handshakes_.begin()->first, StrangerEnd::kSilent,
        fmt::format("no whole handshake in {} ms", settings_.handshake_ms));
  }
}

void TcpWire::End(uint64_t id, StrangerEnd reason, const std::string& detail) {
  const auto found = handshakes_.find(id);
  HK_CHECK(found != handshakes_.end());
  const std::unique_ptr<TcpHandshake> handshake = std::move(found->second);
  handshakes_.erase(found);
  if (const std::optional<DialTarget>& target = handshake->target()) {
    engine_->OnDialFailed(target->peer, target->message_class, target->attempt, detail);
    return;
  }
  strangers_.Remove(id);
  engine_->CountStranger(reason, handshake->who(), detail);
}

bool TcpWire::MakeRoom(StrangerEnd reason) {
  const std::optional<uint64_t> victim = strangers_.Victim();
  if (!victim) return false;
  End(*victim, reason, "closed for a newer connection");
  return true;
}

// --- The accepting end ---

void TcpWire::Accept() {
  for (int i = 0; i < kAcceptsPerTurn && AcceptOne(); ++i) {
  }
}

// False: nobody waits, or nobody can be taken.
bool TcpWire::AcceptOne() {
  SocketAddress from;
  from.size = sizeof from.storage;
  OwnedFd fd(
      ::accept4(listener_.get(), reinterpret_cast<sockaddr*>(&from.storage), &from.size, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!fd.valid()) {
    if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      if (MakeRoom(StrangerEnd::kNoFiles)) return true;
      ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, listener_.get(), nullptr);
      listening_ = false;
      Rest("no file descriptors or memory");
      return false;
    }
    return errno != EAGAIN;  // else the connection was gone before it was accepted (accept(2))
  }
  SetTcpOptions(fd.get(), milliseconds(settings_.lease_ms));
  auto handshake = TcpHandshake::Accepted(std::move(fd), from.ToString(), tls_.get(),
                                          std::chrono::steady_clock::now() + milliseconds(settings_.handshake_ms));
  if (!handshake.ok()) {
    engine_->CountStranger(StrangerEnd::kNoFiles, from.ToString(), MessageOf(handshake.status()));
    return true;
  }
  const uint64_t id = Add(*std::move(handshake), from.Source());
  // The new one counts too: it takes no room from others than its source's, if that has most already.
  if (strangers_.size() > settings_.strangers && !HK_MUTANT(strangers_unbounded)) MakeRoom(StrangerEnd::kCrowded);
  Progress(id);  // most often its first bytes are there
  return true;
}

uint64_t TcpWire::Add(std::unique_ptr<TcpHandshake> handshake, const std::string& source) {
  const uint64_t id = next_id_++;
  if (!handshake->target()) strangers_.Add(id, source);
  epoll_event event{.events = Interest(*handshake), .data = {.u64 = id}};
  const int fd = handshake->fd();
  handshakes_.emplace(id, std::move(handshake));
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    End(id, StrangerEnd::kNoFiles, MessageOf(ErrnoStatus(errno, "epoll_ctl")));
  }
  return id;
}

void TcpWire::Progress(uint64_t id) {
  const auto found = handshakes_.find(id);
  if (found == handshakes_.end()) return;  // closed by an event before this one
  TcpHandshake* const handshake = found->second.get();
  switch (handshake->Progress()) {
    case TcpHandshake::Result::kWait: {
      epoll_event event{.events = Interest(*handshake), .data = {.u64 = id}};
      if (::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, handshake->fd(), &event) != 0) {
        End(id, StrangerEnd::kNoFiles, MessageOf(ErrnoStatus(errno, "epoll_ctl")));
      }
      return;
    }
    case TcpHandshake::Result::kFailed:
      if (handshake->failure() == StrangerEnd::kRefused && !handshake->target()) {
        handshake->Reply(engine_->RefuseVersion());
      }
      End(id, handshake->failure(), handshake->detail());
      return;
    case TcpHandshake::Result::kHello:
      break;
  }
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, handshake->fd(), nullptr);
  const std::unique_ptr<TcpHandshake> done = std::move(found->second);
  handshakes_.erase(found);
  if (done->target()) {
    OnReply(done.get());
  } else {
    strangers_.Remove(id);
    OnHello(done.get());
  }
}

void TcpWire::OnHello(TcpHandshake* handshake) {
  const Hello& hello = handshake->hello();
  // Before anything that it says is believed.
  if (const std::optional<std::string> name = handshake->PeerName()) {
    const std::string wanted = name_of_(hello.from);
    if ((wanted.empty() || *name != wanted) && !HK_MUTANT(tls_any_name)) {
      engine_->CountStranger(
          StrangerEnd::kTls, handshake->who(),
          fmt::format("the certificate is node '{}', the hello of node {}", *name, hello.from.value()));
      return;
    }
  }
  const Engine::Admission admission = engine_->OnHello(hello, handshake->who());
  const bool said = handshake->Reply(admission.reply);
  if (!admission.ticket) return;
  if (said) {
    Finish(*admission.ticket, handshake);
  } else {
    engine_->OnBroken(*admission.ticket, "the reply could not be sent");
  }
}

void TcpWire::Finish(const LinkTicket& ticket, TcpHandshake* handshake) {
  TcpLoop* const loop = loops_[static_cast<size_t>(ticket.message_class)].get();
  if (!HK_MUTANT(slow_readers_given_up)) ClearTcpPatience(handshake->fd());
  auto link = std::make_shared<TcpLink>(ticket, handshake->TakeStream(), engine_, loop);
  if (engine_->Attach(ticket, link)) loop->Add(std::move(link));
}

// --- The dialling end ---

void TcpWire::Dial(NodeId peer, const std::string& text, const Hello& hello, uint64_t attempt) {
  const DialTarget target{peer, hello.message_class, attempt, hello, name_of_ ? name_of_(peer) : ""};
  const absl::StatusOr<Address> address = ParseAddress(text, AddressForm::kConnectTcp);
  if (!address.ok()) {
    failed_.push_back({target, MessageOf(address.status())});
  } else if (!address->is_literal) {
    if (!resolver_.Look(*address, target)) failed_.push_back({target, "too many names are being looked up"});
  } else if (const absl::StatusOr<SocketAddress> resolved = Resolve(*address); resolved.ok()) {
    Connect(*resolved, target);
  } else {
    failed_.push_back({target, MessageOf(resolved.status())});
  }
}

void TcpWire::Connect(const SocketAddress& address, const DialTarget& target) {
  absl::StatusOr<OwnedFd> fd = ConnectTcp(address);
  if (!fd.ok()) {
    failed_.push_back({target, MessageOf(fd.status())});
    return;
  }
  SetTcpOptions(fd->get(), milliseconds(settings_.lease_ms));
  auto handshake =
      TcpHandshake::Dialled(*std::move(fd), address.ToString(), tls_.get(),
                            std::chrono::steady_clock::now() + milliseconds(settings_.handshake_ms), target);
  if (!handshake.ok()) {
    failed_.push_back({target, MessageOf(handshake.status())});
    return;
  }
  Add(*std::move(handshake), "");
}

void TcpWire::TakeDials() {
  for (const HostResolver::Found& found : resolver_.Take()) {
    if (found.address.ok()) {
      Connect(*found.address, found.target);
    } else {
      failed_.push_back({found.target, MessageOf(found.address.status())});
    }
  }
  for (const Failed& failed : std::exchange(failed_, {})) {
    engine_->OnDialFailed(failed.target.peer, failed.target.message_class, failed.target.attempt, failed.detail);
  }
}

void TcpWire::OnReply(TcpHandshake* handshake) {
  const DialTarget& target = *handshake->target();
  const std::optional<LinkTicket> ticket =
      engine_->OnReply(target.peer, target.message_class, target.attempt, handshake->hello());
  if (ticket) Finish(*ticket, handshake);
}

// --- The factory ---

absl::StatusOr<std::unique_ptr<Transport>> MakeTcpTransport(const TransportSettings& settings, TcpOptions options,
                                                            TransportHandler* handler) {
  if (!options.listener.valid()) {
    const absl::Status address = ParseAddress(options.listen, AddressForm::kListenTcp).status();
    if (!address.ok()) return WithContext(address, "listen");
  }
  std::unique_ptr<TlsContext> tls;
  if (options.tls) {
    if (!options.tls->name_of) return absl::InvalidArgumentError("tls: name_of is not set");
    HK_ASSIGN_OR_RETURN(tls,
                        TlsContext::Create(options.tls->ca_pem, options.tls->certificate_pem, options.tls->key_pem));
  }
  auto wire = std::make_unique<TcpWire>(settings, std::move(options), std::move(tls), UsableCpus());
  return Engine::Create(settings, handler, std::move(wire), kTcpSlotRoom);
}

}  // namespace hk
