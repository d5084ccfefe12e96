// Mean over the picture: [N, H, W, C] of float32 or bf16 to [N, C] of float32, and back. The head behind it is small and
// computes in float32 whatever the activations are.
//
// Bound by memory: at batch 128 ResNet-18's 7 x 7 x 512 in bf16 are 6.4 MB each way, 1.5 us at 4.3 TB/s, so both kernels
// cost what a launch costs. Forward: a thread sums one channel of one picture in the order of its pixels; neighbouring
// threads read neighbouring channels. Backward: a thread writes one channel of one picture's pixels.
#include "common.cuh"

struct AvgPoolForwardArguments {
    const void* input;   // [N, pixels, C]
    float* output;       // [N, C]
    int pixels;
    int channels;
    int outputs;         // N C
    int padding;
};

template <class T>
__device__ __forceinline__ void forward(const AvgPoolForwardArguments& a) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= a.outputs) return;
    const long long image = index / a.channels;
    const T* input = static_cast<const T*>(a.input) + image * a.pixels * a.channels + index % a.channels;
    float sum = 0;
#pragma unroll 7
    for (int pixel = 0; pixel < a.pixels; pixel++) sum += to_float(input[static_cast<long long>(pixel) * a.channels]);
    a.output[index] = sum / static_cast<float>(a.pixels);
}

extern "C" __global__ void __launch_bounds__(256) avg_pool_forward_fp32(const AvgPoolForwardArguments arguments) {
    forward<float>(arguments);
}

extern "C" __global__ void __launch_bounds__(256) avg_pool_forward_bf16(const AvgPoolForwardArguments arguments) {
    forward<bf16>(arguments);
}

struct AvgPoolBackwardArguments {
    const float* output_gradient;   // [N, C]
    void* input_gradient;           // [N, pixels, C]
    int pixels;
    int channels;
    int outputs;                    // N C
    int accumulate;
};

template <class T>
__device__ __forceinline__ void backward(const AvgPoolBackwardArguments& a) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= a.outputs) return;
    const long long image = index / a.channels;
    T* target = static_cast<T*>(a.input_gradient) + image * a.pixels * a.channels + index % a.channels;
    const float share = a.output_gradient[index] / static_cast<float>(a.pixels);
    for (int pixel = 0; pixel < a.pixels; pixel++, target += a.channels) {
        *target = from_float<T>(a.accumulate != 0 ? to_float(*target) + share : share);
    }
}

extern "C" __global__ void __launch_bounds__(256) avg_pool_backward_fp32(const AvgPoolBackwardArguments arguments) {
    backward<float>(arguments);
}

extern "C" __global__ void __launch_bounds__(256) avg_pool_backward_bf16(const AvgPoolBackwardArguments arguments) {
    backward<bf16>(arguments);
}
