// The Euclidean norm of all gradients, computed by two kernels. In the first, a fixed number of blocks add the squares
// of a group, and each block writes one sum. In the second, one block adds all sums. The order of both additions
// depends only on the number of values.
//
// Bound by memory: each gradient is read once.
#include "common.cuh"

struct GradientNormArguments {
    const float* gradients;  // null in the second kernel
    float* sums;             // one sum per block of each group
    float* norm;             // null in the first kernel
    uint64_t count;          // gradients, or sums
};

namespace {

constexpr int kThreads = 256;

}  // namespace

extern "C" __global__ void __launch_bounds__(256) gradient_squares(const GradientNormArguments arguments) {
    __shared__ float scratch[kThreads / kWarp];
    float sum = 0.0f;
    const size_t step = static_cast<size_t>(gridDim.x) * kThreads;
    for (size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; i < arguments.count; i += step) {
        const float gradient = arguments.gradients[i];
        sum = fmaf(gradient, gradient, sum);
    }
    sum = block_sum<kThreads>(sum, scratch);
    if (threadIdx.x == 0) arguments.sums[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(256) gradient_norm(const GradientNormArguments arguments) {
    __shared__ float scratch[kThreads / kWarp];
    float sum = 0.0f;
    for (size_t i = threadIdx.x; i < arguments.count; i += kThreads) sum += arguments.sums[i];
    sum = block_sum<kThreads>(sum, scratch);
    if (threadIdx.x == 0) arguments.norm[0] = sqrtf(sum);
}
