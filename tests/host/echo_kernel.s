# The smallest kernel an operator's tests need, with a PVH entry: says hello on the serial line, then echoes what is typed.
# Some keys are orders: P powers off, R resets, T ends in a triple fault, N reports a panic by pvpanic, L writes 8192 lines of
# 64 bytes, F fills 40 MiB of memory with what differs from page to page and from fill to fill, C checks that all of it is
# there; M has all vCPUs count together under a spin lock, after each was started and then woken by an interrupt, and each
# says its digit on the serial line; I has them count in rounds, each begun by an interrupt to all others, until a key is typed,
# and checks that nobody missed one or had one twice; Ctrl-C shows as ^C. Runs on any /dev/kvm, also one that only interprets.
.intel_syntax noprefix
.code32

.set SERIAL, 0x3f8
.set LINE_STATUS, 0x3fd
.set SLEEP_CONTROL, 0x600
.set RESET, 0xcf9
.set PVPANIC, 0x505
.set FILLED, 0x800000
.set FILLED_END, FILLED + (40 << 20)
# What the vCPUs have in common: at 64 KiB boundaries, since all but the first are in real mode.
.set SHARED, 0x70000
.set READY, 0                   # vCPUs that have started
.set WOKEN, 4                   # that took the interrupt
.set DONE, 8
.set ANSWERS, 12                # of all to all rounds
.set LOCK, 16
.set COUNT, 32
.set ROUND, 48
.set LAST_TSC, 56
.set COUNT_TOO, 0x1000          # on another page
.set SEEN, 0x1100               # rounds, by vCPU
.set SHARED_END, 0x1500
.set TRAMPOLINE, 0x9000
.set WAKE_VECTOR, 0x41
.set ROUND_VECTOR, 0x42
.set ROUNDS, 500
.set X2APIC_ID, 0x802
.set X2APIC_EOI, 0x80b
.set X2APIC_SVR, 0x80f
.set X2APIC_ICR, 0x830
.set ALL_BUT_SELF, 3 << 18

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
    cmp al, 'M'
    je together
    cmp al, 'I'
    je in_rounds
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

# Starts the others. Then ebx is SHARED, ebp how many vCPUs there are, edi how many others.
start_others:
    mov ecx, X2APIC_SVR
    mov eax, 0x1ff
    xor edx, edx
    wrmsr
    lea esi, other
    mov edi, TRAMPOLINE
    mov ecx, other_end - other
    rep movsb
    mov edi, SHARED
    mov ecx, SHARED_END / 4
    xor eax, eax
    rep stosd
    mov eax, 0xb                # how many there are
    mov ecx, 1
    cpuid
    mov ebp, ebx
    mov ebx, SHARED
    mov eax, ALL_BUT_SELF | 0x4500
    call send
    mov eax, ALL_BUT_SELF | 0x4600 | TRAMPOLINE >> 12
    call send
    lea edi, [ebp - 1]
1:  pause
    cmp [ebx + READY], edi
    jne 1b
    ret

# Wakes them, and counts with them.
together:
    call start_others
    mov eax, ALL_BUT_SELF | 0x4000 | WAKE_VECTOR
    call send
1:  pause
    cmp [ebx + WOKEN], edi
    jne 1b
    mov ecx, ROUNDS
2:  mov eax, 1
    xchg eax, [ebx + LOCK]
    test eax, eax
    jz 3f
    pause
    jmp 2b
3:  inc dword ptr [ebx + COUNT]
    inc dword ptr [ebx + COUNT_TOO]
    mov dword ptr [ebx + LOCK], 0
    dec ecx
    jnz 2b
1:  pause
    cmp [ebx + DONE], edi
    jne 1b
    imul eax, ebp, ROUNDS
    cmp [ebx + COUNT], eax
    jne wrong
    cmp [ebx + COUNT_TOO], eax
    jne wrong
    lea esi, counted
    call print
    jmp next

# A round is over when all have answered; time does not go back from one to the next.
in_rounds:
    call start_others
    lea esi, rounds_begin
    call print
