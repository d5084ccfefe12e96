#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "machine.h"

#if EMULATOR_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#endif

namespace emulator {

namespace {

// The alignment that the driver interface promises.
constexpr size_t kAlignment = 256;
constexpr size_t kMostReleased = 256;

size_t round_up(size_t value, size_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

void release_mapping(unsigned char* mapping, size_t bytes) {
#if EMULATOR_ADDRESS_SANITIZER
    __asan_unpoison_memory_region(mapping, bytes);
#endif
    munmap(mapping, bytes);
}

}  // namespace

Memory::~Memory() {
    for (const auto& [begin, allocation] : allocations_) {
        release_mapping(allocation.mapping, allocation.mapping_bytes);
    }
    for (const auto& [begin, allocation] : released_) munmap(allocation.mapping, allocation.mapping_bytes);
}

unsigned char* Memory::allocate(size_t bytes, const unsigned char* poison) {
    if (bytes > SIZE_MAX / 2) return nullptr;
    // At least one fence on each side lies before the page that faults.
    const size_t data = round_up(bytes + 1, kAlignment);
    const size_t pages = round_up(data + kAlignment, kPage);
    const size_t mapping_bytes = pages + 2 * kPage;
    void* mapped =
        mmap(nullptr, mapping_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    unsigned char* mapping = static_cast<unsigned char*>(mapped);
#if EMULATOR_ADDRESS_SANITIZER
    // Earlier mappings at this address, such as a thread's stack, may have left their marks.
    __asan_unpoison_memory_region(mapping, mapping_bytes);
#endif
    mprotect(mapping, kPage, PROT_NONE);
    mprotect(mapping + kPage + pages, kPage, PROT_NONE);
    unsigned char* const end = mapping + kPage + pages;
    unsigned char* const begin = end - data;
    std::memset(begin - kAlignment, kFence, kAlignment);
    std::memset(begin + bytes, kFence, data - bytes);
    if (poison != nullptr) std::memset(begin, *poison, bytes);
#if EMULATOR_ADDRESS_SANITIZER
    __asan_poison_memory_region(begin - kAlignment, kAlignment);
    __asan_poison_memory_region(begin + bytes, data - bytes);
#endif
    allocations_[reinterpret_cast<uintptr_t>(begin)] = {bytes, mapping, mapping_bytes};
    return begin;
}

void Memory::release(unsigned char* address) {
    const auto found = allocations_.find(reinterpret_cast<uintptr_t>(address));
    if (found == allocations_.end()) return;
    const Allocation& allocation = found->second;
#if EMULATOR_ADDRESS_SANITIZER
    __asan_unpoison_memory_region(allocation.mapping, allocation.mapping_bytes);
#endif
    // The address range stays reserved, without memory, so that a later use is detected.
    mmap(allocation.mapping, allocation.mapping_bytes, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    released_.emplace_back(*found);
    allocations_.erase(found);
    if (released_.size() > kMostReleased) {
        munmap(released_.front().second.mapping, released_.front().second.mapping_bytes);
        released_.pop_front();
    }
}

uintptr_t Memory::begin_of(const void* address, size_t bytes) const {
    const uintptr_t at = reinterpret_cast<uintptr_t>(address);
    const auto next = allocations_.upper_bound(at);
    if (next == allocations_.begin()) return 0;
    const auto& [begin, allocation] = *std::prev(next);
    return at - begin <= allocation.bytes && bytes <= allocation.bytes - (at - begin) ? begin : 0;
}

size_t Memory::bytes_at(const void* begin) const {
    const auto found = allocations_.find(reinterpret_cast<uintptr_t>(begin));
    return found == allocations_.end() ? 0 : found->second.bytes;
}

std::string Memory::refusal(const void* address, size_t bytes) const {
    if (begin_of(address, bytes) != 0) return {};
    const uintptr_t at = reinterpret_cast<uintptr_t>(address);
    const auto describe = [&](uintptr_t begin, const Allocation& allocation, const char* state) {
        return format("%zu bytes at offset %td of %s of %zu bytes", bytes, static_cast<ptrdiff_t>(at - begin), state,
                      allocation.bytes);
    };
    const auto next = allocations_.upper_bound(at);
    if (next != allocations_.begin()) {
        const auto& [begin, allocation] = *std::prev(next);
        if (at - begin < allocation.bytes + kPage) return describe(begin, allocation, "an allocation");
    }
    if (next != allocations_.end() && next->first - at <= kPage) {
        return describe(next->first, next->second, "an allocation");
    }
    for (const auto& [begin, allocation] : released_) {
        if (at >= begin && at - begin < allocation.bytes + kPage) {
            return describe(begin, allocation, "a released allocation");
        }
    }
    return format("%zu bytes at %p, where nothing is allocated", bytes, address);
}

std::string Memory::damage(const unsigned char* begin, const Allocation& allocation) {
#if EMULATOR_ADDRESS_SANITIZER
    // The sanitizer guards the fences itself.
    (void)begin, (void)allocation;
#else
    const auto changed = [](unsigned char byte) { return byte != kFence; };
    if (std::any_of(begin - kAlignment, begin, changed)) {
        return format("wrote before the start of an allocation of %zu bytes", allocation.bytes);
    }
    const size_t data = round_up(allocation.bytes + 1, kAlignment);
    if (std::any_of(begin + allocation.bytes, begin + data, changed)) {
        return format("wrote past the end of an allocation of %zu bytes", allocation.bytes);
    }
#endif
    return {};
}

std::string Memory::damage() const {
    for (const auto& [begin, allocation] : allocations_) {
        std::string damage = Memory::damage(reinterpret_cast<const unsigned char*>(begin), allocation);
        if (!damage.empty()) return damage;
    }
    return {};
}

}  // namespace emulator
