// hkctl against a daemon's services over a machine that is a fake: consoles, logs and commands inside a guest, with
// their exit codes, without a guest that boots.
#include <grpc/grpc.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/server_builder.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <thread>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/config.h"
#include "hyperkernel/node/machine_testing.h"
#include "hyperkernel/node/node_info.h"
#include "hyperkernel/node/services.h"
#include "proto/admin.grpc.pb.h"

namespace hk {
namespace {

using testing::HasSubstr;

constexpr std::chrono::seconds kDeadline(30);

std::string ReadAll(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// How a program ended.
struct Ended {
  int code = -1;  // 1000 + the signal that ended it
  std::string out, err;
};

constexpr char kAgentProgram[] = "/usr/sbin/qemu-ga";

// A machine whose agent's channel leads to a real qemu-guest-agent on this host, by a socket. Its handler of SIGTERM
// may lock what the interrupted thread has locked (g_main_loop_quit), so it is killed a second later; and it has none
// of this test's descriptors, whose end the runner of tests waits for.
class MachineWithAgent final : public FakeMachine {
 public:
  MachineWithAgent(MachineEvents* events, std::atomic<int>* alive, const std::filesystem::path& directory)
      : FakeMachine(events, alive, nullptr) {
    const std::string socket = (directory / "ga.sock").string();
    const std::string command = fmt::format(
        "timeout -k 1 100 {0} -m unix-listen -p {1}/ga.sock -t {1} -f {1}/ga.pid -l {1}/ga.log < /dev/null > "
        "{1}/ga.output 2>&1 & echo $! > {1}/ga.timeout",
        kAgentProgram, directory.string());
    EXPECT_EQ(std::system(command.c_str()), 0);
    pid_ = std::atoi(ReadAll(directory / "ga.timeout").c_str());
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    socket.copy(address.sun_path, sizeof address.sun_path - 1);
    fd_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const auto deadline = std::chrono::steady_clock::now() + kDeadline;
    while (::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 &&
           std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    reader_ = std::thread([this] {
      char bytes[4096];
      for (ssize_t n = 0; (n = ::read(fd_, bytes, sizeof bytes)) > 0;)
        events_->OnOutput(Channel::kAgent, {bytes, static_cast<size_t>(n)});
    });
  }
  ~MachineWithAgent() override {
    ::shutdown(fd_, SHUT_RDWR);
    reader_.join();
    ::close(fd_);
    ::kill(pid_, SIGTERM);
  }
  size_t Input(Channel, std::string_view bytes) override {
    const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    return n < 0 ? 0 : static_cast<size_t>(n);
  }

 private:
  int fd_ = -1;
  int pid_ = 0;
  std::thread reader_;
};

class GuestIo : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    log::Init("a", log::Level::kError);
    // With the last of its objects gRPC 1.51 shuts itself down, which may take 10 s: not between two tests.
    ::grpc_init();
  }

  void SetUp() override {
    std::string pattern = "/tmp/hkt-io-XXXXXX", frames = "/dev/shm/hkt-io-XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    ASSERT_NE(::mkdtemp(frames.data()), nullptr);
    directory_ = pattern;
    frame_directory_ = frames;
    settings_ = *ParseConfig(fmt::format("name: 'a' data_directory: '{}/data' transport: TRANSPORT_TCP frame_store {{ "
                                         "directory: '{}' budget_mib: 16 }} listen {{ admin: 'unix:{}/s' data: "
                                         "'127.0.0.1:1' metrics: 'none' }}",
                                         pattern, frames, pattern),
                             "test", ReadHostFacts());
    frames_ = std::make_unique<FrameStore>(*FrameStore::Open(frames, 16 << 20));
    cluster_ = std::make_unique<Cluster>(settings_, v1::NodeInfo(), *frames_, swap_, &metrics_, RealClock());
    store_ = *StateStore::Open(pattern + "/state");
    guests_ = *GuestManager::Open(
        store_.get(), "a", [](const v1::VmSpec&) { return absl::OkStatus(); },
        [this](const v1::VmRecord&, MachineEvents* events) -> absl::StatusOr<std::unique_ptr<Machine>> {
          if (real_agent_) return std::make_unique<MachineWithAgent>(events, &alive_, directory_);
          auto machine = std::make_unique<FakeMachine>(events, &alive_, &agent_);
          machine_ = machine.get();
          return machine;
        },
        RealClock());
    admin_ = std::make_unique<AdminService>(cluster_.get(), guests_.get(), nullptr, &metrics_);  // no spaces here
    grpc::ServerBuilder builder;
    builder.AddListeningPort(fmt::format("unix:{}/s", pattern), grpc::InsecureServerCredentials());
    builder.RegisterService(admin_.get());
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
    v1::VmSpec spec;
    spec.set_name("g");
    spec.set_memory_mib(64);
    spec.set_kernel("/k");
    ASSERT_TRUE(guests_->Create(spec, false).ok());
    stub_ =
        v1::Admin::NewStub(grpc::CreateChannel(fmt::format("unix:{}/s", pattern), grpc::InsecureChannelCredentials()));
  }

  void TearDown() override {
    stub_.reset();
    server_->Shutdown(std::chrono::system_clock::now());
    server_.reset();
    admin_.reset();
    guests_.reset();
    store_.reset();
    cluster_.reset();
    frames_.reset();
    ::umount2(frame_directory_.c_str(), MNT_DETACH);
    std::filesystem::remove_all(frame_directory_);
    std::filesystem::remove_all(directory_);
  }

  void StartGuest() { ASSERT_TRUE(guests_->Control("g", v1::VM_ACTION_START).ok()); }

  // Runs hkctl by a shell, so that its input can be given: "vm exec g -- cat < /dev/null".
  Ended Hkctl(const std::string& arguments) {
    const auto out = directory_ / "out", err = directory_ / "err";
    const int status =
        std::system(fmt::format("{{ timeout 60 {}/hkctl --endpoint unix:{}/s {} ; }} >{} 2>{}", std::getenv("HK_BIN"),
                                directory_.string(), arguments, out.string(), err.string())
                        .c_str());
    return {.code = WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status),
            .out = ReadAll(out),
            .err = ReadAll(err)};
  }

