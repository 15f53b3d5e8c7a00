# MMIO: every size, both directions; read-modify-write; the local APIC's page goes to the APIC.
.include "guest.inc"
start:
    mov esp, 0x80000
    mov ebx, 0xd0000000         # a device that remembers 16 bytes
    step 1
    mov byte ptr [rbx], 0x11
    mov word ptr [rbx + 2], 0x2233
    mov dword ptr [rbx + 4], 0x44556677
    mov rax, 0x8899aabbccddeeff
    mov [rbx + 8], rax
    cmp byte ptr [rbx], 0x11
    must_equal
    cmp word ptr [rbx + 2], 0x2233
    must_equal
    step 2
    cmp dword ptr [rbx + 4], 0x44556677
    must_equal
    cmp [rbx + 8], rax
    must_equal
    step 3                      # read and write in one instruction
    add dword ptr [rbx + 4], 1
    cmp dword ptr [rbx + 4], 0x44556678
    must_equal
    step 4                      # MMIO to RAM and back, as a string
    mov rsi, rbx
    mov edi, DATA
    mov ecx, 4
    cld
    rep movsd
    mov rax, [DATA + 8]
    cmp [rbx + 8], rax
    must_equal
    step 5                      # APIC id register (the fake APIC answers 0x600d)
    mov ebx, 0xfee00000
    mov eax, [rbx + 0x20]
    cmp eax, 0x600d
    must_equal
    step 6                      # undefined access: zero
    mov eax, [rbx + 0x24]
    cmp eax, 0
    must_equal
    step 7                      # a write that is read back
    mov dword ptr [rbx + 0x80], 0x70
    mov eax, [rbx + 0x80]
    cmp eax, 0x70
    must_equal
    pass
common_code
