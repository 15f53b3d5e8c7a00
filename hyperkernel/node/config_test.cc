#include "hyperkernel/node/config.h"

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

const HostFacts kHost{.host_name = "host-7.example.org", .memory_bytes = uint64_t{16} << 30};

absl::StatusOr<NodeSettings> Parse(const std::string& text) {
  return ParseConfig(text, "node.textproto", kHost);
}

TEST(Config, AnEmptyFileHasTheDocumentedDefaults) {
  const auto settings = Parse("");
  ASSERT_TRUE(settings.ok()) << settings.status();
  EXPECT_EQ(settings->name, "host-7");
  EXPECT_EQ(settings->cluster, "default");
  EXPECT_EQ(settings->data_directory, "/var/lib/hyperkernel");
  EXPECT_EQ(settings->frame_directory, "/dev/shm/hyperkernel");
  EXPECT_EQ(settings->frame_budget_bytes, uint64_t{8} << 30);
  ASSERT_EQ(settings->admin_listen.size(), 1u);
  EXPECT_EQ(settings->admin_listen[0].ToString(), "unix:/run/hyperkernel/admin.sock");
  EXPECT_EQ(settings->data_listen.ToString(), "127.0.0.1:7470");
  EXPECT_EQ(settings->metrics_listen->ToString(), "127.0.0.1:7471");
  EXPECT_EQ(settings->transport, TransportChoice::kAuto);
  EXPECT_EQ(settings->hello_interval, std::chrono::milliseconds(500));
  EXPECT_EQ(settings->unreachable_after, std::chrono::milliseconds(3000));
  EXPECT_TRUE(settings->warnings.empty());
}

TEST(Config, OwnEntryInThePeerListIsSkipped) {
  const auto settings = Parse(
      "name: 'a' listen { admin: 'unix:/a' } peers { name: 'a' admin: 'unix:/a' } "
      "peers { name: 'b' admin: 'unix:/b' data: 'y:2' }");
  ASSERT_TRUE(settings.ok()) << settings.status();
  ASSERT_EQ(settings->peers.size(), 1u);
  EXPECT_EQ(settings->peers[0].name, "b");
  EXPECT_EQ(settings->peers[0].data->ToString(), "y:2");
}

TEST(Config, InsecureIsAllowedAndWarned) {
  const auto settings =
      Parse("insecure: true insecure_metrics: true listen { admin: '0.0.0.0:1' data: '10.0.0.1:2' metrics: '[::]:3' }");
  ASSERT_TRUE(settings.ok()) << settings.status();
  EXPECT_THAT(settings->warnings,
              testing::UnorderedElementsAre(HasSubstr("listen.admin 0.0.0.0:1"), HasSubstr("listen.data 10.0.0.1:2"),
                                            HasSubstr("insecure_metrics: [::]:3")));
}

TEST(Config, WithoutNumbersTheSortedNamesCount) {
  const auto settings = Parse(
      "name: 'b' peers { name: 'c' admin: 'unix:/c' } peers { name: 'a' admin: 'unix:/a' } "
      "peers { name: 'b' admin: 'unix:/run/hyperkernel/admin.sock' }");
  ASSERT_TRUE(settings.ok()) << settings.status();
  EXPECT_EQ(settings->number, NodeId(1));
  EXPECT_EQ(settings->peers[0].number, NodeId(2));
  EXPECT_EQ(settings->peers[1].number, NodeId(0));
}

TEST(Config, NumbersMayBeWritten) {
  const char* const peers = "peers { name: 'c' admin: 'unix:/c' number: 63 } ";
  const char* const own = "peers { name: 'b' admin: 'unix:/run/hyperkernel/admin.sock' number: 7 } ";
  for (const std::string& text : {std::string("name: 'b' number: 7 ") + peers, std::string("name: 'b' ") + peers + own,
                                  std::string("name: 'b' number: 7 ") + peers + own}) {
    const auto settings = Parse(text);
    ASSERT_TRUE(settings.ok()) << settings.status();
    EXPECT_EQ(settings->number, NodeId(7));
    EXPECT_EQ(settings->peers[0].number, NodeId(63));
  }
}