1:  inc dword ptr [ebx + ROUND]
    mov eax, ALL_BUT_SELF | 0x4000 | ROUND_VECTOR
    call send
2:  mov eax, 1
    xchg eax, [ebx + LOCK]
    test eax, eax
    jz 3f
    pause
    jmp 2b
3:  inc dword ptr [ebx + COUNT]
    inc dword ptr [ebx + COUNT_TOO]
    mov dword ptr [ebx + LOCK], 0
    mov eax, [ebx + ROUND]
    imul eax, edi
4:  pause
    cmp [ebx + ANSWERS], eax
    jne 4b
    rdtsc
    cmp edx, [ebx + LAST_TSC + 4]
    jb wrong
    ja 5f
    cmp eax, [ebx + LAST_TSC]
    jb wrong
5:  mov [ebx + LAST_TSC], eax
    mov [ebx + LAST_TSC + 4], edx
    mov dx, LINE_STATUS
    in al, dx
    test al, 1
    jz 1b
    mov dx, SERIAL
    in al, dx
    mov eax, [ebx + ROUND]
6:  cmp [ebx + SEEN + 4 * edi], eax
    jne wrong
    dec edi
    jnz 6b
    imul eax, ebp
    cmp [ebx + COUNT], eax
    jne wrong
    cmp [ebx + COUNT_TOO], eax
    jne wrong
    lea esi, rounds_end
    call print
    jmp next
send:
    mov ecx, X2APIC_ICR
    xor edx, edx
    wrmsr
    ret

# Of the others, moved to TRAMPOLINE.
.code16
other:
    cli
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov word ptr [WAKE_VECTOR * 4], offset other_interrupt - other
    mov word ptr [WAKE_VECTOR * 4 + 2], TRAMPOLINE >> 4
    mov word ptr [ROUND_VECTOR * 4], offset other_round - other
    mov word ptr [ROUND_VECTOR * 4 + 2], TRAMPOLINE >> 4
    mov ecx, X2APIC_SVR
    mov eax, 0x1ff
    xor edx, edx
    wrmsr
    mov ecx, X2APIC_ID          # each its own stack
    rdmsr
    movzx edi, ax
    shl ax, 7
    add ax, 0x1080
    mov sp, ax
    mov ax, SHARED >> 4
    mov ds, ax
    lock inc dword ptr [READY]
    sti
1:  hlt                         # until the wake-up, which does not come back
    jmp 1b
other_round:
2:  mov eax, 1
    xchg eax, [LOCK]
    test eax, eax
    jz 3f
    pause
    jmp 2b
3:  inc dword ptr [COUNT]
    inc dword ptr [COUNT_TOO]
    inc dword ptr [SEEN + 4 * edi]
    mov dword ptr [LOCK], 0
    mov ecx, X2APIC_EOI
    xor eax, eax
    xor edx, edx
    wrmsr
    lock inc dword ptr [ANSWERS]
    iret
other_interrupt:
    lock inc dword ptr [WOKEN]
    mov ecx, X2APIC_EOI
    xor eax, eax
    xor edx, edx
    wrmsr
    mov ecx, ROUNDS
2:  mov eax, 1
    xchg eax, [LOCK]
    test eax, eax
    jz 3f
    pause
    jmp 2b
3:  inc dword ptr [COUNT]
    inc dword ptr [COUNT_TOO]
    mov dword ptr [LOCK], 0
    dec ecx
    jnz 2b
    mov ax, di
    add al, '0'
    mov dx, SERIAL
    out dx, al
    lock inc dword ptr [DONE]
    cli
4:  hlt                         # until the next INIT
    jmp 4b
other_end:
.code32

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
counted: .asciz " counted together\r\n"
rounds_begin: .asciz "in rounds\r\n"
rounds_end: .asciz "all rounds answered\r\n"
wrong_page: .asciz "a page is wrong\r\n"
.balign 4
fills: .long 0
no_table: .fill 6
