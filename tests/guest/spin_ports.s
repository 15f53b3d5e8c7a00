# Does nothing but exits.
.include "guest.inc"
start:
    mov al, 3
1:  out PORT_RESULT, al
    jmp 1b
