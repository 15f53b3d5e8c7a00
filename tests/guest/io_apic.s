# The I/O APIC and MSIs: edge and level, mask, remote IRR, EOI by broadcast and by register. Pins are driven by the test's board:
# port 0x30, bit 7 the level, bits 6:0 the pin. Port 0x34 sends an MSI to APIC id 0 with the data written.
.include "guest.inc"
.set IO_APIC, 0xfec00000
.set PORT_LINE, 0x30
.set PORT_MSI, 0x34
.set EDGE_PIN, 4
.set LEVEL_PIN, 10
.set EDGE, 0x50
.set LEVEL, 0x51
.set MESSAGE, 0x62
.set MASKED, 0x10000
.set LEVEL_TRIGGERED, 0x8000
.set REMOTE_IRR, 0x4000

.macro entry_low pin, value
    mov dword ptr [rdi], 0x10 + 2 * \pin
    mov dword ptr [rdi + 0x10], \value
.endm
.macro line pin, level
    mov al, \pin | \level << 7
    out PORT_LINE, al
.endm
.macro settle                   # whatever is on its way arrives
    .rept 4
    mov al, 0
    out PORT_IDLE, al
    .endr
.endm

start:
    mov esp, 0x80000
    lidt [rip + idt]
    mov edi, IO_APIC
    xor r12d, r12d              # edges, levels, messages served
    xor r13d, r13d
    xor r14d, r14d
    xor r11d, r11d              # deliveries of the level after which the handler lowers the line; 0: never
    step 1                      # version: 24 pins, with EOI register; all masked
    mov dword ptr [rdi], 1
    mov eax, [rdi + 0x10]
    cmp eax, 0x00170020
    must_equal
    mov dword ptr [rdi], 0x10
    mov eax, [rdi + 0x10]
    cmp eax, MASKED
    must_equal
    write_msr APIC_SVR, 0x1ff
    sti
    step 2                      # an edge is one interrupt, as long as the line stays up
    entry_low EDGE_PIN, EDGE
    line EDGE_PIN, 1
    wait_for r12d, 1
    settle
    line EDGE_PIN, 0
    line EDGE_PIN, 1
    wait_for r12d, 2
    line EDGE_PIN, 0
    step 3                      # an edge on a masked pin is lost
    entry_low EDGE_PIN, MASKED | EDGE
    line EDGE_PIN, 1
    entry_low EDGE_PIN, EDGE
    settle
    cmp r12d, 2
    must_equal
    line EDGE_PIN, 0
    step 4                      # a level comes again after each EOI while it is up
    mov r11d, 3
    entry_low LEVEL_PIN, LEVEL_TRIGGERED | LEVEL
    line LEVEL_PIN, 1
    wait_for r13d, 3
    settle
    cmp r13d, 3
    must_equal
    mov eax, [rdi + 0x10]       # no remote IRR is left
    cmp eax, LEVEL_TRIGGERED | LEVEL
    must_equal
    step 5                      # a level on a masked pin waits
    entry_low LEVEL_PIN, MASKED | LEVEL_TRIGGERED | LEVEL
    mov r11d, 4
    line LEVEL_PIN, 1
    settle
    cmp r13d, 3
    must_equal
    entry_low LEVEL_PIN, LEVEL_TRIGGERED | LEVEL
    wait_for r13d, 4
    step 6                      # without EOI broadcast the pin waits for the EOI register
    write_msr APIC_SVR, 0x11ff
    mov r11d, 0
    line LEVEL_PIN, 1
    wait_for r13d, 5
    settle
    cmp r13d, 5
    must_equal
    mov dword ptr [rdi], 0x10 + 2 * LEVEL_PIN
    mov eax, [rdi + 0x10]
    cmp eax, REMOTE_IRR | LEVEL_TRIGGERED | LEVEL
    must_equal
    mov r11d, 6
    mov dword ptr [rdi + 0x40], LEVEL
    wait_for r13d, 6
    mov dword ptr [rdi + 0x40], LEVEL
    mov eax, [rdi + 0x10]
    cmp eax, LEVEL_TRIGGERED | LEVEL
    must_equal
    write_msr APIC_SVR, 0x1ff
    step 7                      # messages
    mov eax, MESSAGE
    mov edx, PORT_MSI
    out dx, eax
    wait_for r14d, 1
    mov eax, MESSAGE | 0x300    # reserved delivery mode: nothing
    mov edx, PORT_MSI
    out dx, eax
    settle
    cmp r14d, 1
    must_equal
    pass

.macro handler name, count
\name:
    inc \count
    push rax
    push rcx
    push rdx
    .ifc \name, level
    cmp r13d, r11d
    jne 1f
    line LEVEL_PIN, 0
1:
    .endif
    write_msr APIC_EOI, 0
    pop rdx
    pop rcx
    pop rax
    iretq
.endm
handler edge, r12d
handler level, r13d
handler message, r14d
common_code
    .balign 16
gates:
    .rept EDGE
    no_gate
    .endr
    gate edge
    gate level
    .rept MESSAGE - LEVEL - 1
    no_gate
    .endr
    gate message
gates_end:
idt: .word gates_end - gates - 1
    .quad gates
