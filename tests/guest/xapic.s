# The local APIC by MMIO (a guest without x2APIC, or before it switches): registers, an IPI to itself, the timer; then x2APIC.
.include "guest.inc"
.set APIC, 0xfee00000
.set VECTOR, 0x41
start:
    mov esp, 0x80000
    lidt [rip + idt]
    mov edi, APIC
    xor r15d, r15d
    xor r14d, r14d
    xor r12d, r12d              # in x2APIC mode
    step 1                      # enabled, boot processor, not x2APIC: its MSRs fault
    mov ecx, 0x1b
    rdmsr
    cmp eax, 0xfee00900
    must_equal
    mov ecx, 0x802
    rdmsr
    cmp r14d, 1
    must_equal
    step 2
    cmp dword ptr [rdi + 0x20], 0
    must_equal
    cmp dword ptr [rdi + 0x30], 0x01060014
    must_equal
    mov dword ptr [rdi + 0xf0], 0x1ff
    cmp dword ptr [rdi + 0xf0], 0x1ff
    must_equal
    step 3                      # logical id, flat model
    mov dword ptr [rdi + 0xd0], 0x01000000
    cmp dword ptr [rdi + 0xd0], 0x01000000
    must_equal
    cmp dword ptr [rdi + 0xe0], 0xffffffff
    must_equal
    step 4                      # an IPI to logical id 1
    mov dword ptr [rdi + 0x310], 0x01000000
    mov dword ptr [rdi + 0x300], 0x4800 | VECTOR
    cmp dword ptr [rdi + 0x200 + 0x10 * (VECTOR / 32)], 1 << (VECTOR & 31)
    must_equal
    sti
    wait_for r15d, 1
    cli
    step 5                      # task priority is CR8
    mov dword ptr [rdi + 0x80], 0x30
    mov rax, cr8
    cmp rax, 3
    must_equal
    mov dword ptr [rdi + 0x80], 0
    step 6                      # timer
    mov dword ptr [rdi + 0x3e0], 0xb
    mov dword ptr [rdi + 0x320], VECTOR
    mov dword ptr [rdi + 0x380], 1000000
    sti
    hlt
    cli
    cmp r15d, 2
    must_equal
    step 7                      # a register that is not there is an error
    mov eax, [rdi + 0x10]
    mov dword ptr [rdi + 0x280], 0
    cmp dword ptr [rdi + 0x280], 0x80
    must_equal
    step 8                      # to x2APIC: the page is gone, the registers are the same
    write_msr 0x1b, 0xfee00d00
    mov ecx, 0x80f
    rdmsr
    cmp eax, 0x1ff
    must_equal
    mov eax, [rdi + 0x30]
    cmp eax, -1
    must_equal
    mov r12d, 1
    write_msr 0x83f, VECTOR
    sti
    wait_for r15d, 3
    pass
served:
    end_wait
    push rax
    push rcx
    push rdx
    inc r15d
    cmp r12d, 0
    jne 1f
    mov dword ptr [rdi + 0xb0], 0
    jmp 2f
1:  write_msr APIC_EOI, 0
2:  pop rdx
    pop rcx
    pop rax
    iretq
general_protection:
    skip_msr_access r14d
common_code
idt_with VECTOR, served, general_protection
