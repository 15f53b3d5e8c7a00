// A daemon in this process, asked what hkctl and other daemons never ask: health, reflection, requests too large, and
// hellos under another node's certificate.
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/memory/space_version.h"
#include "hyperkernel/node/config.h"
#include "hyperkernel/node/daemon.h"
#include "hyperkernel/node/membership.h"
#include "hyperkernel/node/node_info.h"
#include "proto/admin.grpc.pb.h"
#include "proto/peer.grpc.pb.h"

namespace hk {
namespace {

using testing::HasSubstr;

constexpr std::chrono::seconds kDeadline(30);

grpc::ByteBuffer ToBuffer(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

std::string ToString(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  if (!buffer.Dump(&slices).ok()) return "";
  std::string bytes;
  for (const grpc::Slice& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return bytes;
}

std::string ReadAll(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// A port of loopback that is free now. Other tests may take it: callers try again.
uint16_t FreePort() {
  static unsigned next = static_cast<unsigned>(::getpid());
  return static_cast<uint16_t>(20000 + (next += 7) % 12000);
}

// Daemon "a" that knows peers "b" and "c", on a socket and a TCP port with mutual TLS.
class GrpcServices : public testing::Test {
 protected:
  static void SetUpTestSuite() { log::Init("a", log::Level::kError); }

  void SetUp() override {
    std::string pattern = "/tmp/hkt-grpc-XXXXXX", frames = "/dev/shm/hkt-grpc-XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    ASSERT_NE(::mkdtemp(frames.data()), nullptr);
    frames_ = frames;
    ASSERT_EQ(
        std::system(
            fmt::format("{} {}/tls --nodes a,b,c --admins alice --viewers bob >/dev/null", HK_CERTS, pattern).c_str()),
        0);
    for (int tries = 0; daemon_ == nullptr; tries++) {
      absl::StatusOr<std::unique_ptr<Daemon>> daemon = Start();
      if (daemon.ok()) daemon_ = *std::move(daemon);
      ASSERT_LT(tries, 20) << MessageOf(daemon.status());
    }
  }

  void TearDown() override {
    daemon_.reset();
    ::umount2(frames_.c_str(), MNT_DETACH);
    std::filesystem::remove_all(frames_);
    std::filesystem::remove_all(directory_);
  }

  absl::StatusOr<std::unique_ptr<Daemon>> Start() {
    port_ = FreePort();
    const std::string text = fmt::format(
        "name: 'a' data_directory: '{0}/data' frame_store {{ directory: '{1}' budget_mib: 16 }} transport: "
        "TRANSPORT_TCP\n"
        "listen {{ admin: 'unix:{0}/s' admin: '127.0.0.1:{2}' data: '127.0.0.1:{3}' metrics: 'none' }}\n"
        "peers {{ name: 'b' admin: 'unix:{0}/b' }} peers {{ name: 'c' admin: 'unix:{0}/c' }}\n"
        "tls {{ ca: '{0}/tls/ca.crt' certificate: '{0}/tls/node-a.crt' key: '{0}/tls/node-a.key' }} log_level: "
        "'error'\n",
        directory_.string(), frames_.string(), port_, FreePort());
    HK_ASSIGN_OR_RETURN(const NodeSettings settings, ParseConfig(text, "test", ReadHostFacts()));
    return Daemon::Start(settings, RealClock());
  }

  std::shared_ptr<grpc::Channel> Socket() {
    return grpc::CreateChannel(fmt::format("unix:{}/s", directory_.string()), grpc::InsecureChannelCredentials());
  }

  // With the certificate of `identity`, "node-b".
  std::shared_ptr<grpc::Channel> Tls(const std::string& identity) {
    const auto tls = directory_ / "tls";
    grpc::ChannelArguments arguments;
    arguments.SetSslTargetNameOverride("hyperkernel-node");
    return grpc::CreateCustomChannel(fmt::format("127.0.0.1:{}", port_),
                                     grpc::SslCredentials({ReadAll(tls / "ca.crt"), ReadAll(tls / (identity + ".key")),
                                                           ReadAll(tls / (identity + ".crt"))}),
                                     arguments);
  }

  static void SetDeadline(grpc::ClientContext* context) {
    context->set_deadline(std::chrono::system_clock::now() + kDeadline);
  }

  // One message there and one back on any method, as bytes.
  static grpc::Status Exchange(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                               const std::string& request, std::string* response) {
    grpc::GenericStub stub(channel);
    grpc::ClientContext context;
    SetDeadline(&context);
    grpc::CompletionQueue queue;
    const auto wait = [&queue] {
      void* tag = nullptr;
      bool ok = false;
      return queue.Next(&tag, &ok) && ok;
    };
    const auto call = stub.PrepareCall(&context, method, &queue);
    call->StartCall(nullptr);
    wait();
    call->Write(ToBuffer(request), grpc::WriteOptions().set_last_message(), nullptr);
    wait();
    grpc::ByteBuffer buffer;
    call->Read(&buffer, nullptr);
    if (wait()) *response = ToString(buffer);
    grpc::Status status;
    call->Finish(&status, nullptr);
    wait();
    return status;
  }

  grpc::Status Hello(const std::string& identity, v1::HelloRequest request, v1::HelloResponse* response) {
    grpc::ClientContext context;
    SetDeadline(&context);
    return v1::PeerControl::NewStub(Tls(identity))->Hello(&context, request, response);
  }

  static v1::HelloRequest HelloFrom(const std::string& name) {
    v1::HelloRequest request;
    request.set_protocol_version(kPeerProtocolVersion);
    request.set_cluster("default");
    request.set_from(name);
    request.set_to("a");
    request.set_from_number(name == "c" ? 2 : 1);
    return request;
  }

  std::filesystem::path directory_, frames_;
  uint16_t port_ = 0;
  std::unique_ptr<Daemon> daemon_;
};

TEST_F(GrpcServices, HealthIsServing) {
  // grpc.health.v1.HealthCheckResponse { status: SERVING }, to a request that names no service.
  for (const auto& channel : {Socket(), Tls("viewer-bob")}) {
    std::string response;
    const grpc::Status status = Exchange(channel, "/grpc.health.v1.Health/Check", "", &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(response, std::string("\x08\x01", 2));
  }
}

TEST_F(GrpcServices, ReflectionListsTheServices) {
  // ServerReflectionRequest { list_services: "*" }, field 7.
  std::string response;
  const grpc::Status status =
      Exchange(Socket(), "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "\x3a\x01*", &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_THAT(response, HasSubstr("hk.v1.Admin"));
  EXPECT_THAT(response, HasSubstr("hk.v1.PeerControl"));
  EXPECT_THAT(response, HasSubstr("grpc.health.v1.Health"));
}

TEST_F(GrpcServices, ARequestThatIsTooLargeIsRefused) {
  const auto stub = v1::Admin::NewStub(Socket());
  v1::GetNodeRequest request;
  request.set_name(std::string(2 << 20, 'x'));
  v1::GetNodeResponse response;
  grpc::ClientContext context;
  SetDeadline(&context);
  EXPECT_EQ(stub->GetNode(&context, request, &response).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  // The same connection goes on.
  grpc::ClientContext second;
  SetDeadline(&second);
  EXPECT_TRUE(stub->GetNode(&second, v1::GetNodeRequest(), &response).ok());
  EXPECT_EQ(response.member().name(), "a");
}

TEST_F(GrpcServices, ANodeSpeaksForItselfOnly) {
  v1::HelloResponse response;
  grpc::Status status = Hello("node-b", HelloFrom("b"), &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.info().name(), "a");
  status = Hello("node-b", HelloFrom("c"), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_THAT(status.error_message(), testing::AllOf(HasSubstr("'b'"), HasSubstr("'c'")));
}

TEST_F(GrpcServices, OperatorsDoNotSpeakAsNodes) {
  for (const char* identity : {"admin-alice", "viewer-bob"}) {
    v1::HelloResponse response;
    const grpc::Status status = Hello(identity, HelloFrom("b"), &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED) << identity;
    EXPECT_THAT(status.error_message(), HasSubstr("role node"));
    grpc::ClientContext context;
    SetDeadline(&context);
    v1::PeerProbeResponse probe;
    EXPECT_EQ(v1::PeerControl::NewStub(Tls(identity))->Probe(&context, v1::PeerProbeRequest(), &probe).error_code(),
              grpc::StatusCode::PERMISSION_DENIED);
  }
}

TEST_F(GrpcServices, HellosThatDoNotFitAreRefusedWithTheReason) {
  struct Case {
    void (*spoil)(v1::HelloRequest*);
    const char* text;
  };
  const Case cases[] = {
      {[](v1::HelloRequest* hello) { hello->set_protocol_version(kPeerProtocolVersion + 1); }, "run the same release"},
      {[](v1::HelloRequest* hello) { hello->set_cluster("other"); }, "belongs to cluster 'default', not to 'other'"},
      {[](v1::HelloRequest* hello) { hello->set_to("z"); }, "this is node 'a', not 'z'"},
      {[](v1::HelloRequest* hello) { hello->set_from_number(9); }, "node 'b' is number 9 to itself and 1 here"},
      {[](v1::HelloRequest* hello) { hello->set_to_number(9); }, "this node is number 9 to it and 0 here"},
      {[](v1::HelloRequest* hello) { hello->set_cluster(std::string(500000, 'x')); }, "belongs to cluster 'default'"},
  };
  for (const Case& c : cases) {
    v1::HelloRequest request = HelloFrom("b");
    c.spoil(&request);
    v1::HelloResponse response;
    const grpc::Status status = Hello("node-b", request, &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION) << c.text;
    EXPECT_THAT(status.error_message(), HasSubstr(c.text));
  }
}

// A node whose pages other releases would misread: it is refused before anything of the space is looked at.
TEST_F(GrpcServices, ASpaceIsSharedWithTheSameReleaseOnly) {
  for (const uint32_t version : {kSpaceProtocolVersion, kSpaceProtocolVersion + 1, kSpaceProtocolVersion - 1}) {
    v1::AttachSpaceRequest request;
    request.set_from("b");
    request.set_name("Pool");  // that is no name
    request.set_space_protocol(version);
    v1::AttachSpaceResponse response;
    grpc::ClientContext context;
    SetDeadline(&context);
    const grpc::Status status = v1::PeerControl::NewStub(Tls("node-b"))->AttachSpace(&context, request, &response);
    const bool same = version == kSpaceProtocolVersion;
    EXPECT_THAT(status.error_message(), HasSubstr(same ? "name: 'Pool'" : "node 'b' speaks"));
    EXPECT_THAT(status.error_message(), HasSubstr(same ? "" : "run the same release on all nodes of a space"));
  }
}

}  // namespace
}  // namespace hk
