#include "hyperkernel/node/machine_state.h"

#include <xxhash.h>

#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/byte_archive.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

constexpr uint32_t kMagic = 0x534d4b48;  // "HKMS"
constexpr char kWhat[] = "saved machine";
constexpr size_t kMostName = 256, kMostFailure = 4096, kMostSections = 1024;
constexpr size_t kChecksumBytes = sizeof(uint64_t);

template <typename Archive>
void Fields(Archive& a, Archived<Archive, MachineState>& state) {
  a.Text(state.node_id, kMostName);
  a.Text(state.boot_id, kMostName);
  a.Text(state.name, kMostName);
  a.Numbers(state.generation, state.spec_hash, state.frame_bytes, state.frame_inode, state.held_ns,
            state.started_wall_ns, state.paused, state.stopping);
  a.Text(state.failure, kMostFailure);
  a.Text(state.serial_log, kMostKeptLogBytes);
  a.Text(state.virtio_log, kMostKeptLogBytes);
}

void Sections(ByteWriter& writer, const MachineSections& sections) {
  writer.Count(sections, kMostSections);
  for (const auto& [name, bytes] : sections) {
    writer.Text(name, kMostName);
    writer.Bytes(bytes, kMostMachineStateBytes);
  }
}

void Sections(ByteReader& reader, MachineSections& sections) {
  uint32_t count = 0;
  reader.Number(count);
  if (count > kMostSections) return reader.Fail("a list is too long");
  for (uint32_t i = 0; i < count && reader.failure() == nullptr; ++i) {
    std::string name;
    std::vector<std::byte> bytes;
    reader.Text(name, kMostName);
    reader.Bytes(bytes, reader.left());
    // In the order of names: every state has one form.
    if (!sections.empty() && name <= sections.rbegin()->first) return reader.Fail("sections are not in order");
    sections.emplace(std::move(name), std::move(bytes));
  }
}

uint64_t Checksum(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

}  // namespace

uint64_t HashOf(std::string_view bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

std::vector<std::byte> EncodeMachineState(const MachineState& state) {
  ByteWriter writer;
  writer.Numbers(kMagic, kMachineStateVersion);
  Fields(writer, state);
  Sections(writer, state.sections);
  std::vector<std::byte> bytes = writer.Take();
  ByteWriter checksum;
  checksum.Number(Checksum(bytes));
  const std::vector<std::byte> end = checksum.Take();
  bytes.insert(bytes.end(), end.begin(), end.end());
  return bytes;
}

absl::StatusOr<MachineState> DecodeMachineState(std::span<const std::byte> bytes) {
  ByteReader reader(bytes);
  uint32_t magic = 0;
  uint16_t version = 0;
  reader.Numbers(magic, version);
  if (reader.failure() != nullptr || magic != kMagic || bytes.size() > kMostMachineStateBytes) {
    return absl::InvalidArgumentError(fmt::format("{}: it is something else", kWhat));
  }
  if (version != kMachineStateVersion) {
    return absl::InvalidArgumentError(
        fmt::format("{}: version {}, this daemon knows {}", kWhat, version, kMachineStateVersion));
  }
  const size_t checked = bytes.size() - std::min(bytes.size(), kChecksumBytes);
  ByteReader end(bytes.subspan(checked));
  uint64_t checksum = 0;
  end.Number(checksum);
  const bool same = checksum == Checksum(bytes.first(checked)) || HK_MUTANT(saved_machine_unchecked);
  if (end.failure() != nullptr || !same)
    return absl::InvalidArgumentError(fmt::format("{}: its checksum is wrong", kWhat));
  ByteReader body(bytes.first(checked));
  body.Numbers(magic, version);
  MachineState state;
  Fields(body, state);
  Sections(body, state.sections);
  HK_RETURN_IF_ERROR(body.Done(kWhat));
  return state;
}

absl::StatusOr<std::span<const std::byte>> SectionReader::Take(const std::string& name) {
  const auto found = sections_->find(name);
  if (found == sections_->end() || !taken_.insert(name).second) {
    return absl::InvalidArgumentError(fmt::format("{}: no section '{}'", kWhat, name));
  }
  return std::span<const std::byte>(found->second);
}

absl::Status SectionReader::Done() const {
  for (const auto& [name, bytes] : *sections_) {
    if (!taken_.contains(name)) {
      return absl::InvalidArgumentError(fmt::format("{}: section '{}' is not known", kWhat, name));
    }
  }
  return absl::OkStatus();
}

}  // namespace hk
