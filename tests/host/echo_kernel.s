# The smallest kernel an operator's tests need, with a PVH entry: says hello on the serial line, then echoes what is typed.
# Some keys are orders: P powers off, R resets, T ends in a triple fault, N reports a panic by pvpanic, L writes 8192 lines of
# 64 bytes, F fills 40 MiB of memory with what differs from page to page and from fill to fill, C checks that all of it is
# there; Ctrl-C shows as ^C. Runs on any /dev/kvm, also one that only interprets.
.intel_syntax noprefix
.code32

.set SERIAL, 0x3f8
.set LINE_STATUS, 0x3fd
.set SLEEP_CONTROL, 0x600
.set RESET, 0xcf9
.set PVPANIC, 0x505
.set FILLED, 0x800000
.set FILLED_END, FILLED + (40 << 20)

.section .note.Xen, "a", @note
    .long 4, 4, 18              # sizes of name and descriptor; XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long start

.text
.global start
start:
    lea esi, hello
    call print
next:
    mov dx, LINE_STATUS
    in al, dx
    test al, 1
    jz next
    mov dx, SERIAL
    in al, dx
    cmp al, 'P'
    je power_off
    cmp al, 'R'
    je reset
    cmp al, 'T'
    je triple_fault
    cmp al, 'N'
    je panic
    cmp al, 'L'
    je lines
    cmp al, 'F'
    je fill
    cmp al, 'C'
    je check
    cmp al, 3
    je control_c
    out dx, al
    cmp al, 13
    jne next
    mov al, 10
    out dx, al
    jmp next

power_off:
    mov dx, SLEEP_CONTROL
    mov al, 0x20 | 5 << 2       # SLP_EN, S5
    out dx, al
    jmp halt
reset:
    mov dx, RESET
    mov al, 6
    out dx, al
    jmp halt
panic:
    mov dx, PVPANIC
    mov al, 1
    out dx, al
    jmp halt
triple_fault:
    lidt no_table
    int3
halt:
    hlt
    jmp halt
control_c:
    lea esi, interrupted
    call print
    jmp next
lines:
    mov ebx, 8192
1:  lea esi, line
    call print
    dec ebx
    jnz 1b
    lea esi, lines_end
    call print
    jmp next

# The first and last word of each page.
fill:
    inc dword ptr [fills]
    mov edi, FILLED
1:  mov eax, edi
    add eax, [fills]
    mov [edi], eax
    mov [edi + 4092], eax
    add edi, 4096
    cmp edi, FILLED_END
    jb 1b
    lea esi, filled
    call print
    jmp next
check:
    mov edi, FILLED
1:  mov eax, edi
    add eax, [fills]
    cmp [edi], eax
    jne wrong
    cmp [edi + 4092], eax
    jne wrong
    add edi, 4096
    cmp edi, FILLED_END
    jb 1b
    lea esi, checked
    call print
    jmp next
wrong:
    lea esi, wrong_page
    call print
    jmp next

# Writes the text at esi, up to its zero. Changes al, edx, esi.
print:
    mov edx, SERIAL
1:  lodsb
    test al, al
    jz 2f
    out dx, al
    jmp 1b
2:  ret

hello: .asciz "hello from the guest\r\n"
interrupted: .asciz "^C\r\n"
line: .asciz "a line of sixty-four bytes, a line of sixty-four bytes, a line\r\n"
lines_end: .asciz "end of lines\r\n"
filled: .asciz "filled\r\n"
checked: .asciz "checked\r\n"
wrong_page: .asciz "a page is wrong\r\n"
.balign 4
fills: .long 0
no_table: .fill 6
