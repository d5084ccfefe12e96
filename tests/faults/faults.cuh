// What the kernels of this folder share. Each is small, is right or has one fault that its name tells, and never runs on a
// GPU: tests/emulator.rs requires that the emulator finds every fault and passes what is right.
#pragma once

#include "../../kernels/common.cuh"

// `input` and `output` have `count` elements, one for each thread of the grid; `amount` is 1 where a comment says nothing
// else, and unknown to the compiler. `counter` is zero.
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
