// The emulated device's memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <utility>

namespace emulator {

// Allocations with an inaccessible page on both sides, and fences in what alignment leaves free between.
class Memory {
public:
    ~Memory();

    // Memory for `bytes`, zeroed or filled with `poison`; none where the host has no more.
    unsigned char* allocate(size_t bytes, const unsigned char* poison);
    void release(unsigned char* address);

    // What is wrong with an access to these bytes; empty where they lie in one allocation.
    std::string refusal(const void* address, size_t bytes) const;

    // Where the allocation begins that contains all of these bytes; 0 where none does.
    uintptr_t begin_of(const void* address, size_t bytes) const;
    // The size of the allocation that begins there.
    size_t bytes_at(const void* begin) const;

    // What is wrong with the fences around the allocations; empty where they are whole.
    std::string damage() const;

private:
    struct Allocation {
        size_t bytes;
        unsigned char* mapping;
        size_t mapping_bytes;
    };

    static std::string damage(const unsigned char* begin, const Allocation& allocation);

    std::map<uintptr_t, Allocation> allocations_;
    // Released lately: their addresses are not given out again for a while.
    std::deque<std::pair<uintptr_t, Allocation>> released_;
};

}  // namespace emulator
