// Threads of one block with correct, missing or mismatched barriers.
#include "faults.cuh"

// In two rounds, each thread publishes an element and reads that of the opposite thread.
template <bool AfterWriting, bool BeforeOverwriting>
__device__ __forceinline__ void exchange(const FaultArguments& arguments, float* shown) {
    float value = arguments.input[global_index()];
    for (int round = 0; round < 3; round++) {
        shown[threadIdx.x] = value;
        if constexpr (AfterWriting) __syncthreads();
        value = shown[kThreads - 1 - threadIdx.x];
        if constexpr (BeforeOverwriting) __syncthreads();
    }
    arguments.output[global_index()] = value;
}

extern "C" __global__ void __launch_bounds__(kThreads) exchange_right(const FaultArguments arguments) {
    __shared__ float shown[kThreads];
    exchange<true, true>(arguments, shown);
}

extern "C" __global__ void __launch_bounds__(kThreads) no_barrier_after_writing(const FaultArguments arguments) {
    __shared__ float shown[kThreads];
    exchange<false, true>(arguments, shown);
}

extern "C" __global__ void __launch_bounds__(kThreads) no_barrier_before_overwriting(const FaultArguments arguments) {
    __shared__ float shown[kThreads];
    exchange<true, false>(arguments, shown);
}

// The same within a warp.
template <bool AfterWriting, bool BeforeOverwriting>
__device__ __forceinline__ void exchange_in_warp(const FaultArguments& arguments, float* shown) {
    float value = arguments.input[global_index()];
    for (int round = 0; round < 3; round++) {
        shown[threadIdx.x] = value;
        if constexpr (AfterWriting) __syncwarp();
        value = shown[threadIdx.x ^ 31];
        if constexpr (BeforeOverwriting) __syncwarp();
    }
    arguments.output[global_index()] = value;
}

extern "C" __global__ void __launch_bounds__(kThreads) exchange_in_warp_right(const FaultArguments arguments) {
    __shared__ float shown[kThreads];
    exchange_in_warp<true, true>(arguments, shown);
}

extern "C" __global__ void __launch_bounds__(kThreads) no_syncwarp_after_writing(const FaultArguments arguments) {
    __shared__ float shown[kThreads];
    exchange_in_warp<false, true>(arguments, shown);
}

extern "C" __global__ void __launch_bounds__(kThreads) no_syncwarp_before_overwriting(const FaultArguments arguments) {
    __shared__ float shown[kThreads];
    exchange_in_warp<true, false>(arguments, shown);
}

// __syncwarp orders the lanes of a warp only.
extern "C" __global__ void __launch_bounds__(kThreads) syncwarp_instead_of_barrier(const FaultArguments arguments) {
    __shared__ float shown[kThreads];
    shown[threadIdx.x] = arguments.input[global_index()];
    __syncwarp();
    arguments.output[global_index()] = shown[kThreads - 1 - threadIdx.x];
}

// A shuffle exchanges values and orders no memory.
extern "C" __global__ void __launch_bounds__(kThreads) shuffle_instead_of_syncwarp(const FaultArguments arguments) {
    __shared__ float shown[kThreads];
    shown[threadIdx.x] = arguments.input[global_index()];
    const float other = __shfl_xor_sync(kAllLanes, 1.0f, 1);
    arguments.output[global_index()] = other * shown[threadIdx.x ^ 31];
}

// Counts with integers in shared memory, atomically or not.
extern "C" __global__ void __launch_bounds__(kThreads) count_right(const FaultArguments arguments) {
    __shared__ unsigned counted;
    if (threadIdx.x == 0) counted = 0;
    __syncthreads();
    atomicAdd(&counted, 1u);
    __syncthreads();
    arguments.output[global_index()] = static_cast<float>(counted);
}

extern "C" __global__ void __launch_bounds__(kThreads) count_without_atomics(const FaultArguments arguments) {
    __shared__ unsigned counted;
    if (threadIdx.x == 0) counted = 0;
    __syncthreads();
    counted += 1;
    __syncthreads();
    arguments.output[global_index()] = static_cast<float>(counted);
}

extern "C" __global__ void __launch_bounds__(kThreads) all_write_one_place(const FaultArguments arguments) {
    __shared__ float last;
    last = arguments.input[global_index()];
    __syncthreads();
    arguments.output[global_index()] = last;
}

// Threads that write different bytes of one word do not race; threads that write the same bytes do.
extern "C" __global__ void __launch_bounds__(kThreads) bytes_side_by_side(const FaultArguments arguments) {
    __shared__ uint16_t halves[2 * kThreads];
    halves[threadIdx.x] = static_cast<uint16_t>(arguments.input[global_index()]);
    __syncthreads();
    arguments.output[global_index()] = halves[threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(kThreads) words_overlap(const FaultArguments arguments) {
    __shared__ uint16_t halves[2 * kThreads];
    halves[threadIdx.x] = static_cast<uint16_t>(arguments.input[global_index()]);
    if (threadIdx.x % 2 == 0) halves[threadIdx.x + arguments.amount] = 0;
    __syncthreads();
    arguments.output[global_index()] = halves[threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(kThreads) divergent_barrier(const FaultArguments arguments) {
    __shared__ float shown[kThreads];
    shown[threadIdx.x] = arguments.input[global_index()];
    if (threadIdx.x < kThreads / 2) {
        __syncthreads();
    } else {
        shown[threadIdx.x] += 1.0f;
        __syncthreads();
    }
    arguments.output[global_index()] = shown[kThreads - 1 - threadIdx.x];
}

// Some threads pass the barrier one more time than others.
extern "C" __global__ void __launch_bounds__(kThreads) barrier_in_uneven_loop(const FaultArguments arguments) {
    const int rounds = 1 + (static_cast<int>(threadIdx.x) == arguments.amount);
    for (int round = 0; round < rounds; round++) __syncthreads();
    arguments.output[global_index()] = arguments.input[global_index()];
}

extern "C" __global__ void __launch_bounds__(kThreads) exit_before_barrier(const FaultArguments arguments) {
    __shared__ float shown[kThreads];
    if (threadIdx.x >= kThreads - arguments.amount) return;
    shown[threadIdx.x] = arguments.input[global_index()];
    __syncthreads();
    arguments.output[global_index()] = shown[threadIdx.x];
}

// Lane 0 waits for its warp, the warp waits for lane 0.
extern "C" __global__ void __launch_bounds__(kThreads) warp_waits_and_block_waits(const FaultArguments arguments) {
    if (threadIdx.x == 0) __syncwarp();
    __syncthreads();
    arguments.output[global_index()] = arguments.input[global_index()];
}
