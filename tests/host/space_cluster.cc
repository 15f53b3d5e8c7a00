#include "tests/host/space_cluster.h"

#include <stdlib.h>
#include <sys/mount.h>

#include <filesystem>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/address.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/log.h"
#include "rdma/tcp_socket.h"
#include "rdma/tcp_transport.h"
#include "rdma/verbs_transport.h"

namespace hk {
namespace {

// Where frames may be, whoever runs the test.
constexpr char kDirectory[] = "/dev/shm/hk_space.XXXXXX";
// One run at a time on a device.
constexpr size_t kFirstVerbsPort = 7400;

void Check(const absl::Status& status) {
  if (!status.ok()) fmt::print(stderr, "{}\n", std::string(status.message()));
  HK_CHECK(status.ok());
}

template <typename T>
T Check(absl::StatusOr<T> value) {
  Check(value.status());
  return *std::move(value);
}

}  // namespace

SpaceCluster::SpaceCluster(const Settings& settings) {
  // Peers that come and go are what is wanted here.
  static const bool quiet = (log::Init("space", log::Level::kError), true);
  static_cast<void>(quiet);
  std::string directory = kDirectory;
  HK_CHECK(::mkdtemp(directory.data()) != nullptr);
  std::vector<std::string> addresses;
  std::vector<NodeId> ids;
  for (size_t i = 0; i < settings.nodes; i++) {
    ids.push_back(NodeId(static_cast<uint16_t>(i)));
    nodes_.push_back(std::make_unique<Node>());
    Node* const node = nodes_.back().get();
    node->frames.emplace(Check(FrameStore::Open(fmt::format("{}/{}", directory, i), settings.pages * kPageSize)));
    node->router = std::make_unique<SpaceRouter>(SpaceRouter::Watch{.up =
                                                                        [this, node](NodeId) {
                                                                          MutexLock lock(&mutex_);
                                                                          node->peers_up++;
                                                                          changed_.SignalAll();
                                                                        },
                                                                    .failed = {}});
    const bool verbs = !settings.verbs_address.empty();
    OwnedFd listener;
    if (verbs) {
      addresses.push_back(fmt::format("{}:{}", settings.verbs_address, kFirstVerbsPort + i));
    } else {
      listener =
          Check(BindTcp({.kind = Address::Kind::kTcp, .path = {}, .host = "127.0.0.1", .port = 0, .is_literal = true}));
      addresses.push_back(fmt::format("127.0.0.1:{}", Check(BoundAddress(listener.get())).port));
    }
    TransportSettings transport;
    transport.cluster = "space-test";
    transport.self = ids[i];
    transport.wait = settings.wait;
    node->transport =
        verbs ? Check(MakeVerbsTransport(transport, addresses[i], node->router.get()))
              : Check(MakeTcpTransport(transport, {.listen = {}, .listener = std::move(listener), .tls = {}},
                                       node->router.get()));
    node->router->SetTransport(node->transport.get());
    Check(node->transport->Start());
  }
  for (size_t i = 0; i < settings.nodes; i++) {
    GuestSpace::Options options;
    options.name = "space";
    options.config.guest = GuestId(1);
    options.config.self = ids[i];
    options.config.nodes = ids;
    options.config.pages = settings.pages;
    options.config.max_pages = settings.max_pages;
    options.config.swap_pages = settings.swap_pages;
    nodes_[i]->swap.emplace(fmt::format("{}/{}.swap", directory, i), settings.swap_pages * kPageSize);
    options.swap = &*nodes_[i]->swap;
    options.config.hold = settings.hold;
    if (settings.survives) {
      options.config.coordinator = ids[0];
      options.lost = [this, node = nodes_[i].get()](NodeId) {
        MutexLock lock(&mutex_);
        node->times_lost++;
        changed_.SignalAll();
      };
    }
    options.stopped = [this, node = nodes_[i].get()](const absl::Status& why) {
      MutexLock lock(&mutex_);
      node->times_stopped++;
      node->stopped = why;
      changed_.SignalAll();
    };
    nodes_[i]->space = Check(GuestSpace::Attach(std::move(options), *nodes_[i]->frames, nodes_[i]->transport.get(),
                                                nodes_[i]->router.get(), RealClock()));
    for (size_t peer = 0; peer < settings.nodes; peer++) {
      if (peer != i) Check(nodes_[i]->transport->AddPeer(ids[peer], addresses[peer]));
    }
  }
  // The files are open: nothing stays behind, however the test ends.
  for (size_t i = 0; i < nodes_.size(); i++) {
    while (::umount2(fmt::format("{}/{}", directory, i).c_str(), MNT_DETACH) == 0) {
    }
  }
  std::filesystem::remove_all(directory);
  MutexLock lock(&mutex_);
  for (const std::unique_ptr<Node>& node : nodes_) {
    while (node->peers_up + 1 < settings.nodes) HK_CHECK(changed_.WaitUntil(&mutex_, Soon()));
  }
}

SpaceCluster::~SpaceCluster() {
  // All spaces first: a node that is gone stops the others', which then say so.
  for (const std::unique_ptr<Node>& node : nodes_) node->space.reset();
  for (const std::unique_ptr<Node>& node : nodes_) node->transport.reset();
}

void SpaceCluster::Stop(size_t node) {
  nodes_[node]->space.reset();
  nodes_[node]->transport.reset();
}

absl::Status SpaceCluster::WaitStopped(size_t node) {
  MutexLock lock(&mutex_);
  const Monotonic guard = Soon();
  while (nodes_[node]->times_stopped == 0 && changed_.WaitUntil(&mutex_, guard)) {
  }
  return nodes_[node]->stopped;
}

void SpaceCluster::WaitLost(size_t node) {
  MutexLock lock(&mutex_);
  const Monotonic guard = Soon();
  while (nodes_[node]->times_lost == 0) HK_CHECK(changed_.WaitUntil(&mutex_, guard));
}

int SpaceCluster::TimesStopped(size_t node) {
  MutexLock lock(&mutex_);
  return nodes_[node]->times_stopped;
}

}  // namespace hk
