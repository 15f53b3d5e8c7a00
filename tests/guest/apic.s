# The local APIC's registers and rules in x2APIC mode: reset values, IRR, ISR, priorities, errors, timer, IPIs to itself.
.include "guest.inc"
.set APIC_ID, 0x802
.set APIC_VERSION, 0x803
.set APIC_TPR, 0x808
.set APIC_PPR, 0x80a
.set APIC_LDR, 0x80d
.set APIC_ISR, 0x810
.set APIC_IRR, 0x820
.set APIC_ESR, 0x828
.set APIC_LINT0, 0x835
.set APIC_CURRENT_COUNT, 0x839
.set APIC_DIVIDE, 0x83e
.set APIC_SELF, 0x83f
.set LOW, 0x42                  # three vectors of three priority classes
.set MIDDLE, 0x61
.set HIGH, 0x83

# MSR \msr has \value (32 bits).
.macro must_read msr, value
    mov ecx, \msr
    rdmsr
    cmp eax, \value
    must_equal
.endm

start:
    mov esp, 0x80000
    lidt [rip + idt]
    step 1                      # as after power-up
    must_read APIC_ID, 0
    must_read APIC_VERSION, 0x01060014
    must_read APIC_LDR, 1
    must_read APIC_TIMER, 0x10000
    must_read APIC_LINT0, 0x10000
    must_read APIC_SVR, 0xff
    step 2
    write_msr APIC_SVR, 0x1ff
    must_read APIC_SVR, 0x1ff
    step 3                      # requests wait in the IRR while interrupts are off
    xor r15d, r15d              # interrupts served, one decimal digit each, in order
    write_msr APIC_SELF, LOW
    write_msr APIC_SELF, MIDDLE
    must_read APIC_IRR + LOW / 32, 1 << (LOW & 31)
    must_read APIC_IRR + MIDDLE / 32, 1 << (MIDDLE & 31)
    step 4                      # the higher class first; a still higher one interrupts it; the lower one waits for its end
    sti
    wait_for r15d, 231
    cli
    must_read APIC_PPR, 0
    must_read APIC_IRR + LOW / 32, 0
    step 5                      # the task priority holds a request back
    xor r15d, r15d
    write_msr APIC_TPR, 0x70
    must_read APIC_PPR, 0x70
    write_msr APIC_SELF, LOW
    sti
    mov ebx, 200
1:  mov al, 0
    out PORT_IDLE, al
    dec ebx
    jnz 1b
    cmp r15d, 0
    must_equal
    write_msr APIC_TPR, 0
    wait_for r15d, 1
    cli
    step 6                      # an illegal vector sends nothing and is an error: sent, and received by itself
    write_msr APIC_ICR, 0x40005
    write_msr APIC_ESR, 0
    must_read APIC_ESR, 0x60
    write_msr APIC_ESR, 0
    must_read APIC_ESR, 0
    step 7                      # reserved bits, read-only and write-only registers, what is not there: #GP
    xor r14d, r14d
    write_msr APIC_SVR, 0x80000000
    write_msr APIC_EOI, 1
    write_msr APIC_ID, 0
    mov ecx, APIC_EOI
    rdmsr
    mov ecx, 0x80e              # no destination format register here
    rdmsr
    cmp r14d, 5
    must_equal
    must_read APIC_SVR, 0x1ff
    step 8                      # one-shot timer: counts down, ends once
    xor r15d, r15d
    write_msr APIC_DIVIDE, 0xb
    write_msr APIC_TIMER, LOW
    write_msr APIC_INITIAL_COUNT, 50000000
    mov ecx, APIC_CURRENT_COUNT
    rdmsr
    test eax, eax
    je fail
    cmp eax, 50000000
    ja fail
    write_msr APIC_INITIAL_COUNT, 2000000
    sti
    hlt
    cli
    cmp r15d, 1
    must_equal
    must_read APIC_CURRENT_COUNT, 0
    step 9                      # periodic timer: again and again, until it is stopped
    xor r15d, r15d
    write_msr APIC_TIMER, 0x20000 | LOW
    write_msr APIC_INITIAL_COUNT, 1000000
2:  sti
    hlt
    cli
    cmp r15d, 1111
    jb 2b
    write_msr APIC_INITIAL_COUNT, 0
    write_msr APIC_TIMER, 0x10000
    sti                         # one that was on its way
    mov al, 0
    out PORT_IDLE, al
    cli
    step 10                     # to itself by its logical id, and by both shorthands that include it
    xor r15d, r15d
    mov ecx, APIC_ICR
    mov eax, 0x800 | LOW
    mov edx, 1
    wrmsr
    sti
    wait_for r15d, 1
    write_msr APIC_ICR, 0x40000 | LOW
    wait_for r15d, 11
    write_msr APIC_ICR, 0x80000 | LOW
    wait_for r15d, 111
    write_msr APIC_ICR, 0xc0000 | LOW   # all but itself: nobody
    mov al, 0
    out PORT_IDLE, al
    cmp r15d, 111
    must_equal
    pass

# Appends digit \digit to r15d.
.macro served digit
    imul r15d, r15d, 10
    add r15d, \digit
.endm
.macro enter_handler
    push rax
    push rbx
    push rcx
    push rdx
.endm
.macro leave_handler
    write_msr APIC_EOI, 0
    pop rdx
    pop rcx
    pop rbx
    pop rax
    iretq
.endm
low:
    end_wait
    enter_handler
    served 1
    leave_handler
middle:
    enter_handler
    served 2
    must_read APIC_ISR + MIDDLE / 32, 1 << (MIDDLE & 31)
    must_read APIC_PPR, MIDDLE & 0xf0
    sti
    write_msr APIC_SELF, HIGH
    wait_for r15d, 23
    cli
    leave_handler
high:
    enter_handler
    served 3
    must_read APIC_PPR, HIGH & 0xf0
    leave_handler
general_protection:
    skip_msr_access r14d
common_code
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
    .rept MIDDLE - LOW - 1
    no_gate
    .endr
    gate middle
    .rept HIGH - MIDDLE - 1
    no_gate
    .endr
    gate high
gates_end:
idt: .word gates_end - gates - 1
    .quad gates
