# Halts for good, interrupts off.
.include "guest.inc"
start:
    mov al, 3
    out PORT_RESULT, al
    cli
1:  hlt
    jmp 1b
