// The machine that runs kernels: launches, the threads of a block as fibers, and how they wait for each other.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "emulator.h"
#include "fiber.h"
#include "memory.h"
#include "static_shared.h"

namespace emulator {

constexpr unsigned kLanes = 32;
constexpr unsigned kMostThreads = 1024;
// The maximum of a block on compute capability 9.0, less 1 KiB for static arrays.
constexpr unsigned kMostSharedBytes = 232448 - 1024;
// Follows the dynamic shared memory of a block and must not change.
constexpr unsigned kSharedFence = 256;

// The bytes of fresh memory: NaN as float32 and as bf16, absurd as an integer.
constexpr unsigned char kPoison = 0xFF;
constexpr unsigned char kFence = 0xA5;

// Mixes the bits of a seed (SplitMix64).
inline uint64_t mix(uint64_t value) {
    value += 0x9e3779b97f4a7c15u;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
}

class Checks;

// One emulator: its memory and its schedule.
struct Machine {
    // 0 runs threads and blocks in order; every other seed shuffles them differently.
    uint64_t seed = 0;
    uint64_t launches = 0;
    // Whether fresh memory is full of NaN.
    bool poisoned = false;
    Memory memory;
    // Set if every access is checked.
    std::unique_ptr<Checks> checks;

    Machine();
    ~Machine();
};

// A launch in progress, shared by the host threads that run its blocks.
struct Launch {
    Machine* machine;
    const Kernel* kernel;
    const void* arguments;
    uint3 grid;
    uint3 block;
    unsigned threads;
    unsigned shared_bytes;
    uint64_t blocks;
    uint64_t seed;
    // Block `first + i * stride` modulo `blocks` is the i-th to start.
    uint64_t stride;
    uint64_t first;
    std::atomic<uint64_t> begun{0};
    std::atomic<bool> failed{false};
    std::mutex mutex;
    std::string failure;

    // The location of a fault in the program; 0 if unknown.
    uintptr_t failure_counter = 0;

    // Keeps the first failure only.
    void fail(std::string text, uintptr_t program_counter = 0);

    uint3 thread_index(unsigned thread) const {
        return {thread % block.x, thread / block.x % block.y, thread / block.x / block.y};
    }
};

// A copy to shared memory that has not been awaited.
struct PendingCopy {
    unsigned char* target;
    const unsigned char* source;
    int bytes;
    bool valid;
    uint32_t group;
};

// A CUDA thread.
struct Fiber {
    void* stack_pointer;
    uint3 index;
    unsigned thread;
    // The place at which it waits, for messages.
    const char* waits_at;
    Site site;
    // The location of its latest access, if accesses are checked.
    const void* program_counter;
    std::vector<PendingCopy> copies;
    uint32_t copy_group;
#if EMULATOR_ADDRESS_SANITIZER
    void* fake_stack;
#endif
};

// Lanes that have arrived at a collective, or wait there for the rest of `mask`.
struct Meeting {
    const char* name;
    Site site;
    uint32_t mask;
    uint32_t arrived;
};

struct Warp {
    uint32_t present;
    uint32_t ready;
    uint32_t exited;
    unsigned meetings;
    Meeting meeting[kLanes];
    void* operands[kLanes];
};

inline const void* const kNoAddress = reinterpret_cast<const void*>(UINTPTR_MAX);

// A stack for this host thread's signal handler, if it has none yet.
class SignalStack {
public:
    SignalStack();
    ~SignalStack();

private:
    std::unique_ptr<unsigned char[]> memory_;
};

using Combine = void (*)(void* const* operands, uint32_t mask);

// Runs blocks, one after the other, on its host thread.
class Runner {
public:
    Runner();

    // Takes blocks of the launch until none are left or it has failed.
    void run(Launch& launch);

    // Called on fibers.
    void arrive();
    int barrier(const char* name, bool predicate, Site site);
    void collective(const char* name, uint32_t mask, bool aligned, Site site, void* operand, Combine combine);
    void copy_async(unsigned char* shared, const unsigned char* global, int bytes, bool valid, Site site);
    void copy_async_wait(int pending);
    [[noreturn]] void fail(const std::string& cause);
    [[noreturn]] void exit();

    Fiber& fiber() const {
        return *current_;
    }
    bool on_fiber() const {
        return current_ != nullptr;
    }
    const Launch& launch() const {
        return *launch_;
    }
    uint3 block_index() const {
        return block_index_;
    }
    // Null if accesses are not checked.
    Checks* checks() const {
        return checks_;
    }
    bool owns_stack(const void* address, size_t bytes) const;
    bool owns_any_stack(const void* address) const;
    // An access of the current fiber that the processor refused; kNoAddress if it did not report the address.
    [[noreturn]] void fail_access(const void* address, const void* program_counter);
    void* rescue_stack() const {
        return stacks_.end(kMostThreads);
    }

private:
    void run_block(uint64_t block);
    void begin_block(uint64_t block);
    // The next fiber to run, none if all wait.
    Fiber* choose();
    unsigned choose_bit(uint32_t bits, unsigned after);
    void wait();
    void resume(Fiber& next);
    [[noreturn]] void leave(Fiber* next);
    [[noreturn]] void fail_deadlocked();
    uint64_t random();

    Launch* launch_ = nullptr;
    Checks* checks_ = nullptr;
    StaticShared static_shared_;
    Fiber* current_ = nullptr;
    void* scheduler_ = nullptr;
    uint3 block_index_{};
    unsigned live_ = 0;
    uint64_t random_state_ = 0;
    bool shuffled_ = false;
    // Warps with a fiber that can run.
    uint32_t ready_warps_ = 0;
    unsigned warp_ = 0;
    unsigned lane_ = 0;

    // The barrier at which some threads may wait.
    const char* barrier_name_ = nullptr;
    Site barrier_site_{};
    unsigned barrier_arrived_ = 0;
    int barrier_count_ = 0;
    int barrier_result_ = 0;
    unsigned barrier_first_ = 0;

    SignalStack signal_stack_;
    Stacks stacks_;
    std::unique_ptr<Fiber[]> fibers_;
    Warp warps_[kMostThreads / kLanes];
#if EMULATOR_ADDRESS_SANITIZER
    void* scheduler_fake_stack_ = nullptr;
    const void* scheduler_stack_ = nullptr;
    size_t scheduler_stack_bytes_ = 0;
#endif
};

// The runner of this host thread while it runs blocks.
extern thread_local Runner* runner;

std::string format(const char* text, ...) __attribute__((format(printf, 1, 2)));
std::string format_position(uint3 position);
std::string format_site(Site site);

// Runs `work` on up to `threads` host threads, this one among them. The others are kept for later calls. While one caller uses
// them, another works alone.
void run_on_host_threads(unsigned threads, void (*work)(void* context), void* context);

// The build script's lists of all kernels, and of the same kernels with instrumented accesses.
struct KernelList {
    const Kernel* const* kernels;
    size_t length;
};
extern const KernelList plain_kernels;
extern const KernelList checked_kernels;
const Kernel* find_kernel(const char* name, bool checked);

// Turns a fiber's access that the processor refuses into a failure of its launch.
void catch_signals();

}  // namespace emulator

extern thread_local unsigned char retune_emulator_shared_memory[];
