# The smallest kernel an operator's tests need, with a PVH entry: says hello on the serial line, then echoes what is typed.
# Some keys are orders: P powers off, R resets, T ends in a triple fault, N reports a panic by pvpanic, L writes 8192 lines of
# 64 bytes, F fills 40 MiB of memory with what differs from page to page and from fill to fill, C checks that all of it is
# there; M has all vCPUs (the command line is their number) count together under a spin lock, after each was started and then woken by an interrupt, and each
# says its digit on the serial line; I has them count in rounds, each begun by an interrupt to all others, until a key is typed,
# and checks that nobody missed one or had one twice; K has the other vCPU ring the doorbell of the virtio entropy device, once for each of its
# requests, and says in hexadecimal how many ticks the quickest took, and the quickest write to another register; D reads the first disk's first 32 KiB
# and says a sum of them; Ctrl-C shows as ^C. Runs on any /dev/kvm, also one that only interprets.
.include "guest_kernel.inc"

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
.set X2APIC_ICR, 0x830
.set ALL_BUT_SELF, 3 << 18
.set PVH_COMMAND_LINE, 24       # of hvm_start_info
.set ENTROPY, 0x80000000 | 2 << 11
.set DISK_DATA, 0x500000
.set DISK_BYTES, 32 << 10
.set BUFFER, 0x403000
.set RINGS, 200

.text
.global start
start:
    mov [start_info], ebx
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
    cmp al, 'K'
    je ring
    cmp al, 'D'
    je read_disk
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
    mov eax, [start_info]       # how many there are: the command line says it, since a package need not have all
    mov eax, [eax + PVH_COMMAND_LINE]
    movzx ebp, byte ptr [eax]
    sub ebp, '0'
    movzx ecx, byte ptr [eax + 1]
    sub ecx, '0'
    cmp ecx, 9
    ja 2f                       # one digit
    imul ebp, ebp, 10
    add ebp, ecx
2:  mov ebx, SHARED
    mov eax, ALL_BUT_SELF | 0x4500
    call send
    mov eax, ALL_BUT_SELF | 0x4600 | TRAMPOLINE >> 12
    call send
    lea edi, [ebp - 1]
1:  pause
    cmp [ebx + READY], edi
    jne 1b
    ret

# Under the lock. Changes eax.
count_once:
    mov eax, 1
    xchg eax, [ebx + LOCK]
    test eax, eax
    jz 1f
    pause
    jmp count_once
1:  inc dword ptr [ebx + COUNT]
    inc dword ptr [ebx + COUNT_TOO]
    mov dword ptr [ebx + LOCK], 0
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
2:  call count_once
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
# Sets up the virtio device at the PCI address ebx, with one queue whose descriptors are zero. ebp: its registers.
set_up:
    call open_device
    mov edi, DESCRIPTORS
    mov ecx, (BUFFER - DESCRIPTORS) / 4
    xor eax, eax
    rep stosd
    mov cx, 8
    jmp start_device

# Reads the first disk's begin, and says the sum of its words, each added after the sum so far was rotated left by one.
read_disk:
    mov ebx, DISK
    call set_up
    mov edi, BUFFER
    mov ecx, 4
    xor eax, eax                            # type IN, sector 0
    rep stosd
    mov byte ptr [BUFFER + 16], 0xff
    mov dword ptr [DESCRIPTORS], BUFFER
    mov dword ptr [DESCRIPTORS + 8], 16
    mov dword ptr [DESCRIPTORS + 12], 1 | 1 << 16   # descriptor 1 follows
    mov dword ptr [DESCRIPTORS + 16], DISK_DATA
    mov dword ptr [DESCRIPTORS + 24], DISK_BYTES
    mov dword ptr [DESCRIPTORS + 28], 3 | 2 << 16   # the device writes; descriptor 2 follows
    mov dword ptr [DESCRIPTORS + 32], BUFFER + 16
    mov dword ptr [DESCRIPTORS + 40], 1
    mov dword ptr [DESCRIPTORS + 44], 2
    mov word ptr [AVAILABLE + 2], 1
    mov word ptr [ebp + DOORBELL], 0
