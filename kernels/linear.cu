// Fully connected layer (torch.nn.Linear): output = input weight^T + bias, with input [N, inputs] and weight
// [outputs, inputs]. Always float32.
//
// ResNet-18's head is 512 x classes: 131 MFLOP at batch 128 and 1000 classes, 2.6 MB; it is bound by what a launch costs
// for the few classes of fine-tuning. So the kernels are plain: forward a warp an output; gradient of the input a thread
// an element, which walks down the outputs; gradient of the weight a thread an element, which walks over the batch, and
// the bias is one more column whose input is 1. Every sum has one order.
#include "common.cuh"

struct LinearForwardArguments {
    const float* input;    // [N, inputs]
    const float* weight;   // [outputs, inputs]
    const float* bias;     // [outputs]
    float* output;         // [N, outputs]
    int batch;
    int inputs;
    int outputs;
    int padding;
};

extern "C" __global__ void __launch_bounds__(256) linear_forward(const LinearForwardArguments arguments) {
    const long long index = static_cast<long long>(blockIdx.x) * (256 / kWarp) + threadIdx.x / kWarp;
    // A whole warp leaves together.
    if (index >= static_cast<long long>(arguments.batch) * arguments.outputs) return;
    const int output = static_cast<int>(index % arguments.outputs);
    const float* input = arguments.input + index / arguments.outputs * arguments.inputs;
    const float* weight = arguments.weight + static_cast<long long>(output) * arguments.inputs;
    float sum = 0;
    for (int i = threadIdx.x % kWarp; i < arguments.inputs; i += kWarp) sum = fmaf(input[i], weight[i], sum);
    sum = warp_sum(sum);
    if (threadIdx.x % kWarp == 0) arguments.output[index] = sum + arguments.bias[output];
}

struct LinearInputGradientArguments {
    const float* output_gradient;   // [N, outputs]
    const float* weight;            // [outputs, inputs]
    float* input_gradient;          // [N, inputs]
    int batch;
    int inputs;
    int outputs;
    int accumulate;
};

extern "C" __global__ void __launch_bounds__(256) linear_input_gradient(const LinearInputGradientArguments arguments) {
    const long long index = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (index >= static_cast<long long>(arguments.batch) * arguments.inputs) return;
    const float* gradient = arguments.output_gradient + index / arguments.inputs * arguments.outputs;
    const float* weight = arguments.weight + index % arguments.inputs;
    float sum = 0;
#pragma unroll 4
    for (int output = 0; output < arguments.outputs; output++) {
        sum = fmaf(gradient[output], weight[static_cast<long long>(output) * arguments.inputs], sum);
    }
    arguments.input_gradient[index] = arguments.accumulate != 0 ? arguments.input_gradient[index] + sum : sum;
}

struct LinearWeightGradientArguments {
    const float* input;             // [N, inputs], or null where only the bias is wanted
    const float* output_gradient;   // [N, outputs]
    float* weight_gradient;         // [outputs, inputs] or null
    float* bias_gradient;           // [outputs] or null
    int batch;
    int inputs;
    int outputs;
    int padding;
};

extern "C" __global__ void __launch_bounds__(256) linear_weight_gradient(const LinearWeightGradientArguments arguments) {
    // Columns 0 to inputs - 1 are those of the weight, the last is the bias.
    const int columns = arguments.inputs + 1;
    const long long index = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (index >= static_cast<long long>(arguments.outputs) * columns) return;
    const int output = static_cast<int>(index / columns);
    const int column = static_cast<int>(index % columns);
    const float* gradient = arguments.output_gradient + output;
    float sum = 0;
    if (column < arguments.inputs) {
        if (arguments.weight_gradient == nullptr) return;
        const float* input = arguments.input + column;
#pragma unroll 4
        for (int image = 0; image < arguments.batch; image++) {
            const long long row = image;
            sum = fmaf(gradient[row * arguments.outputs], input[row * arguments.inputs], sum);
        }
        arguments.weight_gradient[static_cast<long long>(output) * arguments.inputs + column] = sum;
    } else if (arguments.bias_gradient != nullptr) {
        for (long long row = 0; row < arguments.batch; row++) sum += gradient[row * arguments.outputs];
        arguments.bias_gradient[output] = sum;
    }
}
