// Message-signalled interrupts: what a device's write to 0xfeexxxxx means (SDM 3A 11.11). Pure.
#pragma once

#include <cstdint>
#include <optional>

#include "hyperkernel/irq/interrupt_message.h"

namespace hk {

// The message of an MSI, or nullopt if the pair is not one that a device may send: an address outside 0xfeexxxxx,
// remappable format (there is no remapping), reserved bits set, SIPI or reserved delivery mode, level de-assert.
// `extended_destination`: address bits 11:5 are destination bits 14:8 (KVM_FEATURE_MSI_EXT_DEST_ID).
std::optional<InterruptMessage> DecodeMsi(uint64_t address, uint32_t data, bool extended_destination);

}  // namespace hk
