#include "hyperkernel/device/virtqueue.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

static_assert(std::endian::native == std::endian::little, "rings are little-endian (2.7: le16, le32, le64)");

// 2.7.5, 2.7.6, 2.7.8: flags. (linux/virtio_ring.h is not C++.)
constexpr uint16_t kNext = 1, kWrite = 2, kIndirect = 4;
constexpr uint16_t kNoInterrupt = 1, kNoNotify = 1;

// 2.7, table of the three areas: sizes and alignments.
constexpr uint64_t kDescriptorBytes = 16, kUsedElementBytes = 8, kRingHeaderBytes = 4, kEventBytes = 2;
constexpr uint64_t kDescriptorAlign = 16, kAvailableAlign = 2, kUsedAlign = 4;

uint64_t AvailableBytes(uint16_t size) {
  return kRingHeaderBytes + 2u * size + kEventBytes;
}
uint64_t UsedBytes(uint16_t size) {
  return kRingHeaderBytes + kUsedElementBytes * size + kEventBytes;
}

// A field that the guest changes under us: read or written exactly once. REQUIRES: aligned.
template <typename T>
T LoadOnce(const std::byte* at, std::memory_order order = std::memory_order_relaxed) {
  return std::atomic_ref<T>(*reinterpret_cast<T*>(const_cast<std::byte*>(at))).load(order);
}
template <typename T>
void StoreOnce(std::byte* at, T value, std::memory_order order = std::memory_order_relaxed) {
  std::atomic_ref<T>(*reinterpret_cast<T*>(at)).store(value, order);
}

absl::Status Broken(std::string message) {
  return absl::InvalidArgumentError(std::move(message));
}

}  // namespace

size_t CopyFrom(const DescriptorChain& chain, uint64_t offset, std::span<std::byte> to) {
  size_t done = 0;
  for (const DmaChain::Piece& piece : chain.readable()) {
    if (offset >= piece.bytes.size()) {
      offset -= piece.bytes.size();
      continue;
    }
    const size_t take = std::min(piece.bytes.size() - offset, to.size() - done);
    std::memcpy(to.data() + done, piece.bytes.data() + offset, take);
    done += take;
    offset = 0;
    if (done == to.size()) break;
  }
  return done;
}

size_t CopyTo(const DescriptorChain& chain, uint64_t offset, std::span<const std::byte> from) {
  size_t done = 0;
  for (const DmaChain::Piece& piece : chain.writable()) {
    if (offset >= piece.bytes.size()) {
      offset -= piece.bytes.size();
      continue;
    }
    const size_t take = std::min(piece.bytes.size() - offset, from.size() - done);
    std::memcpy(piece.bytes.data() + offset, from.data() + done, take);
    done += take;
    offset = 0;
    if (done == from.size()) break;
  }
  return done;
}

absl::Status Virtqueue::Enable(const Layout& layout) {
  if (layout.size == 0 || layout.size > kMaxSize || !std::has_single_bit(layout.size)) {
    return Broken(fmt::format("queue size {} is not a power of two up to {}", layout.size, kMaxSize));
  }
  if (layout.descriptors % kDescriptorAlign != 0 || layout.available % kAvailableAlign != 0 ||
      layout.used % kUsedAlign != 0) {
    return Broken(fmt::format("queue areas {:#x} {:#x} {:#x} are not aligned", layout.descriptors, layout.available,
                              layout.used));
  }
  layout_ = layout;
  next_available_ = left_ = next_used_ = published_ = 0;
  return absl::OkStatus();
}

void Virtqueue::GoOnFrom(Progress progress) {
  HK_DCHECK(enabled() && !rings_.open());
  next_available_ = progress.next_available;
  next_used_ = published_ = progress.next_used;
  left_ = 0;
}

void Virtqueue::Disable() {
  HK_DCHECK(!rings_.open());
  layout_ = {};
}

