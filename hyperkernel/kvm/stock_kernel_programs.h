// The guest programs that stand for a stock Linux kernel in the host probe: what it needs of a CPU, each alone, so that
// the answer can name what is missing. Machine code with its assembly beside it (Intel syntax), for RunProbeGuest().
#pragma once

#include <cstdint>

#include "hyperkernel/kvm/probe_guest.h"

namespace hk {

// 64-bit arithmetic; paging: what is written at an address' alias is read at the address; CR3 can be written.
inline constexpr uint8_t kLongModeProgram[] = {
    0x0f, 0x20, 0xd8,                                      //   mov rax, cr3
    0x0f, 0x22, 0xd8,                                      //   mov cr3, rax
    0x48, 0xbb, 0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23,  //
    0x01,                                                  //   movabs rbx, 0x123456789abcdef
    0xbf, 0x00, 0x00, 0x01, 0x40,                          //   mov edi, kProbeGuestAlias + kProbeGuestData
    0x48, 0x89, 0x1f,                                      //   mov [rdi], rbx
    0x48, 0xc1, 0xc3, 0x08,                                //   rol rbx, 8
    0xbe, 0x00, 0x00, 0x01, 0x00,                          //   mov esi, kProbeGuestData
    0x48, 0x8b, 0x0e,                                      //   mov rcx, [rsi]
    0x48, 0xc1, 0xc1, 0x08,                                //   rol rcx, 8
    0xb0, 0x02,                                            //   mov al, kWrongResult
    0x48, 0x39, 0xd9,                                      //   cmp rcx, rbx
    0x75, 0x02,                                            //   jne 1f
    0xb0, 0x01,                                            //   mov al, kPassed
    0xe6, 0x10,                                            // 1: out kProbeGuestPort, al
    0xf4,                                                  //   hlt
};

// (1, 2, 3, 4) + (1, 2, 3, 4), by SSE2 with operands in memory; the upper half of the sum is checked.
inline constexpr uint8_t kSseProgram[] = {
    0xbe, 0x00, 0x00, 0x01, 0x00,                                // mov esi, kProbeGuestData
    0xc7, 0x06, 0x01, 0x00, 0x00, 0x00,                          // mov dword [rsi], 1
    0xc7, 0x46, 0x04, 0x02, 0x00, 0x00, 0x00,                    // mov dword [rsi + 4], 2
    0xc7, 0x46, 0x08, 0x03, 0x00, 0x00, 0x00,                    // mov dword [rsi + 8], 3
    0xc7, 0x46, 0x0c, 0x04, 0x00, 0x00, 0x00,                    // mov dword [rsi + 12], 4
    0x0f, 0x28, 0x06,                                            // movaps xmm0, [rsi]
    0x66, 0x0f, 0xfe, 0x06,                                      // paddd xmm0, [rsi]
    0x0f, 0x29, 0x46, 0x10,                                      // movaps [rsi + 16], xmm0
    0x48, 0x8b, 0x4e, 0x18,                                      // mov rcx, [rsi + 24]
    0x48, 0xba, 0x06, 0x00, 0x00, 0x00, 0x08, 0x00, 0x00, 0x00,  // movabs rdx, 0x800000006
    0xb0, 0x02,                                                  // mov al, kWrongResult
    0x48, 0x39, 0xd1,                                            // cmp rcx, rdx
    0x75, 0x02,                                                  // jne 1f
    0xb0, 0x01,                                                  // mov al, kPassed
    0xe6, 0x10,                                                  // 1: out kProbeGuestPort, al
    0xf4,                                                        // hlt
};

// lock cmpxchg16b from (5, 6) to (7, 8). Linux' slab allocator uses it in every allocation.
inline constexpr uint8_t kCmpxchg16bProgram[] = {
    0xbe, 0x00, 0x00, 0x01, 0x00,                    // mov esi, kProbeGuestData
    0x48, 0xc7, 0x06, 0x05, 0x00, 0x00, 0x00,        // mov qword [rsi], 5
    0x48, 0xc7, 0x46, 0x08, 0x06, 0x00, 0x00, 0x00,  // mov qword [rsi + 8], 6
    0xb8, 0x05, 0x00, 0x00, 0x00,                    // mov eax, 5
    0xba, 0x06, 0x00, 0x00, 0x00,                    // mov edx, 6
    0xbb, 0x07, 0x00, 0x00, 0x00,                    // mov ebx, 7
    0xb9, 0x08, 0x00, 0x00, 0x00,                    // mov ecx, 8
    0xf0, 0x48, 0x0f, 0xc7, 0x0e,                    // lock cmpxchg16b [rsi]
    0xb0, 0x02,                                      // mov al, kWrongResult
    0x75, 0x0f,                                      // jne 1f
    0x48, 0x83, 0x3e, 0x07,                          // cmp qword [rsi], 7
    0x75, 0x09,                                      // jne 1f
    0x48, 0x83, 0x7e, 0x08, 0x08,                    // cmp qword [rsi + 8], 8
    0x75, 0x02,                                      // jne 1f
    0xb0, 0x01,                                      // mov al, kPassed
    0xe6, 0x10,                                      // 1: out kProbeGuestPort, al
    0xf4,                                            // hlt
};

// Counts, with a load and a store in each round; a tick every kSpeedInstructionsPerTick instructions. Never ends by
// itself.
inline constexpr uint32_t kSpeedRoundsPerTick = 20000;
inline constexpr uint64_t kSpeedInstructionsPerTick = uint64_t{kSpeedRoundsPerTick} * 5;
inline constexpr uint8_t kSpeedProgram[] = {
    0xbe, 0x00, 0x00, 0x01, 0x00,  //   mov esi, kProbeGuestData
    0xb9, 0x20, 0x4e, 0x00, 0x00,  // 2: mov ecx, kSpeedRoundsPerTick
    0x48, 0x8b, 0x06,              // 1: mov rax, [rsi]
    0x48, 0x01, 0xc8,              //   add rax, rcx
    0x48, 0x89, 0x46, 0x08,        //   mov [rsi + 8], rax
    0xff, 0xc9,                    //   dec ecx
    0x75, 0xf2,                    //   jnz 1b
    0xb0, 0x03,                    //   mov al, kTick
    0xe6, 0x10,                    //   out kProbeGuestPort, al
    0xeb, 0xe7,                    //   jmp 2b
};

}  // namespace hk
