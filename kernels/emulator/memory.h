// The emulated device's memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <utility>

namespace emulator {

// Allocations with an inaccessible page on both sides, and fences in the space that alignment leaves.
class Memory {
public:
    ~Memory();

    // Memory for `bytes`, zeroed or filled with `poison`; null if the host is out of memory.
    unsigned char* allocate(size_t bytes, const unsigned char* poison);
    void release(unsigned char* address);

    // What is wrong with an access to these bytes; empty if they lie in one allocation.
    std::string refusal(const void* address, size_t bytes) const;

    // The start of the allocation that contains all of these bytes; 0 if there is none.
    uintptr_t begin_of(const void* address, size_t bytes) const;
    // The size of the allocation that starts there.
    size_t bytes_at(const void* begin) const;

    // What is wrong with the fences around the allocations; empty if they are intact.
    std::string damage() const;

private:
    struct Allocation {
        size_t bytes;
        unsigned char* mapping;
        size_t mapping_bytes;
    };

    static std::string damage(const unsigned char* begin, const Allocation& allocation);

    std::map<uintptr_t, Allocation> allocations_;
    // Recently released: their addresses are not reused for a while.
    std::deque<std::pair<uintptr_t, Allocation>> released_;
};

}  // namespace emulator
