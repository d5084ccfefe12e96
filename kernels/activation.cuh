// The activation functions, for kernels that apply one to values in registers. Mirrors `Activation` in Rust.
#pragma once

#include "common.cuh"

enum class Activation : int { kNone = 0, kRelu = 1 };

// kNone is tested first: with kRelu first, ptxas needs two more registers in batch_norm_forward_bf16, which costs a
// block.
__device__ __forceinline__ float activate(Activation activation, float value) {
    if (activation == Activation::kNone) return value;
    // kRelu. fmaxf would discard a NaN.
    return value < 0 ? 0 : value;
}

// The gradient with respect to the argument, given that of the result. `value` is the argument or, if it was not kept,
// the result.
__device__ __forceinline__ float activate_backward(Activation activation, float value, float gradient) {
    if (activation == Activation::kNone) return gradient;
    // A NaN passes the gradient, as in torch.
    return value <= 0 ? 0 : gradient;
}
