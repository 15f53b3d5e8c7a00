# As ipi.s, without INIT (the second vCPU waits for SIPI from the beginning) and for ever. A tick each round.
.set STEADY, 1
.include "ipi.s"
