# Writes of every width to 0xd0000004, which the host has made a doorbell: they do not reach the device behind it. Its
# neighbours do.
.include "guest.inc"
start:
    mov esp, 0x80000
    mov ebx, 0xd0000000         # a device that remembers 16 bytes
    step 1
    mov byte ptr [rbx + 4], 0x11
    mov word ptr [rbx + 4], 0x2233
    mov dword ptr [rbx + 4], 0x44556677
    cmp dword ptr [rbx + 4], 0
    must_equal
    step 2
    mov dword ptr [rbx], 0x01020304
    cmp dword ptr [rbx], 0x01020304
    must_equal
    step 3
    mov dword ptr [rbx + 8], 0x05060708
    cmp dword ptr [rbx + 8], 0x05060708
    must_equal
    pass
common_code
