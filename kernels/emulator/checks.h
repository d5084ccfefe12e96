// The checks of every load and store of every thread in a checked launch.
//
// Kernels are compiled a second time with the calls that GCC's -fsanitize=thread puts before each access, and with
// those of -fsanitize=bounds,alignment. Their targets are not libtsan and libubsan but the functions of hooks.cpp,
// which ask here whether the access may happen. Blocks of a checked launch run one after the other on one host thread.
//
// Every byte of memory has a cell that stores the last write and two reads since. A moment of a thread (a context) is
// identified by a number; numbers grow, so comparing them shows what happened in earlier launches and, for shared memory, in
// earlier blocks. An access of another thread is ordered before the present one
// - in the same block, if there was a barrier between them, or, in the same warp, a chain of __syncwarp (vector clocks of lanes);
// - in another block, if that block has published it (a fence, then an atomic operation) and this one has since read the
//   same word by an atomic operation, then fenced. The kernels use no other part of the memory model.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "machine.h"
#include "static_shared.h"

namespace emulator {

struct Cell {
    uint32_t write;
    uint32_t reads[2];
};

// Cells for as many bytes; pages become resident when they are first touched.
class Cells {
public:
    Cells() = default;
    explicit Cells(size_t bytes);
    ~Cells();
    Cells(Cells&& other) noexcept;
    Cells& operator=(Cells&& other) noexcept;

    Cell& operator[](size_t byte) {
        return cells_[byte];
    }

private:
    Cell* cells_ = nullptr;
    size_t mapping_bytes_ = 0;
};

class Checks {
public:
    // With `strict`, global memory that neither a kernel nor the host has written may not be read.
    Checks(const Memory& memory, bool strict);

    void begin_launch();
    void begin_block(const Runner& runner);
    // All threads have arrived at a barrier.
    void pass_barrier();
    void synchronize_warp(unsigned warp, uint32_t mask);
    void fence();

    // Called before the current thread accesses memory. They fail the launch.
    void read(const void* address, size_t bytes);
    void write(const void* address, size_t bytes);
    // A read of memory that the whole launch must leave as it is.
    void read_constant(const void* address, size_t bytes);
    void atomic(const void* address);
    void begin_copy(void* shared, const void* global, int bytes, bool valid);
    void end_copy(void* shared, int bytes);

    // Called by the host.
    void forget(const void* address);
    void upload(const void* address, size_t bytes);
    // What is wrong with reading these bytes; empty if nothing is.
    std::string download_refusal(const void* address, size_t bytes);

private:
    enum class Kind : uint8_t { plain, atomic, pending_copy };

    struct Context {
        uint32_t block;
        uint32_t epoch;
        uint32_t clock;
        uint16_t thread;
        Kind kind;
    };

    // What one block has published at one time.
    struct Release {
        uint32_t block;
        // Everything up to this epoch...
        int64_t epoch;
        // ...and in `warp_epoch` what lanes of `warp` did up to their `clocks`...
        int64_t warp_epoch;
        unsigned warp;
        uint32_t clocks[kLanes];
        // ...and what it had itself acquired: the first so many releases of each.
        std::vector<std::pair<const std::deque<Release>*, size_t>> acquired;
    };

    // The first `count` releases of a word, read by an atomic operation of `thread` in `epoch`.
    struct Acquisition {
        const std::deque<Release>* releases;
        size_t count;
        unsigned thread;
        int64_t epoch;
        bool fenced_by_thread;
        // The epoch of a fence after it; from the next epoch on it holds for the whole block.
        int64_t fence_epoch;
        bool flattened;
        std::unordered_map<uint32_t, std::vector<const Release*>> by_block;
    };

    struct Thread {
        uint32_t contexts[3];
        int64_t fence_epoch;
        bool dirty;
        uint32_t clocks[kLanes];
        uint32_t fence_clocks[kLanes];
    };

    struct Place {
        Cell* cells;
        bool shared;
        bool must_be_written;
        std::string name() const;
        const char* object;
        size_t offset;
        size_t size;
    };

    // The cells of bytes that the current thread may access, or none if nothing is checked.
    bool find(const void* address, size_t bytes, bool writes, Place& place);
    [[noreturn]] void fail_outside(const void* address, size_t bytes, bool writes);
    [[noreturn]] void fail_race(const Place& place, size_t byte, bool writes, uint32_t other, bool other_writes);
    uint32_t context(Kind kind);
    bool is_past(uint32_t context, bool shared) const;
    bool ordered(uint32_t context, bool shared);
    bool acquired(const Context& past);
    static bool covers(const Release& release, const Context& past);
    void access(Place& place, size_t bytes, bool writes, Kind kind);

    const Memory& memory_;
    bool strict_;
    StaticShared static_shared_;
    Cells dynamic_cells_;
    Cells static_cells_;
    std::unordered_map<uintptr_t, Cells> global_cells_;

    // Numbers below `launch_base_` are of earlier launches, 1 is the host.
    uint32_t launch_base_ = 2;
    uint32_t block_base_ = 2;
    std::vector<Context> contexts_;
    std::map<uintptr_t, std::deque<Release>> releases_;

    const Runner* runner_ = nullptr;
    uint32_t block_ = 0;
    int64_t epoch_ = 0;
    // All writes up to this epoch were fenced by their threads before a barrier.
    int64_t clean_epoch_ = -1;
    unsigned dirty_threads_ = 0;
    std::vector<Thread> threads_;
    std::deque<Acquisition> acquisitions_;

    // The allocation of the latest access.
    uintptr_t latest_begin_ = 0;
    size_t latest_bytes_ = 0;
    Cells* latest_cells_ = nullptr;
};

}  // namespace emulator
