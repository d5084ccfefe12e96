// The only file with inline PTX. Each function has an equivalent of the same name in emulator/, so a kernel that uses
// only these functions, CUDA intrinsics and C++ runs on the emulator unchanged.
#pragma once

#if defined(__CUDACC__)

#include <stdint.h>

// Whether the tensor-core paths are compiled. sm_75 has neither cp.async nor bf16: its kernels are empty, and the
// launch code never starts them.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define RETUNE_TENSOR_CORES 1
#else
#define RETUNE_TENSOR_CORES 0
#endif

// Adds 1 to a counter and returns its value before. Whoever reads the new value and then acquires sees what this thread has
// written or, by a barrier, knows to be written. Unlike a fence, it does not empty the first-level cache (no CCTL.IVALL).
__device__ __forceinline__ unsigned count_with_release(unsigned* counter) {
    unsigned before;
    asm volatile("atom.add.release.gpu.global.u32 %0, [%1], 1;\n" : "=r"(before) : "l"(__cvta_generic_to_global(counter)) : "memory");
    return before;
}

// Lets this thread, and after a barrier its block, read what was released before the values that it has read.
__device__ __forceinline__ void acquire_fence() {
    asm volatile("fence.acq_rel.gpu;\n" ::: "memory");
}

// Rounds two floats to bf16, to nearest, ties to even, with `low` in the lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
#if RETUNE_TENSOR_CORES
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#else
    const auto round = [](float value) -> uint32_t {
        const uint32_t bits = __float_as_uint(value);
        return value != value ? 0x7fffu : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    };
    return round(low) | round(high) << 16;
#endif
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

#if RETUNE_TENSOR_CORES

// Copies 16 bytes to shared memory without waiting. If `valid` is false, it writes zeros and does not read `global`.
// Both addresses are multiples of 16.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

// The same through the L1 cache, for data that the multiprocessor copies again soon.
__device__ __forceinline__ void copy_async_16_cached(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

// The same for 4 bytes, both addresses multiples of 4.
__device__ __forceinline__ void copy_async_4(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 4 : 0)
                 : "memory");
}

// Ends a group of copies of this thread.
__device__ __forceinline__ void copy_async_commit() {
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Waits until at most `Pending` of this thread's groups are in flight. Other threads see the data after a barrier.
template <int Pending>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(Pending) : "memory");
}

// Loads four 8 x 8 matrices of 16-bit elements. Lane 8 i + j passes the address of row j (16 bytes, 16-byte aligned) of
// matrix i; lane l receives elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of each matrix.
__device__ __forceinline__ void load_matrix_x4(uint32_t (&registers)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same with each matrix transposed: lane l receives element l / 4 of rows 2 (l % 4) and 2 (l % 4) + 1.
__device__ __forceinline__ void load_matrix_x4_transposed(uint32_t (&registers)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// d += a b over 16 x 16 and 16 x 8 matrices of bf16, float32 sums. With g = lane / 4 and t = lane % 4:
// a: {(g, 2t..2t+1), (g+8, 2t..), (g, 2t+8..), (g+8, 2t+8..)}; b (k, n): {(2t..2t+1, g), (2t+8.., g)};
// d: {(g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1)}. The lower half of a register is the element with the lower index.
__device__ __forceinline__ void multiply_add_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d += a b over 16 x 8 and 8 x 8 matrices of tf32, float32 sums. a: {(g, t), (g+8, t), (g, t+4), (g+8, t+4)};
// b (k, n): {(t, g), (t+4, g)}; d as above.
__device__ __forceinline__ void multiply_add_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Rounds to tf32 (ten bits of mantissa), to nearest, ties away from zero, and returns the bits of the float.
__device__ __forceinline__ uint32_t round_to_tf32(float value) {
    uint32_t rounded;
    asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(rounded) : "f"(value));
    return rounded;
}

#endif

#else

#include "emulator/emulator.h"
#define RETUNE_TENSOR_CORES 1

#endif
