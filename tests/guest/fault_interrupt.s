# Interrupts that come while an exit is open which ends in an exception: both arrive, again and again.
.include "guest.inc"
.set APIC_LVT_TIMER, 0x832
.set APIC_TIMER_INITIAL, 0x838
.set APIC_TIMER_DIVIDE, 0x83e
.set FAULTS, 0x8ff
.set PERIODIC, 0x20000
.set PERIOD, 200000                 # of bus clocks of 1 ns
.set VECTOR, 0x42
.set INTERRUPTS, 200

start:
    mov esp, 0x80000
    lidt [rip + idt]
    write_msr APIC_SVR, 0x1ff
    xor r13d, r13d              # interrupts
    xor r14d, r14d              # faults
    write_msr APIC_LVT_TIMER, VECTOR | PERIODIC
    write_msr APIC_TIMER_DIVIDE, 0xb
    sti
    step 1                      # almost all of the time is spent in exits that fault, so most interrupts come in one
    write_msr APIC_TIMER_INITIAL, PERIOD
    mov r15d, 2000000
1:  mov ecx, FAULTS
    rdmsr
    cmp r13d, INTERRUPTS
    jae 2f
    dec r15d
    jnz 1b
    jmp fail
2:  pass

interrupt:
    push rax
    push rcx
    push rdx
    inc r13d
    write_msr APIC_EOI, 0
    pop rdx
    pop rcx
    pop rax
    iretq
general_protection:
    skip_msr_access r14d
common_code
idt_with VECTOR, interrupt, general_protection
