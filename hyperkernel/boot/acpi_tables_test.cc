#include "hyperkernel/boot/acpi_tables.h"

#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/boot/acpi_table.h"

namespace hk {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr uint64_t kGiB = uint64_t{1} << 30;

// `vcpus` vCPUs and 5 GiB in equal parts on `nodes` nodes; 0 nodes: uniform.
AcpiInput Input(uint32_t vcpus, uint32_t nodes, uint32_t first_apic_id = 0) {
  AcpiInput input;
  input.ram_bytes = 5 * kGiB;
  input.physical_bits = 40;
  for (uint32_t i = 0; i < vcpus; ++i) input.apic_ids.push_back(first_apic_id + i);
  if (nodes == 0) return input;
  std::vector<uint64_t> shares(nodes, 5 * kGiB / nodes / kPageSize * kPageSize);
  shares.back() += 5 * kGiB - shares.back() * nodes;
  input.nodes.resize(nodes);
  const std::vector<std::vector<RamPiece>> memory = RamLayoutOfNodes(shares);
  for (uint32_t i = 0; i < nodes; ++i) input.nodes[i].memory = memory[i];
  for (uint32_t i = 0; i < vcpus; ++i) input.nodes[i % nodes].vcpus.push_back(VcpuId(i));
  input.distances.assign(nodes, std::vector<uint8_t>(nodes, 40));
  for (uint32_t i = 0; i < nodes; ++i) input.distances[i][i] = kAcpiLocalDistance;
  return input;
}

template <typename T>
T At(const AcpiTables& tables, size_t offset) {
  T value;
  EXPECT_LE(offset + sizeof(T), tables.bytes.size());
  std::memcpy(&value, &tables.bytes[offset], sizeof(T));
  return value;
}

std::vector<std::string> Signatures(const AcpiTables& tables) {
  std::vector<std::string> names;
  for (const AcpiTables::Table& table : tables.tables) names.push_back(table.signature);
  return names;
}

const AcpiTables::Table& Find(const AcpiTables& tables, const std::string& signature) {
  for (const AcpiTables::Table& table : tables.tables) {
    if (table.signature == signature) return table;
  }
  ADD_FAILURE() << signature << " is missing";
  return tables.tables.front();
}

// Follows the pointers as a kernel does, and checks every length and sum on the way.
void ExpectSound(const AcpiTables& tables) {
  EXPECT_EQ(tables.start, kAcpiTablesStart);
  EXPECT_EQ(tables.rsdp, kAcpiTablesStart);
  EXPECT_LE(tables.start.value() + tables.bytes.size(), kAcpiTablesEnd.value());
  const std::span<const std::byte> bytes = tables.bytes;
  EXPECT_EQ(std::memcmp(bytes.data(), "RSD PTR ", 8), 0);
  EXPECT_EQ(AcpiChecksum(bytes.first(20)), 0);
  EXPECT_EQ(AcpiChecksum(bytes.first(36)), 0);
  EXPECT_EQ(At<uint8_t>(tables, 15), 2) << "revision";
  EXPECT_EQ(At<uint32_t>(tables, 16), 0u) << "no RSDT";

  size_t end = 36;
  for (const AcpiTables::Table& table : tables.tables) {
    SCOPED_TRACE(table.signature);
    EXPECT_GE(table.offset, end) << "overlap";
    end = table.offset + table.size;
    ASSERT_LE(end, bytes.size());
    EXPECT_EQ(At<uint32_t>(tables, table.offset + 4), table.size);
    EXPECT_EQ(AcpiChecksum(bytes.subspan(table.offset, table.size)), 0);
  }
  const AcpiTables::Table& xsdt = Find(tables, "XSDT");
  EXPECT_EQ(At<uint64_t>(tables, 24), tables.start.value() + xsdt.offset);
  // Everything but the XSDT itself and the DSDT, which the FADT names, is listed.
  size_t at = xsdt.offset + sizeof(AcpiHeader);
  for (const AcpiTables::Table& table : tables.tables) {
    if (table.signature == "XSDT" || table.signature == "DSDT") continue;
    EXPECT_EQ(At<uint64_t>(tables, at), tables.start.value() + table.offset) << table.signature;
    at += 8;
  }
  EXPECT_EQ(at, xsdt.offset + xsdt.size);
  EXPECT_EQ(At<uint64_t>(tables, Find(tables, "FACP").offset + 140),
            tables.start.value() + Find(tables, "DSDT").offset);
}

TEST(AcpiTables, AreSoundForAllSizes) {
  for (uint32_t vcpus : {1, 2, 255}) {
    for (uint32_t nodes : {0, 1, 3, 64}) {
      for (uint32_t first : {0, 200, 1000}) {
        SCOPED_TRACE(fmt::format("{} vCPUs, {} nodes, APIC ids from {}", vcpus, nodes, first));
        absl::StatusOr<AcpiTables> tables = BuildAcpiTables(Input(vcpus, nodes, first));
        ASSERT_TRUE(tables.ok()) << tables.status();
        ExpectSound(*tables);
        if (nodes == 0) {
          EXPECT_THAT(Signatures(*tables), ElementsAre("DSDT", "FACP", "SSDT", "APIC", "MCFG", "XSDT"));
        } else {
          EXPECT_THAT(Signatures(*tables), ElementsAre("DSDT", "FACP", "SSDT", "APIC", "MCFG", "SRAT", "SLIT", "XSDT"));
        }
      }
    }
  }
}

TEST(AcpiTables, SameInputSameBytes) {
  EXPECT_EQ(BuildAcpiTables(Input(4, 2))->bytes, BuildAcpiTables(Input(4, 2))->bytes);
}

TEST(AcpiTables, FadtIsReducedHardware) {
  const AcpiTables tables = *BuildAcpiTables(Input(1, 0));
  const size_t fadt = Find(tables, "FACP").offset;
  EXPECT_EQ(Find(tables, "FACP").size, 276u);
  const uint32_t flags = At<uint32_t>(tables, fadt + 112);
  EXPECT_TRUE(flags & (1 << 20)) << "HW_REDUCED_ACPI";
  EXPECT_TRUE(flags & (1 << 10)) << "RESET_REG_SUP";
  EXPECT_EQ(At<uint8_t>(tables, fadt + 116), 1) << "reset register in ports";
  EXPECT_EQ(At<uint64_t>(tables, fadt + 120), kPortReset);
  EXPECT_EQ(At<uint8_t>(tables, fadt + 128), kResetValue);
  EXPECT_EQ(At<uint64_t>(tables, fadt + 248), kPortPowerManagement);
  EXPECT_EQ(At<uint64_t>(tables, fadt + 260), kPortPowerManagement + 1u);
  EXPECT_EQ(At<uint64_t>(tables, fadt + 212), 0u) << "no PM timer";
  AcpiInput with_timer = Input(1, 0);
  with_timer.pm_timer = true;
  EXPECT_EQ(At<uint64_t>(*BuildAcpiTables(with_timer), fadt + 212), kPortPmTimer);
}

// Entries of a table by type: entry bytes from the first one on.
std::vector<std::vector<uint8_t>> Entries(const AcpiTables& tables, const std::string& signature, size_t first) {
  const AcpiTables::Table& table = Find(tables, signature);
  std::vector<std::vector<uint8_t>> entries;
  for (size_t at = table.offset + first; at < table.offset + table.size;) {
    const size_t length = At<uint8_t>(tables, at + 1);
    EXPECT_GE(length, 2u);
    if (length < 2) break;
    std::vector<uint8_t> entry;
    for (size_t i = 0; i < length; ++i) entry.push_back(At<uint8_t>(tables, at + i));
    entries.push_back(std::move(entry));
    at += length;
  }
  return entries;
}

size_t CountType(const std::vector<std::vector<uint8_t>>& entries, uint8_t type) {
  size_t count = 0;
  for (const std::vector<uint8_t>& entry : entries) count += entry[0] == type ? 1 : 0;
  return count;
}

TEST(AcpiTables, MadtListsEveryVcpu) {
  const AcpiTables low = *BuildAcpiTables(Input(255, 0));
  EXPECT_EQ(CountType(Entries(low, "APIC", 44), 0), 255u);
  EXPECT_EQ(CountType(Entries(low, "APIC", 44), 9), 0u);
  const AcpiTables mixed = *BuildAcpiTables(Input(8, 0, 252));
  const auto entries = Entries(mixed, "APIC", 44);
  EXPECT_EQ(CountType(entries, 0), 3u) << "252 to 254; 255 is the xAPIC broadcast";
  EXPECT_EQ(CountType(entries, 9), 5u);
  EXPECT_EQ(CountType(entries, 1), 1u) << "I/O APIC";
  EXPECT_EQ(CountType(entries, 4), 1u) << "NMI";
  EXPECT_EQ(CountType(entries, 10), 1u) << "x2APIC NMI";
  EXPECT_THAT(entries[3], ElementsAre(9, 16, 0, 0, 255, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0));
  EXPECT_EQ(At<uint32_t>(low, Find(low, "APIC").offset + 36), kLocalApicAddress.value());
  EXPECT_EQ(At<uint32_t>(low, Find(low, "APIC").offset + 40), 0u) << "no 8259";
}

TEST(AcpiTables, SratAndSlitSayWhatTheNodesHave) {
  AcpiInput input = Input(4, 3, 254);
  input.distances[0][2] = 77;
  const AcpiTables tables = *BuildAcpiTables(input);
  const auto entries = Entries(tables, "SRAT", 48);
  EXPECT_EQ(CountType(entries, 0), 1u);
  EXPECT_EQ(CountType(entries, 2), 3u);
  EXPECT_EQ(CountType(entries, 1), 4u) << "one node has RAM on both sides of the hole";
  EXPECT_THAT(entries[0], ElementsAre(0, 16, 0, 254, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0));
  uint64_t bytes = 0;
  for (const std::vector<uint8_t>& entry : entries) {
    uint64_t length = 0;
    if (entry[0] == 1) std::memcpy(&length, &entry[16], sizeof(length));
    bytes += length;
  }
  EXPECT_EQ(bytes, input.ram_bytes);
  const size_t slit = Find(tables, "SLIT").offset;
  EXPECT_EQ(At<uint64_t>(tables, slit + 36), 3u);
  EXPECT_EQ(At<uint8_t>(tables, slit + 44), 10);
  EXPECT_EQ(At<uint8_t>(tables, slit + 46), 77);
  EXPECT_EQ(Find(tables, "SLIT").size, 44u + 9);
}

TEST(AcpiTables, FourPebibytes) {
  AcpiInput input = Input(2, 0);
  input.ram_bytes = kMaxRamBytes;
  input.physical_bits = 52;
  input.nodes.resize(2);
  const std::vector<uint64_t> halves = {kMaxRamBytes / 2, kMaxRamBytes / 2};
  for (size_t i = 0; i < 2; ++i) input.nodes[i] = {{VcpuId(static_cast<uint32_t>(i))}, RamLayoutOfNodes(halves)[i]};
  input.distances = {{10, 20}, {20, 10}};
  absl::StatusOr<AcpiTables> tables = BuildAcpiTables(input);
  ASSERT_TRUE(tables.ok()) << tables.status();
  ExpectSound(*tables);
  const auto entries = Entries(*tables, "SRAT", 48);
  uint64_t start = 0, bytes = 0;
  std::memcpy(&start, &entries.back()[8], 8);
  std::memcpy(&bytes, &entries.back()[16], 8);
  EXPECT_EQ(start + bytes, (uint64_t{1} << 52) + kGiB);
}

TEST(AcpiTables, InputThatContradictsItselfIsRefused) {
  struct Case {
    std::function<void(AcpiInput&)> spoil;
    const char* reason;
  };
  const Case cases[] = {
      {[](AcpiInput& i) { i = Input(0, 0); }, "vcpus: 0 (1 to 255"},
      {[](AcpiInput& i) { i = Input(256, 0); }, "vcpus: 256"},
      {[](AcpiInput& i) { i.apic_ids[1] = i.apic_ids[0]; }, "APIC id 0 twice"},
      {[](AcpiInput& i) { i.apic_ids[1] = UINT32_MAX; }, "APIC id 4294967295"},
      {[](AcpiInput& i) { i = Input(4, 65); }, "65 nodes"},
      {[](AcpiInput& i) { i.nodes[0].vcpus.push_back(VcpuId(4)); }, "there is no vCPU 4"},
      {[](AcpiInput& i) { i.nodes[0].vcpus.push_back(VcpuId(1)); }, "vCPU 1 is on two nodes"},
      {[](AcpiInput& i) { i.nodes[0].vcpus.clear(); }, "a vCPU is on no node"},
      {[](AcpiInput& i) { i.nodes[0].memory.clear(); }, "memory is not the guest's RAM"},
      {[](AcpiInput& i) { i.nodes[0].memory[0].bytes += kPageSize; }, "memory is not the guest's RAM"},
      {[](AcpiInput& i) { i.nodes[0].memory = i.nodes[1].memory; }, "memory is not the guest's RAM"},
      {[](AcpiInput& i) { i.ram_bytes += kPageSize; }, "memory is not the guest's RAM"},
      {[](AcpiInput& i) { i.ram_bytes += 1; }, "memory: "},
      {[](AcpiInput& i) { i.ram_bytes = UINT64_MAX & ~(kPageSize - 1); }, "memory: "},
      {[](AcpiInput& i) { i.io_node = 2; }, "there is no node 2 for I/O"},
      {[](AcpiInput& i) { i.distances.pop_back(); }, "distances of every node"},
      {[](AcpiInput& i) { i.distances[1].pop_back(); }, "node 1 needs 2 distances"},
      {[](AcpiInput& i) { i.distances[1][1] = 11; }, "distance 11 from node 1 to node 1"},
      {[](AcpiInput& i) { i.distances[0][1] = 10; }, "distance 10 from node 0 to node 1"},
      {[](AcpiInput& i) { i.distances[0][1] = 255; }, "distance 255"},
  };
  for (const Case& item : cases) {
    SCOPED_TRACE(item.reason);
    AcpiInput input = Input(4, 2);
    item.spoil(input);
    const absl::Status status = BuildAcpiTables(input).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(MessageOf(status), HasSubstr(item.reason));
  }
}

// The tables in files of a folder of their own, for ACPICA's programs.
class AcpicaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "/acpi_tables_test.XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void WriteTables(const AcpiTables& tables) {
    for (const AcpiTables::Table& table : tables.tables) {
      std::ofstream out(folder_ / (table.signature + ".dat"), std::ios::binary);
      out.write(reinterpret_cast<const char*>(&tables.bytes[table.offset]), static_cast<std::streamsize>(table.size));
    }
  }
  // Runs a command in the folder. What it prints, both streams; and its exit status as the last line.
  std::string Run(const std::string& command) {
    const std::string whole = fmt::format("cd '{}' && {{ {} ; }} 2>&1; echo \"exit $?\"", folder_.string(), command);
    std::string output;
    FILE* pipe = popen(whole.c_str(), "r");
    if (pipe == nullptr) return "popen failed";
    char part[4096];
    for (size_t n; (n = fread(part, 1, sizeof(part), pipe)) > 0;) output.append(part, n);
    pclose(pipe);
    return output;
  }
  std::string ReadText(const std::string& name) {
    std::ifstream in(folder_ / name);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  std::filesystem::path folder_;
};

