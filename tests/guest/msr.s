# MSRs: x2APIC registers and APIC_BASE go to the APIC, CR8 is its task priority, unknown MSRs fault, kvmclock writes pages.
.include "guest.inc"
start:
    mov esp, 0x80000
    lidt [rip + idt]
    step 1                      # x2APIC id
    mov ecx, 0x802
    rdmsr
    cmp eax, 0
    must_equal
    step 2                      # APIC_BASE: at its place, enabled, x2APIC, boot processor
    mov ecx, 0x1b
    rdmsr
    cmp eax, 0xfee00d00
    must_equal
    step 3                      # task priority: MSR to CR8
    write_msr 0x808, 0x50
    mov rax, cr8
    cmp rax, 5
    must_equal
    step 4                      # CR8 to MSR, up and down
    mov eax, 9
    mov cr8, rax
    mov ecx, 0x808
    rdmsr
    cmp eax, 0x90
    must_equal
    mov eax, 0
    mov cr8, rax
    mov ecx, 0x808
    rdmsr
    cmp eax, 0
    must_equal
    step 5                      # no such register: #GP, for reads and writes
    xor r15d, r15d
    mov ecx, 0xdead
    rdmsr
    cmp r15d, 1
    must_equal
    mov ecx, 0x8fe              # a reserved x2APIC register
    wrmsr
    cmp r15d, 2
    must_equal
    step 6                      # PV features that nobody offers would let KVM write memory: #GP
    mov ecx, 0x4b564d03
    mov eax, DATA | 1
    xor edx, edx
    wrmsr
    cmp r15d, 3
    must_equal
    mov ecx, 0x12               # the old kvmclock
    wrmsr
    cmp r15d, 4
    must_equal
    step 7                      # kvmclock: the page is there when WRMSR is done
    write_msr 0x4b564d01, DATA | 1
    cmp r15d, 4
    must_equal
    mov eax, [DATA]             # version: even, not zero
    test al, 1
    must_equal
    test eax, eax
    je fail
    cmp byte ptr [DATA + 29], 1 # stable
    must_equal
    mov ecx, 0x4b564d01
    rdmsr
    cmp eax, DATA | 1
    must_equal
    step 8                      # wall clock: 1234567890 s
    write_msr 0x4b564d00, DATA + 64
    cmp dword ptr [DATA + 68], 1234567890
    must_equal
    step 9                      # a clock page outside RAM: #GP
    mov ecx, 0x4b564d01
    mov eax, 0xd0000001
    xor edx, edx
    wrmsr
    cmp r15d, 5
    must_equal
    pass
general_protection:
    skip_msr_access r15d
common_code
    idt_with 13, general_protection
