# No interrupt table and an access to nothing.
.include "guest.inc"
start:
    lidt [rip + nothing]
    mov eax, [0x40000000]
    hlt
nothing: .word 0
    .quad 0
