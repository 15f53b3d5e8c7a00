// The driver's side of a split virtqueue, for tests: lays rings out in fake guest memory, adds requests, collects what
// the device gave back. Not thread-safe; may run beside the device's thread as a guest would.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "hyperkernel/device/testing_memory.h"
#include "hyperkernel/device/virtqueue.h"

namespace hk {

// One buffer of a request.
struct TestBuffer {
  uint64_t address = 0;
  uint32_t bytes = 0;
  bool device_writes = false;
};

// A driver of one queue.
class TestDriver {
 public:
  // Where the guest has so many bytes, in this process; null: not in RAM.
  using Find = std::function<std::byte*(Gpa gpa, uint64_t bytes)>;

  // Puts the three areas from `base` on (page-aligned), 3 pages for up to 128 entries.
  TestDriver(FakeGuestMemory* memory, uint64_t base, uint16_t size)
      : TestDriver([memory](Gpa gpa, uint64_t bytes) { return memory->Find(gpa, bytes); }, base, size) {}
  TestDriver(Find find, uint64_t base, uint16_t size) : find_(std::move(find)), base_(base), size_(size) {
    for (uint16_t i = 0; i < size; ++i) free_.push_back(static_cast<uint16_t>(size - 1 - i));
  }

  Virtqueue::Layout layout() const {
    return {.size = size_,
            .descriptors = base_,
            .available = base_ + 0x1000,
            .used = base_ + 0x2000,
            .event_index = false,
            .indirect = true};
  }
  template <typename T>
  T Load(uint64_t gpa) const {
    return std::atomic_ref<T>(*reinterpret_cast<T*>(find_(Gpa(gpa), sizeof(T)))).load();
  }
  template <typename T>
  void Store(uint64_t gpa, T value) {
    std::atomic_ref<T>(*reinterpret_cast<T*>(find_(Gpa(gpa), sizeof(T)))).store(value);
  }
  void SetDescriptor(uint64_t table, uint16_t index, uint64_t address, uint32_t bytes, uint16_t flags, uint16_t next) {
    Store<uint64_t>(table + 16u * index, address);
    Store<uint64_t>(table + 16u * index + 8, bytes | uint64_t{flags} << 32 | uint64_t{next} << 48);
  }
  void SetAvailable(uint16_t slot, uint16_t head) { Store<uint16_t>(base_ + 0x1000 + 4 + 2u * (slot % size_), head); }
  void SetAvailableIndex(uint16_t index) { Store<uint16_t>(base_ + 0x1000 + 2, index); }

  // Adds a request and shows it to the device; returns its head.
  uint16_t Add(const std::vector<TestBuffer>& buffers) {
    std::vector<uint16_t> used;
    for (size_t i = 0; i < buffers.size(); ++i) {
      used.push_back(free_.back());
      free_.pop_back();
    }
    for (size_t i = 0; i < buffers.size(); ++i) {
      const bool last = i + 1 == buffers.size();
      SetDescriptor(base_, used[i], buffers[i].address, buffers[i].bytes,
                    static_cast<uint16_t>((buffers[i].device_writes ? 2 : 0) | (last ? 0 : 1)), last ? 0 : used[i + 1]);
    }
    chains_[used[0]] = used;
    Show(used[0]);
    return used[0];
  }
  // Adds the descriptor that was set up by hand.
  void Show(uint16_t head) {
    SetAvailable(available_, head);
    SetAvailableIndex(++available_);
  }
  // The next request that the device gave back: head and bytes written.
  std::optional<std::pair<uint16_t, uint32_t>> Take() {
    if (Load<uint16_t>(base_ + 0x2000 + 2) == taken_) return std::nullopt;
    const uint64_t element = base_ + 0x2000 + 4 + 8u * (taken_++ % size_);
    const auto head = static_cast<uint16_t>(Load<uint32_t>(element));
    for (uint16_t index : chains_[head]) free_.push_back(index);
    chains_.erase(head);
    return std::pair(head, Load<uint32_t>(element + 4));
  }
  std::string Text(uint64_t gpa, size_t bytes) const {
    std::string text(bytes, 0);
    const std::byte* const from = find_(Gpa(gpa), bytes);
    HK_CHECK(from != nullptr);
    std::memcpy(text.data(), from, bytes);
    return text;
  }
  void SetText(uint64_t gpa, const std::string& text) {
    std::byte* const to = find_(Gpa(gpa), text.size());
    HK_CHECK(to != nullptr);
    std::memcpy(to, text.data(), text.size());
  }
  uint64_t base() const { return base_; }

 private:
  const Find find_;
  const uint64_t base_;
  const uint16_t size_;
  std::vector<uint16_t> free_;
  std::map<uint16_t, std::vector<uint16_t>> chains_;
  uint16_t available_ = 0;
  uint16_t taken_ = 0;
};

}  // namespace hk
