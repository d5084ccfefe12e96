// Accesses that the processor refuses: to pages around allocations and stacks, to null, or misaligned ones.
// The handler makes the fiber continue on a spare stack with a function that fails the launch.

#include <csignal>
#include <cstdlib>
#include <mutex>

#include <ucontext.h>

#include "machine.h"

namespace emulator {

namespace {

struct sigaction previous_of[NSIG];

thread_local const void* refused_address;
thread_local const void* refused_at;

void fail_refused_access() {
    runner->fail_access(refused_address, refused_at);
}

void handle(int signal, siginfo_t* information, void* interrupted) {
    if (runner == nullptr || !runner->on_fiber()) {
        // Not an access of a kernel: the previous handler receives it when it happens again.
        sigaction(signal, &previous_of[signal], nullptr);
        return;
    }
    mcontext_t& registers = static_cast<ucontext_t*>(interrupted)->uc_mcontext;
    // The operating system reports no address when the processor refuses one of impossible form, or a misaligned one.
    refused_address = information->si_code == SI_KERNEL ? kNoAddress : information->si_addr;
    const uintptr_t stack = reinterpret_cast<uintptr_t>(runner->rescue_stack());
#if defined(__x86_64__)
    refused_at = reinterpret_cast<const void*>(registers.gregs[REG_RIP]);
    registers.gregs[REG_RIP] = static_cast<greg_t>(reinterpret_cast<uintptr_t>(&fail_refused_access));
    // As after a call.
    registers.gregs[REG_RSP] = static_cast<greg_t>(stack - 8);
#else
    refused_at = reinterpret_cast<const void*>(registers.pc);
    registers.pc = reinterpret_cast<uintptr_t>(&fail_refused_access);
    registers.sp = stack;
#endif
}

}  // namespace

void catch_signals() {
#if !EMULATOR_ADDRESS_SANITIZER
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action {};
        action.sa_sigaction = handle;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigemptyset(&action.sa_mask);
        for (const int signal : {SIGSEGV, SIGBUS}) sigaction(signal, &action, &previous_of[signal]);
    });
#endif
}

SignalStack::SignalStack() {
    stack_t present{};
    if (sigaltstack(nullptr, &present) == 0 && (present.ss_flags & SS_DISABLE) == 0) return;
    constexpr size_t bytes = size_t{64} << 10;
    memory_.reset(new unsigned char[bytes]);
    stack_t own{};
    own.ss_sp = memory_.get();
    own.ss_size = bytes;
    sigaltstack(&own, nullptr);
}

SignalStack::~SignalStack() {
    if (!memory_) return;
    stack_t none{};
    none.ss_flags = SS_DISABLE;
    sigaltstack(&none, nullptr);
}

}  // namespace emulator
