// The byte form of VcpuState. One function names the fields in their order; the writer and the reader both walk it.
#include <bit>
#include <cstring>
#include <type_traits>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/kvm/cpu_model.h"
#include "hyperkernel/kvm/vcpu_state.h"

namespace hk {
namespace {

constexpr uint32_t kMagic = 0x43564b48;  // "HKVC"
constexpr uint16_t kVersion = 2;

class Writer {
 public:
  template <typename T>
  void Number(const T& value) {
    static_assert(std::is_integral_v<T>);
    const auto number = static_cast<uint64_t>(static_cast<std::make_unsigned_t<T>>(value));
    for (size_t i = 0; i < sizeof(T); ++i) bytes_.push_back(static_cast<std::byte>(number >> (8 * i)));
  }
  void Activity(const VcpuActivity& value) { Number(static_cast<uint8_t>(value)); }
  template <typename T>
  void Count(const std::vector<T>& list, size_t most) {
    HK_CHECK(list.size() <= most);
    Number(static_cast<uint32_t>(list.size()));
  }
  void Bytes(const std::vector<std::byte>& bytes) { bytes_.insert(bytes_.end(), bytes.begin(), bytes.end()); }
  std::vector<std::byte> Take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

// After the first error everything reads as zero and nothing grows.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : left_(bytes) {}

  template <typename T>
  void Number(T& value) {
    static_assert(std::is_integral_v<T>);
    value = 0;
    if (left_.size() < sizeof(T)) return Fail("it ends early");
    uint64_t number = 0;
    for (size_t i = 0; i < sizeof(T); ++i) number |= static_cast<uint64_t>(left_[i]) << (8 * i);
    value = static_cast<T>(number);
    left_ = left_.subspan(sizeof(T));
  }
  void Activity(VcpuActivity& value) {
    uint8_t number = 0;
    Number(number);
    if (number > static_cast<uint8_t>(VcpuActivity::kWaitForSipi)) return Fail("unknown activity");
    value = static_cast<VcpuActivity>(number);
  }
  template <typename T>
  void Count(std::vector<T>& list, size_t most) {
    uint32_t count = 0;
    Number(count);
    if (count > most) return Fail("a list is too long");
    list.assign(failure_ == nullptr ? count : 0, T{});
  }
  void Bytes(std::vector<std::byte>& bytes) {
    if (left_.size() < bytes.size()) return Fail("it ends early");
    if (!bytes.empty()) std::memcpy(bytes.data(), left_.data(), bytes.size());
    left_ = left_.subspan(bytes.size());
  }
  void Fail(const char* why) {
    if (failure_ == nullptr) failure_ = why;
    left_ = {};
  }
  const char* failure() const { return failure_; }
  size_t left() const { return left_.size(); }

 private:
  std::span<const std::byte> left_;
  const char* failure_ = nullptr;
};

// const for the writer, not for the reader.
template <typename Archive, typename T>
using Maybe = std::conditional_t<std::is_same_v<Archive, Writer>, const T, T>;

template <typename Archive, typename... T>
void Numbers(Archive& a, T&... values) {
  (a.Number(values), ...);
}

template <typename Archive>
void Segment(Archive& a, Maybe<Archive, kvm_segment>& s) {
  Numbers(a, s.base, s.limit, s.selector, s.type, s.present, s.dpl, s.db, s.s, s.l, s.g, s.avl, s.unusable);
}

template <typename Archive>
void Fields(Archive& a, Maybe<Archive, kvm_sregs>& s) {
  for (auto* segment : {&s.cs, &s.ds, &s.es, &s.fs, &s.gs, &s.ss, &s.tr, &s.ldt}) Segment(a, *segment);
  for (auto* table : {&s.gdt, &s.idt}) Numbers(a, table->base, table->limit);
  Numbers(a, s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer, s.apic_base);
  for (auto& word : s.interrupt_bitmap) a.Number(word);
}

template <typename Archive>
void Fields(Archive& a, Maybe<Archive, kvm_regs>& r) {
  Numbers(a, r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rsp, r.rbp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14,
          r.r15, r.rip, r.rflags);
}

template <typename Archive>
void Fields(Archive& a, Maybe<Archive, kvm_vcpu_events>& e) {
  Numbers(a, e.exception.injected, e.exception.nr, e.exception.has_error_code, e.exception.pending,
          e.exception.error_code, e.interrupt.injected, e.interrupt.nr, e.interrupt.soft, e.interrupt.shadow,
          e.nmi.injected, e.nmi.pending, e.nmi.masked, e.sipi_vector, e.flags, e.smi.smm, e.smi.pending,
          e.smi.smm_inside_nmi, e.smi.latched_init, e.triple_fault.pending, e.exception_has_payload,
          e.exception_payload);
}

template <typename Archive>
void Fields(Archive& a, Maybe<Archive, VcpuState>& state) {
  a.Activity(state.activity);
  Numbers(a, state.tsc_khz, state.tsc_offset, state.clock.system_time_msr, state.clock.version, state.pv_eoi_msr);
  a.Count(state.cpuid, kMostCpuidEntries);
  for (auto& e : state.cpuid) Numbers(a, e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx);
  Numbers(a, state.xcrs.nr_xcrs, state.xcrs.flags);
  for (auto& xcr : state.xcrs.xcrs) Numbers(a, xcr.xcr, xcr.value);
  a.Count(state.xsave, kMostXsaveBytes);
  a.Bytes(state.xsave);
  Fields(a, state.sregs);
  Fields(a, state.regs);
  for (auto& db : state.debugregs.db) a.Number(db);
  Numbers(a, state.debugregs.dr6, state.debugregs.dr7, state.debugregs.flags);
  a.Count(state.msrs, kMostMsrs);
  for (auto& msr : state.msrs) Numbers(a, msr.index, msr.data);
  Fields(a, state.events);
}

}  // namespace

std::vector<std::byte> EncodeVcpuState(const VcpuState& state) {
  Writer writer;
  Numbers(writer, kMagic, kVersion);
  Fields(writer, state);
  std::vector<std::byte> bytes = writer.Take();
  HK_CHECK(bytes.size() <= kMostVcpuStateBytes);
  return bytes;
}

absl::StatusOr<VcpuState> DecodeVcpuState(std::span<const std::byte> bytes) {
  if (bytes.size() > kMostVcpuStateBytes) return absl::InvalidArgumentError("vCPU state: too long");
  Reader reader(bytes);
  uint32_t magic = 0;
  uint16_t version = 0;
  Numbers(reader, magic, version);
  if (magic != kMagic) return absl::InvalidArgumentError("vCPU state: it is something else");
  if (version != kVersion) {
    return absl::InvalidArgumentError(fmt::format("vCPU state: version {}, expected {}", version, kVersion));
  }
  VcpuState state;
  Fields(reader, state);
  if (reader.failure() == nullptr && state.xsave.size() < sizeof(kvm_xsave)) reader.Fail("the XSAVE area is too short");
  if (reader.failure() == nullptr && state.xcrs.nr_xcrs > KVM_MAX_XCRS) reader.Fail("too many XCRs");
  if (reader.failure() == nullptr && reader.left() != 0) reader.Fail("bytes are left over");
  if (reader.failure() != nullptr) return absl::InvalidArgumentError(fmt::format("vCPU state: {}", reader.failure()));
  return state;
}

}  // namespace hk
