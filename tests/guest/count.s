# Counts in every register and in memory, and checks each round that all agree. A vCPU that is saved, moved and restored
# must not notice. A tick now and then; never ends by itself.
.include "guest.inc"
start:
    mov esp, 0x80000
    step 1
    xor eax, eax
    xor ebx, ebx
    xor ecx, ecx
    xor edx, edx
    xor esi, esi
    xor edi, edi
    xor ebp, ebp
    xor r8d, r8d
    xor r9d, r9d
    xor r10d, r10d
    xor r11d, r11d
    xor r12d, r12d
    xor r13d, r13d
    xor r14d, r14d
    xor r15d, r15d
    mov qword ptr [DATA], 0
    mov qword ptr [DATA + 0x2000], 0
1:  inc rax
    inc rbx
    inc rcx
    inc rdx
    inc rsi
    inc rdi
    inc rbp
    inc r8
    inc r9
    inc r10
    inc r11
    inc r12
    inc r13
    inc r14
    inc r15
    inc qword ptr [DATA]
    push rax
    pop qword ptr [DATA + 0x2000]
    cmp rax, rbx
    jne fail
    cmp rax, rcx
    jne fail
    cmp rax, rdx
    jne fail
    cmp rax, rsi
    jne fail
    cmp rax, rdi
    jne fail
    cmp rax, rbp
    jne fail
    cmp rax, r8
    jne fail
    cmp rax, r9
    jne fail
    cmp rax, r10
    jne fail
    cmp rax, r11
    jne fail
    cmp rax, r12
    jne fail
    cmp rax, r13
    jne fail
    cmp rax, r14
    jne fail
    cmp rax, r15
    jne fail
    cmp rax, [DATA]
    jne fail
    cmp rax, [DATA + 0x2000]
    jne fail
    test eax, 0x1f              # exits between, so that saves meet unfinished ones: the device counts reads from 0
    jnz 1b
    mov [DATA + 0x3000], rax
    mov [DATA + 0x3008], rdx
    mov dx, 0x28
    in eax, dx
    cmp eax, [DATA + 0x3010]
    jne fail
    inc dword ptr [DATA + 0x3010]
    mov al, 3
    out PORT_RESULT, al
    mov rax, [DATA + 0x3000]
    mov rdx, [DATA + 0x3008]
    jmp 1b
common_code