struct BadCase {
  const char* text;
  const char* field;  // what the message begins with, after the file's name
  const char* says;   // what it holds
};

class BadConfig : public testing::TestWithParam<BadCase> {};

TEST_P(BadConfig, GetsItsOneLine) {
  const auto settings = Parse(GetParam().text);
  ASSERT_FALSE(settings.ok());
  const std::string message = MessageOf(settings.status());
  EXPECT_THAT(message, StartsWith(std::string("node.textproto:") + GetParam().field));
  EXPECT_THAT(message, HasSubstr(GetParam().says));
  EXPECT_THAT(message, Not(HasSubstr("\n")));
}

const BadCase kBadCases[] = {
    {"name: 'a'\nnmae: 'b'", "2:", "nmae"},
    {"name: 'a", "1:", "end of string"},
    {"name: 7", "1:", "Expected string"},
    {"listen { admin: }", "1:", ""},
    {"transport: TRANSPORT_PIGEON", "1:", "TRANSPORT_PIGEON"},
    {"transport: 9", " transport:", "9 is not"},
    {"name: 'A'", " name:", "[a-z0-9-]{1,63}"},
    {"name: 'aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffff1234'", " name:", "[a-z0-9-]{1,63}"},
    {"cluster: 'x y'", " cluster:", "'x y'"},
    {"data_directory: 'var'", " data_directory:", "not an absolute path"},
    {"data_directory: '/'", " data_directory:", "root directory"},
    {"data_directory: '/a/../b'", " data_directory:", "plain path"},
    {"frame_store { directory: 'frames' }", " frame_store.directory:", "not an absolute path"},
    {"data_directory: '/dev/shm/hyperkernel/x'", " data_directory:", "lost at a reboot"},
    {"swap_mib: 16777217", " swap_mib:", "(16 TiB)"},
    {"frame_store { budget_mib: 0 }", " frame_store.budget_mib:", "0 is not from 16"},
    {"frame_store { budget_mib: 17000000 }", " frame_store.budget_mib:", "to 16384"},
    {"listen { admin: 'localhost:80' }", " listen.admin:", "not an IP address"},
    {"listen { admin: 'unix:run/x' }", " listen.admin:", "absolute path"},
    {"listen { admin: 'unix:/x' admin: 'unix:/x' }", " listen.admin:", "is taken by listen.admin"},
    {"listen { admin: 'unix:/dev/shm/hyperkernel/s' }", " listen.admin:", "daemon's own directory"},
    {"listen { admin: 'unix:/var/lib/hyperkernel/lock' }", " listen.admin:", "daemon's own directory"},
    {"listen { admin: 'unix:/run/../x' }", " listen.admin:", "plain path"},
    {"listen { admin: 'unix:/run/%41' }", " listen.admin:", "%?#"},
    {"listen { admin: '[::1]:5' data: '[0:0:0:0:0:0:0:1]:5' }", " listen.data:", "is taken by listen.admin '[::1]:5'"},
    {"insecure: true listen { admin: '0.0.0.0:5' data: '127.0.0.1:5' }", " listen.data:", "is taken by listen.admin"},
    {"insecure: true", " insecure:", "nothing here needs it"},
    {"insecure_metrics: true", " insecure_metrics:", "remove it"},
    {"name: 'hyperkernel-node'", " name:", "choose another"},
    {"peers { name: 'b' admin: '10.0.0.2:7469' }", " peers:", "not on this host"},
    {"name: 'a' peers { name: 'a' admin: '127.0.0.1:9' }", " peers[0].admin:", "no such address"},
    {"name: 'a' peers { name: 'b' admin: 'unix:/run/hyperkernel/admin.sock' }", " peers[0].admin:", "own address"},
    {"listen { data: 'unix:/x' }", " listen.data:", "not possible"},
    {"listen { data: '127.0.0.1:99999' }", " listen.data:", "port '99999'"},
    {"listen { data: '127.0.0.1:5' metrics: '127.0.0.1:5' }", " listen.metrics:", "taken"},
    {"listen { metrics: '::1:80' }", " listen.metrics:", "[::1]:PORT"},
    {"listen { admin: '0.0.0.0:7469' }", " listen.admin:", "insecure: true"},
    {"listen { data: '10.0.0.1:7470' }", " listen.data:", "deploy/certs"},
    {"listen { metrics: '10.0.0.1:7471' }", " listen.metrics:", "insecure_metrics: true"},
    {"insecure: true tls { ca: '/x' certificate: '/y' key: '/z' }", " insecure:", "contradicts tls"},
    {"tls { ca: '/x' }", " tls:", "ca: /x: No such file"},
    {"tls { }", " tls:", "ca: not set"},
    {"transport: TRANSPORT_VERBS", " transport:", "contradicts listen.data"},
    {"peers { admin: 'x:1' }", " peers[0].name:", "''"},
    {"peers { name: 'b' }", " peers[0].admin:", "expected unix:/PATH or HOST:PORT"},
    {"peers { name: 'b' admin: 'x:1' } peers { name: 'b' admin: 'x:2' }", " peers[1].name:", "twice"},
    {"peers { name: 'b' admin: 'x:1' } peers { name: 'c' admin: 'x:1' }", " peers[1].admin:", "another peer's"},
    {"peers { name: 'b' admin: 'x:1' data: 'y' }", " peers[0].data:", "expected HOST:PORT"},
    {"peers { name: 'b' admin: 'x:1' data: '0.0.0.0:7470' }", " peers[0].data:", "0.0.0.0:7470"},
    {"membership { hello_interval_ms: 1 }", " membership.hello_interval_ms:", "from 50"},
    {"membership { hello_interval_ms: 1000 unreachable_after_ms: 1500 }",
     " membership.unreachable_after_ms:", "from 2000"},
    {"log_level: 'loud'", " log_level:", "'loud'"},
    {"number: 64", " number:", "64 is not from 0 to 63"},
    {"peers { name: 'b' admin: 'x:1' number: 4000000000 }", " peers[0].number:", "4000000000 is not from"},
    {"name: 'a' number: 1 peers { name: 'b' admin: 'unix:/b' }", " peers[0].number:", "not set for 'b', and number is"},
    {"name: 'a' peers { name: 'b' admin: 'unix:/b' number: 1 }", " number:", "not set for 'a', and peers[0].number is"},
    {"name: 'a' number: 1 peers { name: 'b' admin: 'unix:/b' number: 1 }", " peers[0].number:", "of 'a' and of 'b'"},
    {"name: 'a' number: 1 peers { name: 'a' admin: 'unix:/run/hyperkernel/admin.sock' number: 2 }",
     " peers[0].number:", "own entry"},
};
INSTANTIATE_TEST_SUITE_P(Table, BadConfig, testing::ValuesIn(kBadCases));