// What iasl says of a table that is not as it should be, in its output or in comments of what it writes.
void ExpectNoComplaint(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  for (size_t at; (at = text.find("0 errors, 0 warnings")) != std::string::npos;) text.erase(at, 20);
  for (const char* complaint :
       {"error", "warning", "invalid", "incorrect", "unknown", "unresolved", "truncat", "exceed", "corrupt"}) {
    EXPECT_THAT(text, Not(HasSubstr(complaint)));
  }
}

TEST_F(AcpicaTest, EveryTableDisassembles) {
  for (const AcpiInput& input : {Input(1, 0), Input(3, 3, 254), Input(255, 1)}) {
    const AcpiTables tables = *BuildAcpiTables(input);
    WriteTables(tables);
    for (const AcpiTables::Table& table : tables.tables) {
      SCOPED_TRACE(table.signature);
      const std::string with = table.signature == "DSDT" ? "-e SSDT.dat" : "";
      const std::string output = Run(fmt::format("iasl -vs {} -d {}.dat", with, table.signature));
      EXPECT_THAT(output, HasSubstr("exit 0"));
      ExpectNoComplaint(output);
      const std::string text = ReadText(table.signature + ".dsl");
      EXPECT_THAT(text, HasSubstr(table.signature));
      ExpectNoComplaint(text);
    }
    const std::string output = Run("iasl -we -vs DSDT.dsl");
    EXPECT_THAT(output, HasSubstr("0 Errors, 0 Warnings"));
    EXPECT_THAT(output, HasSubstr("exit 0"));
  }
}

