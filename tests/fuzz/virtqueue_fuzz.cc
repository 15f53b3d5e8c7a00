// A hostile driver against a split virtqueue: the input is guest memory and what the guest does between the device's
// looks at it. Nothing outside guest memory may be touched, no pin may stay, and every look ends.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "hyperkernel/base/check.h"
#include "hyperkernel/device/testing_memory.h"
#include "hyperkernel/device/virtqueue.h"

namespace hk {
namespace {

// Input: 1 byte flags, 1 byte size as a power of two, 3 x 2 bytes of ring addresses in 16 bytes, then memory from 0 on,
// the rest are steps of 4 bytes: operation, and a 16-bit place and byte to poke.
constexpr size_t kHeaderBytes = 8;
constexpr size_t kImageBytes = 0x3000;
constexpr uint64_t kRamBytes = 0x4000;
constexpr uint64_t kHighStart = 0x8000;

void ExpectNoPins(const DmaPins& pins) {
  for (uint64_t page = 0; page < 16; ++page) {
    const DmaPins::Count count = pins.Of(Gfn(page));
    HK_CHECK(count.shared == 0 && count.exclusive == 0);
  }
}

// One look: takes what there is, answers every other request, and leaves some.
void Look(Virtqueue* queue, DescriptorChain* chain, uint8_t how) {
  if (!queue->Open().ok()) return;
  for (int taken = 0; taken < 64; ++taken) {
    const auto popped = queue->Pop(chain);
    if (!popped.ok() || !*popped) break;
    HK_CHECK(chain->head < queue->size());
    std::byte bytes[64];
    std::memset(bytes, how, sizeof(bytes));
    CopyFrom(*chain, how, bytes);
    CopyTo(*chain, how & 15, bytes);
    chain->Release();
    if (how & 0x10 && taken == 3) {
      queue->UndoPop(1);
      break;
    }
    queue->AddUsed(chain->head, how);
  }
  chain->Release();
  queue->Publish();
  if (how & 0x20) {
    static_cast<void>(queue->EnableDoorbell().ok());
  } else {
    queue->DisableDoorbell();
  }
  queue->Close();
}

void Run(std::span<const uint8_t> input) {
  if (input.size() < kHeaderBytes) return;
  FakeGuestMemory memory({{Gpa(0), kRamBytes}, {Gpa(kRamBytes), 0x1000}, {Gpa(kHighStart), 0x1000}});
  auto pins = *DmaPins::Create(memory);
  auto space = *DmaSpace::Create(&memory, pins.get());
  auto address = [&](size_t i) { return uint64_t{16} * (input[2 + 2 * i] | input[3 + 2 * i] << 8); };
  Virtqueue queue(space.get());
  if (!queue
           .Enable({.size = static_cast<uint16_t>(1 << (input[1] & 15)),
                    .descriptors = address(0),
                    .available = address(1),
                    .used = address(2),
                    .event_index = (input[0] & 1) != 0,
                    .indirect = (input[0] & 2) != 0})
           .ok()) {
    return;
  }
  input = input.subspan(kHeaderBytes);
  const size_t image = std::min(input.size(), kImageBytes);
  HK_CHECK(memory.Write(Gpa(0), std::as_bytes(input.first(image))).ok());
  input = input.subspan(image);
  DescriptorChain chain(256);
  Look(&queue, &chain, 0x21);
  for (; input.size() >= 4; input = input.subspan(4)) {
    const uint64_t place = (input[1] | input[2] << 8) % kRamBytes;
    *memory.Find(Gpa(place), 1) = std::byte{input[3]};
    Look(&queue, &chain, input[0]);
  }
  ExpectNoPins(*pins);
}

}  // namespace
}  // namespace hk

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  hk::Run(std::span(data, size));
  return 0;
}
