#include "hyperkernel/node/daemon.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <netdb.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <optional>

#include "fmt/format.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/file.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/cluster.h"
#include "hyperkernel/node/data_directory.h"
#include "hyperkernel/node/data_plane.h"
#include "hyperkernel/node/descriptors.h"
#include "hyperkernel/node/grpc_log.h"
#include "hyperkernel/node/guest_manager.h"
#include "hyperkernel/node/guest_records.h"
#include "hyperkernel/node/guest_replicas.h"
#include "hyperkernel/node/kept_guests.h"
#include "hyperkernel/node/kvm_machine.h"
#include "hyperkernel/node/machine_parts.h"
#include "hyperkernel/node/machine_peers.h"
#include "hyperkernel/node/machine_policy.h"
#include "hyperkernel/node/machine_spread.h"
#include "hyperkernel/node/metrics.h"
#include "hyperkernel/node/node_info.h"
#include "hyperkernel/node/placed_memory.h"
#include "hyperkernel/node/services.h"
#include "hyperkernel/node/space_manager.h"
#include "hyperkernel/node/space_peers.h"
#include "hyperkernel/node/space_records.h"
#include "hyperkernel/node/state_store.h"

namespace hk {
namespace {

constexpr std::chrono::seconds kStopDeadline(3);
// Of a restart: consoles and logs that are followed are cut off by then.
constexpr std::chrono::seconds kKeepStopDeadline(1);
// Requests served at once; beyond it gRPC answers RESOURCE_EXHAUSTED. 63 peers' hellos and some operators fit.
constexpr int kMaxServerThreads = 112;
// No request of an operator or peer is larger; a stranger's must not take memory.
constexpr int kMaxRequestBytes = 1 << 20;
// Memory for requests and connections. gRPC looks at a request's size only when all of it has arrived, so it is this
// that keeps a stranger's 4 GiB out: beyond it gRPC ends requests and idle connections. 63 peers and some operators
// take a few MiB.
constexpr size_t kMaxServerBytes = 64 << 20;
// A connection that has not finished TLS and HTTP/2 setup by then is closed, so that silent strangers do not use up
// descriptors.
constexpr int kHandshakeTimeoutMs = 10000;

// Takes the data plane's address, so that a second user of it is found at start. Over TCP with SO_REUSEADDR, or the
// connections of a daemon that has just ended would keep the next one out (TIME_WAIT); two sockets can then be bound to
// one address until one listens (socket(7)), which the transport does at once. Over verbs nobody listens on this
// socket: without.
absl::StatusOr<OwnedFd> ReserveDataAddress(const Address& address, bool tcp) {
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = ::getaddrinfo(address.host.c_str(), fmt::to_string(address.port).c_str(), &hints, &found);
      error != 0) {
    return absl::InvalidArgumentError(fmt::format("{}: {}", address.ToString(), ::gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, &::freeaddrinfo);
  OwnedFd fd(::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoStatus(errno, "socket");
  const int reuse = tcp ? 1 : 0;
  if (::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof reuse) != 0)
    return ErrnoStatus(errno, "SO_REUSEADDR");
  if (::bind(fd.get(), found->ai_addr, found->ai_addrlen) != 0) {
    const absl::Status status = ErrnoStatus(errno, address.ToString());
    return absl::Status(status.code(),
                        fmt::format("{}; is the address this host's and free? (ss -ltnp)", MessageOf(status)));
  }
  return fd;
}

// A socket file left by a killed daemon is in the way of the next one; one that answers is not ours to take.
absl::Status ClearStaleSocket(const std::string& path) {
  struct stat info;
  if (::lstat(path.c_str(), &info) != 0) return errno == ENOENT ? absl::OkStatus() : ErrnoStatus(errno, path);
  if (!S_ISSOCK(info.st_mode))
    return absl::FailedPreconditionError(fmt::format("{} is there and is not a socket", path));
  OwnedFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return ErrnoStatus(errno, "socket");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 || errno == EAGAIN) {
    return absl::FailedPreconditionError(fmt::format("{} is served by another process", path));
  }
  // Only a refusal means that nobody listens; a socket of another kind, or of another user, is not ours to remove.
  if (errno != ECONNREFUSED && !HK_MUTANT(any_socket_is_stale)) {
    return ErrnoStatus(errno, fmt::format("{} is in use by something else", path));
  }
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return ErrnoStatus(errno, path);
  return absl::OkStatus();
}

absl::Status PrepareUnixSocket(const std::string& path) {
  HK_RETURN_IF_ERROR(MakeDirectories(path.substr(0, std::max<size_t>(path.rfind('/'), 1)), 0755));
  return ClearStaleSocket(path);
}

}  // namespace

struct Daemon::Parts {
  std::optional<DirectoryLock> data_lock;
  std::optional<DirectoryLock> frame_lock;
  std::optional<FrameStore> frames;
  std::optional<KeptGuests> kept;
  LeftGuests left;
  std::optional<SwapStore> swap;
  std::optional<KernelCache> kernels;
  OwnedFd data_address;  // over TCP the data plane's
  // Destroyed from below: what asks before what is asked. Hellos end with the cluster, the metrics read the transport.
  std::unique_ptr<DataPlane> data_plane;
  Metrics metrics;
  std::optional<GuestReplicas> replicas;
  std::unique_ptr<StateStore> state;
  std::optional<SpaceRecords> space_records;
  std::optional<ClusterSpacePeers> space_peers;
  std::unique_ptr<SpaceManager> spaces;
  std::optional<ClusterMachinePeers> machine_peers;
  std::unique_ptr<MachineParts> machine_parts;
  std::optional<Cluster> cluster;
  std::unique_ptr<GuestManager> guests;
  std::optional<AdminService> admin;
  std::optional<PeerControlService> peers;
  std::unique_ptr<grpc::Server> server;

