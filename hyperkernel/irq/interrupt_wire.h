// What the interrupt controllers of a guest's nodes say to each other, as bytes. Layout: README.md, "Bytes".
//
// Pure. Input of a peer is never an invariant here: what no correct node sends is an absl::Status. Whether numbers
// exist (vCPU, node) and fit what is known is InterruptExchange's to say.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/irq/interrupt_link.h"
#include "hyperkernel/irq/local_apic.h"
#include "hyperkernel/irq/pending_interrupts.h"

namespace hk {

// A vCPU's processor priority as others know it; or that it accepts no fixed interrupts.
inline constexpr uint16_t kAcceptsNothing = 0x100;

// One thing said. A message is one or more of them. Plain value; which fields mean something depends on `kind`.
struct InterruptItem {
  // Values are the wire's.
  enum class Kind : uint8_t {
    kDeliver = 1,  // `content` for `vcpu`, which the sender believes here as of `version`
    kAnswer = 2,   // kDeliver `serial` to `vcpu` has reached its APIC, which the sender has as of `version`
    kVcpu = 3,     // the sender has `vcpu` as of `version`; how it is addressed, as of `serial`
    kKnown = 4,    // answers kVcpu
    kEoi = 5,      // `pin` and `generation`: for the I/O node
  };
  Kind kind = Kind::kDeliver;
  VcpuId vcpu{};
  uint32_t version = 0;
  uint32_t serial = 0;
  NodeId origin{};                  // kDeliver: who has sent it first, and awaits the answer
  uint16_t hint = kAcceptsNothing;  // kAnswer, kVcpu
  ApicAddressing addressing{};      // kVcpu
  LevelEoi eoi{};                   // kEoi
  PendingInterrupts content{};      // kDeliver
};

// Packs items into a message. Not thread-safe.
class InterruptWriter {
 public:
  // False, and nothing changed: no room. An empty message has room for any item.
  bool Put(const InterruptItem& item);
  std::span<const std::byte> bytes() const { return std::span(bytes_).first(size_); }
  bool empty() const { return size_ <= 1; }
  void Clear() { size_ = 0; }

 private:
  void Number(uint64_t value, size_t bytes);
  void Content(const PendingInterrupts& content);

  std::array<std::byte, kMaxInterruptBytes> bytes_;
  size_t size_ = 0;
  bool full_ = false;
};

// Takes a message apart. Not thread-safe; `bytes` outlive it.
class InterruptReader {
 public:
  explicit InterruptReader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  // The next item into `item`; false: that was all. kInvalidArgument: a message without items, of another format, or
  // an item that is none.
  absl::StatusOr<bool> Next(InterruptItem* item);

 private:
  uint64_t Number(size_t bytes);
  void Words(uint8_t mask, VectorSet::Words* words);
  void Content(PendingInterrupts* content);
  void Addressing(ApicAddressing* addressing);

  const std::span<const std::byte> bytes_;
  size_t at_ = 0;
  bool bad_ = false;
};

}  // namespace hk
