# For ever: sets the timer, halts until it comes, and looks whether time went on. A timer that is lost is a halt for ever; a wake-up
# that is none, a TSC that goes back or a kvmclock page that changes is a failure. A tick each round.
.include "guest.inc"
.set VECTOR, 0x40
.set CLOCK, DATA
start:
    mov esp, 0x80000
    lidt [rip + idt]
    write_msr APIC_SVR, 0x1ff
    write_msr APIC_TIMER, VECTOR
    write_msr 0x83e, 0xb        # undivided: 1 ns
    write_msr 0x4b564d01, CLOCK | 1
    mov r12d, [CLOCK]           # version
    mov r11, [CLOCK + 8]        # TSC at ...
    mov r10, [CLOCK + 16]       # ... this time
    xor r15d, r15d
    xor r8d, r8d
1:  step 1                      # the halt ends after its interrupt, and only then
    mov r13d, r15d
    write_msr APIC_INITIAL_COUNT, 300000
    sti
    hlt
    cli
    inc r13d
    cmp r15d, r13d
    must_equal
    step 2                      # time
    rdtsc
    shl rdx, 32
    or rax, rdx
    cmp rax, r8
    jb fail
    mov r8, rax
    step 3                      # kvmclock
    cmp [CLOCK], r12d
    must_equal
    cmp [CLOCK + 8], r11
    must_equal
    cmp [CLOCK + 16], r10
    must_equal
    step 4                      # the MSR is still there
    mov ecx, 0x4b564d01
    rdmsr
    cmp eax, CLOCK | 1
    must_equal
    mov al, 3
    out PORT_RESULT, al
    jmp 1b
timer:
    end_wait
    count_interrupt r15d
common_code
    idt_with VECTOR, timer