absl::Status Virtqueue::MapArea(DmaChain* chain, uint64_t address, uint64_t bytes, DmaAccess access, std::byte** base) {
  const size_t pieces = chain->pieces().size();
  HK_RETURN_IF_ERROR(space_->Map(chain, address, bytes, access));
  if (chain->pieces().size() != pieces + 1) return Broken(fmt::format("queue area {:#x} is not in one piece", address));
  *base = chain->pieces().back().bytes.data();
  return absl::OkStatus();
}

absl::Status Virtqueue::Open() {
  HK_DCHECK(enabled() && !rings_.open());
  absl::Status status =
      MapArea(&rings_, layout_.descriptors, kDescriptorBytes * layout_.size, DmaAccess::kRead, &descriptors_);
  if (status.ok()) {
    status = MapArea(&rings_, layout_.available, AvailableBytes(layout_.size), DmaAccess::kRead, &available_);
  }
  if (status.ok()) status = MapArea(&rings_, layout_.used, UsedBytes(layout_.size), DmaAccess::kWrite, &used_);
  if (!status.ok()) rings_.Release();
  return status;
}

void Virtqueue::Close() {
  rings_.Release();
}

// Two aligned 64-bit reads: neither the compiler nor the guest can make us see a field twice. An indirect table may be
// at any address (2.7.5.3 asks for no alignment); bytes are read one by one there.
Virtqueue::Descriptor Virtqueue::Load(const std::byte* table, uint32_t index) {
  const std::byte* const at = table + kDescriptorBytes * index;
  uint64_t words[2] = {};
  if (reinterpret_cast<uintptr_t>(at) % alignof(uint64_t) == 0) {
    words[0] = LoadOnce<uint64_t>(at);
    words[1] = LoadOnce<uint64_t>(at + 8);
  } else {
    for (size_t i = 0; i < kDescriptorBytes; ++i) {
      words[i / 8] |= static_cast<uint64_t>(LoadOnce<uint8_t>(at + i)) << (i % 8 * 8);
    }
  }
  return {.address = words[0],
          .bytes = static_cast<uint32_t>(words[1]),
          .flags = static_cast<uint16_t>(words[1] >> 32),
          .next = static_cast<uint16_t>(words[1] >> 48)};
}

// How many requests wait. The driver writes the ring before the index (2.7.13.3), so the ring is read after it.
absl::StatusOr<uint16_t> Virtqueue::Pending() const {
  const auto index = LoadOnce<uint16_t>(available_ + 2, std::memory_order_seq_cst);  // see EnableDoorbell
  const uint16_t pending = static_cast<uint16_t>(index - next_available_);
  if (pending > layout_.size) {
    return Broken(
        fmt::format("available index {} is {} past {}, queue size {}", index, pending, next_available_, layout_.size));
  }
  return pending;
}

absl::StatusOr<bool> Virtqueue::Pop(DescriptorChain* chain) {
  HK_DCHECK(rings_.open() && !chain->dma.open());
  chain->Release();
  HK_ASSIGN_OR_RETURN(const uint16_t pending, Pending());
  if (pending == 0) return false;
  const size_t slot = next_available_ & (layout_.size - 1);
  const uint16_t head = LoadOnce<uint16_t>(available_ + kRingHeaderBytes + 2 * slot);
  if (head >= layout_.size) return Broken(fmt::format("descriptor {} of a queue of {}", head, layout_.size));
  absl::Status status = Walk(head, chain);
  indirect_.Release();
  if (!status.ok()) {
    chain->Release();
    return status;
  }
  chain->head = head;
  ++next_available_;
  left_ = 0;
  return true;
}