// ACPICA's interpreter, the one that Linux has, runs the DSDT's methods.
TEST_F(AcpicaTest, MethodsAnswer) {
  AcpiInput input = Input(1, 0);
  WriteTables(*BuildAcpiTables(input));
  auto evaluate = [this](const std::string& name) {
    const std::string output = Run(fmt::format("acpiexec -b 'evaluate {}' DSDT.dat SSDT.dat", name));
    EXPECT_THAT(output, HasSubstr("exit 0"));
    EXPECT_THAT(output, Not(HasSubstr("ACPI Error")));
    EXPECT_THAT(output, Not(HasSubstr("ACPI Warning")));
    return output;
  };
  EXPECT_THAT(evaluate("\\_S5"), HasSubstr("0000000000000005"));
  const std::string routes = evaluate("\\_SB.PCI0._PRT");
  EXPECT_THAT(routes, HasSubstr("[Package] Contains 32 Elements"));
  EXPECT_THAT(routes, HasSubstr("00000000001FFFFF"));
  EXPECT_THAT(routes, HasSubstr("0000000000000017"));

  // The window for 64-bit BARs: minimum, maximum and length in the descriptor, then the end tag.
  const std::string windows = evaluate("\\_SB.PCI0._CRS");
  EXPECT_THAT(windows, HasSubstr("[Buffer] Length 72"));
  EXPECT_THAT(windows, HasSubstr("0050: 00 00 00 00 04 00 00 00 FF FF FF FF 07 00 00 00"));
  EXPECT_THAT(windows, HasSubstr("0060: 00 00 00 00 00 00 00 00 00 00 00 00 04 00 00 00"));
  input.physical_bits = 34;
  WriteTables(*BuildAcpiTables(input));
  EXPECT_THAT(evaluate("\\_SB.PCI0._CRS"), HasSubstr("[Buffer] Length 44")) << "no room for the window";
  input = Input(3, 3);
  input.io_node = 2;
  WriteTables(*BuildAcpiTables(input));
  EXPECT_THAT(evaluate("\\_SB.PCI0._PXM"), HasSubstr("[Integer] = 0000000000000002"));
}

// The checks above can fail.
TEST_F(AcpicaTest, BrokenTablesAreSeen) {
  AcpiTables tables = *BuildAcpiTables(Input(1, 0));
  tables.bytes[Find(tables, "APIC").offset + 50] ^= std::byte{1};
  WriteTables(tables);
  EXPECT_THAT(Run("iasl -vs -d APIC.dat; cat APIC.dsl"), ::testing::ContainsRegex("[Ii]ncorrect checksum"));
}

}  // namespace
}  // namespace hk
