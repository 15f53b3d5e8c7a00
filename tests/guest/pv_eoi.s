# Interrupts that are ended by a bit in memory instead of the EOI register, and those that must not be.
.include "guest.inc"
.set KVM_EOI, 0x4b564d04
.set APIC_PPR, 0x80a
.set APIC_SELF, 0x83f
.set LOW, 0x42
.set HIGH, 0x83
.set EOI_FLAG, DATA
.set ROUNDS, 200

start:
    mov esp, 0x80000
    lidt [rip + idt]
    write_msr APIC_SVR, 0x1ff
    xor r12d, r12d              # interrupts that ended by the bit alone
    xor r13d, r13d              # ... by the register
    xor r14d, r14d              # faults
    xor r15d, r15d              # interrupts served, one decimal digit each, in order
    step 1                      # a reserved bit, and memory that is not there: #GP, and nothing is enabled
    write_msr KVM_EOI, EOI_FLAG | 3
    mov ecx, KVM_EOI
    mov eax, 1
    mov edx, 0x100
    wrmsr
    cmp r14d, 2
    must_equal
    mov ecx, KVM_EOI
    rdmsr
    or eax, edx
    must_equal
    step 2                      # not enabled: the word is not touched
    mov dword ptr [EOI_FLAG], 0
    call one_low
    cmp r12d, 0
    must_equal
    step 3                      # enabled: interrupts end without the register, and other bits of the word stay
    write_msr KVM_EOI, EOI_FLAG | 1
    mov dword ptr [EOI_FLAG], 0xfffffff0
    mov r9d, ROUNDS
1:  call one_low
    dec r9d
    jnz 1b
    cmp r12d, ROUNDS / 2
    jb fail
    cmp dword ptr [EOI_FLAG], 0xfffffff0
    must_equal
    mov ecx, APIC_PPR
    rdmsr
    cmp eax, 0
    must_equal
    step 4                      # one more waits behind it: the register, or it would wait for ever
    xor r12d, r12d
    xor r13d, r13d
    xor r15d, r15d
    cli
    write_msr APIC_SELF, LOW
    write_msr APIC_SELF, HIGH
    sti
    wait_for r15d, 31
    cmp r13d, 0
    je fail
    step 5                      # one that comes during the service, while the bit is set
    xor r15d, r15d
    mov byte ptr [nested], 1
    write_msr APIC_SELF, HIGH
    wait_for r15d, 31
    step 6                      # disabled again
    write_msr KVM_EOI, 0
    mov dword ptr [EOI_FLAG], 0
    xor r12d, r12d
    call one_low
    cmp r12d, 0
    must_equal
    pass

# Sends LOW to itself and waits for its end.
one_low:
    xor r15d, r15d
    cli
    write_msr APIC_SELF, LOW
    sti
    wait_for r15d, 1
    ret

.macro enter_handler
    push rax
    push rbx
    push rcx
    push rdx
.endm
.macro leave_handler digit
    btr dword ptr [EOI_FLAG], 0
    jnc 881f
    inc r12d
    jmp 882f
881: write_msr APIC_EOI, 0
    inc r13d
882: imul r15d, r15d, 10
    add r15d, \digit
    pop rdx
    pop rcx
    pop rbx
    pop rax
    iretq
.endm
low:
    enter_handler
    leave_handler 1
high:
    enter_handler
    cmp byte ptr [nested], 0
    je 1f
    mov byte ptr [nested], 0
    write_msr APIC_SELF, LOW
1:  leave_handler 3
general_protection:
    skip_msr_access r14d
common_code
nested: .byte 0
    .balign 16
gates:
    .rept 13
    no_gate
    .endr
    gate general_protection
    .rept LOW - 14
    no_gate
    .endr
    gate low
    .rept HIGH - LOW - 1
    no_gate
    .endr
    gate high
gates_end:
idt: .word gates_end - gates - 1
    .quad gates
