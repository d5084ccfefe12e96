// Lanes of a warp with correct or mismatched collectives.
#include "faults.cuh"

extern "C" __global__ void __launch_bounds__(kThreads) shuffles_right(const FaultArguments arguments) {
    const int lane = static_cast<int>(threadIdx.x % kWarp);
    const float value = arguments.input[global_index()];
    float sum = warp_sum(value) - value;
    // Each half on its own, one of them twice.
    const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    sum += __shfl_xor_sync(half, value, 8);
    if (lane < 16) sum += __shfl_sync(half, value, 3) + __shfl_down_sync(half, value, 15, 16);
    sum += __shfl_up_sync(kAllLanes, value, 1);
    sum += __popc(__ballot_sync(kAllLanes, lane % 3 == 0)) + __any_sync(kAllLanes, lane == 7) * 2 +
           __all_sync(kAllLanes, lane < 32) * 4;
    arguments.output[global_index()] = sum;
}

extern "C" __global__ void __launch_bounds__(kThreads) divergent_collective(const FaultArguments arguments) {
    float value = arguments.input[global_index()];
    if (threadIdx.x % kWarp < 16) value = __shfl_xor_sync(kAllLanes, value, 1);
    else __syncwarp();
    arguments.output[global_index()] = value;
}

extern "C" __global__ void __launch_bounds__(kThreads) shuffle_in_part_of_warp(const FaultArguments arguments) {
    float value = arguments.input[global_index()];
    if (static_cast<int>(threadIdx.x % kWarp) >= arguments.amount) value = __shfl_xor_sync(kAllLanes, value, 1);
    arguments.output[global_index()] = value;
}

extern "C" __global__ void __launch_bounds__(kThreads) shuffle_from_outside_mask(const FaultArguments arguments) {
    float value = arguments.input[global_index()];
    if (threadIdx.x % kWarp < 16) value = __shfl_sync(0x0000ffffu, value, 16 * arguments.amount);
    arguments.output[global_index()] = value;
}

extern "C" __global__ void __launch_bounds__(kThreads) mask_without_own_lane(const FaultArguments arguments) {
    const float value = __shfl_xor_sync(0xfffffffeu, arguments.input[global_index()], 1);
    arguments.output[global_index()] = value;
}

extern "C" __global__ void __launch_bounds__(kThreads) collective_after_exit(const FaultArguments arguments) {
    const float value = arguments.input[global_index()];
    if (static_cast<int>(threadIdx.x) == arguments.amount) return;
    arguments.output[global_index()] = warp_sum(value);
}

// Launched with half a warp.
extern "C" __global__ void __launch_bounds__(kThreads) collective_of_half_a_warp(const FaultArguments arguments) {
    arguments.output[global_index()] = warp_sum(arguments.input[global_index()]);
}

#if RETUNE_TENSOR_CORES

// 16 x 16 times 16 x 8: all of `a` comes from shared memory, `b` is ones in column `lane / 4`.
template <bool Misaligned>
__device__ __forceinline__ void multiply(const FaultArguments& arguments) {
    extern __shared__ __align__(128) unsigned char shared_memory[];
    bf16* const tile = reinterpret_cast<bf16*>(shared_memory);
    for (int i = static_cast<int>(threadIdx.x); i < 16 * 24; i += kThreads) {
        tile[i] = from_float<bf16>(i % 24 < 16 ? arguments.input[i / 24] : 0.0f);
    }
    __syncthreads();
    const int lane = static_cast<int>(threadIdx.x % kWarp);
    uint32_t a[4];
    const bf16* const row = tile + lane % 16 * 24 + lane / 16 * 8;
    load_matrix_x4(a, Misaligned ? row + arguments.amount : row);
    float d[4] = {};
    const uint32_t ones = pack_bf16(1.0f, 1.0f);
    multiply_add_bf16(d, a, ones, ones);
    arguments.output[global_index()] = d[0] + d[1] + d[2] + d[3];
}

extern "C" __global__ void __launch_bounds__(kThreads) multiply_right(const FaultArguments arguments) {
    multiply<false>(arguments);
}

extern "C" __global__ void __launch_bounds__(kThreads) load_matrix_misaligned(const FaultArguments arguments) {
    multiply<true>(arguments);
}

extern "C" __global__ void __launch_bounds__(kThreads) multiply_in_part_of_warp(const FaultArguments arguments) {
    float d[4] = {};
    const uint32_t a[4] = {};
    if (static_cast<int>(threadIdx.x % kWarp) >= arguments.amount) multiply_add_bf16(d, a, 0, 0);
    arguments.output[global_index()] = d[0];
}

// The hardware requires one instruction for all lanes.
extern "C" __global__ void __launch_bounds__(kThreads) multiply_at_two_places(const FaultArguments arguments) {
    float d[4] = {};
    const uint32_t a[4] = {};
    if (threadIdx.x % 2 == 0) {
        multiply_add_bf16(d, a, 0, 0);
    } else {
        multiply_add_bf16(d, a, 1, 1);
    }
    arguments.output[global_index()] = d[0];
}

#endif
