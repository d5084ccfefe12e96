// Mean over the pixels of an image, NHWC, and its gradient:
//
//   input (N, pixels, C) -> output (N, C) float32
//   output gradient (N, C) float32 -> input gradient (N, pixels, C)
//
// Bound by launch latency: at batch 128, ResNet-18 pools 49 pixels of 512 channels. That is 6.4 MB read in bf16 (12.8
// MB in float32) and 0.3 MB written, 1.6 us at 4.3 TB/s, less than a launch costs. It needs 3 M additions.
//
// Forward: a block computes 32 groups of 16 bytes of channels (256 channels in bf16) of one image. Eight threads share
// a group, each reads every eighth pixel, and their sums are added in order. With fewer channels, more threads share
// the pixels. Backward: a thread writes 16 bytes. If the channels are not a multiple of 16 bytes, a group is one
// element. An H100 takes 9 to 12 us for each pass, most of it for the launch.
#include "common.cuh"

struct AvgPoolForwardArguments {
    const void* input;  // (N, pixels, C)
    float* output;      // (N, C)
    int32_t pixels;
    int32_t channels;
    int32_t tiles;      // blocks per image
    int32_t vectorised;
};

struct AvgPoolBackwardArguments {
    const float* output_gradient;  // (N, C)
    void* input_gradient;          // (N, pixels, C)
    uint32_t groups;               // groups of channels in the input
    int32_t pixels;
    int32_t channels;
    int32_t vectorised;
    int32_t accumulate;
    int32_t unused;
};

namespace {

constexpr int kThreads = 256;
constexpr int kGroupsPerBlock = 32;

template <class T, int kLength>
__device__ __forceinline__ void forward_block(const AvgPoolForwardArguments& arguments) {
    __shared__ float partial[kThreads * kLength];
    const int channels = arguments.channels;
    const int image = blockIdx.x / arguments.tiles;
    const int first_group = (blockIdx.x - image * arguments.tiles) * kGroupsPerBlock;
    const int groups = min(channels / kLength - first_group, kGroupsPerBlock);
    const int lanes = kThreads / groups;
    const int lane = threadIdx.x / groups;
    const int group = threadIdx.x - lane * groups;
    if (lane < lanes) {
        const T* input = static_cast<const T*>(arguments.input) +
                         static_cast<size_t>(image) * arguments.pixels * channels + (first_group + group) * kLength;
        float sums[kLength] = {};
#pragma unroll 4
        for (int pixel = lane; pixel < arguments.pixels; pixel += lanes) {
            float values[kLength];
            load_floats<T, kLength>(values, input + static_cast<size_t>(pixel) * channels);
#pragma unroll
            for (int i = 0; i < kLength; i++) sums[i] += values[i];
        }
#pragma unroll
        for (int i = 0; i < kLength; i++) partial[(lane * groups + group) * kLength + i] = sums[i];
    }
    __syncthreads();
    const int columns = groups * kLength;
    float* output = arguments.output + static_cast<size_t>(image) * channels + first_group * kLength;
    for (int column = threadIdx.x; column < columns; column += kThreads) {
        float sum = partial[column];
        for (int other = 1; other < lanes; other++) sum += partial[other * columns + column];
        output[column] = sum / static_cast<float>(arguments.pixels);
    }
}

template <class T>
__device__ __forceinline__ void forward(const AvgPoolForwardArguments& arguments) {
    if (arguments.vectorised != 0) {
        forward_block<T, kVectorLength<T>>(arguments);
    } else {
        forward_block<T, 1>(arguments);
    }
}

template <class T, int kLength>
__device__ __forceinline__ void backward_group(const AvgPoolBackwardArguments& arguments, uint32_t group) {
    const uint32_t groups = arguments.channels / kLength;
    const uint32_t pixel = group / groups;
    const uint32_t image = pixel / arguments.pixels;
    const float share = 1.0f / static_cast<float>(arguments.pixels);
    const float* gradient = arguments.output_gradient + static_cast<size_t>(image) * arguments.channels +
                            static_cast<size_t>(group - pixel * groups) * kLength;
    T* target = static_cast<T*>(arguments.input_gradient) + static_cast<size_t>(group) * kLength;
    float values[kLength] = {};
    if (arguments.accumulate != 0) load_floats<T, kLength>(values, target);
#pragma unroll
    for (int i = 0; i < kLength; i++) values[i] = fmaf(gradient[i], share, values[i]);
    store_floats<T, kLength>(target, values);
}

template <class T>
__device__ __forceinline__ void backward(const AvgPoolBackwardArguments& arguments) {
    const uint32_t group = blockIdx.x * kThreads + threadIdx.x;
    if (group >= arguments.groups) return;
    if (arguments.vectorised != 0) {
        backward_group<T, kVectorLength<T>>(arguments, group);
    } else {
        backward_group<T, 1>(arguments, group);
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256) avg_pool_forward_fp32(const AvgPoolForwardArguments arguments) {
    forward<float>(arguments);
}

extern "C" __global__ void __launch_bounds__(256) avg_pool_forward_bf16(const AvgPoolForwardArguments arguments) {
    forward<bf16>(arguments);
}

extern "C" __global__ void __launch_bounds__(256) avg_pool_backward_fp32(const AvgPoolBackwardArguments arguments) {
    backward<float>(arguments);
}

extern "C" __global__ void __launch_bounds__(256) avg_pool_backward_bf16(const AvgPoolBackwardArguments arguments) {
    backward<bf16>(arguments);
}
