// Indexing, vector access, and reductions in a fixed order. Every kernel file includes this file.
#pragma once

#include "ptx.cuh"

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// The upper half of a float32.
struct bf16 {
    uint16_t bits;
};

__device__ __forceinline__ float to_float(float value) {
    return value;
}

__device__ __forceinline__ float to_float(bf16 value) {
    return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}

template <class T>
__device__ __forceinline__ T from_float(float value);

template <>
__device__ __forceinline__ float from_float<float>(float value) {
    return value;
}

template <>
__device__ __forceinline__ bf16 from_float<bf16>(float value) {
    return {static_cast<uint16_t>(pack_bf16(value, 0.0f))};
}

// Elements that are read and written at once. `Count` times the size of an element is a power of two of at most 16
// bytes, and the address is aligned to it.
template <class T, int Count>
struct __align__(sizeof(T) * Count) Vector {
    T elements[Count];
};

// Elements of 16 bytes.
template <class T>
constexpr int kVectorLength = 16 / static_cast<int>(sizeof(T));

template <class T, int Count>
__device__ __forceinline__ void load_floats(float (&values)[Count], const T* source) {
    const Vector<T, Count> loaded = *reinterpret_cast<const Vector<T, Count>*>(source);
#pragma unroll
    for (int i = 0; i < Count; i++) values[i] = to_float(loaded.elements[i]);
}

template <class T, int Count>
__device__ __forceinline__ void store_floats(T* target, const float (&values)[Count]) {
    Vector<T, Count> stored;
#pragma unroll
    for (int i = 0; i < Count; i++) stored.elements[i] = from_float<T>(values[i]);
    *reinterpret_cast<Vector<T, Count>*>(target) = stored;
}

__device__ __forceinline__ bool is_finite(float value) {
    return fabsf(value) <= 3.4028234663852886e38f;
}

__device__ __forceinline__ int divide_up(int dividend, int divisor) {
    return (dividend + divisor - 1) / divisor;
}

// Returns the sum over a warp in every lane. The order of additions is the same in each lane.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(kAllLanes, value, distance);
    }
    return value;
}

// Returns the sum over a block of `Threads` threads (a multiple of 32) in every thread. `scratch` has Threads / 32
// floats of shared memory. All threads must call it; it can be called again immediately.
template <int Threads>
__device__ __forceinline__ float block_sum(float value, float* scratch) {
    constexpr int warps = Threads / kWarp;
    value = warp_sum(value);
    __syncthreads();
    if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
    __syncthreads();
    float sum = scratch[0];
#pragma unroll
    for (int warp = 1; warp < warps; warp++) sum += scratch[warp];
    return sum;
}

// Counts the arrival of this block and returns to all its threads whether it is the last of `expected`. The last block
// can read everything that the others wrote before they arrived. The counter is zero before the first block and after
// the last. The threads of the block have passed a barrier when it returns.
//
// One thread releases for its block and acquires for it: in the memory model of the PTX ISA, barriers order the threads of a
// block, and release and acquire are cumulative, so they order what all of these threads did. Fences in every thread
// would be 128 to 256 times as many, and each of them, unlike a release, empties the first-level cache. The last block
// differs from run to run; its result must not.
__device__ __forceinline__ bool arrive_last(unsigned* counter, unsigned expected) {
    __syncthreads();
    bool last = false;
    if (threadIdx.x == 0) {
        last = count_with_release(counter) + 1u == expected;
        if (last) {
            *counter = 0;
            acquire_fence();
        }
    }
    return __syncthreads_or(last) != 0;
}

// Partial statistics of a channel over some pixels: their number, their sum, and the sum of squared deviations from
// their mean.
struct Statistics {
    float count;
    float sum;
    float deviations;
};
