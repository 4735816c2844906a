// From one stack to another: in a few instructions where they are known, by ucontext elsewhere.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)

struct Context {
    void** top;
};

extern "C" void simt_switch(void*** leave, void** enter);

// Only what a called function has to preserve is kept: it is a call, for the compiler.
asm(R"(
.text
.type simt_switch, @function
simt_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
.size simt_switch, . - simt_switch
)");

inline void switch_context(Context* leave, Context* enter) {
    simt_switch(&leave->top, enter->top);
}

inline void make_context(Context* context, char* stack, size_t size, void (*function)()) {
    void** top = reinterpret_cast<void**>(uintptr_t(stack + size) & ~uintptr_t(15));
    *--top = nullptr;  // where a call would have left its way back: aligned as after one
    *--top = reinterpret_cast<void*>(function);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    context->top = top;
}

#else
#include <ucontext.h>

struct Context {
    ucontext_t context;
};

inline void switch_context(Context* leave, Context* enter) {
    swapcontext(&leave->context, &enter->context);
}

inline void make_context(Context* context, char* stack, size_t size, void (*function)()) {
    getcontext(&context->context);
    context->context.uc_stack.ss_sp = stack;
    context->context.uc_stack.ss_size = size;
    context->context.uc_link = nullptr;
    makecontext(&context->context, function, 0);
}

#endif