// 2.7.4 and 2.7.5. The count of descriptors ends every loop in the chain: it may not be longer than the queue.
absl::Status Virtqueue::Walk(uint16_t head, DescriptorChain* chain) {
  const std::byte* table = descriptors_;
  uint32_t table_size = layout_.size;
  bool in_indirect = false;
  uint32_t index = head;
  for (uint32_t count = 0; count < layout_.size;) {
    const Descriptor descriptor = Load(table, index);
    if (descriptor.flags & kIndirect) {
      if (!layout_.indirect) return Broken("indirect descriptor without the feature");
      if (in_indirect) return Broken("indirect descriptor in an indirect table");
      if (descriptor.flags & kNext) return Broken("indirect descriptor with a next one");
      if (descriptor.bytes == 0 || descriptor.bytes % kDescriptorBytes != 0 ||
          descriptor.bytes / kDescriptorBytes > kMaxIndirect) {
        return Broken(fmt::format("indirect table of {} bytes", descriptor.bytes));
      }
      std::byte* base = nullptr;
      HK_RETURN_IF_ERROR(MapArea(&indirect_, descriptor.address, descriptor.bytes, DmaAccess::kRead, &base));
      table = base;
      table_size = descriptor.bytes / kDescriptorBytes;
      in_indirect = true;
      index = 0;
      continue;  // not counted: its entries are
    }
    HK_RETURN_IF_ERROR(AddDescriptor(descriptor, chain));
    ++count;
    if ((descriptor.flags & kNext) == 0) return absl::OkStatus();
    index = descriptor.next;
    if (index >= table_size) return Broken(fmt::format("next descriptor {} of a table of {}", index, table_size));
  }
  return Broken(fmt::format("descriptor chain loops or is longer than {}", layout_.size));
}

absl::Status Virtqueue::AddDescriptor(const Descriptor& descriptor, DescriptorChain* chain) {
  const bool writable = (descriptor.flags & kWrite) != 0;
  if (!writable && chain->writable_bytes > 0) return Broken("readable descriptor after a writable one");
  const DmaAccess access = writable ? DmaAccess::kWrite : DmaAccess::kRead;
  HK_RETURN_IF_ERROR(space_->Map(&chain->dma, descriptor.address, descriptor.bytes, access));
  (writable ? chain->writable_bytes : chain->readable_bytes) += descriptor.bytes;
  if (!writable) chain->readable_pieces = chain->dma.pieces().size();
  return absl::OkStatus();
}

void Virtqueue::AddUsed(uint16_t head, uint32_t written) {
  HK_DCHECK(rings_.open());
  std::byte* const element = used_ + kRingHeaderBytes + kUsedElementBytes * (next_used_ & (layout_.size - 1));
  StoreOnce<uint32_t>(element, head);
  StoreOnce<uint32_t>(element + 4, written);
  ++next_used_;
}

bool Virtqueue::Publish() {
  HK_DCHECK(rings_.open());
  if (next_used_ == published_) return false;
  const uint16_t before = std::exchange(published_, next_used_);
  // The index must be visible before the driver's wish is read, else both sides wait (2.7.7.1, 2.7.10): sequentially
  // consistent, on x86 a locked instruction, which the driver's full barrier pairs with.
  StoreOnce<uint16_t>(used_ + 2, next_used_, std::memory_order_seq_cst);
  if (!layout_.event_index) {
    return (LoadOnce<uint16_t>(available_, std::memory_order_seq_cst) & kNoInterrupt) == 0;
  }
  const auto event = LoadOnce<uint16_t>(available_ + kRingHeaderBytes + 2u * layout_.size, std::memory_order_seq_cst);
  return static_cast<uint16_t>(next_used_ - event - 1) < static_cast<uint16_t>(next_used_ - before);  // 2.7.7.2
}

// The mirror of Publish: the wish must be visible before the driver's index is read.
absl::StatusOr<bool> Virtqueue::EnableDoorbell() {
  HK_DCHECK(rings_.open());
  if (layout_.event_index) {
    StoreOnce<uint16_t>(used_ + kRingHeaderBytes + kUsedElementBytes * layout_.size,
                        static_cast<uint16_t>(next_available_ + left_), std::memory_order_seq_cst);
  } else {
    StoreOnce<uint16_t>(used_, 0, std::memory_order_seq_cst);
  }
  HK_ASSIGN_OR_RETURN(const uint16_t pending, Pending());
  return pending > left_;
}

void Virtqueue::DisableDoorbell() {
  HK_DCHECK(rings_.open());
  // With event indices the driver rings when its index passes the event; leaving that behind is enough.
  if (!layout_.event_index) StoreOnce<uint16_t>(used_, kNoNotify);
}

}  // namespace hk
