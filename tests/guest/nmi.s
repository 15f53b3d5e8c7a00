# NMI: taken with interrupts off, and wakes HLT.
.include "guest.inc"
start:
    mov esp, 0x80000
    lidt [rip + idt]
    xor r15d, r15d
    xor r14d, r14d
    step 1                      # to ourselves; the next exit delivers it at the latest
    mov ecx, APIC_ICR
    mov eax, 0x4400
    xor edx, edx
    wrmsr
    step 1
    mov ecx, 1000000
1:  cmp r15d, 1
    je 2f
    dec ecx
    jnz 1b
2:  cmp r15d, 1
    must_equal
    step 2                      # asleep with interrupts off: the test sends one then
    mov al, 3
    out PORT_RESULT, al
3:  hlt
    cmp r15d, 2
    must_equal
    pass
nmi:
    inc r15d
    iretq
common_code
    .balign 16
gates:
    no_gate
    no_gate
    gate nmi
gates_end:
idt: .word gates_end - gates - 1
    .quad gates
