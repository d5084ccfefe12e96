#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

namespace emulator {

#if defined(__x86_64__)

asm(R"(
.text
.globl retune_emulator_switch
.type retune_emulator_switch, @function
retune_emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size retune_emulator_switch, . - retune_emulator_switch
)");

void* prepare_stack(unsigned char* end, void (*entry)()) {
    void** top = reinterpret_cast<void**>(end);
    // A function expects the stack pointer 8 bytes off a multiple of 16, as after a call.
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int registers = 0; registers < 6; registers++) *--top = nullptr;
    return top;
}

#else

asm(R"(
.text
.globl retune_emulator_switch
.type retune_emulator_switch, %function
retune_emulator_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size retune_emulator_switch, . - retune_emulator_switch
)");

void* prepare_stack(unsigned char* end, void (*entry)()) {
    void** registers = reinterpret_cast<void**>(end - 160);
    for (int i = 0; i < 20; i++) registers[i] = nullptr;
    registers[11] = reinterpret_cast<void*>(entry);
    return registers;
}

#endif

Stacks::Stacks(size_t count) : bytes_(count * (kStackBytes + kPage)) {
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<unsigned char*>(memory);
    for (size_t stack = 0; stack < count; stack++) mprotect(begin(stack) - kPage, kPage, PROT_NONE);
}

Stacks::~Stacks() {
    munmap(memory_, bytes_);
}

bool Stacks::is_guard(const void* address) const {
    const uintptr_t first = reinterpret_cast<uintptr_t>(memory_), at = reinterpret_cast<uintptr_t>(address);
    return at >= first && at < first + bytes_ && (at - first) % (kStackBytes + kPage) < kPage;
}

}  // namespace emulator