  // The metrics outlive the spaces and the replicas.
  ~Parts() {
    metrics.ForgetSpaces();
    metrics.ForgetReplicas();
  }
  absl::Status OpenState(const NodeSettings& settings, const Clock& clock, v1::NodeInfo* self);
  absl::Status RecoverReplicas(const std::string& directory, const std::string& node_id, const Clock& clock);
  absl::Status StartDataPlane(const NodeSettings& settings, const Clock& clock, const v1::NodeInfo& self);
  ClusterHooks Hooks(const std::string& boot_id);
  void MakeSpaces(const NodeSettings& settings, const Clock& clock);
  void MakeParts(const v1::NodeInfo& self, const Clock& clock);
  absl::StatusOr<std::unique_ptr<Machine>> MakeMachine(const v1::VmRecord& record, MachineEvents* events,
                                                       const v1::NodeInfo& self, const Clock& clock);
  void TakeOverGuests(const Clock& clock);
  absl::Status Serve(const NodeSettings& settings);
};

absl::Status Daemon::Parts::OpenState(const NodeSettings& settings, const Clock& clock, v1::NodeInfo* self) {
  HK_ASSIGN_OR_RETURN(const std::string transport, ResolveTransport(settings.transport, settings.data_listen));
  absl::StatusOr<DirectoryLock> lock = DirectoryLock::Take(settings.data_directory, settings.name, clock);
  if (!lock.ok()) return WithContext(lock.status(), "data_directory");
  data_lock = *std::move(lock);
  absl::StatusOr<v1::NodeIdentity> identity =
      LoadOrMakeIdentity(settings.data_directory, settings.name, settings.cluster, clock);
  if (!identity.ok()) return WithContext(identity.status(), "data_directory");
  absl::StatusOr<FrameStore> store = FrameStore::Open(settings.frame_directory, settings.frame_budget_bytes);
  if (!store.ok()) return WithContext(store.status(), "frame_store.directory");
  frames = *std::move(store);
  absl::StatusOr<DirectoryLock> second = DirectoryLock::Take(settings.frame_directory, settings.name, clock);
  if (!second.ok()) return WithContext(second.status(), "frame_store.directory");
  frame_lock = *std::move(second);
  HK_RETURN_IF_ERROR(WithContext(frames->EnsureCapacity(), "frame_store.directory"));
  kept.emplace(*frames, identity->node_id(), ReadBootId());
  absl::StatusOr<LeftGuests> found = kept->Look();
  if (!found.ok()) return WithContext(found.status(), "frame_store.directory");
  left = *std::move(found);
  swap.emplace(settings.data_directory + "/swap", settings.swap_budget_bytes);
  const absl::StatusOr<int> old_swaps = swap->RemoveLeftovers();
  if (!old_swaps.ok()) return WithContext(old_swaps.status(), "data_directory");
  if (*old_swaps > 0) {
    log::Warning("daemon", "swap files of spaces that ended with an earlier daemon were removed",
                 {{"files", fmt::to_string(*old_swaps)}});
  }
  absl::StatusOr<OwnedFd> reserved = ReserveDataAddress(settings.data_listen, transport == "tcp");
  if (!reserved.ok()) return WithContext(reserved.status(), "listen.data");
  data_address = *std::move(reserved);
  absl::StatusOr<std::unique_ptr<StateStore>> opened = StateStore::Open(settings.data_directory + "/state");
  if (!opened.ok()) return WithContext(opened.status(), "data_directory");
  state = *std::move(opened);
  HK_RETURN_IF_ERROR(RecoverReplicas(settings.data_directory, identity->node_id(), clock));
  space_records.emplace(state.get());
  const absl::StatusOr<std::vector<v1::SpaceRecord>> ended = space_records->TakeLeftovers();
  if (!ended.ok()) return WithContext(ended.status(), "data_directory");
  for (const v1::SpaceRecord& space : *ended) {
    log::Warning("space", "a space ended with an earlier daemon of this node, its coordinator",
                 {{"guest", space.name()},
                  {"id", fmt::format("{:#x}", space.id())},
                  {"epoch", fmt::to_string(space.epoch())},
                  {"nodes", fmt::format("{}", fmt::join(space.nodes(), ","))}});
  }
  *self = StaticNodeInfo(settings, *identity, transport, clock.Wall());
  for (const std::string& warning : frames->warnings()) self->add_warnings(warning);
  if (frames->most_beside_bytes() == 0) {
    self->add_warnings(fmt::format(
        "the tmpfs at {} has no room beyond frame_store.budget_mib: what machines' memory holds of their disks is "
        "forgotten if the daemon is killed; lower the budget by a 24th, or mount a larger tmpfs",
        settings.frame_directory));
  }
  if (transport != "tcp") {
    self->add_warnings(
        "pages travel over verbs, which neither encrypts nor authenticates: the fabric must be trusted; set transport: "
        "TRANSPORT_TCP for TLS");
  }
  return absl::OkStatus();
}

// Before anybody makes frames.
absl::Status Daemon::Parts::RecoverReplicas(const std::string& directory, const std::string& node_id,
                                            const Clock& clock) {
  absl::StatusOr<ReplicaSite> site = FindReplicaSite(*frames, clock, node_id);
  if (!site.ok()) return WithContext(site.status(), "frame_store.directory");
  site->databases = directory + "/replicas";
  replicas.emplace(*std::move(site));
  const absl::StatusOr<std::vector<v1::VmRecord>> records = GuestRecords(state.get()).List();
  if (!records.ok()) return WithContext(records.status(), "data_directory");
  const absl::StatusOr<int> leftovers = replicas->Recover(*records, left.frame_files);
  if (!leftovers.ok()) return WithContext(leftovers.status(), "frame_store.directory");
  if (*leftovers > 0) {
    log::Warning("daemon", "frames of guests that ended with an earlier daemon were removed",
                 {{"files", fmt::to_string(*leftovers)}});
  }
  return absl::OkStatus();
}

absl::Status Daemon::Parts::StartDataPlane(const NodeSettings& settings, const Clock& clock, const v1::NodeInfo& self) {
  OwnedFd listener;
  if (self.transport() == "tcp") listener = std::move(data_address);
  absl::StatusOr<std::unique_ptr<DataPlane>> started =
      DataPlane::Start(settings, self.transport(), std::move(listener), clock);
  if (!started.ok()) return started.status();
  data_plane = *std::move(started);
  metrics.DescribeTransport(*data_plane->transport(), [plane = data_plane.get()] { return plane->Peers(); });
  return absl::OkStatus();
}

ClusterHooks Daemon::Parts::Hooks(const std::string& boot_id) {
  return {
      .data_link = [this](const std::string& peer) { return data_plane->LinkTo(peer); },
      .heard = [this, boot_id](const std::string& peer,
                               const v1::NodeInfo& info) { data_plane->Heard(peer, info, boot_id); },
      .spaces_of = [this](const std::string& peer) { return spaces->IdsOf(peer); },
      .spaces_unknown = [this](const std::string& peer, const std::vector<uint64_t>& ids) { spaces->Drop(peer, ids); }};
}

void Daemon::Parts::MakeSpaces(const NodeSettings& settings, const Clock& clock) {
  space_peers.emplace(&*cluster, data_plane.get());
  const auto attach = [this, &clock](GuestSpace::Options options) -> absl::StatusOr<std::unique_ptr<GuestSpace>> {
    HK_RETURN_IF_ERROR(CheckDescriptors(options.config.pages * kPageSize, ReadDescriptorUse()));
    options.swap = &*swap;
    return GuestSpace::Attach(std::move(options), *frames, data_plane->transport(), data_plane->router(), clock);
  };
  spaces = std::make_unique<SpaceManager>(settings.name, attach, &*space_peers, clock, &*space_records);
  metrics.DescribeSpaces([manager = spaces.get()] { return manager->Samples(); });
}

// Of machines whose I/O node is another.
void Daemon::Parts::MakeParts(const v1::NodeInfo& self, const Clock& clock) {
  machine_peers.emplace(&*cluster);
  const auto make = [this, name = self.name(), boot_id = self.boot_id(), &clock](
                        const v1::AttachMachineRequest& request,
                        std::function<void(const std::string&)> ended) -> absl::StatusOr<std::unique_ptr<MachinePart>> {
    HK_ASSIGN_OR_RETURN(const NodeId number, cluster->NumberOf(name));
    HK_ASSIGN_OR_RETURN(const NodeId io_node, cluster->NumberOf(request.from()));
    return MachinePart::Make({.request = request,
                              .self = number,
                              .io_node = io_node,
                              .boot_id = boot_id,
                              .transport = data_plane->transport(),
                              .router = data_plane->router(),
                              .clock = &clock,
                              .hold =
                                  [this, request](std::function<void(const absl::Status&)> stopped) {
                                    return spaces->HoldOf(request.from(), request.space_id(), std::move(stopped));
                                  },
                              .ended = std::move(ended)});
  };
  machine_parts = std::make_unique<MachineParts>(make, clock);
}

absl::StatusOr<std::unique_ptr<Machine>> Daemon::Parts::MakeMachine(const v1::VmRecord& record, MachineEvents* events,
                                                                    const v1::NodeInfo& self, const Clock& clock) {
  const v1::VmSpec& spec = record.spec();
  if (!IsPlaced(spec)) {
    return MakeKvmMachine(spec, LocalMemory(spec, record.generation(), *frames, replicas->BeginRun(record)), nullptr,
                          nullptr, *kernels, clock, events);
  }
  const auto number_of = [this](const std::string& node) { return cluster->NumberOf(node); };
  HK_ASSIGN_OR_RETURN(MachinePolicy::Options options,
                      PolicyOptions(spec, self.name(), cluster->Members(), number_of, clock));
  HK_ASSIGN_OR_RETURN(std::shared_ptr<MachinePolicy> policy, MachinePolicy::Make(std::move(options)));
  HK_ASSIGN_OR_RETURN(std::unique_ptr<MachineSpread> spread,
                      MachineSpread::Plan(spec, {.self = self.name(),
                                                 .boot_id = self.boot_id(),
                                                 .peers = &*machine_peers,
                                                 .transport = data_plane->transport(),
                                                 .router = data_plane->router(),
                                                 .clock = &clock,
                                                 .policy = policy,
                                                 .metrics = &metrics,
                                                 .cpu_model = record.cpu_model()}));
  return MakeKvmMachine(spec, PlacedMemory(spec, spaces.get(), clock), std::move(spread), std::move(policy), *kernels,
                        clock, events);
}

// Those that their last daemon left. What cannot go on ends with its frames.
void Daemon::Parts::TakeOverGuests(const Clock& clock) {
  for (const auto& [name, reason] : left.refused) guests->NotKept(name, reason);
  for (const MachineState& saved : left.states) {
    const auto restore = [&](const v1::VmRecord& record,
                             MachineEvents* events) -> absl::StatusOr<std::unique_ptr<Machine>> {
      HK_RETURN_IF_ERROR(kept->Use(saved));
      return RestoreKvmMachine(record.spec(), saved, LeftMemory(record.spec(), saved, *frames), *kernels, clock,
                               events);
    };
    if (guests->TakeOver(saved, restore).ok()) continue;
    static_cast<void>(kept->Use(saved));  // if it has not come to that
    ::unlink(frames->PathOf(saved.name, saved.generation).c_str());
  }
  left = {};
}

absl::Status Daemon::Parts::Serve(const NodeSettings& settings) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  grpc::ResourceQuota quota("hyperkerneld");
  quota.SetMaxThreads(kMaxServerThreads).Resize(kMaxServerBytes);
  builder.SetResourceQuota(quota);
  builder.SetMaxReceiveMessageSize(kMaxRequestBytes);
  // Two daemons must not share an address by accident.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeTimeoutMs);
  std::vector<int> ports(settings.admin_listen.size(), -1);
  for (size_t i = 0; i < settings.admin_listen.size(); i++) {
    const Address& address = settings.admin_listen[i];
    std::shared_ptr<grpc::ServerCredentials> credentials = grpc::InsecureServerCredentials();
    if (address.kind == Address::Kind::kUnix) {
      HK_RETURN_IF_ERROR(WithContext(PrepareUnixSocket(address.path), "listen.admin"));
    } else if (settings.tls.has_value()) {
      grpc::SslServerCredentialsOptions options(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
      options.pem_root_certs = settings.tls->ca_pem;
      options.pem_key_cert_pairs.push_back({settings.tls->key_pem, settings.tls->certificate_pem});
      credentials = grpc::SslServerCredentials(options);
    }
    builder.AddListeningPort(address.ToString(), credentials, &ports[i]);
  }
  builder.RegisterService(&*admin);
  builder.RegisterService(&*peers);
  // The socket's mode is its protection: only root's (the daemon's user's) group may connect.
  const mode_t old_mask = ::umask(0117);
  server = builder.BuildAndStart();
  ::umask(old_mask);
  for (size_t i = 0; i < ports.size(); i++) {
    if (server == nullptr || ports[i] <= 0) {
      if (server == nullptr && ports[i] > 0) continue;
      return absl::UnavailableError(
          fmt::format("listen.admin: cannot listen on {}; is the address this host's and free? (ss -ltnp)",
                      settings.admin_listen[i].ToString()));
    }
  }
  if (server == nullptr) return absl::UnavailableError("listen.admin: cannot start the gRPC server");
  return absl::OkStatus();
}

Daemon::Daemon(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(const NodeSettings& settings, const Clock& clock,
                                                      std::function<absl::Status()> restart) {
  RouteGrpcLog(log::Level::kDebug);  // until it serves: what fails is told by the status
  auto parts = std::make_unique<Parts>();
  v1::NodeInfo self;
  HK_RETURN_IF_ERROR(parts->OpenState(settings, clock, &self));
  parts->metrics.DescribeNode(self, *parts->frames, *parts->swap);
  HK_RETURN_IF_ERROR(parts->StartDataPlane(settings, clock, self));
  parts->cluster.emplace(settings, self, *parts->frames, *parts->swap, &parts->metrics, clock,
                         parts->Hooks(self.boot_id()));
  parts->MakeSpaces(settings, clock);
  parts->MakeParts(self, clock);
  parts->metrics.DescribeReplicas([replicas = &*parts->replicas] { return replicas->Samples(); });
  if (settings.metrics_listen.has_value()) {
    HK_RETURN_IF_ERROR(WithContext(parts->metrics.Serve(*settings.metrics_listen), "listen.metrics"));
  }
  const FrameStore& frames = *parts->frames;
  const SwapStore& swap = *parts->swap;
  const KernelCache& kernels = parts->kernels.emplace(settings.data_directory + "/kernels");
  HK_ASSIGN_OR_RETURN(parts->guests,
                      GuestManager::Open(
                          parts->state.get(), settings.name,
                          [&frames, &swap, &kernels, &cluster = *parts->cluster](const v1::VmSpec& spec) {
                            const absl::Status nodes = CheckPlacedNodes(
                                spec, [&cluster](const std::string& node) { return cluster.NumberOf(node).status(); });
                            return nodes.ok() ? CheckKvmMachine(spec, frames, swap, kernels) : nodes;
                          },
                          [parts = parts.get(), self, &clock](const v1::VmRecord& record, MachineEvents* events) {
                            return parts->MakeMachine(record, events, self, clock);
                          },
                          clock));
  parts->guests->SetForget([replicas = &*parts->replicas](const std::string& name) { replicas->Drop(name); });
  parts->TakeOverGuests(clock);  // they stand still until then
  parts->admin.emplace(&*parts->cluster, parts->guests.get(), parts->spaces.get(), &parts->metrics, &*parts->replicas,
                       std::move(restart));
  parts->peers.emplace(&*parts->cluster, parts->spaces.get(), parts->machine_parts.get(), self.boot_id(),
                       &parts->metrics);
  auto daemon = std::unique_ptr<Daemon>(new Daemon(std::move(parts)));
  HK_RETURN_IF_ERROR(daemon->parts_->Serve(settings));
  RouteGrpcLog(log::Level::kWarning);  // errors are now about one connection, not about this node
  daemon->parts_->cluster->Start();
  daemon->parts_->guests->Autostart();
  for (const std::string& warning : self.warnings()) log::Warning("daemon", warning);
  log::Info("daemon", "serving",
            {{"version", self.version()},
             {"node_id", self.node_id()},
             {"admin", fmt::format("{}", fmt::join(self.admin_addresses(), ","))},
             {"data", self.data_address()},
             {"metrics", self.metrics_address()},
             {"transport", self.transport()}});
  return daemon;
}

// Nobody orders anything while machines are saved; what ends with the daemon ends before, so that no machine stands
// still for it.
void Daemon::KeepGuests() {
  parts_->server->Shutdown(std::chrono::system_clock::now() + kKeepStopDeadline);
  parts_->guests->StopUnkept();
  parts_->machine_parts->StopAll();
  parts_->spaces->StopAll();
  const int kept =
      parts_->guests->KeepMachines([this](const MachineState& state) { return parts_->kept->Write(state); });
  log::Info("daemon", "guests are left to the next daemon", {{"guests", fmt::to_string(kept)}});
}

Daemon::~Daemon() {
  // Machines first: they end of themselves, not by their memory. Then requests that wait for pages end at once.
  if (parts_->guests != nullptr) parts_->guests->StopMachines();
  if (parts_->machine_parts != nullptr) parts_->machine_parts->StopAll();
  if (parts_->spaces != nullptr) parts_->spaces->StopAll();
  if (parts_->server != nullptr) parts_->server->Shutdown(std::chrono::system_clock::now() + kStopDeadline);
}

}  // namespace hk
