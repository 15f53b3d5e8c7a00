# An interrupt that waits while STI's shadow lies over HLT comes after the HLT. The test puts the vCPU on the HLT, whose address is
# in RBX, with interrupts on, the shadow and an interrupt; R15 counts interrupts, R14 those that came too early.
.include "guest.inc"
.set VECTOR, 0x40
start:
    mov esp, 0x80000
    lidt [rip + idt]
    xor r15d, r15d
    xor r14d, r14d
    lea rbx, [rip + asleep]
    mov al, 3
    out PORT_RESULT, al
1:  jmp 1b                      # interrupts off
asleep:
    hlt
    cli
    step 1
    cmp r15d, 1
    must_equal
    step 2
    cmp r14d, 0
    must_equal
    pass
served:
    cmp [rsp], rbx
    jne 2f
    inc r14d
    inc qword ptr [rsp]         # past the HLT: there is no second interrupt to end it
2:  count_interrupt r15d
common_code
    idt_with VECTOR, served
