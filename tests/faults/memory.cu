// Kernels that access memory which is not theirs, each beside its twin that does not.
#include "../../kernels/common.cuh"

struct MemoryArguments {
    const float* input;
    float* output;
    int count;
    int step;
};

// output = input + 1, one block for 64 elements.
extern "C" __global__ void __launch_bounds__(64) increment(const MemoryArguments arguments) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < arguments.count) arguments.output[i] = arguments.input[i] + 1.0f;
}

// output[block] = the sum of 64 elements.
extern "C" __global__ void __launch_bounds__(64) sum_blocks(const MemoryArguments arguments) {
    __shared__ float scratch[2];
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const float sum = block_sum<64>(i < arguments.count ? arguments.input[i] : 0.0f, scratch);
    if (threadIdx.x == 0) arguments.output[blockIdx.x] = sum;
}
