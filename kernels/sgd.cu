// One step of stochastic gradient descent over a flat group of parameters, as torch.optim.SGD makes it:
//
//   d = gradient + weight_decay value;  velocity = momentum velocity + d;  value -= learning_rate velocity
//
// and, where convolutions read bf16, the copy of the new values in the same pass.
//
// Bound by memory: ResNet-18's 11.2 million parameters are 45 MB; values, gradients and the copy are 157 MB a step,
// 36 us at 4.3 TB/s, with momentum 57 us. A thread has 16 bytes of values; a group of parameters is one launch.
#include "common.cuh"

struct SgdArguments {
    float* values;
    const float* gradients;
    float* velocity;         // or null
    bf16* copy;              // or null
    long long length;        // a multiple of four
    float learning_rate;
    float momentum;
    float weight_decay;
    int padding;
};

extern "C" __global__ void __launch_bounds__(256) sgd(const SgdArguments arguments) {
    const long long stride = static_cast<long long>(gridDim.x) * blockDim.x * 4;
    long long i = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
    for (; i < arguments.length; i += stride) {
        float values[4], steps[4];
        load_floats<float, 4>(values, arguments.values + i);
        load_floats<float, 4>(steps, arguments.gradients + i);
#pragma unroll
        for (int k = 0; k < 4; k++) steps[k] = fmaf(arguments.weight_decay, values[k], steps[k]);
        if (arguments.velocity != nullptr) {
            float velocity[4];
            load_floats<float, 4>(velocity, arguments.velocity + i);
#pragma unroll
            for (int k = 0; k < 4; k++) steps[k] = fmaf(arguments.momentum, velocity[k], steps[k]);
            store_floats<float, 4>(arguments.velocity + i, steps);
        }
#pragma unroll
        for (int k = 0; k < 4; k++) values[k] = fmaf(-arguments.learning_rate, steps[k], values[k]);
        store_floats<float, 4>(arguments.values + i, values);
        if (arguments.copy != nullptr) store_floats<bf16, 4>(arguments.copy + i, values);
    }
}
