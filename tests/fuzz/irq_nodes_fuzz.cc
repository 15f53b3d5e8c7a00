// What other nodes send to a guest's interrupt controllers, as a peer might spoil it: three nodes, a program of
// messages and operations. Refused or taken, nothing crashes, and what is on its way stays bounded.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "hyperkernel/base/check.h"
#include "hyperkernel/irq/interrupt_wire.h"
#include "hyperkernel/irq/irq_nodes_testing.h"

namespace hk {
namespace {

constexpr uint32_t kVcpus = 6;

// What can be read can be written, to the same bytes.
void TryWire(std::span<const std::byte> bytes) {
  InterruptReader reader(bytes);
  InterruptWriter writer;
  InterruptItem item;
  while (true) {
    const auto next = reader.Next(&item);
    if (!next.ok()) return;
    if (!*next) break;
    HK_CHECK(writer.Put(item));
  }
  HK_CHECK(std::ranges::equal(writer.bytes(), bytes));
}

void TryProgram(std::span<const std::byte> input) {
  const ManualClock clock;
  RecordingWaker waker;
  InterruptCluster cluster(3, {.vcpus = kVcpus}, &clock, &waker);
  while (input.size() >= 3) {
    const auto operation = static_cast<uint8_t>(input[0]), operand = static_cast<uint8_t>(input[1]);
    const auto node = static_cast<uint16_t>(operation >> 4 & 3);
    const uint32_t vcpu = operand % kVcpus;
    const size_t size = std::min(input.size() - 3, static_cast<size_t>(input[2]));
    input = input.subspan(3);
    switch (operation & 7) {
      case 0:
      case 1:
        TryWire(input.first(size));
        static_cast<void>(cluster.controllers[node % 3]->OnMessage(NodeId(operand & 3), input.first(size)));
        input = input.subspan(size);
        break;
      case 2:
        cluster.vcpu(vcpu).WriteMsr(0x830, static_cast<uint64_t>(operation >> 4) << 32 | size << 2);
        break;
      case 3:
        cluster.vcpu(vcpu).WriteMsr(0x80f, 0xff | (operation & 0x10) << 4);
        break;
      case 4:
        cluster.io().IoApicWrite(0x00, operand);
        cluster.io().IoApicWrite(0x10, static_cast<uint32_t>(size * 0x101));
        cluster.io().SetLine(operand % 24, (operation & 0x10) != 0);
        break;
      case 5:
        cluster.vcpu(vcpu).Take(cluster.vcpu(vcpu).Peek());
        cluster.vcpu(vcpu).Acknowledge();
        cluster.vcpu(vcpu).WriteMsr(0x80b, 0);
        break;
      case 6:
        cluster.io().SendMsi(0xfee00000 | uint32_t{operand} << 12 | (operation >> 2 & 0xc), static_cast<uint32_t>(size)
                                                                                                << 1);
        break;
      default: {
        if (node >= 3 || cluster.where[vcpu] == node) break;
        const auto moved = cluster.Of(vcpu).TakeVcpu(VcpuId(vcpu), NodeId(node));
        if (!moved.ok()) break;
        cluster.where[vcpu] = node;
        if (cluster.Of(vcpu).PutVcpu(VcpuId(vcpu), *moved).ok()) break;
        return;  // a peer has claimed it there: the move has failed, and with it the guest
      }
    }
    for (uint16_t i = 0; i < 9; ++i) {
      const auto from = static_cast<uint16_t>(i / 3), to = static_cast<uint16_t>(i % 3);
      HK_CHECK(cluster.network.waiting(from, to) < 1000);
      if (cluster.network.waiting(from, to) == 0 || (operation & 8) != 0) continue;
      const InterruptBytes bytes = cluster.network.Take(from, to);
      TryWire(bytes);
      static_cast<void>(cluster.controllers[to]->OnMessage(NodeId(from), bytes));
    }
  }
}

}  // namespace
}  // namespace hk

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  hk::TryWire(bytes);
  hk::TryProgram(bytes);
  return 0;
}