1:  pause
    cmp word ptr [USED + 2], 1
    jne 1b
    or ebx, -1                              # failed
    cmp byte ptr [BUFFER + 16], 0
    jne 3f
    xor ebx, ebx
    mov esi, DISK_DATA
    mov ecx, DISK_BYTES / 4
2:  rol ebx, 1
    add ebx, [esi]
    add esi, 4
    dec ecx
    jnz 2b
3:  lea esi, disk_read
    call print
    call print_hex
    lea esi, disk_read_end
    call print
    jmp next

# Sets the entropy device up, and has the other vCPU use it.
ring:
    mov ebx, ENTROPY
    call set_up
    mov dword ptr [DESCRIPTORS], BUFFER
    mov dword ptr [DESCRIPTORS + 8], 64
    mov word ptr [DESCRIPTORS + 12], 2      # the device writes
    mov ebx, SHARED
    mov dword ptr [ebx + DONE], 0
    mov ecx, X2APIC_SVR
    mov eax, 0x1ff
    xor edx, edx
    wrmsr
    lea esi, ringer
    mov edi, TRAMPOLINE
    mov ecx, ringer_end - ringer
    rep movsb
    mov eax, ALL_BUT_SELF | 0x4500
    call send
    mov eax, ALL_BUT_SELF | 0x4600 | TRAMPOLINE >> 12
    call send
1:  pause
    cmp dword ptr [ebx + DONE], 0
    je 1b
    lea esi, rung
    call print
    mov ebx, [quickest_ring]
    call print_hex
    lea esi, against
    call print
    mov ebx, [quickest_write]
    call print_hex
    lea esi, rung_end
    call print
    jmp next
# ebx, in eight digits. Changes eax, ecx, edx.
print_hex:
    mov edx, SERIAL
    mov ecx, 8
1:  rol ebx, 4
    mov al, bl
    and al, 15
    add al, '0'
    cmp al, '9'
    jbe 2f
    add al, 'a' - '9' - 1
2:  out dx, al
    dec ecx
    jnz 1b
    ret

# Of the other, moved to TRAMPOLINE.
.code16
ringer:
    cli
    xor ax, ax
    mov ds, ax
    data32 lgdt [TRAMPOLINE + ringer_table - ringer]
    mov eax, cr0
    or eax, 1
    mov cr0, eax
    .byte 0x66, 0xea            # far jump to 8:ringer_32
    .long TRAMPOLINE + ringer_32 - ringer
    .word 8
.code32
ringer_32:
    mov eax, 16
    mov ds, eax
    mov ss, eax                 # of what ebp points to
    mov ebp, [bar]
    mov dword ptr [quickest_ring], -1
    mov dword ptr [quickest_write], -1
    xor ecx, ecx
1:  inc ecx
    mov [AVAILABLE + 2], cx
    rdtsc
    mov esi, eax
    mov word ptr [ebp + DOORBELL], 0
    rdtsc
    sub eax, esi
    cmp eax, [quickest_ring]
    jae 2f
    mov [quickest_ring], eax
2:  pause
    cmp [USED + 2], cx
    jne 2b
    rdtsc
    mov esi, eax
    mov word ptr [ebp + QUEUE_SELECT], 0
    rdtsc
    sub eax, esi
    cmp eax, [quickest_write]
    jae 3f
    mov [quickest_write], eax
3:  cmp ecx, RINGS
    jb 1b
    mov ebx, SHARED
    mov dword ptr [ebx + DONE], 1
4:  hlt
    jmp 4b
.balign 8
ringer_segments:
    .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff     # code and data, flat
ringer_table:
    .word 23
    .long TRAMPOLINE + ringer_segments - ringer
ringer_end:


# A round is over when all have answered; time does not go back from one to the next.
in_rounds:
    call start_others
    lea esi, rounds_begin
    call print
1:  inc dword ptr [ebx + ROUND]
    mov eax, ALL_BUT_SELF | 0x4000 | ROUND_VECTOR
    call send
    call count_once
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
disk_read: .asciz " read: sum "
disk_read_end: .asciz " of all\r\n"
rung: .asciz " rang: quickest "
against: .asciz ", another write "
rung_end: .asciz " ticks\r\n"
.balign 4
fills: .long 0
start_info: .long 0
bar: .long 0
quickest_ring: .long 0
quickest_write: .long 0
no_table: .fill 6
