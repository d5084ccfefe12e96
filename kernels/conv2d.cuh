// The sizes of a convolution, as its kernels receive them. Mirrors `Conv2dShape` in Rust.
#pragma once

#include "activation.cuh"
#include "statistics.cuh"

struct Conv2dGeometry {
    int batch;              // N
    int height;             // H
    int width;              // W
    int input_channels;     // C
    int output_height;      // OH
    int output_width;       // OW
    int output_channels;    // K
    int kernel_height;      // R
    int kernel_width;       // S
    int stride;
    int padding;
};

// The batch norm with running statistics that follows a convolution in evaluation, with the residual addition and the
// activation. Applied to the sums after they were rounded as they would be stored, so results have the bits of two passes, and
// the activation is neither written nor read in between. Weights stay as they are: scaling them would round them again.
struct Conv2dFinish {
    const float* weight;              // [K]
    const float* bias;                // [K]
    const float* running_mean;        // [K]
    const float* running_variance;    // [K]
    const void* residual;             // [N, OH, OW, K] or null
    float epsilon;
    Activation activation;

    // The scale and the shift of a channel, as in batch_norm.cu.
    __device__ __forceinline__ float2 affine_of(int channel) const {
        const float factor = weight[channel] * (1.0f / sqrtf(running_variance[channel] + epsilon));
        return make_float2(factor, fmaf(-running_mean[channel], factor, bias[channel]));
    }

    __device__ __forceinline__ float apply(float value, float2 affine, float added) const {
        return activate(activation, fmaf(value, affine.x, affine.y) + added);
    }
};
