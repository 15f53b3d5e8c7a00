# A guest for machines that are saved and go on: keeps 16 reads of 4 KiB in flight on disk 0, whose 4 KiB blocks each hold their
# number in the first and the last word (2048 of them), and checks each answer: of a request in flight, once, with the right
# bytes. Interrupts are let in between two looks at the ring only, so that one of the local APIC's timer, which is armed again by
# its handler, is nearly always pending. A key on the serial line has it stop asking: when all is answered and the timer still
# ticks it says so, and goes on. Runs on any /dev/kvm.
.include "guest_kernel.inc"

.set SLOTS, 16
.set BLOCKS, 2048
.set RING, 64                   # of three descriptors for each slot
.set HEADERS, 0x403000
.set ANSWERS, 0x404000
.set EXPECTED, 0x404100         # the block of each slot; -1: not in flight
.set DATA, 0x410000
.set IDT, 0x420000
.set STACK, 0x430000
.set TIMER_VECTOR, 0x40
.set TICK, 200000
.set X2APIC_TIMER, 0x832
.set X2APIC_TIMER_START, 0x838
.set X2APIC_TIMER_DIVIDE, 0x83e

.text
.global start
start:
    lgdt [segments_table]
    .byte 0xea                  # far jump
    .long 1f
    .word 8
1:  mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, STACK
    lea eax, tick
    mov [IDT + 8 * TIMER_VECTOR], ax
    mov word ptr [IDT + 8 * TIMER_VECTOR + 2], 8
    mov word ptr [IDT + 8 * TIMER_VECTOR + 4], 0x8e00
    shr eax, 16
    mov [IDT + 8 * TIMER_VECTOR + 6], ax
    lidt [interrupts_table]
    mov ecx, X2APIC_SVR
    mov eax, 0x1ff
    call write_msr
    mov ecx, X2APIC_TIMER_DIVIDE
    mov eax, 11                 # by 1
    call write_msr
    mov ecx, X2APIC_TIMER
    mov eax, TIMER_VECTOR       # once
    call write_msr
    call arm
    call set_up
    lea esi, hello
    call print
    call submit_all

look:
    mov ax, [USED + 2]
    cmp ax, [last_used]
    je nothing
    movzx eax, word ptr [last_used]
    and eax, RING - 1
    mov eax, [USED + 4 + 8 * eax]
    xor edx, edx
    mov ebx, 3
    div ebx
    test edx, edx
    jnz wrong
    cmp eax, SLOTS
    jae wrong
    mov esi, eax
    mov ebx, [EXPECTED + 4 * esi]
    cmp ebx, -1
    je twice
    cmp byte ptr [ANSWERS + esi], 0
    jne wrong
    mov edx, esi
    shl edx, 12
    cmp [DATA + edx], ebx
    jne wrong
    cmp [DATA + edx + 4092], ebx
    jne wrong
    mov dword ptr [EXPECTED + 4 * esi], -1
    inc word ptr [last_used]
    cmp byte ptr [ending], 0
    jne look
    call submit
    jmp look

nothing:
    sti
    nop
    nop
    cli
interrupted:
    cmp byte ptr [ending], 0
    jne ends
    mov edx, LINE_STATUS
    in al, dx
    test al, 1
    jz look
    mov edx, SERIAL
    in al, dx
    mov byte ptr [ending], 1
    mov eax, [ticks]
    mov [ticks_before], eax
    jmp look
ends:
    mov ax, [last_used]
    cmp ax, [available]
    jne look
    mov eax, [ticks]
    sub eax, [ticks_before]
    cmp eax, 5
    jb look
    lea esi, answered
    call print
    mov byte ptr [ending], 0
    call submit_all
    jmp look

wrong:
    lea esi, wrong_answer
    jmp 1f
twice:
    lea esi, answered_twice
1:  call print
2:  hlt
    jmp 2b

submit_all:
    xor esi, esi
1:  call submit
    inc esi
    cmp esi, SLOTS
    jb 1b
    ret
# Slot esi. Changes eax, ebx, edx, edi.
submit:
    mov eax, [next_block]
    mov [EXPECTED + 4 * esi], eax
    lea ebx, [eax + 1]
    and ebx, BLOCKS - 1
    mov [next_block], ebx
    mov edi, esi
    shl edi, 4
    shl eax, 3
    mov [HEADERS + edi + 8], eax
    mov edi, esi
    shl edi, 12
    mov dword ptr [DATA + edi], -1
    mov dword ptr [DATA + edi + 4092], -1
    mov byte ptr [ANSWERS + esi], 0xff
    lea eax, [esi + 2 * esi]
    movzx edi, word ptr [available]
    and edi, RING - 1
    mov [AVAILABLE + 4 + 2 * edi], ax
    inc word ptr [available]
    mov ax, [available]
    mov [AVAILABLE + 2], ax
    mov edx, [bar]
    mov word ptr [edx + DOORBELL], 0
    ret

set_up:
    mov ebx, DISK
    call open_device
    mov edi, DESCRIPTORS
    mov ecx, (EXPECTED - DESCRIPTORS) / 4
    xor eax, eax
    rep stosd
    xor esi, esi
    mov edi, DESCRIPTORS
1:  mov eax, esi                # header
    shl eax, 4
    add eax, HEADERS
    mov [edi], eax
    mov dword ptr [edi + 8], 16
    mov word ptr [edi + 12], 1
    lea eax, [esi + 2 * esi + 1]
    mov [edi + 14], ax
    mov eax, esi                # data
    shl eax, 12
    add eax, DATA
    mov [edi + 16], eax
    mov dword ptr [edi + 24], 4096
    mov word ptr [edi + 28], 3
    lea eax, [esi + 2 * esi + 2]
    mov [edi + 30], ax
    lea eax, [esi + ANSWERS]    # status
    mov [edi + 32], eax
    mov dword ptr [edi + 40], 1
    mov word ptr [edi + 44], 2
    add edi, 48
    inc esi
    cmp esi, SLOTS
    jb 1b
    mov cx, RING
    jmp start_device
# Comes between two looks only, where no register is in use, and goes on behind it: KVM's interpreter knows no IRET in this mode.
tick:
    add esp, 12
    inc dword ptr [ticks]
    mov ecx, X2APIC_EOI
    xor eax, eax
    call write_msr
    call arm
    jmp interrupted
arm:
    mov ecx, X2APIC_TIMER_START
    mov eax, TICK
write_msr:
    xor edx, edx
    wrmsr
    ret

hello: .asciz "reading\r\n"
answered: .asciz "all requests answered\r\n"
wrong_answer: .asciz "an answer is wrong\r\n"
answered_twice: .asciz "answered twice\r\n"
.balign 8
segments:
    .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff     # code and data, flat
segments_table:
    .word 23
    .long segments
interrupts_table:
    .word 8 * 256 - 1
    .long IDT
.balign 4
bar: .long 0
ticks: .long 0
ticks_before: .long 0
next_block: .long 0
last_used: .word 0
available: .word 0
ending: .byte 0
