// Blocks of one grid that share global memory.
#include "faults.cuh"

// The part of the arrival pattern that a kernel omits.
enum class Omits { nothing, fence, barrier, acquiring_fence, atomic };

// The thread that fences for its block, after the barrier: the one that counts, or another one.
enum class Fences { counting, other };

// Like common.cuh's pattern, with a thread that fences for all: output[0] = the sum of the inputs.
template <Omits omits, Fences fences>
__device__ __forceinline__ void sum_with_one_fence(const FaultArguments& arguments) {
    __shared__ float scratch[kThreads / kWarp];
    const float block = block_sum<kThreads>(arguments.input[global_index()], scratch);
    float* const partial = arguments.output + 1;
    if (threadIdx.x == 1) partial[blockIdx.x] = block;
    if constexpr (omits != Omits::barrier) __syncthreads();
    if (omits != Omits::fence && threadIdx.x == (fences == Fences::counting ? 0 : 2)) __threadfence();
    bool last = false;
    if (threadIdx.x == 0) {
        last = atomicAdd(arguments.counter, 1u) + 1 == gridDim.x;
        if (last) *arguments.counter = 0;
        if (last && omits != Omits::acquiring_fence) __threadfence();
    }
    if (__syncthreads_or(last) == 0) return;
    if (threadIdx.x == 3) {
        float total = 0.0f;
        for (unsigned i = 0; i < gridDim.x; i++) total += partial[i];
        arguments.output[0] = total;
    }
}

extern "C" __global__ void __launch_bounds__(kThreads) sum_with_one_fence_right(const FaultArguments arguments) {
    sum_with_one_fence<Omits::nothing, Fences::counting>(arguments);
}

extern "C" __global__ void __launch_bounds__(kThreads) sum_with_one_fence_of_another(const FaultArguments arguments) {
    sum_with_one_fence<Omits::nothing, Fences::other>(arguments);
}

extern "C" __global__ void __launch_bounds__(kThreads) sum_with_one_fence_and_no_barrier(const FaultArguments arguments) {
    sum_with_one_fence<Omits::barrier, Fences::counting>(arguments);
}

extern "C" __global__ void __launch_bounds__(kThreads) sum_with_one_fence_and_none_to_acquire(const FaultArguments arguments) {
    sum_with_one_fence<Omits::acquiring_fence, Fences::counting>(arguments);
}

// Reads what the launch has written through the cache for constant data, which no fence or barrier empties.
extern "C" __global__ void __launch_bounds__(kThreads) read_written_by_constant_cache(const FaultArguments arguments) {
    const int i = global_index();
    arguments.output[i] = arguments.input[i];
    __syncthreads();
    arguments.output[i] = __ldg(arguments.output + i) + 1.0f;
}

// output[0] = the sum of the inputs: each block writes the sum of its inputs to output[1 + block], and the last adds them.
template <Omits omits>
__device__ __forceinline__ void sum(const FaultArguments& arguments) {
    __shared__ float scratch[kThreads / kWarp];
    __shared__ int flag;
    const float block = block_sum<kThreads>(arguments.input[global_index()], scratch);
    float* const partial = arguments.output + 1;
    // Not thread 0, which counts.
    if (threadIdx.x == 1) partial[blockIdx.x] = block;
    if constexpr (omits != Omits::fence) __threadfence();
    if constexpr (omits != Omits::barrier) __syncthreads();
    if (threadIdx.x == 0) {
        if constexpr (omits == Omits::atomic) flag = ++*arguments.counter == gridDim.x;
        else flag = atomicAdd(arguments.counter, 1u) + 1 == gridDim.x;
        if (flag != 0) *arguments.counter = 0;
    }
    __syncthreads();
    if (flag == 0) return;
    if constexpr (omits != Omits::acquiring_fence) __threadfence();
    if (threadIdx.x == 0) {
        float total = 0.0f;
        for (unsigned i = 0; i < gridDim.x; i++) total += partial[i];
        arguments.output[0] = total;
    }
}

extern "C" __global__ void __launch_bounds__(kThreads) sum_right(const FaultArguments arguments) {
    sum<Omits::nothing>(arguments);
}

extern "C" __global__ void __launch_bounds__(kThreads) sum_without_fence(const FaultArguments arguments) {
    sum<Omits::fence>(arguments);
}

extern "C" __global__ void __launch_bounds__(kThreads) sum_without_barrier(const FaultArguments arguments) {
    sum<Omits::barrier>(arguments);
}

extern "C" __global__ void __launch_bounds__(kThreads) sum_without_acquiring_fence(const FaultArguments arguments) {
    sum<Omits::acquiring_fence>(arguments);
}

extern "C" __global__ void __launch_bounds__(kThreads) sum_without_atomic(const FaultArguments arguments) {
    sum<Omits::atomic>(arguments);
}

// The same with common.cuh's pattern, in two levels: pairs of blocks, then all pairs. The counters are counter[0] for
// all and counter[1 + pair].
extern "C" __global__ void __launch_bounds__(kThreads) sum_in_two_levels(const FaultArguments arguments) {
    __shared__ float scratch[kThreads / kWarp];
    const float block = block_sum<kThreads>(arguments.input[global_index()], scratch);
    float* const of_blocks = arguments.output + 1;
    float* const of_pairs = of_blocks + gridDim.x;
    const unsigned pair = blockIdx.x / 2;
    if (threadIdx.x == 1) of_blocks[blockIdx.x] = block;
    if (!arrive_last(arguments.counter + 1 + pair, min(2u, gridDim.x - 2 * pair))) return;
    if (threadIdx.x == 2) {
        float total = 0.0f;
        for (unsigned i = 2 * pair; i < min(2 * pair + 2, gridDim.x); i++) total += of_blocks[i];
        of_pairs[pair] = total;
    }
    const unsigned pairs = (gridDim.x + 1) / 2;
    if (!arrive_last(arguments.counter, pairs)) return;
    if (threadIdx.x == 3) {
        float total = 0.0f;
        for (unsigned i = 0; i < pairs; i++) total += of_pairs[i];
        arguments.output[0] = total;
        // Written by the other blocks, which arrived through their pairs.
        arguments.output[0] += 0.0f * of_blocks[0];
    }
}

// Every block writes the first element.
extern "C" __global__ void __launch_bounds__(kThreads) blocks_write_one_place(const FaultArguments arguments) {
    const int i = global_index();
    arguments.output[i] = arguments.input[i];
    if (threadIdx.x == 0) arguments.output[arguments.count - arguments.amount] = 1.0f;
}

// Each block reads the element that its neighbour writes.
extern "C" __global__ void __launch_bounds__(kThreads) read_what_another_block_writes(const FaultArguments arguments) {
    const int i = global_index();
    arguments.output[i] = arguments.input[i];
    const int other = (i + kThreads) % arguments.count;
    if (arguments.output[other] == 12345.0f) arguments.output[i] += 1.0f;
}

// Each block overwrites the element that its neighbour reads.
extern "C" __global__ void __launch_bounds__(kThreads) write_what_another_block_reads(const FaultArguments arguments) {
    const int i = global_index();
    const float value = arguments.input[(i + kThreads) % arguments.count];
    const_cast<float*>(arguments.input)[i] = value;
    arguments.output[i] = value;
}
