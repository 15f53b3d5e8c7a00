// The byte form of IoApicState.
#include "absl/strings/str_cat.h"
#include "hyperkernel/base/byte_archive.h"
#include "hyperkernel/irq/io_apic.h"

namespace hk {
namespace {

template <typename Archive>
void Fields(Archive& a, Archived<Archive, IoApicState>& s) {
  a.Numbers(s.version, s.id, s.select, s.lines);
  for (auto& entry : s.entries) a.Number(entry);
  for (auto& generation : s.generations) a.Number(generation);
}

}  // namespace

std::vector<std::byte> EncodeIoApic(const IoApicState& state) {
  ByteWriter writer;
  Fields(writer, state);
  return writer.Take();
}

absl::StatusOr<IoApicState> DecodeIoApic(std::span<const std::byte> bytes) {
  ByteReader reader(bytes);
  IoApicState state;
  Fields(reader, state);
  if (absl::Status status = reader.Done("saved I/O APIC"); !status.ok()) return status;
  if (state.version != kIoApicStateVersion) {
    return absl::InvalidArgumentError(absl::StrCat("saved I/O APIC: version ", state.version, " not known"));
  }
  return state;
}

}  // namespace hk
