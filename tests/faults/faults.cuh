// Shared by the kernels of this folder. Each is small, is correct or has one fault that its name states, and never runs on
// a GPU: tests/emulator.rs requires that the emulator finds every fault and accepts the correct kernels.
#pragma once

#include "../../kernels/common.cuh"

// `input` and `output` have `count` elements, one for each thread of the grid. `amount` is unknown to the compiler, and 1
// unless a comment states another value. `counter` is zero.
struct FaultArguments {
    const float* input;
    float* output;
    unsigned* counter;
    int count;
    int amount;
};

constexpr int kThreads = 64;

__device__ __forceinline__ int global_index() {
    return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}
