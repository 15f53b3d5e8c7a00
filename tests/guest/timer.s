# HLT, woken by the APIC timer, 10 times; then an interrupt that is masked by CR8 until it is lowered.
.include "guest.inc"
.set VECTOR, 0x40
start:
    mov esp, 0x80000
    lidt [rip + idt]
    write_msr APIC_SVR, 0x1ff
    write_msr APIC_TIMER, VECTOR
    xor r15d, r15d
    mov r14d, 10
1:  step 1
    mov r13d, r15d
    write_msr APIC_INITIAL_COUNT, 1000000
    sti
    hlt                         # ends after the interrupt, not before
    cli
    inc r13d
    cmp r15d, r13d
    must_equal
    dec r14d
    jnz 1b
    step 2                      # a self-IPI below the task priority stays pending
    mov eax, 5
    mov cr8, rax
    sti
    write_msr 0x83f, VECTOR
    mov ecx, 100000
2:  dec ecx
    jnz 2b
    cmp r15d, 10
    must_equal
    step 3                      # and comes when it is lowered (an emulated MOV CR8 does not exit: at the next exit then)
    xor eax, eax
    mov cr8, rax
    step 3
    mov ecx, 1000000            # an interpreter is not exact to the instruction
4:  cmp r15d, 11
    je 5f
    dec ecx
    jnz 4b
5:
    cmp r15d, 11
    must_equal
    step 4                      # with IF clear it waits for STI
    cli
    write_msr 0x83f, VECTOR
    mov ecx, 1000
3:  dec ecx
    jnz 3b
    cmp r15d, 11
    must_equal
    sti
    mov ecx, 1000000
6:  cmp r15d, 12
    je 7f
    dec ecx
    jnz 6b
7:  cmp r15d, 12
    must_equal
    pass
timer:
    end_wait
    count_interrupt r15d
common_code
    idt_with VECTOR, timer
