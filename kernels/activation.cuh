// The activation functions, for kernels that apply one to values in registers. `Activation` in Rust.
#pragma once

#include "common.cuh"

enum class Activation : int { kNone = 0, kRelu = 1 };

__device__ __forceinline__ float activate(Activation activation, float value) {
    // Not fmaxf: a NaN stays a NaN.
    if (activation == Activation::kRelu) return value < 0 ? 0 : value;
    return value;
}

// The gradient of the function's argument, given that of its result. `value` is the argument or, where that was not
// kept, the result.
__device__ __forceinline__ float activate_backward(Activation activation, float value, float gradient) {
    if (activation == Activation::kRelu) return value > 0 ? gradient : 0;
    return gradient;
}
