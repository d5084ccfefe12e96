// Implements the functions that emulator.h declares with the machine.

#include <cstdarg>
#include <cstdio>

#include "checks.h"
#include "machine.h"

namespace emulator {

uint3 thread_index() {
    return runner->fiber().index;
}

uint3 block_index() {
    return runner->block_index();
}

uint3 block_extent() {
    return runner->launch().block;
}

uint3 grid_extent() {
    return runner->launch().grid;
}

int lane() {
    return static_cast<int>(runner->fiber().thread % kLanes);
}

void fault(const char* cause, ...) {
    char buffer[512];
    va_list operands;
    va_start(operands, cause);
    std::vsnprintf(buffer, sizeof(buffer), cause, operands);
    va_end(operands);
    runner->fail(buffer);
}

int barrier(const char* name, bool predicate, Site site) {
    return runner->barrier(name, predicate, site);
}

void synchronize_warp(uint32_t mask, Site site) {
    runner->collective("__syncwarp", mask, false, site, nullptr, [](void* const*, uint32_t present) {
        if (Checks* const checks = runner->checks()) {
            checks->synchronize_warp(runner->fiber().thread / kLanes, present);
        }
    });
}

namespace {

struct Exchange {
    uint64_t value;
    uint64_t result;
    int source;
};

struct Vote {
    bool predicate;
    uint32_t result;
};

struct Reduction {
    uint64_t value;
    uint64_t (*operation)(uint64_t, uint64_t);
};

struct MatrixLoad {
    uint32_t* registers;
    const void* row;
    bool transposed;
};

struct Multiplication {
    float* d;
    const uint32_t* a;
    uint32_t b0;
    uint32_t b1;
};

template <class Visit>
void for_each_lane(uint32_t mask, Visit visit) {
    for (; mask != 0; mask &= mask - 1) visit(static_cast<unsigned>(__builtin_ctz(mask)));
}

// Calls `visit(operand, lane)` for every lane of the mask.
template <class Operand, class Visit>
void for_each_operand(void* const* operands, uint32_t mask, Visit visit) {
    for_each_lane(mask, [&](unsigned lane) { visit(*static_cast<Operand*>(operands[lane]), lane); });
}

float low_bf16(uint32_t packed) {
    return bits_as<float>(packed << 16);
}

float high_bf16(uint32_t packed) {
    return bits_as<float>(packed & 0xffff0000u);
}

// The tensor cores read the upper 19 bits of a tf32 operand.
float as_tf32(uint32_t bits) {
    return bits_as<float>(bits & 0xffffe000u);
}

template <int Depth>
void multiply_add(float (&d)[16][8], const float (&a)[16][Depth], const float (&b)[Depth][8]) {
    for (int row = 0; row < 16; row++) {
        for (int k = 0; k < Depth; k++) {
            // Exact before the addition: the factors have few digits.
            for (int column = 0; column < 8; column++) d[row][column] += a[row][k] * b[k][column];
        }
    }
}

void gather_sums(void* const* operands, float (&d)[16][8]) {
    for_each_operand<Multiplication>(operands, ~0u, [&](Multiplication& operand, unsigned lane) {
        const unsigned g = lane / 4, t = lane % 4;
        for (unsigned i = 0; i < 4; i++) d[g + i / 2 * 8][2 * t + i % 2] = operand.d[i];
    });
}

void scatter_sums(void* const* operands, const float (&d)[16][8]) {
    for_each_operand<Multiplication>(operands, ~0u, [&](Multiplication& operand, unsigned lane) {
        const unsigned g = lane / 4, t = lane % 4;
        for (unsigned i = 0; i < 4; i++) operand.d[i] = d[g + i / 2 * 8][2 * t + i % 2];
    });
}

void multiply_bf16_of_warp(void* const* operands, uint32_t mask) {
    float a[16][16], b[16][8], d[16][8];
    for_each_operand<Multiplication>(operands, mask, [&](Multiplication& operand, unsigned lane) {
        const unsigned g = lane / 4, t = lane % 4;
        for (unsigned i = 0; i < 4; i++) {
            const unsigned row = g + i % 2 * 8, k = 2 * t + i / 2 * 8;
            a[row][k] = low_bf16(operand.a[i]);
            a[row][k + 1] = high_bf16(operand.a[i]);
        }
        b[2 * t][g] = low_bf16(operand.b0);
        b[2 * t + 1][g] = high_bf16(operand.b0);
        b[2 * t + 8][g] = low_bf16(operand.b1);
        b[2 * t + 9][g] = high_bf16(operand.b1);
    });
    gather_sums(operands, d);
    multiply_add(d, a, b);
    scatter_sums(operands, d);
}

void multiply_tf32_of_warp(void* const* operands, uint32_t mask) {
    float a[16][8], b[8][8], d[16][8];
    for_each_operand<Multiplication>(operands, mask, [&](Multiplication& operand, unsigned lane) {
        const unsigned g = lane / 4, t = lane % 4;
        for (unsigned i = 0; i < 4; i++) a[g + i % 2 * 8][t + i / 2 * 4] = as_tf32(operand.a[i]);
        b[t][g] = as_tf32(operand.b0);
        b[t + 4][g] = as_tf32(operand.b1);
    });
    gather_sums(operands, d);
    multiply_add(d, a, b);
    scatter_sums(operands, d);
}

void load_matrices_of_warp(void* const* operands, uint32_t mask) {
    // Row `lane % 8` of matrix `lane / 8`.
    uint16_t elements[32][8];
    for_each_operand<MatrixLoad>(operands, mask, [&](MatrixLoad& operand, unsigned lane) {
        std::memcpy(elements[lane], operand.row, sizeof(elements[lane]));
    });
    for_each_operand<MatrixLoad>(operands, mask, [&](MatrixLoad& operand, unsigned lane) {
        const unsigned g = lane / 4, t = lane % 4;
        for (unsigned matrix = 0; matrix < 4; matrix++) {
            const uint16_t(*const rows)[8] = elements + 8 * matrix;
            const uint32_t low = operand.transposed ? rows[2 * t][g] : rows[g][2 * t];
            const uint32_t high = operand.transposed ? rows[2 * t + 1][g] : rows[g][2 * t + 1];
            operand.registers[matrix] = low | high << 16;
        }
    });
}

}  // namespace

uint64_t shuffle(const char* name, uint32_t mask, uint64_t value, int source_lane, Site site) {
    if ((mask >> (source_lane & 31) & 1) == 0) {
        fault("%s (%s) reads lane %d, which is outside the mask 0x%08x", name, format_site(site).c_str(),
              source_lane & 31, mask);
    }
    Exchange exchange{value, 0, source_lane & 31};
    runner->collective(name, mask, false, site, &exchange, [](void* const* operands, uint32_t present) {
        for_each_operand<Exchange>(operands, present, [&](Exchange& to, unsigned) {
            to.result = static_cast<Exchange*>(operands[to.source])->value;
        });
    });
    return exchange.result;
}

uint32_t ballot(const char* name, uint32_t mask, bool predicate, Site site) {
    Vote vote{predicate, 0};
    runner->collective(name, mask, false, site, &vote, [](void* const* operands, uint32_t present) {
        uint32_t result = 0;
        for_each_operand<Vote>(operands, present,
                               [&](Vote& vote, unsigned lane) { result |= uint32_t{vote.predicate} << lane; });
        for_each_operand<Vote>(operands, present, [&](Vote& vote, unsigned) { vote.result = result; });
    });
    return vote.result;
}

uint64_t reduce(const char* name, uint32_t mask, uint64_t value, uint64_t (*operation)(uint64_t, uint64_t),
                Site site) {
    Reduction reduction{value, operation};
    runner->collective(name, mask, false, site, &reduction, [](void* const* operands, uint32_t present) {
        const auto first = static_cast<unsigned>(__builtin_ctz(present));
        uint64_t result = static_cast<Reduction*>(operands[first])->value;
        for_each_operand<Reduction>(operands, present & (present - 1), [&](Reduction& next, unsigned) {
            result = next.operation(result, next.value);
        });
        for_each_operand<Reduction>(operands, present, [&](Reduction& each, unsigned) { each.value = result; });
    });
    return reduction.value;
}

void read_constant(const void* address, size_t bytes) {
    if (Checks* const checks = runner->checks()) checks->read_constant(address, bytes);
}

void fence() {
    if (Checks* const checks = runner->checks()) checks->fence();
    std::atomic_thread_fence(std::memory_order_seq_cst);
}

uint32_t atomic(uint32_t* address, uint32_t operand, uint32_t (*operation)(uint32_t, uint32_t), uint32_t compared,
                Site site) {
    if (reinterpret_cast<uintptr_t>(address) % sizeof(uint32_t) != 0) {
        fault("atomic operation (%s) at %p, which is not a multiple of 4", format_site(site).c_str(),
              static_cast<void*>(address));
    }
    if (Checks* const checks = runner->checks()) checks->atomic(address);
    uint32_t old = compared;
    if (operation == nullptr) {
        __atomic_compare_exchange_n(address, &old, operand, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        return old;
    }
    old = __atomic_load_n(address, __ATOMIC_SEQ_CST);
    while (!__atomic_compare_exchange_n(address, &old, operation(old, operand), false, __ATOMIC_SEQ_CST,
                                        __ATOMIC_SEQ_CST)) {
    }
    return old;
}

void copy_async(void* shared, const void* global, int bytes, bool valid, Site site) {
    runner->copy_async(static_cast<unsigned char*>(shared), static_cast<const unsigned char*>(global), bytes, valid,
                       site);
}

void copy_async_commit() {
    runner->fiber().copy_group++;
}

void copy_async_wait(int pending) {
    runner->copy_async_wait(pending);
}

void load_matrix(uint32_t* registers, const void* row, bool transposed, Site site) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
        fault("ldmatrix (%s) from %p, which is not a multiple of 16", format_site(site).c_str(), row);
    }
    if (Checks* const checks = runner->checks()) checks->read(row, 16);
    MatrixLoad load{registers, row, transposed};
    runner->collective(transposed ? "ldmatrix.trans" : "ldmatrix", ~0u, true, site, &load, load_matrices_of_warp);
}

void multiply_add_bf16(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, Site site) {
    Multiplication multiplication{d, a, b0, b1};
    runner->collective("mma (bf16)", ~0u, true, site, &multiplication, multiply_bf16_of_warp);
}

void multiply_add_tf32(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, Site site) {
    Multiplication multiplication{d, a, b0, b1};
    runner->collective("mma (tf32)", ~0u, true, site, &multiplication, multiply_tf32_of_warp);
}

uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(static_cast<const unsigned char*>(pointer) - retune_emulator_shared_memory);
}

}  // namespace emulator
