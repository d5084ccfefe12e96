// cp.async: waits and barriers between a copy and its use.
#include "faults.cuh"

#if RETUNE_TENSOR_CORES

constexpr int kRounds = 4;

// The part that a copy omits.
enum class Lacks { nothing, wait, strong_wait, commit, barrier, barrier_before_reuse };

// Each block copies 16 bytes per thread, in rounds through a ring of two stages, and each thread reads the piece of the
// opposite thread. Needs 2 * 16 * kThreads bytes of dynamic shared memory. `input` has 4 * kThreads elements, which are
// read again in each round.
template <Lacks lacks>
__device__ __forceinline__ void copy_in_rounds(const FaultArguments& arguments) {
    extern __shared__ __align__(128) unsigned char shared_memory[];
    float* const stages = reinterpret_cast<float*>(shared_memory);
    const int thread = static_cast<int>(threadIdx.x), opposite = kThreads - 1 - thread;
    const auto begin = [&](int round) {
        float* const target = stages + (round % 2) * 4 * kThreads + 4 * thread;
        copy_async_16(target, arguments.input + 4 * thread, round < kRounds);
        if constexpr (lacks != Lacks::commit) copy_async_commit();
    };
    begin(0);
    float sum = 0.0f;
    for (int round = 0; round < kRounds; round++) {
        begin(round + 1);
        if constexpr (lacks == Lacks::strong_wait) copy_async_wait<2>();
        else if constexpr (lacks != Lacks::wait) copy_async_wait<1>();
        if constexpr (lacks != Lacks::barrier) __syncthreads();
        sum += stages[(round % 2) * 4 * kThreads + 4 * opposite];
        if constexpr (lacks != Lacks::barrier_before_reuse) __syncthreads();
    }
    copy_async_wait<0>();
    arguments.output[global_index()] = sum;
}

extern "C" __global__ void __launch_bounds__(kThreads) copies_right(const FaultArguments arguments) {
    copy_in_rounds<Lacks::nothing>(arguments);
}

extern "C" __global__ void __launch_bounds__(kThreads) copies_without_wait(const FaultArguments arguments) {
    copy_in_rounds<Lacks::wait>(arguments);
}

extern "C" __global__ void __launch_bounds__(kThreads) copies_with_weak_wait(const FaultArguments arguments) {
    copy_in_rounds<Lacks::strong_wait>(arguments);
}

extern "C" __global__ void __launch_bounds__(kThreads) copies_without_commit(const FaultArguments arguments) {
    copy_in_rounds<Lacks::commit>(arguments);
}

extern "C" __global__ void __launch_bounds__(kThreads) copies_without_barrier(const FaultArguments arguments) {
    copy_in_rounds<Lacks::barrier>(arguments);
}

extern "C" __global__ void __launch_bounds__(kThreads) copies_overwrite_what_is_read(const FaultArguments arguments) {
    copy_in_rounds<Lacks::barrier_before_reuse>(arguments);
}

// One copy per thread, with offsets in bytes for its two addresses.
template <int ToOffset, int FromOffset>
__device__ __forceinline__ void copy_once(const FaultArguments& arguments) {
    extern __shared__ __align__(128) unsigned char shared_memory[];
    unsigned char* const to = shared_memory + 16 * threadIdx.x;
    const unsigned char* const from = reinterpret_cast<const unsigned char*>(arguments.input) + 16 * threadIdx.x;
    copy_async_16(to + ToOffset * arguments.amount, from + FromOffset * arguments.amount, true);
    copy_async_commit();
    copy_async_wait<0>();
    arguments.output[global_index()] = *reinterpret_cast<const float*>(to + ToOffset * arguments.amount);
}

extern "C" __global__ void __launch_bounds__(kThreads) copy_once_right(const FaultArguments arguments) {
    copy_once<0, 0>(arguments);
}

extern "C" __global__ void __launch_bounds__(kThreads) copy_to_misaligned(const FaultArguments arguments) {
    copy_once<8, 0>(arguments);
}

extern "C" __global__ void __launch_bounds__(kThreads) copy_from_misaligned(const FaultArguments arguments) {
    copy_once<0, 4>(arguments);
}

extern "C" __global__ void __launch_bounds__(kThreads) copy_from_past_end(const FaultArguments arguments) {
    copy_once<0, 4096>(arguments);
}

// 1024 bytes past the last thread's piece.
extern "C" __global__ void __launch_bounds__(kThreads) copy_to_past_end(const FaultArguments arguments) {
    copy_once<2048, 0>(arguments);
}

extern "C" __global__ void __launch_bounds__(kThreads) copy_to_global(const FaultArguments arguments) {
    copy_async_16(arguments.output + 4 * (threadIdx.x % 16), arguments.input, true);
    copy_async_commit();
    copy_async_wait<0>();
}

#endif
