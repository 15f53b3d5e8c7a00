// The byte form of LocalApicState. One function names the fields in their order; the writer and the reader both walk
// it.
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/irq/local_apic_state.h"

namespace hk {

namespace {

class Writer {
 public:
  template <typename T>
  void Number(const T& value) {
    const auto number = static_cast<uint64_t>(static_cast<std::make_unsigned_t<T>>(value));
    for (size_t i = 0; i < sizeof(T); ++i) {
      bytes_.push_back(static_cast<std::byte>(number >> (8 * i)));
    }
  }
  std::vector<std::byte> Take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

// Of exactly kLocalApicStateBytes.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : left_(bytes) {}

  template <typename T>
  void Number(T& value) {
    HK_CHECK(left_.size() >= sizeof(T));
    uint64_t number = 0;
    for (size_t i = 0; i < sizeof(T); ++i) {
      number |= static_cast<uint64_t>(left_[i]) << (8 * i);
    }
    value = static_cast<T>(number);
    left_ = left_.subspan(sizeof(T));
  }
  size_t left() const { return left_.size(); }

 private:
  std::span<const std::byte> left_;
};

// `State` is const for the writer.
template <typename Archive, typename State>
void Fields(Archive& a, State& s) {
  const auto numbers = [&a](auto&... values) { (a.Number(values), ...); };
  numbers(s.version, s.apic_id, s.apic_base, s.icr, s.timer_remaining_ns, s.tpr, s.ldr, s.dfr, s.svr, s.esr,
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
    numbers(source.generation, source.vector, source.valid);
  }
  for (auto& event : s.events) {
    numbers(event.kind, event.vector);
  }
  numbers(s.event_count, s.timer_running, s.waiting_for_sipi);
}

}  // namespace

std::vector<std::byte> EncodeLocalApic(const LocalApicState& state) {
  Writer writer;
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
  Reader reader(bytes);
  LocalApicState state;
  Fields(reader, state);
  HK_CHECK(reader.left() == 0);
  if (state.version != kLocalApicStateVersion) {
    return absl::InvalidArgumentError(absl::StrCat("saved local APIC: version ", state.version, " not known"));
  }
  return state;
}

}  // namespace hk