  grpc::Status ReadLog(const v1::ReadLogRequest& request, std::string* text) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kDeadline);
    const auto reader = stub_->ReadLog(&context, request);
    v1::ReadLogResponse response;
    while (reader->Read(&response)) *text += response.output();
    return reader->Finish();
  }

  std::filesystem::path directory_, frame_directory_;
  NodeSettings settings_;
  Metrics metrics_;
  FakeAgent agent_;
  bool real_agent_ = false;
  std::atomic<int> alive_{0};
  FakeMachine* machine_ = nullptr;
  std::unique_ptr<FrameStore> frames_;
  SwapStore swap_{"", 0};  // none
  std::unique_ptr<Cluster> cluster_;
  std::unique_ptr<StateStore> store_;
  std::unique_ptr<GuestManager> guests_;
  std::unique_ptr<AdminService> admin_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::Admin::Stub> stub_;
};

TEST_F(GuestIo, ACommandsOutputAndExitStatusAreHkctls) {
  StartGuest();
  agent_.statuses = {FakeAgent::Exited(3, "to out\n", "to err\n")};
  Ended ended = Hkctl("vm exec g -- prog --flag '[a,b]' -- x < /dev/null");
  EXPECT_EQ(ended.code, 3);
  EXPECT_EQ(ended.out, "to out\n");
  EXPECT_EQ(ended.err, "to err\n");
  EXPECT_THAT(agent_.last_exec, HasSubstr(R"("arg":["--flag","[a,b]","--","x"])"));
  EXPECT_THAT(agent_.last_exec, testing::Not(HasSubstr("input-data")));

  agent_.statuses = {FakeAgent::Exited(0)};
  EXPECT_EQ(Hkctl("vm exec -o json g -- true < /dev/null").code, 0);
}

TEST_F(GuestIo, StandardInputIsTheCommands) {
  StartGuest();
  EXPECT_EQ(Hkctl("vm exec g -- cat < /proc/self/comm").code, 0);
  EXPECT_THAT(agent_.last_exec, HasSubstr("\"input-data\":\""));
  EXPECT_EQ(Hkctl("vm exec g -- cat <&-").code, 0) << "closed";
  const Ended big = Hkctl("vm exec g -- cat < /dev/zero");
  EXPECT_EQ(big.code, 125);
  EXPECT_THAT(big.err, HasSubstr("longer than 512 KiB"));
}

