// The functions that src/device/cuda/emulator.rs calls. A function that can fail writes what is wrong to `message`,
// which has room for `capacity` bytes, and returns false.

#include <link.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>

#include "checks.h"
#include "machine.h"

namespace emulator {
namespace {

struct LaunchDescription {
    const char* kernel;
    uint32_t grid[3];
    uint32_t block[3];
    uint32_t shared_bytes;
    uint32_t host_threads;
    const void* arguments;
    size_t argument_bytes;
};

bool refuse(const std::string& text, char* message, size_t capacity) {
    std::snprintf(message, capacity, "%s", text.c_str());
    return false;
}

// What is wrong with a launch before it starts; empty if nothing is.
std::string refusal(const LaunchDescription& description, const Kernel* kernel) {
    if (kernel == nullptr) return format("kernel %s: there is no kernel with this name", description.kernel);
    const std::string name = format("kernel %s: ", kernel->name);
    if (description.argument_bytes != kernel->argument_bytes) {
        return name + format("launched with %zu bytes of arguments, but its parameter has %zu",
                             description.argument_bytes, kernel->argument_bytes);
    }
    const auto& [gx, gy, gz] = description.grid;
    if (gx == 0 || gy == 0 || gz == 0 || gx > 0x7fffffffu || gy > 65535 || gz > 65535) {
        return name + format("launched with a grid of (%u, %u, %u) blocks", gx, gy, gz);
    }
    const auto& [x, y, z] = description.block;
    const uint64_t threads = static_cast<uint64_t>(x) * y;
    if (threads == 0 || z == 0 || threads > kMostThreads || threads * z > kMostThreads || z > 64) {
        return name + format("launched with (%u, %u, %u) threads per block, at most %u are possible", x, y, z, kMostThreads);
    }
    if (threads * z > kernel->most_threads) {
        return name + format("launched with %u threads per block, but its launch bounds allow %u",
                             static_cast<unsigned>(threads * z), kernel->most_threads);
    }
    if (description.shared_bytes > kMostSharedBytes) {
        return name + format("launched with %u bytes of dynamic shared memory, at most %u are possible", description.shared_bytes,
                             kMostSharedBytes);
    }
    return {};
}

// The base of the program's addresses.
uintptr_t program_begin() {
    uintptr_t begin = 0;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* begin) {
            *static_cast<uintptr_t*>(begin) = info->dlpi_addr;
            // The first object is the program.
            return 1;
        },
        &begin);
    return begin;
}

void work_on(void* context) {
    thread_local std::unique_ptr<Runner> own;
    if (!own) own = std::make_unique<Runner>();
    own->run(*static_cast<Launch*>(context));
}

}  // namespace
}  // namespace emulator

using namespace emulator;

extern "C" {

bool retune_emulator_supported() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return true;
#endif
}

// Whether a machine that checks accesses is possible.
bool retune_emulator_can_check() {
    return checked_kernels.length > 0 && StaticShared().known();
}

Machine* retune_emulator_create(uint64_t seed, bool poisoned, bool checked) {
    catch_signals();
    Machine* machine = new Machine;
    machine->seed = seed;
    machine->poisoned = poisoned;
    if (checked) machine->checks = std::make_unique<Checks>(machine->memory, poisoned);
    return machine;
}

void retune_emulator_destroy(Machine* machine) {
    delete machine;
}

uint64_t retune_emulator_allocate(Machine* machine, size_t bytes) {
    return reinterpret_cast<uint64_t>(machine->memory.allocate(bytes, machine->poisoned ? &kPoison : nullptr));
}

void retune_emulator_release(Machine* machine, uint64_t address) {
    if (machine->checks) machine->checks->forget(reinterpret_cast<void*>(address));
    machine->memory.release(reinterpret_cast<unsigned char*>(address));
}

bool retune_emulator_upload(Machine* machine, const void* source, uint64_t target, size_t bytes, char* message,
                            size_t capacity) {
    const std::string refusal = machine->memory.refusal(reinterpret_cast<void*>(target), bytes);
    if (!refusal.empty()) return refuse("a copy to the device would write " + refusal, message, capacity);
    std::memcpy(reinterpret_cast<void*>(target), source, bytes);
    if (machine->checks) machine->checks->upload(reinterpret_cast<void*>(target), bytes);
    return true;
}

bool retune_emulator_download(Machine* machine, uint64_t source, void* target, size_t bytes, char* message,
                              size_t capacity) {
    const std::string refusal = machine->memory.refusal(reinterpret_cast<void*>(source), bytes);
    if (!refusal.empty()) return refuse("a copy from the device would read " + refusal, message, capacity);
    if (machine->checks) {
        const std::string unwritten = machine->checks->download_refusal(reinterpret_cast<void*>(source), bytes);
        if (!unwritten.empty()) return refuse(unwritten, message, capacity);
    }
    std::memcpy(target, reinterpret_cast<const void*>(source), bytes);
    return true;
}

// Whether a launch could start.
bool retune_emulator_check(const LaunchDescription* description, char* message, size_t capacity) {
    const std::string refusal = emulator::refusal(*description, find_kernel(description->kernel, false));
    return refusal.empty() || refuse(refusal, message, capacity);
}

// If a fault has a location in the program, `place` becomes that location as debuggers count, otherwise 0.
bool retune_emulator_launch(Machine* machine, const LaunchDescription* description, char* message, size_t capacity,
                            uint64_t* place) {
    *place = 0;
    const Kernel* kernel = find_kernel(description->kernel, machine->checks != nullptr);
    const std::string refusal = emulator::refusal(*description, kernel);
    if (!refusal.empty()) return refuse(refusal, message, capacity);
    // Aligned like any parameter.
    struct alignas(16) Piece {
        unsigned char bytes[16];
    };
    std::vector<Piece> arguments(description->argument_bytes / sizeof(Piece) + 1);
    std::memcpy(arguments.data(), description->arguments, description->argument_bytes);
    const auto& grid = description->grid;
    const auto& block = description->block;
    Launch launch;
    launch.machine = machine;
    launch.kernel = kernel;
    launch.arguments = arguments.data();
    launch.grid = {grid[0], grid[1], grid[2]};
    launch.block = {block[0], block[1], block[2]};
    launch.threads = block[0] * block[1] * block[2];
    launch.shared_bytes = description->shared_bytes;
    launch.blocks = uint64_t{grid[0]} * grid[1] * grid[2];
    launch.seed = machine->seed == 0 ? 0 : mix(machine->seed ^ mix(machine->launches++));
    launch.stride = 1;
    launch.first = 0;
    if (launch.seed != 0) {
        launch.first = mix(launch.seed) % launch.blocks;
        launch.stride = mix(launch.seed + 1) % launch.blocks;
        while (std::gcd(launch.stride, launch.blocks) != 1) launch.stride++;
    }
    // Checks follow one block at a time.
    const uint64_t threads = machine->checks ? 1 : std::min<uint64_t>(description->host_threads, launch.blocks);
    if (machine->checks) machine->checks->begin_launch();
    run_on_host_threads(static_cast<unsigned>(threads), work_on, &launch);
    if (!launch.failed) {
        const std::string damage = machine->memory.damage();
        if (!damage.empty()) launch.fail(format("kernel %s: %s", kernel->name, damage.c_str()));
    }
    if (!launch.failed) return true;
    if (launch.failure_counter != 0) *place = launch.failure_counter - program_begin();
    return refuse(launch.failure, message, capacity);
}

}  // extern "C"
