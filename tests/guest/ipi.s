# Two vCPUs: INIT, SIPI, then 300 interrupts there and back. The second one stays in real mode.
.include "guest.inc"
.set VECTOR, 0x41
.set READY, 0x70000             # the second vCPU is up
.set SEEN, 0x70004              # interrupts that it took
.set ROUNDS, 300
start:
    mov esp, 0x80000
    lidt [rip + idt]
    write_msr APIC_SVR, 0x1ff
    mov dword ptr [READY], 0
    mov dword ptr [SEEN], 0
    step 1                      # INIT to APIC id 1, then SIPI to 0x9000
.ifndef STEADY
    mov ecx, APIC_ICR
    mov eax, 0x4500
    mov edx, 1
    wrmsr
.endif
    mov ecx, APIC_ICR
    mov eax, 0x4609
    mov edx, 1
    wrmsr
1:  cmp dword ptr [READY], 1
    jne 1b
    step 2
    xor r15d, r15d
    xor r14d, r14d
2:  mov ecx, APIC_ICR           # fixed, to APIC id 1
    mov eax, 0x4000 | VECTOR
    mov edx, 1
    wrmsr
    inc r14d
3:  cli
    cmp r15d, r14d
    je 4f
    sti
    hlt
    jmp 3b
4:  cmp dword ptr [SEEN], r14d
    must_equal
.ifdef STEADY
    mov al, 3
    out PORT_RESULT, al
    jmp 2b
.else
    cmp r14d, ROUNDS
    jne 2b
    pass
.endif
answered:
    end_wait
    count_interrupt r15d
common_code
    idt_with VECTOR, answered

    .org 0x1000                 # 0x9000: where SIPI with vector 9 starts
    .code16
second:
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov sp, 0x7000
    mov word ptr [VECTOR * 4], offset second_interrupt - 0x9000
    mov word ptr [VECTOR * 4 + 2], 0x900
    mov ecx, APIC_SVR
    mov eax, 0x1ff
    xor edx, edx
    wrmsr
    mov ax, 0x7000
    mov ds, ax
    mov dword ptr [0], 1        # READY
5:  sti
    hlt
    jmp 5b
second_interrupt:
    inc dword ptr [4]           # SEEN
    mov ecx, APIC_EOI
    xor eax, eax
    xor edx, edx
    wrmsr
    mov ecx, APIC_ICR
    mov eax, 0x4000 | VECTOR    # back to APIC id 0
    wrmsr
    iret
