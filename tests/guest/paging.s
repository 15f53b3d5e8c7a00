# Paging: maps a page, writes through one address and reads through another, takes it away, and takes the fault.
.include "guest.inc"
.set TABLES, DATA + 0x10000     # a page directory pointer table, directory and table of our own
.set WINDOW, 0x8000000000       # second PML4 entry
start:
    mov esp, 0x80000
    lidt [rip + idt]
    step 1
    mov rax, cr3
    mov dword ptr [rax + 8], TABLES | 3
    mov dword ptr [TABLES], (TABLES + 0x1000) | 3
    mov dword ptr [TABLES + 0x1000], (TABLES + 0x2000) | 3
    mov dword ptr [TABLES + 0x2000], DATA | 3
    mov rbx, WINDOW
    mov rax, 0x0123456789abcdef
    mov [rbx + 0x100], rax
    cmp [DATA + 0x100], rax
    must_equal
    step 2                      # accessed and dirty bits
    mov eax, [TABLES + 0x2000]
    and eax, 0x60
    cmp eax, 0x60
    must_equal
    step 3                      # another page behind the same address
    mov rax, 0x5555aaaa5555aaaa
    mov [DATA + 0x1100], rax
    mov dword ptr [TABLES + 0x2000], (DATA + 0x1000) | 3
    invlpg [rbx]
    cmp [rbx + 0x100], rax
    must_equal
    step 4                      # gone: #PF, address in CR2; the handler maps it again and the access is repeated
    mov dword ptr [TABLES + 0x2000], 0
    invlpg [rbx]
    xor r15d, r15d
    mov rcx, [rbx + 0x108 - 8]
    cmp r15d, 1
    must_equal
    cmp rcx, rax
    must_equal
    step 5
    lea rdx, [rbx + 0x100]
    cmp r14, rdx
    must_equal
    step 6                      # read-only page, write with WP set: #PF again
    mov dword ptr [TABLES + 0x2000], (DATA + 0x1000) | 1
    invlpg [rbx]
    mov dword ptr [rbx + 0x200], 7
    cmp r15d, 2
    must_equal
    cmp dword ptr [DATA + 0x1200], 7
    must_equal
    pass
page_fault:
    inc r15d
    mov r14, cr2
    mov dword ptr [TABLES + 0x2000], (DATA + 0x1000) | 3
    invlpg [rbx]
    add rsp, 8                  # error code
    iretq
common_code
    idt_with 14, page_fault
