// The byte form of LocalApicState. One function names the fields in their order; the writer and the reader both walk
// it.
#include "absl/strings/str_cat.h"
#include "hyperkernel/base/byte_archive.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/irq/local_apic_state.h"

namespace hk {

namespace {

template <typename Archive>
void Fields(Archive& a, Archived<Archive, LocalApicState>& s) {
  a.Numbers(s.version, s.apic_id, s.apic_base, s.icr, s.timer_remaining_ns, s.tpr, s.ldr, s.dfr, s.svr, s.esr,
            s.pending_errors, s.timer_initial, s.timer_divide);
  for (auto* set : {&s.irr, &s.isr, &s.tmr}) {
    for (auto& word : *set) {
      a.Number(word);
    }
  }
  for (auto& entry : s.lvt) {
    a.Number(entry);
  }
  for (auto& source : s.level_sources) {
    a.Numbers(source.generation, source.vector, source.valid);
  }
  for (auto& event : s.events) {
    a.Numbers(event.kind, event.vector);
  }
  a.Numbers(s.event_count, s.timer_running, s.waiting_for_sipi);
}

}  // namespace

std::vector<std::byte> EncodeLocalApic(const LocalApicState& state) {
  ByteWriter writer;
  Fields(writer, state);
  std::vector<std::byte> bytes = writer.Take();
  HK_CHECK(bytes.size() == kLocalApicStateBytes);
  return bytes;
}

absl::StatusOr<LocalApicState> DecodeLocalApic(std::span<const std::byte> bytes) {
  if (bytes.size() != kLocalApicStateBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("saved local APIC: ", bytes.size(), " bytes, expected ", kLocalApicStateBytes));
  }
  ByteReader reader(bytes);
  LocalApicState state;
  Fields(reader, state);
  HK_CHECK(reader.failure() == nullptr && reader.left() == 0);
  if (state.version != kLocalApicStateVersion) {
    return absl::InvalidArgumentError(absl::StrCat("saved local APIC: version ", state.version, " not known"));
  }
  return state;
}

}  // namespace hk
