# Never exits.
.include "guest.inc"
start:
    jmp start