TEST(Config, LoopbackWithoutTlsIsWarnedOf) {
  const auto settings = Parse("listen { admin: '127.0.0.1:7469' }");
  ASSERT_TRUE(settings.ok()) << settings.status();
  EXPECT_THAT(settings->warnings, testing::ElementsAre(HasSubstr("every user of this host is an administrator")));
}

TEST(Config, TooManyPeersAreRefused) {
  std::string text;
  for (int i = 0; i < 64; i++)
    text += "peers { name: 'n" + std::to_string(i) + "' admin: 'localhost:" + std::to_string(i + 1) + "' }\n";
  EXPECT_THAT(MessageOf(Parse(text).status()), HasSubstr("peers: 64 peers; at most 63"));
}

TEST(Config, AHostNameThatIsNoNodeNameAsksForOne) {
  EXPECT_THAT(MessageOf(ParseConfig("", "f", {.host_name = "My_Host", .memory_bytes = kHost.memory_bytes}).status()),
              HasSubstr("set a name"));
}

TEST(Config, FilesThatAreNoConfigurationAreRefused) {
  EXPECT_THAT(MessageOf(LoadConfig("/nonexistent/x", kHost).status()), HasSubstr("No such file"));
  EXPECT_FALSE(LoadConfig("/tmp", kHost).ok());
  EXPECT_FALSE(LoadConfig("/dev/zero", kHost).ok());
}

}  // namespace
}  // namespace hk
