# Ports: every size, both directions, strings with a count. The device at 0x20 answers the complement of what was written.
.include "guest.inc"
start:
    mov esp, 0x80000
    step 1                      # one byte, immediate port
    mov al, 0x5a
    out 0x20, al
    in al, 0x20
    cmp al, 0xa5
    must_equal
    step 2                      # two and four bytes, port in DX
    mov dx, 0x20
    mov ax, 0x1234
    out dx, ax
    in ax, dx
    cmp ax, 0xedcb
    must_equal
    mov eax, 0x12345678
    out dx, eax
    in eax, dx
    cmp eax, 0xedcba987
    must_equal
    step 3                      # string out: the device at 0x24 sums the bytes
    lea rsi, [rip + text]
    mov ecx, text_end - text
    mov dx, 0x24
    cld
    rep outsb
    in eax, dx
    cmp eax, 45
    must_equal
    step 4                      # string in: the device at 0x28 counts up, 4 bytes at a time
    mov edi, DATA
    mov ecx, 300                # more than a page of the exit's data at once
    mov dx, 0x28
    rep insd
    cmp dword ptr [DATA], 0
    must_equal
    cmp dword ptr [DATA + 4 * 299], 299
    must_equal
    step 5                      # nobody there: all ones
    mov dx, 0x999
    in al, dx
    cmp al, 0xff
    must_equal
    pass
common_code
text: .byte 1, 2, 3, 4, 5, 6, 7, 8, 9
text_end:
