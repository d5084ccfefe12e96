// Separate stacks for threads that share a host thread, and switching between them.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(__aarch64__)
#error "the emulator supports only x86-64 and aarch64, because it switches stacks itself"
#endif

#if defined(__SANITIZE_ADDRESS__)
#define EMULATOR_ADDRESS_SANITIZER 1
#else
#define EMULATOR_ADDRESS_SANITIZER 0
#endif

namespace emulator {

#if EMULATOR_ADDRESS_SANITIZER
constexpr size_t kStackBytes = size_t{256} << 10;
#else
constexpr size_t kStackBytes = size_t{64} << 10;
#endif
constexpr size_t kPage = 4096;

// Saves the registers that a function must preserve on the current stack, stores that stack's pointer, and continues
// at the point saved in `to`.
extern "C" void retune_emulator_switch(void** saved, void* to);

// The pointer of a stack that ends at `end` (a multiple of 16) and starts by calling `entry`, which must not return.
void* prepare_stack(unsigned char* end, void (*entry)());

// Stacks of kStackBytes, each above an inaccessible page. Only touched pages become resident.
class Stacks {
public:
    explicit Stacks(size_t count);
    ~Stacks();
    Stacks(const Stacks&) = delete;
    Stacks& operator=(const Stacks&) = delete;

    unsigned char* begin(size_t stack) const {
        return memory_ + stack * (kStackBytes + kPage) + kPage;
    }
    // Staggered, so that the tops of the stacks do not all fall on the same lines of the cache.
    unsigned char* end(size_t stack) const {
        return begin(stack) + kStackBytes - (stack % 32) * 192;
    }
    // Whether the address lies in one of the pages between stacks.
    bool is_guard(const void* address) const;

private:
    unsigned char* memory_;
    size_t bytes_;
};

}  // namespace emulator