TEST_F(GuestIo, SignalsAndCommandsThatDoNotStart) {
  StartGuest();
  agent_.statuses = {R"({"return": {"exited": true, "signal": 9, "out-truncated": true}})"};
  Ended ended = Hkctl("vm exec g -- x < /dev/null");
  EXPECT_EQ(ended.code, 137);
  EXPECT_EQ(ended.err, "hkctl: vm exec g: the output is cut: the guest agent keeps 16 MiB\n");
  agent_.started = R"({"error": {"class": "GenericError", "desc": "Failed to \u001b[2J execute"}})";
  ended = Hkctl("vm exec g -- x < /dev/null");
  EXPECT_EQ(ended.code, 126);
  EXPECT_EQ(ended.err, "hkctl: vm exec g: Failed to ?[2J execute\n");
}

TEST_F(GuestIo, HkctlsOwnFailuresAre125) {
  const struct {
    const char *arguments, *text;
  } kTable[] = {
      {"vm exec g -- true", "vm 'g' is stopped, not running; hkctl vm start g"},
      {"vm exec nobody -- true", "no vm 'nobody'"},
      {"vm exec g", "a command after --"},
      {"vm exec g --", "a command after --"},
      {"vm exec g ls -l", "the command comes after --"},
      {"vm exec g --nonsense -- true", "--nonsense"},
      {"vm exec g --timeout 5 -- true", "unit"},
  };
  for (const auto& [arguments, text] : kTable) {
    const Ended ended = Hkctl(std::string(arguments) + " < /dev/null");
    EXPECT_EQ(ended.code, 125) << arguments;
    EXPECT_THAT(ended.err, HasSubstr(text)) << arguments;
    EXPECT_EQ(std::count(ended.err.begin(), ended.err.end(), '\n'), 1) << ended.err;
    EXPECT_EQ(ended.out, "");
  }
  StartGuest();
  EXPECT_THAT(Hkctl("vm exec g -- \"$(printf '\\377')\" < /dev/null").err, HasSubstr("not UTF-8"));
  EXPECT_THAT(Hkctl("vm exec g -- '' < /dev/null").err, HasSubstr("command: is empty"));
  agent_.silent = true;
  const Ended silent = Hkctl("vm exec g --timeout 300ms -- true < /dev/null");
  EXPECT_EQ(silent.code, 125);
  EXPECT_THAT(silent.err, HasSubstr("did not answer within 0.3 s"));
  agent_.silent = false;
  agent_.statuses = {R"({"return": {"exited": false}})"};
  const Ended late = Hkctl("vm exec g --timeout 300ms -- sleep 1 < /dev/null");
  EXPECT_EQ(late.code, 125);
  EXPECT_THAT(late.err, HasSubstr("still runs after 0.3 s"));
}

TEST_F(GuestIo, MuchOutputComesWhole) {
  StartGuest();
  std::string output;
  while (output.size() < (16 << 20)) output += "0123456789abcdef\n";
  agent_.statuses = {FakeAgent::Exited(0, output, "e")};
  const Ended ended = Hkctl("vm exec g --timeout 60s -- x < /dev/null");
  EXPECT_EQ(ended.code, 0);
  EXPECT_TRUE(ended.out == output);
  EXPECT_EQ(ended.err, "e");
}

TEST_F(GuestIo, AClientThatGoesAwayFreesTheAgent) {
  StartGuest();
  agent_.statuses = {R"({"return": {"exited": false}})"};
  EXPECT_EQ(Hkctl("vm exec g --timeout 60s -- sleep 1000 < /dev/null & sleep 0.5; kill %1; wait; true").code, 0);
  agent_.statuses = {FakeAgent::Exited(0)};
  EXPECT_EQ(Hkctl("vm exec g --timeout 20s -- true < /dev/null").code, 0);
}

TEST_F(GuestIo, QemusOwnAgentIsUnderstood) {
  if (::access(kAgentProgram, X_OK) != 0)
    GTEST_SKIP() << "no " << kAgentProgram << " (package qemu-guest-agent); lab.agent covers it";
  real_agent_ = true;
  StartGuest();
  Ended ended = Hkctl("vm exec g -- sh -c 'cat; echo to err >&2; exit 3' < /proc/self/comm");
  EXPECT_EQ(ended.code, 3) << ended.err;
  EXPECT_EQ(ended.out, "sh\n") << "whoever opened it";
  EXPECT_EQ(ended.err, "to err\n");
  EXPECT_EQ(Hkctl("vm exec g -- sh -c 'kill -9 $$' < /dev/null").code, 137);
  ended = Hkctl("vm exec g -- /nonsense < /dev/null");
  EXPECT_EQ(ended.code, 126);
  EXPECT_THAT(ended.err, HasSubstr("No such file or directory"));
  ended = Hkctl("vm exec g --timeout 1s -- sleep 3 < /dev/null");
  EXPECT_EQ(ended.code, 125);
  EXPECT_THAT(ended.err, HasSubstr("still runs after 1 s"));
  ended = Hkctl("vm exec g --timeout 60s -- dd if=/dev/zero bs=65536 count=300 status=none < /dev/null");
  EXPECT_EQ(ended.code, 0) << ended.err;
  EXPECT_TRUE(ended.out == std::string(16 << 20, '\0')) << ended.out.size();
  EXPECT_THAT(ended.err, HasSubstr("the output is cut"));
  const std::filesystem::path input = directory_ / "input";
  std::ofstream(input) << std::string(500000, 'i');
  ended = Hkctl("vm exec g --timeout 60s -- wc -c < " + input.string());
  EXPECT_EQ(ended.out, "500000\n") << ended.err;
}

TEST_F(GuestIo, LogsAreOfTheChannelAndTheLastLines) {
  EXPECT_EQ(Hkctl("vm log g").code, 1);
  EXPECT_THAT(Hkctl("vm log g").err, HasSubstr("vm 'g' has not run since this daemon started"));
  StartGuest();
  machine_->events()->OnOutput(Channel::kSerial, "one\r\ntwo\r\n\x1b[2Jthree\r\n");
  machine_->events()->OnOutput(Channel::kVirtioConsole, "other\n");
  EXPECT_EQ(Hkctl("vm log g").out, "one\r\ntwo\r\n\x1b[2Jthree\r\n") << "no terminal: as the guest wrote it";
  EXPECT_EQ(Hkctl("vm log g --tail 2").out, "two\r\n\x1b[2Jthree\r\n");
  EXPECT_EQ(Hkctl("vm log g --tail 0").out, "");
  EXPECT_EQ(Hkctl("vm log g --channel virtio").out, "other\n");
  const Ended on_terminal =
      Hkctl("version > /dev/null; script -qec \"timeout 60 $HK_BIN/hkctl --endpoint unix:" + directory_.string() +
            "/s vm log g\" /dev/null");
  EXPECT_EQ(on_terminal.out, "one\r\ntwo\r\nthree\r\n") << "harmless on a terminal (which adds the carriage returns)";
  ASSERT_TRUE(guests_->Control("g", v1::VM_ACTION_FORCE_STOP).ok());
  EXPECT_EQ(Hkctl("vm log g --tail 1").out, "\x1b[2Jthree\r\n") << "the last run's are kept";
  EXPECT_EQ(Hkctl("vm log g -f --tail 1").out, "\x1b[2Jthree\r\n") << "nothing more will come";
}

TEST_F(GuestIo, FollowingEndsWithTheRunAndGoesOnOverAReset) {
  StartGuest();
  machine_->events()->OnOutput(Channel::kSerial, "first\n");
  std::string text;
  grpc::Status status;
  v1::ReadLogRequest request;
  request.set_name("g");
  request.set_follow(true);
  std::thread follower([&] { status = ReadLog(request, &text); });
  ASSERT_TRUE(guests_->Control("g", v1::VM_ACTION_RESET).ok());
  machine_->events()->OnOutput(Channel::kSerial, "second\n");
  ASSERT_TRUE(guests_->Control("g", v1::VM_ACTION_FORCE_STOP).ok());
  follower.join();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(text, "first\nsecond\n");
}

TEST_F(GuestIo, ALogThatWasCutSaysSo) {
  StartGuest();
  for (int i = 0; i < 20000; i++) machine_->events()->OnOutput(Channel::kSerial, "a line of thirty-two characters\n");
  const Ended ended = Hkctl("vm log g");
  EXPECT_EQ(ended.code, 0) << ended.err;
  EXPECT_THAT(ended.err, HasSubstr("of output before this are no longer kept"));
  EXPECT_GE(ended.out.size(), ConsoleLog::kHistoryBytes);
  EXPECT_LE(ended.out.size(), 2 * ConsoleLog::kHistoryBytes);
}

TEST_F(GuestIo, AConsoleConnectsThenTypesAndResizes) {
  StartGuest();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kDeadline);
  const auto stream = stub_->Console(&context);
  v1::ConsoleRequest request;
  request.set_name("g");
  request.set_channel(v1::CONSOLE_CHANNEL_VIRTIO);
  request.mutable_size()->set_columns(132);
  request.mutable_size()->set_rows(1 << 20);
  ASSERT_TRUE(stream->Write(request));
  v1::ConsoleResponse response;
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.output(), "");
  v1::ConsoleRequest typed;
  typed.set_input("ls\r");
  ASSERT_TRUE(stream->Write(typed));
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.output(), "echo ls\r");
  EXPECT_EQ(machine_->size, std::make_pair(132, 65535)) << "the first size came before the keys";
  ASSERT_TRUE(guests_->Control("g", v1::VM_ACTION_FORCE_STOP).ok());
  while (stream->Read(&response)) {
  }
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(GuestIo, LongCallsHaveABound) {
  StartGuest();
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::ReadLogResponse>>> readers;
  machine_->events()->OnOutput(Channel::kSerial, "x");
  v1::ReadLogRequest request;
  request.set_name("g");
  request.set_follow(true);
  grpc::Status status;
  for (int i = 0; i < 100 && status.ok(); i++) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    contexts.back()->set_deadline(std::chrono::system_clock::now() + kDeadline);
    readers.push_back(stub_->ReadLog(contexts.back().get(), request));
    v1::ReadLogResponse response;
    if (!readers.back()->Read(&response)) status = readers.back()->Finish();
  }
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("close one"));
  EXPECT_EQ(Hkctl("vm list").code, 0) << "other requests are served";
  for (const auto& context : contexts) context->TryCancel();
}

}  // namespace
}  // namespace hk
