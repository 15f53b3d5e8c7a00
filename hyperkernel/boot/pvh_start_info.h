// The structures that a PVH kernel is handed. Xen, xen/include/public/arch-x86/hvm/start_info.h. Little-endian.
#pragma once

#include <cstdint>

namespace hk {

inline constexpr uint32_t kPvhStartMagic = 0x336ec578;  // XEN_HVM_START_MAGIC_VALUE
inline constexpr uint32_t kPvhStartVersion = 1;         // the first with a memory map

// struct hvm_start_info.
struct PvhStartInfo {
  uint32_t magic = kPvhStartMagic;
  uint32_t version = kPvhStartVersion;
  uint32_t flags = 0;
  uint32_t nr_modules = 0;
  uint64_t modlist_paddr = 0;
  uint64_t cmdline_paddr = 0;
  uint64_t rsdp_paddr = 0;
  uint64_t memmap_paddr = 0;
  uint32_t memmap_entries = 0;
  uint32_t reserved = 0;
};
static_assert(sizeof(PvhStartInfo) == 56);

// struct hvm_modlist_entry.
struct PvhModule {
  uint64_t paddr = 0;
  uint64_t size = 0;
  uint64_t cmdline_paddr = 0;
  uint64_t reserved = 0;
};
static_assert(sizeof(PvhModule) == 32);

// struct hvm_memmap_table_entry.
struct PvhMemoryMapEntry {
  uint64_t addr = 0;
  uint64_t size = 0;
  uint32_t type = 0;
  uint32_t reserved = 0;
};
static_assert(sizeof(PvhMemoryMapEntry) == 24);

}  // namespace hk
